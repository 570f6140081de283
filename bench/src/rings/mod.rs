//! A daemon of many rings: what they cost while nothing happens, what one thread gets through at
//! how many of them and how evenly, and how soon all are served after an end of the data process.
//!
//! The front ends are in this process, and one thread drives all of them in turn.

mod copy;
mod daemon;
mod figures;
mod front;
mod load;

pub use figures::{Rate, Rings};

use crate::error::{Result, doing};
use crate::machine::finished;
use crate::requests::Plan;
use copy::Copies;
use daemon::{Server, descriptors, memory, threads};
use figures::{End, Held};
use front::Front;
use load::Side;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::Path;
use std::slice;
use std::time::{Duration, Instant};

/// Rings of the daemon in a quick run, at most.
const QUICK_RINGS: usize = 20;

/// Descriptors that suffice for the daemon.
const DESCRIPTORS: u64 = 1 << 17;

/// The time before and while idleness is measured.
const IDLE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(1);

/// Ends of the data process that may follow each other at once, and the pause where there are more:
/// the daemon gives up after five in a minute.
const ENDS_AT_ONCE: u32 = 4;
const BETWEEN_ENDS: Duration = Duration::from_secs(15);

/// How much `--measure rings` does.
pub struct Wanted {
    /// Rings of the daemon.
    pub rings: usize,
    /// How often its data process is killed.
    pub kills: u32,
    /// Few rings and few kills: whether it works.
    pub quick: bool,
}

/// Measures everything.
pub fn all(plan: &Plan, dir: &Path, wanted: &Wanted) -> Result<Rings> {
    let &Wanted { rings, kills, quick } = wanted;
    let (rings, kills) =
        if quick { (rings.min(QUICK_RINGS), kills.min(1)) } else { (rings, kills) };
    let limit = raise_limit();
    limit.map_err(|e| doing("raising the limit of open descriptors")(e.into()))?;
    let held_by_one = {
        let mut one = Server::many(plan, dir, 1)?;
        let _fronts = connect(&mut one)?;
        held(&one)?
    };
    let mut server = Server::many(plan, dir, rings)?;
    server.wait_until_served()?;
    let all_served = server.started().elapsed().as_secs_f64();
    let mut fronts = connect(&mut server)?;
    let connected = server.started().elapsed().as_secs_f64();
    let started_for = server.spent()?.iter().sum::<Duration>().as_secs_f64();
    let held = held(&server)?;
    let idle = idle(&server, if quick { SETTLE } else { IDLE })?;
    fronts.iter_mut().try_for_each(Front::walk_once)?;
    let rates = {
        let single = Server::single(plan, dir)?;
        let mut alone = Front::connect(&single.sockets()[0])?;
        alone.walk_once()?;
        let mut single = Side { server: &single, fronts: slice::from_mut(&mut alone) };
        let mut many = Side { server: &server, fronts: &mut fronts };
        let mut copies = Copies::new(dir, rings)?;
        load::rates(&mut many, &mut single, &mut copies, plan)?
    };
    let shares = {
        let mut many = Side { server: &server, fronts: &mut fronts };
        load::shares(&mut many, plan.rounds)?
    };
    let ends = (0..kills).map(|_| {
        if kills > ENDS_AT_ONCE {
            std::thread::sleep(BETWEEN_ENDS);
        }
        end(&server, &mut fronts)
    });
    let ends = ends.collect::<Result<Vec<_>>>()?;
    let started = [all_served, connected];
    Ok(Rings { count: rings, started, started_for, held, held_by_one, idle, rates, shares, ends })
}

/// Raises the limit of open descriptors, which the daemon inherits: a ring takes some dozens.
fn raise_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let enough = hard.max(DESCRIPTORS);
    // Beyond the hard limit only root may go.
    setrlimit(Resource::RLIMIT_NOFILE, enough, enough)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

/// Connects a front end to each ring, once all are served.
fn connect(server: &mut Server) -> Result<Vec<Front>> {
    server.wait_until_served()?;
    server.sockets().iter().map(|socket| Front::connect(socket)).collect()
}

/// Returns what the data process and the control process have, once nothing happens.
fn held(server: &Server) -> Result<[Held; 2]> {
    std::thread::sleep(SETTLE);
    let of = |process| -> Result<Held> {
        let (memory, threads) = (memory(process)?, threads(process)?);
        Ok(Held { memory, threads, descriptors: descriptors(process)? })
    };
    Ok([of(server.data_process()?)?, of(server.control_process())?])
}

/// Returns the part of one processor that both processes take while nothing happens.
fn idle(server: &Server, time: Duration) -> Result<f64> {
    let (start, before) = (Instant::now(), server.processor_time()?);
    std::thread::sleep(time);
    let spent = server.processor_time()?.saturating_sub(before);
    Ok(spent.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Kills the data process, and waits until everything is as it was.
fn end(server: &Server, fronts: &mut [Front]) -> Result<End> {
    let [_, before] = server.spent()?;
    let killed = server.kill_data_process()?;
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            server.wait_until_listed()?;
            Ok(killed.elapsed().as_secs_f64())
        });
        let outcome = fronts.iter_mut().try_for_each(Front::reconnect);
        let connected = killed.elapsed().as_secs_f64();
        let [data, control] = server.spent()?;
        let processor = (data + control.saturating_sub(before)).as_secs_f64();
        let all_served = finished(listing)?;
        // What the rings answer counts, not that they are connected.
        outcome.and_then(|()| fronts.iter_mut().try_for_each(Front::walk_once))?;
        Ok(End { served: all_served, connected, processor })
    })
}
