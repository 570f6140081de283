//! Load processes on the host, and killing them.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::{CreateOptions, OpenOptions, create, make_file};

use super::stream::{SOON, Stream};
use super::{Killed, Outcome, RING_BYTES, Result, in_a_folder, recipe, unsound};
use crate::load::Random;
use crate::{Daemon, binaries};

/// Start of either end of a ring on the host.
#[derive(Debug)]
pub(super) struct HostLoad {
    /// Address of the ring.
    pub address: String,
    /// Folder of the logs.
    pub folder: PathBuf,
    /// Sector size of a file.
    pub sector_size: Option<SectorSize>,
}

impl HostLoad {
    /// Starts the next run of `side`.
    pub fn start(&self, side: Side, stream: &mut Stream) -> Result<Daemon> {
        let run = stream.next_run();
        let mut command = binaries::programs()?.tool("crashload");
        command.args([verb(side), &self.address, "--run", &run.to_string()]);
        command.args(["--seed", &stream.recipe().seed.to_string()]);
        if let Some(size) = self.sector_size {
            command.args(["--sector-size", &size.get().to_string()]);
        }
        command.current_dir(&self.folder);
        let daemon = Daemon::spawn(&format!("{side}-{run}"), command, &self.folder)?;
        stream.follow(side, daemon.stdout_path());
        Ok(daemon)
    }

    /// Kills runs of `side` this many times, some while they attach, and leaves the next one
    /// running. `process` is the present one.
    pub fn kill_again_and_again(
        &self,
        side: Side,
        kills: u32,
        process: &mut Daemon,
        stream: &mut Stream,
        random: &mut Random,
        killed: Killed<'_>,
    ) -> Result<Vec<Duration>> {
        let mut stalls = Vec::new();
        let mut died = None;
        for _ in 0..kills {
            if random.one_in(4) {
                thread::sleep(Duration::from_micros(random.below(4000)));
            } else {
                stream.wait_for_progress(side, 0, 1)?;
                stalls.extend(died.take().map(|at: Instant| at.elapsed()));
                thread::sleep(Duration::from_micros(5000 + random.below(55_000)));
            }
            kill(process)?;
            died.get_or_insert_with(Instant::now);
            *process = self.start(side, stream)?;
            killed();
        }
        stream.wait_for_progress(side, 0, 1)?;
        stalls.extend(died.map(|at| at.elapsed()));
        Ok(stalls)
    }
}

/// Returns the load program's name of the end.
pub(super) fn verb(side: Side) -> &'static str {
    match side {
        Side::Producer => "produce",
        Side::Consumer => "consume",
    }
}

/// Kills a process, which must have been alive.
pub(super) fn kill(process: &mut Daemon) -> Result<()> {
    let status = process.kill()?;
    if status.signal() == Some(SIGKILL) {
        return Ok(());
    }
    unsound(format!("a process was to be killed and had ended: {status}\n{}", process.stderr()))
}

/// Asks a process to come to its end, which it must do in good order.
pub(super) fn end(process: &mut Daemon) -> Result<()> {
    let status = process.terminate(SOON)?;
    if status.success() {
        return Ok(());
    }
    unsound(format!("a process ended badly: {status}\n{}", process.stderr()))
}

/// Kills of one end of a ring in a file, whose other end is on the host too.
pub(super) fn on_a_file(
    victim: Side,
    kills: u32,
    sector_size: SectorSize,
    killed: Killed<'_>,
    random: &mut Random,
) -> Result<Outcome> {
    in_a_folder(|folder| {
        let path = folder.join("ring");
        make_file(&path, RING_BYTES).map_err(crate::Error::file("creating", &path))?;
        let device = OpenOptions::default().sector_size(sector_size).open(&path);
        create(&device?, CreateOptions::default())?;
        let load = HostLoad {
            address: path.display().to_string(),
            folder: folder.to_owned(),
            sector_size: Some(sector_size),
        };
        let mut stream = Stream::new(recipe(random));
        let mut producer = load.start(Side::Producer, &mut stream)?;
        let mut consumer = load.start(Side::Consumer, &mut stream)?;
        let process = match victim {
            Side::Producer => &mut producer,
            Side::Consumer => &mut consumer,
        };
        let stalls =
            load.kill_again_and_again(victim, kills, process, &mut stream, random, killed)?;
        end(&mut producer)?;
        end(&mut consumer)?;
        Ok(Outcome { tally: stream.judge()?, stalls })
    })
}
