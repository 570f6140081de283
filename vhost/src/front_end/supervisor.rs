//! One thread's watch over the endpoints of any number of rings. A ring at which nothing happens
//! costs nothing.

use crate::front_end::endpoint::{End, Endpoint, Signal};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// The most events that are taken at a time.
const EVENTS: usize = 64;

/// Bits of an event's data that tell the signal.
const SIGNAL_BITS: u32 = 2;

/// The number of an endpoint, which no other one has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointId(u64);

/// The endpoints, and the set of descriptors by which they are told of something.
pub struct Supervisor {
    epoll: Epoll,
    endpoints: BTreeMap<EndpointId, Watched>,
    deadlines: BTreeSet<(Instant, EndpointId)>,
    next: EndpointId,
}

struct Watched {
    endpoint: Endpoint,
    /// It is told of arrivals.
    awaits: bool,
    deadline: Option<Instant>,
}

fn event(id: EndpointId, signal: Signal) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, id.0 << SIGNAL_BITS | signal as u64)
}

fn told(event: EpollEvent) -> Option<(EndpointId, Signal)> {
    let number = event.data() & ((1 << SIGNAL_BITS) - 1);
    let signal = Signal::ALL.into_iter().find(|signal| *signal as u64 == number)?;
    Some((EndpointId(event.data() >> SIGNAL_BITS), signal))
}

impl Supervisor {
    /// Makes a supervisor of nothing.
    ///
    /// # Errors
    ///
    /// The kernel makes no set of descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let (endpoints, deadlines) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { epoll, endpoints, deadlines, next: EndpointId(0) })
    }

    /// Readable when [`turn`](Self::turn) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// When [`turn`](Self::turn) has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Watches over one more endpoint.
    ///
    /// # Errors
    ///
    /// The kernel does not take its descriptors.
    pub fn add(&mut self, endpoint: Endpoint) -> io::Result<EndpointId> {
        let id = self.next;
        self.next = EndpointId(id.0 + 1);
        for signal in Signal::ALL {
            self.epoll.add(endpoint.fd(signal), event(id, signal))?;
        }
        self.endpoints.insert(id, Watched { endpoint, awaits: true, deadline: None });
        self.settle(id)?;
        Ok(id)
    }

    /// Has an endpoint end, once its front end has been let go. Returns true if it is gone already.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn leave(&mut self, id: EndpointId) -> io::Result<bool> {
        let Some(watched) = self.endpoints.get_mut(&id) else { return Ok(true) };
        watched.endpoint.leave();
        if watched.endpoint.has_left() {
            self.forget(id);
            return Ok(true);
        }
        self.settle(id)?;
        Ok(false)
    }

    /// Has all endpoints end.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn leave_all(&mut self) -> io::Result<()> {
        let all: Vec<_> = self.endpoints.keys().copied().collect();
        all.into_iter().try_for_each(|id| self.leave(id).map(drop))
    }

    /// Handles what has happened, each descriptor once. Returns the endpoints that have ended.
    ///
    /// # Errors
    ///
    /// The kernel's, about the set of descriptors.
    pub fn turn(&mut self) -> io::Result<Vec<(EndpointId, End)>> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut ended = Vec::new();
        for (id, signal) in events[..count].iter().copied().filter_map(told) {
            // An endpoint that has ended in this turn may still have events.
            let Some(watched) = self.endpoints.get_mut(&id) else { continue };
            if let Some(end) = watched.endpoint.handle(signal) {
                self.forget(id);
                ended.push((id, end));
            } else {
                self.settle(id)?;
            }
        }
        let now = Instant::now();
        while let Some(&(at, id)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            if let Some(watched) = self.endpoints.get_mut(&id) {
                watched.deadline = None;
                watched.endpoint.look_again();
                if watched.endpoint.has_left() {
                    self.forget(id);
                    ended.push((id, Ok(())));
                } else {
                    self.settle(id)?;
                }
            }
        }
        Ok(ended)
    }

    /// Takes note of what an endpoint waits for now.
    fn settle(&mut self, id: EndpointId) -> io::Result<()> {
        let Some(watched) = self.endpoints.get_mut(&id) else { return Ok(()) };
        let Watched { endpoint, awaits, deadline } = watched;
        let wanted = endpoint.wants(Signal::Arrival);
        if std::mem::replace(awaits, wanted) != wanted {
            let fd = endpoint.fd(Signal::Arrival);
            if wanted {
                self.epoll.add(fd, event(id, Signal::Arrival))?;
            } else {
                // A socket that was shut down tells of that as long as it is in the set.
                self.epoll.delete(fd)?;
            }
        }
        let due = endpoint.deadline();
        if let Some(before) = std::mem::replace(deadline, due) {
            self.deadlines.remove(&(before, id));
        }
        self.deadlines.extend(due.map(|due| (due, id)));
        Ok(())
    }

    fn forget(&mut self, id: EndpointId) {
        let Some(watched) = self.endpoints.remove(&id) else { return };
        if let Some(deadline) = watched.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        for signal in Signal::ALL {
            // Others have duplicates of the descriptors, so that closing ours takes none out.
            let _ = self.epoll.delete(watched.endpoint.fd(signal));
        }
    }
}
