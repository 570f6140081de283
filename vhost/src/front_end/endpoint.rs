//! One ring's socket for front ends: who is accepted, and when a connection is ended by us.

use crate::front_end::arrival::{Arrival, ShutDown, look};
use crate::front_end::connection::{Accepted, Connection, Served};
use crate::front_end::failure::{Failure, system};
use ring_program::{Pace, scope};
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// A descriptor that tells an endpoint of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A front end waits, or the socket was shut down.
    Arrival,
    /// The front end was accepted, or its connection is over.
    News,
    /// Memory was lost.
    Loss,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Arrival, Self::News, Self::Loss];
}

/// The end of an endpoint, and why, if it was not told to leave.
pub type End = Result<(), Failure>;

/// The socket, and the front end that is connected. It handles what it is told of, and never waits.
pub struct Endpoint {
    served: Arc<Served>,
    listening: OwnedFd,
    /// The socket's name in messages.
    socket: String,
    /// The ring's.
    ring: String,
    state: State,
    /// Readable when a connection tells of itself.
    news: OwnedFd,
    /// It was told to leave.
    leaves: bool,
    /// It was logged that the ring's memory is lost.
    lost: bool,
    /// The limit on each [`Line`].
    paces: [Pace; 3],
}

enum State {
    /// No front end is connected.
    Idle,
    /// The same, after a connection that has failed: the next one is accepted then.
    Paused(Instant),
    /// A front end is connected, or about to be accepted.
    Connected(Guest),
}

/// A front end that is connected.
struct Guest {
    connection: Arc<Connection>,
    thread: JoinHandle<Result<bool, Failure>>,
    /// Everything about the listening socket was logged during this connection.
    told: bool,
    /// It is let finish what it is saying.
    farewell: Option<Farewell>,
    /// We have ended it.
    ended: bool,
}

/// The end of a connection that may be in its handshake: QEMU 7.2 never connects again after a
/// connection that ended in the middle of it.
struct Farewell {
    since: Instant,
    answered: u64,
    next: Instant,
}

impl Endpoint {
    /// Makes the endpoint of a listening socket, of which `socket` is the name in messages; `ring`
    /// is the ring's.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn new(
        served: Served,
        listening: OwnedFd,
        socket: String,
        ring: String,
    ) -> io::Result<Self> {
        let (served, state, news) = (Arc::new(served), State::Idle, new_event()?);
        let (leaves, lost, paces) = (false, false, Default::default());
        Ok(Self { served, listening, socket, ring, state, news, leaves, lost, paces })
    }

    /// The descriptor of a signal.
    pub fn fd(&self, signal: Signal) -> BorrowedFd<'_> {
        match signal {
            Signal::Arrival => self.listening.as_fd(),
            Signal::News => self.news.as_fd(),
            Signal::Loss => self.served.losses.fd(),
        }
    }

    /// Whether it wants to be told now of that signal.
    pub fn wants(&self, signal: Signal) -> bool {
        match (signal, &self.state) {
            (Signal::News | Signal::Loss, _) | (Signal::Arrival, State::Idle) => true,
            (Signal::Arrival, State::Paused(_)) => false,
            (Signal::Arrival, State::Connected(guest)) => {
                // Before it is accepted, another one does not wait for it.
                guest.is_watched()
                    && !guest.told
                    && guest.connection.accepted().is_some_and(|accepted| {
                        let silent = || !self.heard() && accepted.at.elapsed() >= SILENCE;
                        self.established() || silent()
                    })
            }
        }
    }

    /// When it has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let guest = match &self.state {
            State::Idle => return None,
            State::Paused(until) => return Some(*until),
            State::Connected(guest) => guest,
        };
        if let Some(farewell) = &guest.farewell {
            return Some(farewell.next);
        }
        if guest.ended || self.established() {
            return None;
        }
        let silent_until = guest.connection.accepted()?.at + SILENCE;
        let now = Instant::now();
        Some(if !self.heard() && now < silent_until { silent_until } else { now + HANDSHAKE_PAUSE })
    }

    /// Lets the front end finish what it is saying, ends its connection, and then this endpoint:
    /// what [`handle`](Self::handle) or [`look_again`](Self::look_again) returns says when.
    pub fn leave(&mut self) {
        self.leaves = true;
        if let State::Connected(guest) = &mut self.state
            && guest.is_watched()
        {
            let (now, answered) = (Instant::now(), guest.connection.answered());
            guest.farewell = Some(Farewell { since: now, answered, next: now + QUIET });
        }
    }

    /// Whether it was told to leave, and has nothing to wait for.
    pub fn has_left(&self) -> bool {
        self.leaves
            && match &self.state {
                State::Idle | State::Paused(_) => true,
                // The thread may wait in the kernel for the next front end, since another process
                // has accepted this one. It is left behind, and lets the next one go.
                State::Connected(guest) => guest.ended && guest.connection.accepted().is_none(),
            }
    }

    /// Handles a signal. Returns the end of this endpoint, if it has come.
    pub fn handle(&mut self, signal: Signal) -> Option<End> {
        scope::within(self.served.scope, || match signal {
            Signal::Arrival => self.arrival(),
            Signal::News => self.news(),
            Signal::Loss => {
                self.loss();
                None
            }
        })
    }

    /// Does what is due because of the time.
    pub fn look_again(&mut self) {
        scope::within(self.served.scope, || self.do_what_is_due());
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        match &mut self.state {
            State::Paused(until) if *until <= now => self.state = State::Idle,
            State::Idle | State::Paused(_) => {}
            State::Connected(guest) if guest.farewell.is_some() => guest.part(now, &self.served),
            State::Connected(guest) => {
                let is_late = |since: Instant| since.elapsed() >= HANDSHAKE_PATIENCE;
                let accepted = guest.connection.accepted().filter(|_| guest.is_watched());
                if accepted.is_some_and(|accepted| is_late(accepted.at))
                    && !self.served.backend.established()
                    && self.is_waited_for()
                {
                    log::warn!("the front end does not say what it wants, and another one waits");
                    self.let_go();
                }
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        matches!(look(self.listening.as_fd()), Ok(Arrival::Waiting))
    }

    fn established(&self) -> bool {
        self.served.backend.established()
    }

    fn heard(&self) -> bool {
        self.served.backend.heard()
    }

    fn let_go(&mut self) {
        if let State::Connected(guest) = &mut self.state {
            guest.end(&self.served);
        }
    }

    fn arrival(&mut self) -> Option<End> {
        let found = match look(self.listening.as_fd()) {
            Ok(found) => found,
            Err(e) => return Some(Err(system("look for a front end")(e))),
        };
        let State::Connected(guest) = &mut self.state else {
            return match found {
                Arrival::None => None,
                Arrival::Waiting => {
                    self.accept();
                    None
                }
                Arrival::ShutDown => Some(Err(self.shut_down())),
            };
        };
        match found {
            Arrival::None => {}
            Arrival::Waiting if !self.served.backend.heard() => {
                if guest.end(&self.served) {
                    self.say(Line::Silent);
                }
            }
            Arrival::Waiting => {
                guest.told = true;
                self.say(Line::Waits);
            }
            Arrival::ShutDown => {
                guest.told = true;
                self.say(Line::Last);
            }
        }
        None
    }

    fn shut_down(&self) -> Failure {
        ShutDown { name: self.socket.clone() }.into()
    }

    /// Has the front end that waits accepted and served, on a thread of its own: a message that is
    /// slow to come, or to answer, holds up nobody else.
    fn accept(&mut self) {
        match self.start() {
            Ok(guest) => self.state = State::Connected(guest),
            // It still waits: no busy loop.
            Err(e) => self.pause(&system("start a thread for a front end")(e)),
        }
    }

    fn start(&self) -> io::Result<Guest> {
        let connection = Arc::new(Connection::new(self.news.try_clone()?));
        let (served, ours) = (Arc::clone(&self.served), Arc::clone(&connection));
        let listening = self.listening.try_clone()?;
        let serve = move || scope::within(served.scope, || ours.serve(&served, listening));
        let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(serve)?;
        Ok(Guest { connection, thread, told: false, farewell: None, ended: false })
    }

    fn pause(&mut self, failure: &Failure) {
        self.served.log().leaves(Some(failure), false, false);
        self.state = State::Paused(Instant::now() + RETRY_PAUSE);
    }

    /// Takes note of the end of a connection, if it has come.
    fn news(&mut self) -> Option<End> {
        // An event that is not readable tells of nothing.
        let _ = nix::unistd::read(&self.news, &mut [0; 8]);
        let guest = match std::mem::replace(&mut self.state, State::Idle) {
            State::Connected(guest) if guest.connection.is_over() => guest,
            state => {
                self.state = state;
                return None;
            }
        };
        match guest.thread.join() {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => self.state = State::Paused(Instant::now() + RETRY_PAUSE),
            Err(_) => {
                let panic = io::Error::other("it has panicked");
                self.pause(&system("answer a front end")(panic));
            }
        }
        if self.leaves { Some(Ok(())) } else { None }
    }

    fn loss(&mut self) {
        if self.served.losses.take_guest_lost() {
            self.let_go();
        }
        if self.served.losses.region_lost() && !std::mem::replace(&mut self.lost, true) {
            log::error!(
                "{}: the file was truncated, or its medium cannot be read: every request fails from here on",
                self.ring
            );
        }
    }

    /// Logs a line that others can cause, at a limited rate.
    fn say(&mut self, line: Line) {
        if !self.paces[line as usize].due() {
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

impl Guest {
    /// Whether it may still be found to have to go.
    fn is_watched(&self) -> bool {
        !self.ended && self.farewell.is_none()
    }

    /// Ends the connection. Returns false if it is about to be over anyway.
    fn end(&mut self, served: &Served) -> bool {
        self.ended = true;
        self.farewell = None;
        self.connection.end(&served.backend)
    }

    /// Ends the connection, if the front end has nothing more to say for now.
    fn part(&mut self, now: Instant, served: &Served) {
        let Some(farewell) = &mut self.farewell else { return };
        if now < farewell.next {
            return;
        }
        let answered = self.connection.answered();
        // On a busy machine messages that have come can lie there for longer than that.
        let unread = || {
            self.connection.accepted().is_some_and(|Accepted { stream, .. }| {
                matches!(wait_readable(&[stream.as_fd()], Some(Duration::ZERO)), Ok(Some(_)))
            })
        };
        let is_quiet = answered == farewell.answered && !unread();
        if is_quiet || now.duration_since(farewell.since) >= HANDSHAKE_PATIENCE {
            self.end(served);
        } else {
            (farewell.answered, farewell.next) = (answered, now + QUIET);
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
