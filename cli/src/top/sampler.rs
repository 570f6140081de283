//! Looks at rings on threads of their own: a backend that does not answer delays no other ring and
//! not the screen.

use super::super::address::Address;
use super::super::failure::Failure;
use super::super::sample::Sample;
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared_block_ring::format::SectorSize;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Looks at the same time at most.
const THREADS: usize = 8;

/// The longest wait for the answer of a backend, which answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// A look that is to be taken.
struct Job {
    address: PathBuf,
    /// Whether the processes with the roles are searched, too.
    with_holders: bool,
}

/// A look that was taken.
pub struct Seen {
    pub address: PathBuf,
    pub result: Result<Sample, Failure>,
}

/// The threads that look at rings, and their results.
pub struct Sampler {
    jobs: Sender<Job>,
    results: Receiver<Seen>,
    ready: Arc<EventFd>,
    /// Rings that are being looked at.
    busy: BTreeSet<PathBuf>,
}

impl Sampler {
    pub fn start(sector_size: Option<SectorSize>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (jobs, queue) = channel();
        let (done, results) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (queue, done, ready) = (Arc::clone(&queue), done.clone(), Arc::clone(&ready));
            let look = move || work(&queue, &done, &ready, sector_size);
            thread::Builder::new().name("look".to_owned()).spawn(look)?;
        }
        Ok(Self { jobs, results, ready, busy: BTreeSet::new() })
    }

    /// Has a ring be looked at, unless it is being looked at.
    pub fn look(&mut self, address: &Path, with_holders: bool) {
        if self.busy.insert(address.to_path_buf()) {
            // The threads end after this.
            let _ = self.jobs.send(Job { address: address.to_path_buf(), with_holders });
        }
    }

    /// Returns whether looks are under way.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Returns the descriptor that is readable when a look was taken.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Returns the looks that were taken since the last call.
    pub fn take(&mut self) -> Vec<Seen> {
        // It fails if none was taken.
        let _ = self.ready.read();
        let seen: Vec<Seen> = self.results.try_iter().collect();
        for look in &seen {
            self.busy.remove(&look.address);
        }
        seen
    }
}

fn work(
    queue: &Mutex<Receiver<Job>>,
    done: &Sender<Seen>,
    ready: &EventFd,
    sector_size: Option<SectorSize>,
) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { address, with_holders }) = job else { return };
        let result =
            Sample::take(&Address::new(address.clone(), sector_size), PATIENCE, with_holders);
        if done.send(Seen { address, result }).is_err() || ready.write(1).is_err() {
            return;
        }
    }
}
