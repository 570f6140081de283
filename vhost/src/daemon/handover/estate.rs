//! What is handed over to the clients of one ring, and the answers to their messages.

use crate::daemon::clients::{Client, State};
use crate::daemon::condition::{Condition, Fault};
use crate::daemon::peer::Admission;
use crate::data_path::counters::Counters;
use shared_block_ring::device::RangeLock;
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::handover::{
    Answer, Hello, Reply, Request, Role, VERSION, receive_words, send,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// Everything that is handed over.
pub struct Estate {
    /// Opens the region's file again: every client gets an open file description of its own.
    pub reopen: Reopening,
    /// The ring's geometry.
    pub geometry: Geometry,
    /// The guest's role; the host may have the other.
    pub guest: Side,
    /// Whether every write of the guest is judged.
    pub guarded: bool,
    /// The page of both bells.
    pub page: File,
    /// The event that wakes the process on the host.
    pub to_host: Arc<OwnedFd>,
    /// The event that wakes the backend.
    pub to_backend: Arc<OwnedFd>,
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
/// Called on the hand-over's thread: it may not add or remove desks.
pub type Suspend = Box<dyn Fn(bool) -> Result<bool, String> + Send>;

/// Opens the region's file again, for reading alone or for writing as well.
pub type Reopening = Box<dyn Fn(bool) -> io::Result<File> + Send>;

/// What a client gets: the answer, the region, and the role that its lock is for.
type Gift = (Answer, File, Option<Side>);

fn refusal(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned(), held_by: None, held: false }
}

impl Estate {
    /// Receives a client's request and answers it. Returns why it was refused, if it was.
    pub fn greet(&self, client: &mut Client, others: &[Client]) -> io::Result<Option<String>> {
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
            return Ok(Ok((self.welcome(), (self.reopen)(false)?, None)));
        };
        let region = (self.reopen)(true)?;
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
    pub fn oblige(&self, client: &Client) -> io::Result<()> {
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
/// write-back errors. Through one for reading alone nothing can change the file, not even
/// `fallocate`.
pub fn reopen(file: &File, writing: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(writing).open(path)
}
