//! One ring's socket for front ends: who is accepted, and when a connection is ended by us.
//!
//! One front end is connected at a time. A disk that can be migrated has two meanwhile: the next one
//! is accepted once the first is beyond its handshake, and waits for its [`seat`](super::seat).

use crate::front_end::arrival::{Arrival, ShutDown, look};
use crate::front_end::connection::{Connection, Served};
use crate::front_end::failure::{Failure, system};
use crate::front_end::tenant::Tenant;
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

/// The socket, and who is connected. It handles what it is told of, and never waits.
pub struct Endpoint {
    served: Arc<Served>,
    listening: OwnedFd,
    /// The socket's name in messages.
    socket: String,
    /// The ring's.
    ring: String,
    /// The front ends that are connected, or about to be accepted, in the order of their arrival.
    guests: Vec<Guest>,
    /// No front end is accepted until then: a connection has failed.
    pause: Option<Instant>,
    /// Readable when a connection tells of itself.
    news: Arc<OwnedFd>,
    /// It was told to leave.
    leaves: bool,
    /// It was logged that the ring's memory is lost.
    lost: bool,
    /// The limit on each [`Line`].
    paces: [Pace; 3],
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
#[derive(Clone, Copy)]
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
        let (served, guests, pause, news) =
            (Arc::new(served), Vec::new(), None, Arc::new(new_event()?));
        let (leaves, lost, paces) = (false, false, Default::default());
        Ok(Self { served, listening, socket, ring, guests, pause, news, leaves, lost, paces })
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
        match (signal, self.guests.last()) {
            (Signal::Arrival, _) if self.pause.is_some() => false,
            (Signal::News | Signal::Loss, _) | (Signal::Arrival, None) => true,
            (Signal::Arrival, Some(guest)) => {
                // Before it is accepted, another one does not wait for it.
                guest.is_watched()
                    && !guest.told
                    && guest.connection.accepted().is_some_and(|accepted| {
                        let silent = !guest.heard() && accepted.at.elapsed() >= SILENCE;
                        guest.established() || silent
                    })
            }
        }
    }

    /// When it has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let guests = self.guests.iter().filter_map(Guest::deadline);
        guests.chain(self.pause).min()
    }

    /// Lets the front ends finish what they are saying, ends their connections, and then this
    /// endpoint: what [`handle`](Self::handle) or [`look_again`](Self::look_again) returns says
    /// when.
    pub fn leave(&mut self) {
        self.leaves = true;
        for guest in self.guests.iter_mut().filter(|guest| guest.is_watched()) {
            let (now, answered) = (Instant::now(), guest.connection.answered());
            guest.farewell = Some(Farewell { since: now, answered, next: now + QUIET });
        }
    }

    /// Whether it was told to leave, and has nothing to wait for.
    pub fn has_left(&self) -> bool {
        // A thread may wait in the kernel for the next front end, since another process has accepted
        // this one. It is left behind, and lets the next one go.
        let left_behind = |guest: &Guest| guest.ended && guest.connection.accepted().is_none();
        self.leaves && self.guests.iter().all(left_behind)
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
        self.pause = self.pause.filter(|until| now < *until);
        for guest in self.guests.iter_mut().filter(|guest| guest.farewell.is_some()) {
            guest.part(now);
        }
        let is_late = self.guests.last().is_some_and(|guest| {
            let accepted = guest.connection.accepted().filter(|_| guest.is_watched());
            accepted.is_some_and(|accepted| accepted.at.elapsed() >= HANDSHAKE_PATIENCE)
                && !guest.established()
        });
        if is_late && self.is_waited_for() {
            log::warn!("the front end does not say what it wants, and another one waits");
            if let Some(guest) = self.guests.last_mut() {
                guest.end();
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        matches!(look(self.listening.as_fd()), Ok(Arrival::Waiting))
    }

    fn arrival(&mut self) -> Option<End> {
        let found = match look(self.listening.as_fd()) {
            Ok(found) => found,
            Err(e) => return Some(Err(system("look for a front end")(e))),
        };
        let has_room = self.guests.len() < self.served.backend.most_front_ends();
        let Some(guest) = self.guests.last_mut() else {
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
            Arrival::Waiting if !guest.heard() => {
                if guest.end() {
                    self.say(Line::Silent);
                }
            }
            Arrival::Waiting if has_room => self.accept(),
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
            Ok(guest) => self.guests.push(guest),
            // It still waits: no busy loop.
            Err(e) => self.pause(&system("start a thread for a front end")(e)),
        }
    }

    fn start(&self) -> io::Result<Guest> {
        let connection = Arc::new(Connection::new(Arc::clone(&self.news)));
        let (served, ours) = (Arc::clone(&self.served), Arc::clone(&connection));
        let listening = self.listening.try_clone()?;
        let serve = move || scope::within(served.scope, || ours.serve(&served, listening));
        let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(serve)?;
        Ok(Guest { connection, thread, told: false, farewell: None, ended: false })
    }

    fn pause(&mut self, failure: &Failure) {
        self.served.log().leaves(Some(failure), false, false);
        self.pause = Some(Instant::now() + RETRY_PAUSE);
    }

    /// Takes note of the ends of connections, if they have come.
    fn news(&mut self) -> Option<End> {
        // An event that is not readable tells of nothing.
        let _ = nix::unistd::read(&self.news, &mut [0; 8]);
        let is_over = |guest: &mut Guest| guest.connection.is_over();
        let over: Vec<_> = self.guests.extract_if(.., is_over).collect();
        for guest in over {
            match guest.thread.join() {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => self.pause = Some(Instant::now() + RETRY_PAUSE),
                Err(_) => {
                    let panic = io::Error::other("it has panicked");
                    self.pause(&system("answer a front end")(panic));
                }
            }
            // There is room again for one that waits.
            self.guests.iter_mut().for_each(|guest| guest.told = false);
        }
        self.has_left().then_some(Ok(()))
    }

    fn loss(&mut self) {
        if self.served.losses.take_guest_lost() {
            for guest in self.guests.iter_mut().filter(|guest| guest.has_lost_memory()) {
                guest.end();
            }
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
        let most = self.served.backend.most_front_ends();
        match line {
            Line::Waits if most == 1 => {
                log::warn!(
                    "another front end waits: one is served at a time (--migratable lets the QEMU that a guest goes to connect beside it)"
                );
            }
            Line::Waits => log::warn!("another front end waits: {most} are connected"),
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
    fn tenant(&self) -> Option<&Tenant> {
        self.connection.accepted().map(|accepted| &*accepted.tenant)
    }

    fn heard(&self) -> bool {
        self.tenant().is_some_and(Tenant::heard)
    }

    fn established(&self) -> bool {
        self.tenant().is_some_and(Tenant::established)
    }

    fn has_lost_memory(&self) -> bool {
        self.tenant().is_some_and(Tenant::has_lost_memory)
    }

    /// When something is due, if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        if let Some(farewell) = &self.farewell {
            return Some(farewell.next);
        }
        if self.ended || self.established() {
            return None;
        }
        let silent_until = self.connection.accepted()?.at + SILENCE;
        let now = Instant::now();
        Some(if !self.heard() && now < silent_until { silent_until } else { now + HANDSHAKE_PAUSE })
    }

    /// Whether it may still be found to have to go.
    fn is_watched(&self) -> bool {
        !self.ended && self.farewell.is_none()
    }

    /// Ends the connection. Returns false if it is about to be over anyway.
    fn end(&mut self) -> bool {
        self.ended = true;
        self.farewell = None;
        self.connection.end()
    }

    /// Ends the connection, if the front end has nothing more to say for now.
    fn part(&mut self, now: Instant) {
        let Some(Farewell { since, answered: before, next }) = self.farewell else { return };
        if now < next {
            return;
        }
        let answered = self.connection.answered();
        // On a busy machine messages that have come can lie there for longer than that.
        let unread = || {
            self.tenant().is_some_and(|tenant| {
                let stream = tenant.stream().as_fd();
                matches!(wait_readable(&[stream], Some(Duration::ZERO)), Ok(Some(_)))
            })
        };
        let is_quiet = answered == before && !unread();
        if is_quiet || now.duration_since(since) >= HANDSHAKE_PATIENCE {
            self.end();
        } else {
            self.farewell = Some(Farewell { since, answered, next: now + QUIET });
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
