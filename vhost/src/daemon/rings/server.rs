//! The control process, from start to end.

use crate::daemon::failure::{Failure, system};
use crate::daemon::metrics;
use crate::daemon::rings::manager::Manager;
use crate::daemon::rings::messages::{Begin, VERSION};
use crate::daemon::rings::names;
use crate::daemon::rings::options::{ControlSocket, Options};
use crate::daemon::rings::preparations::{PATIENCE, patiently};
use crate::daemon::rings::reexec::{KeptSockets, TakenOver, TakenRing};
use crate::daemon::rings::room::Room;
use crate::daemon::rings::varlink::Control;
use crate::daemon::server::expect_proc;
use crate::daemon::server::take;
use crate::daemon::sockets::Listening;
use nix::sys::socket::SockType;
use ring_program::{ServiceManager, Stop, descriptors, set_up_signals};
use shared_block_ring::wait::wait_readable;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause before an order is sent again that the data process had no room for.
const SEND_PAUSE: Duration = Duration::from_millis(5);

/// Serves the rings of a folder until SIGTERM or SIGINT. Everything that was answered is then in
/// the rings, and durable. `manager` is told when the rings that can be served are.
///
/// # Errors
///
/// Why the daemon could not start or go on, or what is lost of a ring at its end.
pub fn run(options: Options, service: &Arc<ServiceManager>) -> Result<(), Failure> {
    expect_proc()?;
    let stop = Stop::except_on_hangup().map_err(system("set up signals"))?;
    let hangup = Stop::on([libc::SIGHUP]).map_err(system("set up signals"))?;
    // Behind the handlers: the program before this one may have left signals waiting.
    set_up_signals().map_err(system("set up signals"))?;
    let limit = descriptors::raise().map_err(system("raise the limit of descriptors"))?;
    log::debug!("at most {limit} descriptors");
    ring_program::stderr::release();
    let TakenOver { rings: added, sockets, client, stops } = TakenOver::from_environment()?;
    if stops {
        stop.asker().map_err(system("duplicate a descriptor"))?();
    }
    // First: where the control process of another daemon listens, that one has the rings.
    let control = options.control.as_ref().map(|socket| listen(socket, &sockets));
    let mut control = control.transpose()?;
    let Options { metrics, inherited_metrics, identity, .. } = &options;
    let listen_there = || metrics::listen(metrics, inherited_metrics, *identity, take);
    let metrics = patiently(PATIENCE, listen_there)?;
    let offered = metrics::names(&metrics);
    let begin = Begin {
        version: VERSION,
        workers: options.workers,
        cpus: options.cpus,
        identity: options.identity.map(|who| (who.uid.as_raw(), who.gid.as_raw())),
        confined: options.confined,
        log_format: options.log_format.to_string(),
        metrics: metrics.len(),
    };
    let mut rings = options.folder.read().map_err(Failure::Configuration)?;
    for TakenRing { name, text, passed } in added {
        rings.entry(name).or_insert_with(|| options.folder.added(text, passed));
    }
    // The data process has the same limit: it inherits this one's.
    let room = Room {
        rings: options.max_rings,
        memory: options.max_memory,
        descriptors: limit,
        threads: begin.threads(),
    };
    let mut manager = Manager::new(options.folder, begin, room, metrics, sockets.clone())?;
    manager.has_passed_sockets = !options.inherited_metrics.is_empty();
    let waits = control.as_mut().zip(client).map(|(control, client)| control.take_over(client));
    manager.upgraded = waits.transpose().map_err(system("serve the control socket"))?;
    let mut server = Server { manager, control, sockets, offered, stop, hangup };
    for (name, configured) in rings {
        server.manager.add(&name, configured, PATIENCE);
    }
    let outcome = server.serve(service).and_then(|()| server.follow());
    service.stopping("making everything durable");
    let Server { manager, control, .. } = server;
    let finished = manager.finish();
    drop(control);
    outcome.and(finished)?;
    log::info!("stopped: everything answered is durable");
    Ok(())
}

fn listen(socket: &ControlSocket, kept: &KeptSockets) -> Result<Control, Failure> {
    let ControlSocket { path, access, callers } = socket;
    let failure = |source| Failure::Socket { name: path.display().to_string(), source };
    let make = || Listening::on(path, SockType::Stream, access);
    let listening = kept.take(path).map_or_else(make, Ok).map_err(failure)?;
    Control::new(listening, callers.clone()).map_err(failure)
}

struct Server {
    manager: Manager,
    control: Option<Control>,
    /// Sockets of the program before this one, for the rings of the start.
    sockets: KeptSockets,
    /// The addresses of the metrics, for the log.
    offered: String,
    stop: Stop,
    hangup: Stop,
}

impl Server {
    fn serve(&mut self, service: &ServiceManager) -> Result<(), Failure> {
        let mut names = names::Watch::start().map_err(system("start a thread"))?;
        // What the service manager was told last, once the rings of the start are served.
        let mut told: Option<String> = None;
        let mut alive = service.interval().map(|interval| Instant::now() + interval);
        loop {
            match &told {
                None if self.manager.is_settled() => {
                    let status = self.status();
                    let confined = &self.manager.plane.confinement;
                    log::info!("{status}; the file system is {confined}{}", self.offered);
                    service.ready(&status);
                    self.sockets.clear();
                    told = Some(status);
                }
                Some(last) if *last != self.status() => {
                    let status = self.status();
                    service.status(&status);
                    told = Some(status);
                }
                _ => {}
            }
            if alive.is_some_and(|at| at <= Instant::now()) {
                service.alive();
                alive = service.interval().map(|interval| Instant::now() + interval);
            }
            self.answer()?;
            names.watch(&self.manager.members);
            self.wait(&names, alive)?;
            if self.stop.requested() {
                return Ok(());
            }
            if self.hangup.take()
                && let Err(e) = self.manager.reload(None)
            {
                log::error!("SIGHUP: {}", e.parameters["reason"]);
            }
            self.manager.plane.flush();
            self.manager.take_prepared();
            self.manager.take_news()?;
            if self.manager.leaves {
                return Ok(());
            }
            while readable(self.manager.plane.files_fd()) {
                if self.manager.open_file().is_err() {
                    break;
                }
            }
            for (number, displaced) in names.changes() {
                self.manager.displaced(number, displaced);
            }
            self.manager.look_again();
            let calls = match &mut self.control {
                Some(control) => control.turn().map_err(system("serve the control socket"))?,
                None => Vec::new(),
            };
            for call in calls {
                self.manager.call(call);
            }
        }
    }

    /// Becomes another program, if that is asked for and the data process has ended. Returns only
    /// if not.
    fn follow(&mut self) -> Result<(), Failure> {
        let Some((program, client, mut left)) = self.manager.follower() else { return Ok(()) };
        if let Some(control) = &self.control {
            left.sockets.push(control.listening());
            left.client = control.connection(client);
        }
        left.stop = Some(self.stop.fd());
        Err(left.become_program(&program))
    }

    fn status(&self) -> String {
        let served = self.manager.members.values().filter(|member| member.is_served()).count();
        let (all, threads) = (self.manager.members.len(), self.manager.threads());
        format!("serving {served} of {all} rings by {threads} threads")
    }

    /// Sends the answers that are due, and carries out what their clients have called next.
    fn answer(&mut self) -> Result<(), Failure> {
        self.manager.close_inquiries();
        while let Some((client, answer)) = self.manager.take_answer() {
            if let Some(control) = &mut self.control {
                let more = control.answer(client, &answer);
                let more = more.map_err(system("serve the control socket"))?;
                for call in more {
                    self.manager.call(call);
                }
            }
        }
        Ok(())
    }

    fn wait(&self, names: &names::Watch, alive: Option<Instant>) -> Result<(), Failure> {
        let plane = &self.manager.plane;
        let mut waited = vec![
            self.stop.fd(),
            self.hangup.fd(),
            plane.news_fd(),
            plane.files_fd(),
            self.manager.prepared_fd(),
            names.fd(),
        ];
        waited.extend(self.control.as_ref().map(Control::fd));
        let now = Instant::now();
        let due = self.manager.deadline().into_iter().chain(alive).min();
        let left = due.map(|at| at.saturating_duration_since(now));
        let unsent = plane.has_unsent().then_some(SEND_PAUSE);
        let left = left.into_iter().chain(unsent).min();
        wait_readable(&waited, left).map(drop).map_err(system("wait for orders"))
    }
}

fn readable(fd: impl AsFd) -> bool {
    matches!(wait_readable(&[fd.as_fd()], Some(Duration::ZERO)), Ok(Some(_)))
}
