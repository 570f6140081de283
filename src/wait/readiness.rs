//! A wait as a descriptor, for programs that have an event loop.

use super::Pauses;
use crate::device::{
    AlignedBuf, Cause, DeviceError, Lookout, Operation, Peer, RingDevice, SharedSleep,
};
use crate::format::{POINTER_BYTES, Side};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

/// The event of the timer; the descriptors of a device are numbered 0 and 1.
const TIMER: u64 = 2;

/// The shortest time that a timer can be set to: none at all would stop it.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// A wait for the other side of a ring as a descriptor, for an event loop: `poll`, `epoll`, or that
/// of an asynchronous runtime. It belongs to one handle.
///
/// When a call has answered [`Error::Retry`](crate::Error::Retry), [`arm`](Self::arm) says whether
/// to look at the ring again at once. If not, the descriptor becomes readable when it is time to
/// look again: when the other side has moved, and now and then without that. The descriptor stays
/// readable until the next `arm`, and nothing is to be read from it.
///
/// A ring that a backend serves (`unix:`) wakes by an event. All others are looked at by a timer,
/// with pauses that grow up to 4 ms while nothing moves: a [`Wait`](super::Wait) on a guest's disk,
/// which has the backend hold a read, costs less.
///
/// While there is a readiness for a handle nothing else may sleep on its device: no
/// [`Wait`](super::Wait), which could connect to another backend unseen.
///
/// ```
/// use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
/// use shared_block_ring::wait::Readiness;
/// use shared_block_ring::{Consumer, Error, FileDevice};
/// use std::os::fd::AsFd;
///
/// fn next_line(
///     consumer: &mut Consumer<FileDevice>,
///     readiness: &mut Readiness,
/// ) -> Result<String, Box<dyn std::error::Error>> {
///     loop {
///         match consumer.pop_as::<String>(consumer.position()) {
///             Ok((next, line)) => {
///                 consumer.advance(next)?;
///                 return Ok(line);
///             }
///             Err(Error::Retry) if readiness.arm(consumer.device())? => {}
///             Err(Error::Retry) => {
///                 // Here an event loop does its other work.
///                 let mut descriptors = [PollFd::new(readiness.as_fd(), PollFlags::POLLIN)];
///                 poll(&mut descriptors, PollTimeout::NONE)?;
///             }
///             Err(e) => return Err(e.into()),
///         }
///     }
/// }
/// # use shared_block_ring::{OpenOptions, Producer, create, make_file};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # make_file(&path, 1 << 20)?;
/// # create(&OpenOptions::default().open(&path)?, Default::default())?;
/// # let mut consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
/// # let mut readiness = Readiness::for_items()?;
/// # let sender = std::thread::spawn(move || {
/// #     let mut producer =
/// #         Producer::attach(OpenOptions::default().open(&path).unwrap(), "logs", "web-1").unwrap();
/// #     std::thread::sleep(std::time::Duration::from_millis(20));
/// #     let end = producer.push("hello").unwrap();
/// #     producer.advance(end).unwrap();
/// # });
/// # assert_eq!(next_line(&mut consumer, &mut readiness)?, "hello");
/// # sender.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Readiness {
    peer: Side,
    epoll: Epoll,
    timer: TimerFd,
    pauses: Pauses,
    lookout: Lookout,
    /// What the other side's pointer sector held at the last look, for a device that is polled.
    seen: Option<[u8; POINTER_BYTES]>,
    /// Whether the other side knows that this one sleeps.
    announced: bool,
    /// Whether the device's descriptors are in the epoll.
    joined: bool,
    /// The time of the next step of the search for the backend, while that is gone.
    due: Option<Instant>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("peer", &self.peer)
            .field("announced", &self.announced)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

impl Readiness {
    /// Makes a consumer's wait for items.
    ///
    /// # Errors
    /// Those of `epoll_create1`, `timerfd_create` and `epoll_ctl`.
    pub fn for_items() -> io::Result<Self> {
        Self::new(Side::Producer)
    }

    /// Makes a producer's wait for space.
    ///
    /// # Errors
    /// Those of [`for_items`](Self::for_items).
    pub fn for_space() -> io::Result<Self> {
        Self::new(Side::Consumer)
    }

    /// Makes a wait for `peer`, the *other* side, to move.
    ///
    /// # Errors
    /// Those of [`for_items`](Self::for_items).
    pub fn new(peer: Side) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        Ok(Self {
            peer,
            epoll,
            timer,
            pauses: Pauses::default(),
            lookout: Lookout::default(),
            seen: None,
            announced: false,
            joined: false,
            due: None,
        })
    }

    /// Prepares the descriptor, after a call has answered [`Error::Retry`](crate::Error::Retry) on
    /// the handle of `device`, the same one each time.
    ///
    /// Returns true if the caller is to look at the ring again at once: the other side may have
    /// moved before it could know of this wait. After false the descriptor becomes readable when it
    /// is time for the next look.
    ///
    /// # Errors
    /// The device's; also [`Displaced`](crate::device::Displaced), within seconds of the ring's
    /// removal or replacement, if the descriptor is waited for meanwhile.
    pub fn arm<D: RingDevice + ?Sized>(&mut self, device: &D) -> Result<bool, DeviceError> {
        self.lookout.look(device)?;
        let shared = device.sleeper().and_then(|sleeper| Some((sleeper, sleeper.shared()?)));
        let Some((sleeper, shared)) = shared else { return self.arm_timer(device) };
        let moved = self.take_events(device, shared)?;
        if !self.joined {
            self.join(shared).map_err(|e| failed(device, e))?;
        }
        let now = Instant::now();
        let until = self.due.map_or(self.lookout.due(), |due| due.min(self.lookout.due()));
        self.set_timer(until.saturating_duration_since(now)).map_err(|e| failed(device, e))?;
        if std::mem::replace(&mut self.announced, true) {
            return Ok(moved);
        }
        sleeper.announce();
        Ok(true)
    }

    /// Prepares for the next look at a device that wakes nobody.
    fn arm_timer<D: RingDevice + ?Sized>(&mut self, device: &D) -> Result<bool, DeviceError> {
        let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
        device.read_pointer(self.peer, &mut sector)?;
        let seen = sector.first_chunk().copied();
        if seen != self.seen {
            self.seen = seen;
            self.pauses = Pauses::default();
            return Ok(true);
        }
        let pause = self.pauses.next_pause();
        self.set_timer(pause).map_err(|e| failed(device, e))?;
        Ok(false)
    }

    /// Has the device deal with what has come. Returns whether the ring is to be looked at, though
    /// nobody may have moved it.
    fn take_events<D: RingDevice + ?Sized>(
        &mut self,
        device: &D,
        shared: &dyn SharedSleep,
    ) -> Result<bool, DeviceError> {
        let mut events = [EpollEvent::empty(); 3];
        let taken = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        let taken = taken.map_err(|e| failed(device, e.into()))?;
        let mut moved = false;
        let mut cause = None;
        for event in &events[..taken] {
            match event.data() {
                0 => {
                    shared.step(Cause::Readable(0))?;
                    self.announced = false;
                }
                TIMER => {}
                _ => cause = Some(Cause::Readable(1)),
            }
        }
        if cause.is_none() && self.due.is_some_and(|due| due <= Instant::now()) {
            cause = Some(Cause::Elapsed);
        }
        if let Some(cause) = cause {
            // After this step the device may have other descriptors.
            self.leave(shared);
            let was_away = self.due.take().is_some();
            match shared.step(cause)? {
                Peer::Here => self.announced = false,
                Peer::Away(pause) => {
                    self.due = Some(Instant::now() + pause);
                    // The backend may have ended between the store of a position and its wake-up.
                    moved = !was_away;
                }
            }
        }
        Ok(moved)
    }

    fn join(&mut self, shared: &dyn SharedSleep) -> io::Result<()> {
        self.joined = true;
        let epoll = &self.epoll;
        shared.descriptors(&mut |number, fd| {
            Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?)
        })
    }

    /// Takes the device's descriptors out of the epoll. To close them is not enough: others may
    /// hold the same event.
    fn leave(&mut self, shared: &dyn SharedSleep) {
        if std::mem::replace(&mut self.joined, false) {
            let epoll = &self.epoll;
            // One that could not be put in is not there.
            let _ = shared.descriptors(&mut |_, fd| {
                let _ = epoll.delete(fd);
                Ok(())
            });
        }
    }

    fn set_timer(&self, pause: Duration) -> io::Result<()> {
        let time = Expiration::OneShot(TimeSpec::from(pause.max(AT_ONCE)));
        Ok(self.timer.set(time, TimerSetTimeFlags::empty())?)
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl AsRawFd for Readiness {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

fn failed<D: RingDevice + ?Sized>(device: &D, source: io::Error) -> DeviceError {
    DeviceError::new(device.name(), Operation::Wait, source)
}
