//! The events by which drivers kick their queues, and all others that wake the worker, in one epoll
//! set: a sleep costs the same, however many queues there are.

use crate::data_path::queue_set::{MAX_QUEUES, QueueSet};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use shared_block_ring::device::event::drain;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// By its edges: a kick that comes for a queue whose front end is gone, and which nobody reads, ends
/// one sleep and not all.
const KICKED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

/// The timer's number in the set, which is none of a queue or of another event.
const TICK: u64 = u64::MAX;

/// The set. A clone is the same set.
#[derive(Debug, Clone)]
pub struct Kicks(Arc<Set>);

#[derive(Debug)]
struct Set {
    epoll: Epoll,
    /// Ends a sleep now and then, while it is set. The kernel sets its clock anew for each sleep
    /// that has an end: on a virtual machine that takes as long as a request.
    ticks: TimerFd,
}

/// One queue's event in the set, until this is dropped.
#[derive(Debug)]
pub struct Kick {
    kicks: Kicks,
    queue: usize,
    file: File,
}

impl Kicks {
    /// Makes an empty set.
    ///
    /// # Errors
    ///
    /// The kernel makes no such set.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let ticks = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&ticks, EpollEvent::new(KICKED, TICK))?;
        Ok(Self(Arc::new(Set { epoll, ticks })))
    }

    /// Adds the event of the queue of that number.
    ///
    /// # Errors
    ///
    /// The kernel does not take the event.
    pub fn add(&self, queue: usize, file: File) -> io::Result<Kick> {
        self.0.epoll.add(&file, EpollEvent::new(KICKED, queue as u64))?;
        Ok(Kick { kicks: self.clone(), queue, file })
    }

    /// Sleeps until one of the events, or until this time. Returns the queues that were kicked, and
    /// empties the `others` that have happened.
    ///
    /// # Errors
    ///
    /// The kernel cannot wait.
    pub fn wait(&self, others: &[OwnedFd], until: Option<Instant>) -> io::Result<QueueSet> {
        let timeout = until.map_or(EpollTimeout::NONE, timeout);
        let mut events = [EpollEvent::empty(); MAX_QUEUES];
        let count = match self.0.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut kicked = QueueSet::EMPTY;
        for event in &events[..count] {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            if event.data() == TICK {
                // The next tick is set when this one is read.
                drain(self.0.ticks.as_fd())?;
            } else if number < MAX_QUEUES {
                kicked.set(number, true);
            } else if let Some(other) = others.get(number - MAX_QUEUES) {
                drain(other.as_fd())?;
            }
        }
        Ok(kicked)
    }

    /// Ends sleeps at this distance from now on, or no longer.
    pub fn tick(&self, every: Option<Duration>) {
        let done = match every {
            Some(every) => {
                let expiration = Expiration::Interval(TimeSpec::from_duration(every));
                self.0.ticks.set(expiration, TimerSetTimeFlags::empty())
            }
            None => self.0.ticks.unset(),
        };
        if let Err(e) = done {
            log::error!("cannot set the timer of queues that are kicked in vain: {e}");
        }
    }

    /// Adds the events that are no kicks, as [`wait`](Self::wait) is given them.
    ///
    /// # Errors
    ///
    /// The kernel does not take one.
    pub fn add_others(&self, others: &[OwnedFd]) -> io::Result<()> {
        for (number, other) in others.iter().enumerate() {
            let number = (MAX_QUEUES + number) as u64;
            self.0.epoll.add(other, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        Ok(())
    }
}

/// Rounded up: a sleep that ends too early would only be followed by another.
fn timeout(until: Instant) -> EpollTimeout {
    let left = until.saturating_duration_since(Instant::now());
    let up = left + Duration::from_micros(999);
    i32::try_from(up.as_millis())
        .ok()
        .and_then(|left| EpollTimeout::try_from(left).ok())
        .unwrap_or(EpollTimeout::MAX)
}

impl Kick {
    /// Sets the event back to no kick.
    pub fn drain(&self) {
        if let Err(e) = drain(self.file.as_fd()) {
            log::debug!("cannot read a kick: {e}");
        }
    }

    /// Sets whether the event ends a sleep. One that was signalled ends one when it may again.
    pub fn listen(&self, on: bool) {
        let flags = if on { KICKED } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(flags, self.queue as u64);
        if let Err(e) = self.kicks.0.epoll.modify(&self.file, &mut event) {
            log::error!("cannot choose whether the guest's kicks are heard: {e}");
        }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // The front end has duplicates of the event, so that closing ours takes it out of no set.
        if let Err(e) = self.kicks.0.epoll.delete(&self.file) {
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
        let other = [new_event().unwrap()];
        kicks.add_others(&other).unwrap();
        let events: Vec<_> = (0..3).map(|_| new_event().unwrap()).collect();
        let add = |queue: usize| {
            kicks.add(queue * 31, File::from(events[queue].try_clone().unwrap())).unwrap()
        };
        let mut added: Vec<_> = (0..3).map(add).collect();
        assert!(kicks.wait(&other, Some(soon())).unwrap().is_empty());
        events.iter().for_each(ring);
        ring(&other[0]);
        assert_eq!(kicks.wait(&other, None).unwrap().into_iter().collect::<Vec<_>>(), [0, 31, 62]);
        added.iter().for_each(Kick::drain);
        assert!(kicks.wait(&other, Some(soon())).unwrap().is_empty(), "all were emptied");
        for _ in 0..3 {
            ring(&events[1]);
            assert!(kicks.wait(&other, None).unwrap().contains(31), "nobody empties it");
            assert!(kicks.wait(&other, Some(soon())).unwrap().is_empty());
        }
        added[1].listen(false);
        ring(&events[1]);
        assert!(kicks.wait(&other, Some(soon())).unwrap().is_empty(), "its kicks are muted");
        added[1].listen(true);
        assert!(kicks.wait(&other, None).unwrap().contains(31), "it was kicked meanwhile");
        added.truncate(1);
        ring(&events[1]);
        assert!(kicks.wait(&other, Some(soon())).unwrap().is_empty(), "it is in the set no more");
    }

    #[test]
    fn ticks_end_sleeps_and_tell_of_no_kick() {
        let kicks = Kicks::new().unwrap();
        kicks.tick(Some(Duration::from_millis(1)));
        for _ in 0..3 {
            assert!(kicks.wait(&[], None).unwrap().is_empty());
        }
        kicks.tick(None);
        kicks.wait(&[], Some(soon())).unwrap();
        let until = soon();
        kicks.wait(&[], Some(until)).unwrap();
        assert!(Instant::now() >= until, "no tick ends it");
    }

    #[test]
    fn sleep_ends_no_earlier_than_asked() {
        let kicks = Kicks::new().unwrap();
        let until = Instant::now() + Duration::from_micros(1500);
        kicks.wait(&[], Some(until)).unwrap();
        assert!(Instant::now() >= until);
    }
}
