//! Handing the region to one process on the host.

use crate::counters::Counters;
use crate::pace::Pace;
use crate::peer::{Admission, Peer};
use crate::sockets::{Listening, limit_patience};
use nix::sys::socket::{SockFlag, accept4};
use shared_block_ring::device::RangeLock;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::handover::{Answer, Hello, Role, VERSION, receive, send};
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Clients at a time: one with a role, a few beside it.
const MAX_CLIENTS: usize = 32;

/// Connections at a time of those who may not attach, and wait to be told so.
const MAX_UNWANTED: usize = 4;

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = MAX_CLIENTS + MAX_UNWANTED;

/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What there is to hand over.
pub struct Estate {
    /// The region; every client gets an open file description of its own.
    pub region: File,
    /// Its shape.
    pub geometry: Geometry,
    /// The guest's role; the host may have the other.
    pub guest: Side,
    /// Whether every write of the guest is judged.
    pub guarded: bool,
    /// The page of both bells.
    pub page: File,
    /// Rung for the process on the host.
    pub to_host: OwnedFd,
    /// Rung for the backend.
    pub to_backend: OwnedFd,
    /// What diagnostics show.
    pub counters: Arc<Counters>,
    /// Who may have it.
    pub admission: Admission,
}

/// The thread that does it.
pub struct Handover {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Handover {
    /// Serves clients of `listening` until dropped.
    pub fn start(listening: Listening, estate: Estate) -> io::Result<Self> {
        let stop = new_event()?;
        let stopped = stop.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("handover".to_owned())
            .spawn(move || serve(&listening, &estate, stopped.as_fd()))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if nix::unistd::write(&self.stop, &1u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

/// A connection of the consumer socket.
struct Client {
    socket: OwnedFd,
    peer: Peer,
    state: State,
}

enum State {
    /// It has not said yet what it wants, and has to by then.
    New(Instant),
    /// The same, and it will not get it.
    Unwanted(Instant, String),
    /// It has the region, as this side or beside them.
    Served(Option<Side>),
}

impl Client {
    /// When it is given up on.
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::New(deadline) | State::Unwanted(deadline, _) => Some(deadline),
            State::Served(_) => None,
        }
    }

    fn is_unwanted(&self) -> bool {
        matches!(self.state, State::Unwanted(..))
    }
}

/// The thread: it never waits for one client, but for all of them.
fn serve(listening: &Listening, estate: &Estate, stop: BorrowedFd<'_>) {
    let mut clients: Vec<Client> = Vec::new();
    let mut turned_away = TurnedAway::default();
    let mut pace = Pace::default();
    loop {
        let now = Instant::now();
        clients.retain(|client| client.deadline().is_none_or(|deadline| deadline > now));
        // Those who are in come before those who want to be: nobody keeps them from being heard by connecting all the time.
        let mut waited = vec![stop];
        waited.extend(clients.iter().map(|client| client.socket.as_fd()));
        waited.push(listening.fd().as_fd());
        let deadline = clients.iter().filter_map(Client::deadline).min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(now));
        match wait_readable(&waited, timeout) {
            Ok(None) => {}
            Ok(Some(0)) => return,
            Ok(Some(index)) if index > clients.len() => match accept(listening, estate) {
                Ok(client) => {
                    if let Err(client) = admit(&mut clients, client) {
                        turned_away.note(&client.peer, "too many clients", &estate.counters);
                    }
                }
                Err(e) => {
                    if pace.due() {
                        log::warn!("a client of the consumer socket was lost: {e}");
                    }
                    // Out of descriptors, perhaps: it stays in the queue, and is not to keep us busy.
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            },
            // A client that has the region says nothing more: this is its end.
            Ok(Some(index)) => {
                let mut client = clients.swap_remove(index - 1);
                if client.deadline().is_none() {
                    continue;
                }
                match estate.greet(&mut client, &clients) {
                    Ok(None) => clients.push(client),
                    Ok(Some(reason)) => turned_away.note(&client.peer, &reason, &estate.counters),
                    Err(e) => turned_away.note(&client.peer, &e.to_string(), &estate.counters),
                }
            }
            Err(e) => {
                log::error!("the consumer socket is not served any more: {e}");
                return;
            }
        }
    }
}

fn accept(listening: &Listening, estate: &Estate) -> io::Result<Client> {
    let raw = accept4(listening.fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    limit_patience(&socket, PATIENCE)?;
    let peer = Peer::of(socket.as_fd())?;
    let deadline = Instant::now() + PATIENCE;
    let state = match estate.admission.refusal(&peer) {
        None => State::New(deadline),
        Some(reason) => State::Unwanted(deadline, reason),
    };
    Ok(Client { socket, peer, state })
}

/// Takes a client in, or gives it back. Those who may not attach have few places of their own, so that they cannot take those of the
/// others.
fn admit(clients: &mut Vec<Client>, client: Client) -> Result<(), Client> {
    let unwanted = client.is_unwanted();
    let most = if unwanted { MAX_UNWANTED } else { MAX_CLIENTS };
    if clients.iter().filter(|other| other.is_unwanted() == unwanted).count() >= most {
        return Err(client);
    }
    clients.push(client);
    Ok(())
}

/// Tells the operator of some, and counts all: whoever can connect could fill the log.
#[derive(Default)]
struct TurnedAway(Pace);

impl TurnedAway {
    fn note(&mut self, peer: &Peer, reason: &str, counters: &Counters) {
        counters.turned_away.count();
        if self.0.due() {
            let all = counters.turned_away.get();
            log::warn!("process {} was turned away ({all} so far): {reason}", peer.pid);
        }
    }
}

/// What a client gets: the words, the region, and the role that its lock is for.
type Gift = (Answer, File, Option<Side>);

fn refusal(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned(), held_by: None, held: false }
}

impl Estate {
    /// Hears what a client wants and answers it. Why it does not have the region now, if it has not.
    fn greet(&self, client: &mut Client, others: &[Client]) -> io::Result<Option<String>> {
        // What comes is read in any case: a client that is hung up on with its words unread may not see our answer.
        let (hello, _) = receive::<Hello>(client.socket.as_fd())?;
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
                send(client.socket.as_fd(), &answer, &descriptors)?;
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

    /// What a client is told, and the region for it; or why not.
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
        let region = reopen(&self.region)?;
        if let Some(side) = side {
            // The lock belongs to the open file description that the client gets, and dies with it.
            let Some(lock) = RangeLock::try_role(region.as_fd(), self.geometry, side)? else {
                // Who has it by way of us. `/proc` would tell of the others too, but is not ours to look at any more.
                let holds =
                    |other: &&Client| matches!(other.state, State::Served(Some(of)) if of == side);
                let held_by = others.iter().find(holds).map(|other| other.peer.pid);
                let reason = format!("the ring has a {side} already");
                return Ok(Err(Answer::Refused { reason, held_by, held: true }));
            };
            lock.leave();
        }
        let answer = Answer::Welcome {
            sector_size: self.geometry.sector_size().get(),
            sectors: self.geometry.sectors(),
            guest: self.guest.into(),
            guarded: self.guarded && self.guest == Side::Producer,
            counters: self.counters.to_json(),
        };
        Ok(Ok((answer, region, side)))
    }
}

/// A fresh open file description: one that is inherited would share locks and write-back errors.
pub fn reopen(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).open(path)
}
