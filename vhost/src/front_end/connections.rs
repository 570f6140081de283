//! Serving front ends, one connection after the other.

use crate::data_path::counters::Counters;
use crate::data_path::fault::Losses;
use crate::front_end::accept::{self, Arrival, ShutDown, accept};
use crate::front_end::backend::Backend;
use crate::front_end::failure::{Failure, system};
use crate::front_end::handler::Handler;
use ring_program::Pace;
use ring_program::Stop;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError, Listener};

/// How long a front end may take to ask for the disk's properties while another one waits. QEMU
/// asks within milliseconds.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a front end may send nothing at all while another one waits. A front end sends its
/// first message when it has connected, and so mostly before it is accepted.
const SILENCE: Duration = Duration::from_millis(200);

/// The time between two looks at a handshake that is not over.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(1);

/// The time without a message after which a front end is in no handshake: it sends one message
/// after the other.
const QUIET: Duration = Duration::from_millis(100);

/// The pause after a connection that ended with an error.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The listening socket, and what its connections are served with.
pub struct Connections {
    backend: Arc<Backend>,
    listening: OwnedFd,
    stop: Stop,
    losses: Losses,
    counters: Arc<Counters>,
    ring: String,
    /// The limit on each [`Line`].
    paces: Mutex<[Pace; 3]>,
}

impl Connections {
    /// Serves connections of a listening socket by `backend` until `stop`. `ring` is the ring's
    /// name in the log.
    pub fn new(
        backend: Arc<Backend>,
        listening: OwnedFd,
        stop: Stop,
        losses: Losses,
        counters: Arc<Counters>,
        ring: String,
    ) -> Self {
        Self { backend, listening, stop, losses, counters, ring, paces: Mutex::default() }
    }

    /// Serves one front end after the other until a stop is asked for. `name` is the listening
    /// socket's, for messages.
    ///
    /// # Errors
    ///
    /// Another process has shut the socket down, and the last front end has left; or the socket
    /// cannot be waited for.
    pub fn serve(&self, name: &str) -> Result<(), Failure> {
        let mut paces = [Pace::default(); 2];
        // Why the last connection has failed, once that is logged.
        let mut said: Option<String> = None;
        while !self.stop.requested() {
            wait_readable(&[self.stop.fd(), self.listening.as_fd()], None)
                .map_err(system("wait for a front end"))?;
            if self.stop.requested() {
                break;
            }
            match self.look().map_err(system("look for a front end"))? {
                Arrival::None => continue,
                Arrival::Waiting => {}
                Arrival::ShutDown => return Err(ShutDown { name: name.to_owned() }.into()),
            }
            // Connections that follow each other quickly are counted, and not logged each time.
            let (mut has_come, mut told) = (false, false);
            let reads = self.counters.reads.get();
            let outcome = self.serve_next(|| {
                self.counters.connections.count();
                has_come = true;
                told = said.is_none() && paces[0].due();
                if told {
                    log::info!("a front end has come");
                }
            });
            self.counters.departures.add(u64::from(has_come));
            match outcome {
                Ok(()) => {
                    if told {
                        log::info!("the front end has left");
                    }
                    if self.counters.reads.get() > reads {
                        said = None;
                    }
                }
                Err(e) => {
                    let words = e.to_string();
                    if said.as_ref() != Some(&words) && paces[1].due() {
                        log::warn!("the front end was let go: {words} (said once)");
                        said = Some(words);
                    }
                    // A front end that could not be accepted still waits: no busy loop.
                    wait_readable(&[self.stop.fd()], Some(RETRY_PAUSE)).map_err(system("wait"))?;
                }
            }
        }
        Ok(())
    }

    /// Serves the front end that waits, if one still does, until its connection and its memory are
    /// gone.
    ///
    /// # Errors
    ///
    /// Why the connection has failed.
    pub fn serve_one(&self) -> Result<(), Failure> {
        self.serve_next(|| {})
    }

    /// Does the work of [`serve_one`](Self::serve_one). Calls `come` once the front end is
    /// accepted.
    fn serve_next(&self, come: impl FnOnce()) -> Result<(), Failure> {
        let outcome = self.connection(come);
        self.backend.disconnect();
        self.losses.forget_guest();
        outcome
    }

    fn look(&self) -> io::Result<Arrival> {
        accept::look(self.listening.as_fd())
    }

    /// Serves one front end until it leaves, or has to be ended by us.
    fn connection(&self, come: impl FnOnce()) -> Result<(), Failure> {
        let backend = &self.backend;
        let handler = Handler::new(Arc::clone(backend));
        let handler =
            Arc::new(Mutex::new(handler.map_err(|e| system("make a queue")(io::Error::other(e)))?));
        let start = |listener: &mut Listener| loop {
            // Not blocking, and nobody waits: the call is made again.
            if let Some(stream) = listener.accept()? {
                return Ok::<_, VhostUserError>(stream);
            }
        };
        let accepted = accept(self.listening.as_fd(), self.stop.fd(), start);
        let Some(stream) = accepted.map_err(system("accept a front end"))? else { return Ok(()) };
        let stream = stream?;
        come();
        let over = new_event().map_err(|e| system("make an event")(e.into()))?;
        let connection = stream.try_clone().map_err(system("duplicate a descriptor"))?;
        let (ended, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let end = || {
            backend.close();
            ended.store(true, Ordering::Release);
            // Nothing to shut down if the front end has done so.
            let _ = connection.shutdown(Shutdown::Both);
        };
        let mut messages = BackendReqHandler::from_stream(stream, handler);
        let outcome = std::thread::scope(|scope| {
            let watch = || {
                if self.watch(over.as_fd(), connection.as_fd(), &answered) {
                    end();
                }
            };
            let watching = std::thread::Builder::new().name("front end".to_owned());
            let watching = watching.spawn_scoped(scope, watch);
            if watching.is_err() {
                // A stop would go unnoticed: this connection ends, and the front end may connect
                // again.
                end();
            }
            // A thread of its own: a panic ends this connection alone.
            let answer = || loop {
                if let Err(e) = messages.handle_request() {
                    return e;
                }
                answered.fetch_add(1, Ordering::Relaxed);
            };
            let answering = std::thread::Builder::new().name("vhost-user".to_owned());
            let answering = answering.spawn_scoped(scope, answer);
            let outcome = answering
                .and_then(|thread| thread.join().map_err(|_| io::Error::other("it has panicked")))
                .map_err(system("answer a front end"));
            // The counter of a fresh event takes a one.
            let _ = nix::unistd::write(&over, &1u64.to_ne_bytes());
            watching.map_err(system("start a thread for a front end")).and(outcome)
        })?;
        match outcome {
            // The usual end of a connection, and the one that we have brought about.
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_) => Ok(()),
            _ if ended.load(Ordering::Acquire) => Ok(()),
            e => Err(backend.misfit(&e).map_or_else(|| e.into(), Failure::Misfit)),
        }
    }

    /// Waits until the connection is over (false), or has to be ended by us (true). `answered` is
    /// the number of messages of `connection` that were answered.
    fn watch(
        &self,
        over: BorrowedFd<'_>,
        connection: BorrowedFd<'_>,
        answered: &AtomicU64,
    ) -> bool {
        let backend = &self.backend;
        let start = Instant::now();
        // Whether everything about the listening socket was logged during this connection.
        let mut told = false;
        loop {
            let (established, silent) = (backend.established(), !backend.heard());
            // Lost memory comes first: it is reported also if the connection is over at the same
            // time.
            let mut waited = vec![self.losses.fd(), over, self.stop.fd()];
            let early = SILENCE.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let makes_way = silent && early.is_none();
            if (established || makes_way) && !told {
                waited.push(self.listening.as_fd());
            }
            let timeout = match early {
                _ if established => None,
                Some(left) if silent => Some(left),
                _ => Some(HANDSHAKE_PAUSE),
            };
            match wait_readable(&waited, timeout) {
                Ok(Some(0)) => {
                    if self.losses.take_guest_lost() {
                        log::error!(
                            "the front end has taken back memory that it shared: it is let go"
                        );
                        return true;
                    }
                    log::error!(
                        "{}: the file was truncated, or its medium cannot be read: every request fails from here on",
                        self.ring
                    );
                }
                Ok(Some(1)) => return false,
                Ok(Some(2)) => {
                    // The front end is served meanwhile.
                    backend.retire_signals();
                    outlast_handshake(over, connection, answered);
                    return true;
                }
                Ok(Some(_)) => match self.look() {
                    Ok(Arrival::None) => {}
                    Ok(Arrival::Waiting) if makes_way => {
                        // The front end's first message may have come meanwhile.
                        if !backend.heard() {
                            self.say(Line::Silent);
                            return true;
                        }
                    }
                    Ok(Arrival::Waiting) => {
                        told = true;
                        self.say(Line::Waits);
                    }
                    Ok(Arrival::ShutDown) => {
                        told = true;
                        self.say(Line::Last);
                    }
                    Err(e) => return unsupervised(&e),
                },
                Ok(None) if !established && start.elapsed() >= HANDSHAKE_PATIENCE => {
                    if matches!(self.look(), Ok(Arrival::Waiting)) {
                        log::warn!(
                            "the front end does not say what it wants, and another one waits"
                        );
                        return true;
                    }
                }
                Ok(None) => {}
                Err(e) => return unsupervised(&e),
            }
        }
    }

    /// Logs a line that others can cause, at a limited rate.
    fn say(&self, line: Line) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if !paces[line as usize].due() {
            return;
        }
        match line {
            Line::Waits => log::warn!("another front end waits: one is served at a time"),
            Line::Silent => {
                log::warn!("a front end that says nothing was let go: another one waits");
            }
            Line::Last => log::error!(
                "another process has shut the socket for front ends down: the backend ends when this front end leaves"
            ),
        }
    }
}

/// Waits until the front end has nothing more to say for now: QEMU 7.2 never connects again after a
/// connection that ended in the middle of its handshake.
fn outlast_handshake(over: BorrowedFd<'_>, connection: BorrowedFd<'_>, answered: &AtomicU64) {
    let start = Instant::now();
    while start.elapsed() < HANDSHAKE_PATIENCE {
        let before = answered.load(Ordering::Relaxed);
        let ended = wait_readable(&[over], Some(QUIET));
        // On a busy machine messages that have come can lie there for longer than that.
        let unread = || matches!(wait_readable(&[connection], Some(Duration::ZERO)), Ok(Some(_)));
        let is_quiet = answered.load(Ordering::Relaxed) == before && !unread();
        if !matches!(ended, Ok(None)) || is_quiet {
            return;
        }
    }
}

/// A kind of log line about connections.
#[derive(Clone, Copy)]
enum Line {
    /// A second front end waits.
    Waits,
    /// A silent front end's connection was closed for it.
    Silent,
    /// No other front end can connect.
    Last,
}

/// Logs that a connection is served without the thread that would end it for a stop.
fn unsupervised(error: &io::Error) -> bool {
    log::error!("a front end is served without supervision: {error}");
    false
}
