//! The events by which drivers kick their queues, and all others that wake the worker, in one epoll
//! set: a sleep costs the same, however many queues there are.

use crate::data_path::queue_set::{MAX_QUEUES, QueueSet};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shared_block_ring::device::event::drain;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The set. A clone is the same set.
#[derive(Debug, Clone)]
pub struct Kicks(Arc<Epoll>);

/// Why a sleep has ended; neither of these at its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Woken {
    /// The queues that were kicked.
    pub kicked: QueueSet,
    /// An event that is no kick has happened.
    pub by_others: bool,
}

/// One queue's event in the set, until this is dropped.
#[derive(Debug)]
pub struct Kick {
    kicks: Kicks,
    file: File,
}

impl Kicks {
    /// Makes an empty set.
    ///
    /// # Errors
    ///
    /// The kernel makes no such set.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    /// Adds the event of the queue of that number.
    ///
    /// # Errors
    ///
    /// The kernel does not take the event.
    pub fn add(&self, queue: usize, file: File) -> io::Result<Kick> {
        // By its edges: each kick ends one sleep. So the event need not be emptied, which would be
        // a system call for each kick, and one that comes for a queue whose front end is gone does
        // not keep the worker awake.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.0.add(&file, EpollEvent::new(flags, queue as u64))?;
        Ok(Kick { kicks: self.clone(), file })
    }

    /// Sleeps until one of the events, or until this time. Returns what has happened, and empties the
    /// `others` that have.
    ///
    /// # Errors
    ///
    /// The kernel cannot wait.
    pub fn wait(&self, others: &[Arc<OwnedFd>], until: Option<Instant>) -> io::Result<Woken> {
        let timeout = until.map_or(EpollTimeout::NONE, timeout);
        let mut events = [EpollEvent::empty(); MAX_QUEUES];
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut woken = Woken::default();
        for event in &events[..count] {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            if number < MAX_QUEUES {
                woken.kicked.set(number, true);
            } else if let Some(other) = others.get(number - MAX_QUEUES) {
                drain(other.as_fd())?;
                woken.by_others = true;
            }
        }
        Ok(woken)
    }

    /// Readable while one of the events has happened.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }

    /// Adds the events that are no kicks, as [`wait`](Self::wait) is given them.
    ///
    /// # Errors
    ///
    /// The kernel does not take one.
    pub fn add_others(&self, others: &[Arc<OwnedFd>]) -> io::Result<()> {
        for (number, other) in others.iter().enumerate() {
            let number = (MAX_QUEUES + number) as u64;
            self.0.add(other, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        Ok(())
    }
}

/// Returns the time until `until`, rounded up: a sleep that ends too early would only be followed
/// by another.
pub fn timeout(until: Instant) -> EpollTimeout {
    let left = until.saturating_duration_since(Instant::now());
    let up = left + Duration::from_micros(999);
    i32::try_from(up.as_millis())
        .ok()
        .and_then(|left| EpollTimeout::try_from(left).ok())
        .unwrap_or(EpollTimeout::MAX)
}

impl Drop for Kick {
    fn drop(&mut self) {
        // The front end has duplicates of the event, so that closing ours takes it out of no set.
        // The event is emptied: another process that uses it next finds no kick that was served.
        let forgotten = self.kicks.0.delete(&self.file).and_then(|()| drain(self.file.as_fd()));
        if let Err(e) = forgotten {
            log::debug!("cannot forget a kick: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::device::bell::new_event;

    fn ring(event: &impl AsFd) {
        nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[test]
    fn wait_tells_all_queues_that_were_kicked() {
        let kicks = Kicks::new().unwrap();
        let other = [Arc::new(new_event().unwrap())];
        kicks.add_others(&other).unwrap();
        let events: Vec<_> = (0..3).map(|_| new_event().unwrap()).collect();
        let add = |queue: usize| {
            kicks.add(queue * 31, File::from(events[queue].try_clone().unwrap())).unwrap()
        };
        let mut added: Vec<_> = (0..3).map(add).collect();
        let nothing = Woken::default();
        assert_eq!(kicks.wait(&other, Some(soon())).unwrap(), nothing);
        events.iter().for_each(ring);
        ring(&other[0]);
        let woken = kicks.wait(&other, None).unwrap();
        assert_eq!(woken.kicked.into_iter().collect::<Vec<_>>(), [0, 31, 62]);
        assert!(woken.by_others);
        assert_eq!(kicks.wait(&other, Some(soon())).unwrap(), nothing, "a kick ends one sleep");
        for _ in 0..3 {
            ring(&events[1]);
            let kicked = QueueSet::one(31);
            assert_eq!(kicks.wait(&other, None).unwrap(), Woken { kicked, by_others: false });
        }
        assert_eq!(kicks.wait(&other, Some(soon())).unwrap(), nothing);
        added.truncate(1);
        let left = nix::unistd::read(&events[1], &mut [0; 8]);
        assert_eq!(left, Err(nix::errno::Errno::EAGAIN), "no kick that was served is left");
        ring(&events[1]);
        assert_eq!(kicks.wait(&other, Some(soon())).unwrap(), nothing, "it is in the set no more");
    }

    #[test]
    fn sleep_ends_no_earlier_than_asked() {
        let kicks = Kicks::new().unwrap();
        let until = Instant::now() + Duration::from_micros(1500);
        kicks.wait(&[], Some(until)).unwrap();
        assert!(Instant::now() >= until);
    }
}
