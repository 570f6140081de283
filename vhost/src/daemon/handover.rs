//! Handing the region to processes on the host: one with a role, others without.

use crate::daemon::clients::{Client, Clients, PATIENCE, Silent, State, TurnedAway};
use crate::daemon::condition::{Condition, Fault};
use crate::daemon::failure::{Failure, system};
use crate::daemon::peer::{Admission, Peer};
use crate::daemon::sockets::Listening;
use crate::data_path::counters::Counters;
use crate::front_end::accept::{Arrival, ShutDown, look};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, accept4};
use ring_program::Pace;
use shared_block_ring::device::RangeLock;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::handover::{
    Answer, Hello, Reply, Request, Role, VERSION, receive_words, send,
};
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything that is handed over.
pub struct Estate {
    /// The region; every client gets an open file description of its own.
    pub region: File,
    /// The ring's geometry.
    pub geometry: Geometry,
    /// The guest's role; the host may have the other.
    pub guest: Side,
    /// Whether every write of the guest is judged.
    pub guarded: bool,
    /// The page of both bells.
    pub page: File,
    /// The event that wakes the process on the host.
    pub to_host: OwnedFd,
    /// The event that wakes the backend.
    pub to_backend: OwnedFd,
    /// The counters that diagnostics show.
    pub counters: Arc<Counters>,
    /// Whether something is wrong with the ring, which clients are told with the counters.
    pub condition: Arc<Condition>,
    /// The users that may have the region.
    pub admission: Admission,
    /// Sets `suspend` in sector 2.
    pub suspend: Suspend,
}

/// Sets `suspend` in sector 2. Returns false if that has to be tried again; an error in words.
pub type Suspend = Box<dyn Fn(bool) -> Result<bool, String> + Send>;

/// The thread that serves the consumer socket.
pub struct Handover {
    stop: OwnedFd,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Handover {
    /// Serves clients of `listening` until dropped. Calls `failed` if that cannot go on.
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn start(
        listening: Listening,
        estate: Estate,
        failed: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = new_event()?;
        let stopped = stop.try_clone()?;
        let serve = move || {
            let outcome = serve(&listening, &estate, stopped.as_fd());
            if outcome.is_err() {
                failed();
            }
            outcome
        };
        let thread = std::thread::Builder::new().name("handover".to_owned()).spawn(serve)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// Why the thread could not go on serving.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        match self.thread.take() {
            Some(thread) if nix::unistd::write(&self.stop, &1u64.to_ne_bytes()).is_ok() => {
                // A panic there has been reported on standard error.
                thread.join().unwrap_or(Ok(()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        // An error is returned by `finish`; here nobody wants it.
        let _ = self.end();
    }
}

/// Runs the thread: it never waits for one client, but for all of them.
fn serve(listening: &Listening, estate: &Estate, stop: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut clients = Clients::default();
    let mut turned_away = TurnedAway::default();
    let mut lost = Pace::default();
    loop {
        let now = Instant::now();
        for late in clients.expired(now) {
            turned_away.note(&late.peer, &Silent::Late, &estate.counters);
        }
        // Clients come before new connections: connecting all the time delays no client's request.
        let mut waited = vec![stop];
        waited.extend(clients.all().iter().map(|client| client.socket.as_fd()));
        waited.push(listening.fd().as_fd());
        let timeout = clients.deadline().map(|deadline| deadline.saturating_duration_since(now));
        let readable = wait_readable(&waited, timeout).map_err(system("wait for clients"))?;
        let index = match readable {
            None => continue,
            Some(0) => return Ok(()),
            Some(index) => index - 1,
        };
        let mut comes = index == clients.all().len();
        if !comes {
            // It is appended behind the others: no client delays another one without end.
            let mut client = clients.take(index);
            // A new connection does not wait for the last request of a client.
            comes = matches!(client.state, State::Served(_));
            let stays = match client.state {
                // A client with a role sends nothing more: its connection is closed.
                State::Served(Some(_)) => false,
                State::Served(None) => estate.oblige(&client).is_ok(),
                State::New(_) | State::Unwanted(..) => {
                    let refused = match estate.greet(&mut client, clients.all()) {
                        Ok(refused) => refused,
                        Err(e) => Some(e.to_string()),
                    };
                    if let Some(reason) = &refused {
                        turned_away.note(&client.peer, reason, &estate.counters);
                    }
                    refused.is_none()
                }
            };
            if stays {
                make_way(&mut clients, client, &mut turned_away, estate);
            }
        }
        if comes {
            match look(listening.fd().as_fd()).map_err(system("look for clients"))? {
                Arrival::None => {}
                Arrival::Waiting => match accept(listening, estate) {
                    Ok(client) => make_way(&mut clients, client, &mut turned_away, estate),
                    Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
                    Err(e) => {
                        if lost.due() {
                            log::warn!("a client of the consumer socket was lost: {e}");
                        }
                        // Out of descriptors, perhaps: the connection stays in the backlog, without
                        // a busy loop.
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                },
                Arrival::ShutDown => {
                    let name = listening.name().to_owned();
                    return Err(ShutDown { name }.into());
                }
            }
        }
    }
}

/// Adds a client, or adds it again, and closes the connection that has to go for it.
fn make_way(clients: &mut Clients, client: Client, turned_away: &mut TurnedAway, estate: &Estate) {
    if let Some((gone, why)) = clients.add(client) {
        turned_away.note(&gone.peer, &why, &estate.counters);
    }
}

fn accept(listening: &Listening, estate: &Estate) -> nix::Result<Client> {
    // The connection of a client that does not read its answers is closed, not waited for.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = accept4(listening.fd().as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let peer = Peer::of(socket.as_fd())?;
    let deadline = Instant::now() + PATIENCE;
    let state = match estate.admission.refusal(&peer) {
        None => State::New(deadline),
        Some(reason) => State::Unwanted(deadline, reason),
    };
    Ok(Client { socket, peer, state })
}

/// What a client gets: the answer, the region, and the role that its lock is for.
type Gift = (Answer, File, Option<Side>);

fn refusal(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned(), held_by: None, held: false }
}

impl Estate {
    /// Receives a client's request and answers it. Returns why it was refused, if it was.
    fn greet(&self, client: &mut Client, others: &[Client]) -> io::Result<Option<String>> {
        // The request is read in any case: if the socket is closed with unread data, the client may
        // not get the answer.
        let hello = receive_words::<Hello>(client.socket.as_fd())?;
        let answered = match &client.state {
            State::Unwanted(_, reason) => Err(refusal(reason)),
            _ => self.answer(&hello, others)?,
        };
        match answered {
            Ok((answer, region, side)) => {
                let descriptors = [
                    region.as_fd(),
                    self.page.as_fd(),
                    self.to_host.as_fd(),
                    self.to_backend.as_fd(),
                ];
                // A client without a role wakes nobody, and gets the region alone.
                let count = if side.is_some() { descriptors.len() } else { 1 };
                send(client.socket.as_fd(), &answer, &descriptors[..count])?;
                client.state = State::Served(side);
                log::debug!("process {} has the region", client.peer.pid);
                Ok(None)
            }
            Err(answer) => {
                send(client.socket.as_fd(), &answer, &[])?;
                match answer {
                    Answer::Refused { reason, .. } => Ok(Some(reason)),
                    Answer::Welcome { .. } => Ok(None),
                }
            }
        }
    }

    /// Returns the answer to a client and the region for it; or the refusal.
    fn answer(&self, hello: &Hello, others: &[Client]) -> io::Result<Result<Gift, Answer>> {
        if hello.version != VERSION {
            let text = format!(
                "version {} of the hand-over is not known here, {VERSION} is",
                hello.version
            );
            return Ok(Err(refusal(&text)));
        }
        let side = match hello.role {
            Role::Control => None,
            Role::Producer => Some(Side::Producer),
            Role::Consumer => Some(Side::Consumer),
        };
        if side == Some(self.guest) {
            let text = format!("the guest is the {} of this ring", self.guest);
            return Ok(Err(refusal(&text)));
        }
        let Some(side) = side else {
            return Ok(Ok((self.welcome(), reopen_to_read(&self.region)?, None)));
        };
        let region = reopen(&self.region)?;
        // The lock belongs to the open file description that the client gets, and dies with it.
        let Some(lock) = RangeLock::try_role(region.as_fd(), self.geometry, side)? else {
            // The holder, if it is a client. `/proc` would show others, but the sandbox forbids to
            // look there.
            let holds =
                |other: &&Client| matches!(other.state, State::Served(Some(of)) if of == side);
            // The holders before the last one have given the role back.
            let held_by = others.iter().rfind(holds).map(|other| other.peer.pid);
            let reason = format!("the ring has a {side} already");
            return Ok(Err(Answer::Refused { reason, held_by, held: true }));
        };
        lock.leave();
        Ok(Ok((self.welcome(), region, Some(side))))
    }

    fn welcome(&self) -> Answer {
        let mut counters = self.counters.to_json();
        counters["fault"] = self.condition.fault().map(Fault::words).into();
        Answer::Welcome {
            sector_size: self.geometry.sector_size().get(),
            sectors: self.geometry.sectors(),
            guest: self.guest.into(),
            guarded: self.guarded && self.guest == Side::Producer,
            counters,
        }
    }

    /// Carries out the request of a client without a role. After an error the connection is closed.
    fn oblige(&self, client: &Client) -> io::Result<()> {
        let Request::Suspend(suspend) = receive_words(client.socket.as_fd())?;
        let reply = match (self.suspend)(suspend) {
            Ok(true) => {
                self.counters.suspends.add(u64::from(suspend));
                Reply::Done
            }
            Ok(false) => Reply::Busy,
            Err(reason) => Reply::Failed(reason),
        };
        send(client.socket.as_fd(), &reply, &[])
    }
}

/// Opens a file again, for an open file description of its own: a duplicate would share locks and
/// write-back errors.
pub fn reopen(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).open(path)
}

/// Opens a file again for reading alone: nothing can change the file through it, not even
/// `fallocate`.
fn reopen_to_read(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
