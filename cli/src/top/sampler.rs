//! Looks at rings on threads of their own: backends that do not answer delay no other ring and not
//! the screen.

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

/// Looks at the same time at most, and as many at rings whose backends have not answered.
const THREADS: usize = 8;

/// The longest wait for the answer of a backend, which answers within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Looks at rings whose backends have not answered. They have threads of their own: each takes
    /// as long as the patience.
    late_jobs: Sender<Job>,
    results: Receiver<Seen>,
    ready: Arc<EventFd>,
    /// Rings that are being looked at.
    busy: BTreeSet<PathBuf>,
    /// Rings whose backends have not answered the last look.
    silent: BTreeSet<PathBuf>,
}

impl Sampler {
    /// Starts the threads. A backend is given `patience` to answer.
    pub fn start(sector_size: Option<SectorSize>, patience: Duration) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (done, results) = channel();
        let start = || -> io::Result<Sender<Job>> {
            let (jobs, queue) = channel();
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..THREADS {
                let (queue, done, ready) = (Arc::clone(&queue), done.clone(), Arc::clone(&ready));
                let look = move || work(&queue, &done, &ready, sector_size, patience);
                thread::Builder::new().name("look".to_owned()).spawn(look)?;
            }
            Ok(jobs)
        };
        let (jobs, late_jobs) = (start()?, start()?);
        let (busy, silent) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { jobs, late_jobs, results, ready, busy, silent })
    }

    /// Has a ring be looked at, unless it is being looked at.
    pub fn look(&mut self, address: &Path, with_holders: bool) {
        if self.busy.insert(address.to_path_buf()) {
            let jobs = if self.silent.contains(address) { &self.late_jobs } else { &self.jobs };
            // The threads end after this.
            let _ = jobs.send(Job { address: address.to_path_buf(), with_holders });
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
            if look.result.as_ref().is_err_and(|failure| failure.code() == 3) {
                self.silent.insert(look.address.clone());
            } else {
                self.silent.remove(&look.address);
            }
        }
        seen
    }
}

fn work(
    queue: &Mutex<Receiver<Job>>,
    done: &Sender<Seen>,
    ready: &EventFd,
    sector_size: Option<SectorSize>,
    patience: Duration,
) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { address, with_holders }) = job else { return };
        let result =
            Sample::take(&Address::new(address.clone(), sector_size), patience, with_holders);
        if done.send(Seen { address, result }).is_err() || ready.write(1).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    use shared_block_ring::wait::wait_readable;
    use shared_block_ring::{CreateOptions, OpenOptions, create, make_file};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::symlink;

    /// Bound on the wait for a look that ends.
    const BOUND: Duration = Duration::from_secs(60);

    /// A socket at which nobody answers.
    fn silent_socket(path: &Path) -> OwnedFd {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let listening = socket(AddressFamily::Unix, kind, flags, None).unwrap();
        bind(listening.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listening, Backlog::new(64).unwrap()).unwrap();
        listening
    }

    /// Returns the looks that were taken, at least one.
    fn taken(sampler: &mut Sampler) -> Vec<Seen> {
        assert_eq!(wait_readable(&[sampler.ready()], Some(BOUND)).unwrap(), Some(0));
        sampler.take()
    }

    #[test]
    fn rings_that_answer_do_not_wait_for_silent_backends() {
        let folder = tempfile::tempdir().unwrap();
        let ring = folder.path().join("ring");
        make_file(&ring, 64 << 10).unwrap();
        create(&OpenOptions::default().open(&ring).unwrap(), CreateOptions::new()).unwrap();
        let _listening = silent_socket(&folder.path().join("socket"));
        // Longer than any test: a look at a silent backend does not end.
        let mut sampler = Sampler::start(None, Duration::from_secs(100_000)).unwrap();
        for number in 0..2 * THREADS {
            let path = folder.path().join(number.to_string());
            symlink("socket", &path).unwrap();
            let address = PathBuf::from(format!("unix:{}", path.display()));
            sampler.silent.insert(address.clone());
            sampler.look(&address, false);
        }
        sampler.look(&ring, false);
        let seen = taken(&mut sampler);
        assert_eq!(seen.iter().map(|look| &*look.address).collect::<Vec<_>>(), [&*ring]);
        assert!(seen[0].result.is_ok());
        assert!(sampler.is_busy());
    }

    #[test]
    fn backend_is_silent_until_a_look_ends_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listening = silent_socket(&path);
        let address = PathBuf::from(format!("unix:{}", path.display()));
        let mut sampler = Sampler::start(None, Duration::from_millis(10)).unwrap();
        sampler.look(&address, false);
        assert_eq!(taken(&mut sampler).len(), 1);
        assert!(sampler.silent.contains(&address) && !sampler.is_busy());
        drop(listening);
        sampler.look(&address, false);
        assert!(taken(&mut sampler)[0].result.as_ref().is_err_and(Failure::is_missing));
        assert!(sampler.silent.is_empty());
    }
}
