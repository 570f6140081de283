//! Handing the region to one process on the host.

use crate::counters::Counters;
use crate::pace::Pace;
use crate::sockets::{Listening, limit_patience};
use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt};
use nix::unistd::geteuid;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::device::{RangeLock, holder_of};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::handover::{Answer, Hello, Role, VERSION, receive, send};
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a client may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Clients at a time: one with a role, a few beside it.
const MAX_CLIENTS: usize = 32;

/// What there is to hand over.
pub struct Estate {
    /// The region; every client gets an open file description of its own.
    pub region: File,
    /// Its shape.
    pub geometry: Geometry,
    /// The guest's role; the host may have the other.
    pub guest: Side,
    /// The page of both bells.
    pub page: File,
    /// Rung for the process on the host.
    pub to_host: OwnedFd,
    /// Rung for the backend.
    pub to_backend: OwnedFd,
    /// What diagnostics show.
    pub counters: Arc<Counters>,
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

fn serve(listening: &Listening, estate: &Estate, stop: BorrowedFd<'_>) {
    let mut clients: Vec<OwnedFd> = Vec::new();
    let mut paces = [Pace::default(); 2];
    loop {
        let mut waited = vec![stop, listening.fd().as_fd()];
        waited.extend(clients.iter().map(AsFd::as_fd));
        match wait_readable(&waited, None) {
            Ok(None) => {}
            Ok(Some(0)) => return,
            Ok(Some(1)) => match welcome(listening, estate) {
                Ok(client) if clients.len() < MAX_CLIENTS => clients.push(client),
                Ok(_) if paces[0].due() => {
                    log::warn!("more than {MAX_CLIENTS} clients: the last one is turned away");
                }
                Err(e) if paces[1].due() => {
                    log::info!("a client of the consumer socket was turned away: {e}");
                }
                // Said less than a second ago.
                Ok(_) | Err(_) => {}
            },
            // A client says nothing after its hello: this is its end.
            Ok(Some(index)) => drop(clients.swap_remove(index - 2)),
            Err(e) => {
                log::error!("the consumer socket is not served any more: {e}");
                return;
            }
        }
    }
}

fn welcome(listening: &Listening, estate: &Estate) -> io::Result<OwnedFd> {
    let raw = accept4(listening.fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let client = unsafe { OwnedFd::from_raw_fd(raw) };
    limit_patience(&client, PATIENCE)?;
    let peer = getsockopt(&client, sockopt::PeerCredentials)?;
    let answered = if peer.uid() == geteuid().as_raw() || peer.uid() == 0 {
        let (hello, _) = receive::<Hello>(client.as_fd())?;
        estate.answer(&hello)?
    } else {
        Err(refusal(&format!(
            "user {} may not attach: only the backend's own user and root may",
            peer.uid()
        )))
    };
    match answered {
        Ok((answer, region)) => {
            let descriptors = [
                region.as_fd(),
                estate.page.as_fd(),
                estate.to_host.as_fd(),
                estate.to_backend.as_fd(),
            ];
            send(client.as_fd(), &answer, &descriptors)?;
            log::debug!("process {} has the region", peer.pid());
            Ok(client)
        }
        Err(answer) => {
            send(client.as_fd(), &answer, &[])?;
            Err(io::Error::other(format!("process {}: {answer:?}", peer.pid())))
        }
    }
}

fn refusal(reason: &str) -> Answer {
    Answer::Refused { reason: reason.to_owned(), held_by: None, held: false }
}

impl Estate {
    /// What a client is told, and the region for it; or why not.
    fn answer(&self, hello: &Hello) -> io::Result<Result<(Answer, File), Answer>> {
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
        let region = self.reopen()?;
        if let Some(side) = side {
            // The lock belongs to the open file description that the client gets, and dies with it.
            let Some(lock) = RangeLock::try_role(region.as_fd(), self.geometry, side)? else {
                let held_by = holder_of(region.as_fd(), self.geometry, side);
                let reason = format!("the ring has a {side} already");
                return Ok(Err(Answer::Refused { reason, held_by, held: true }));
            };
            lock.leave();
        }
        let answer = Answer::Welcome {
            sector_size: self.geometry.sector_size().get(),
            sectors: self.geometry.sectors(),
            guest: self.guest.into(),
            guarded: true,
            counters: self.counters.to_json(),
        };
        Ok(Ok((answer, region)))
    }

    /// A fresh open file description: one that is inherited would share locks and write-back errors.
    fn reopen(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.region.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }
}
