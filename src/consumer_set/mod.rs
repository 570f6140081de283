//! Many consumers in one wait.

mod members;
mod waiting;

use self::members::{Members, State};
use crate::consumer::Consumer;
use crate::device::{Cause, DeviceError, Operation, Peer, RingDevice, SharedSleep};
use crate::error::{Error, Result};
use crate::format::Position;
use crate::wait::Pauses;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Name of a consumer in a [`ConsumerSet`]. A set never names two consumers alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

/// What a [`ConsumerSet`] has to report.
#[derive(Debug)]
#[non_exhaustive]
pub enum Occurrence {
    /// There is an item at the position at which the ring rests. It does not rest any more: the set
    /// reports nothing more of its items until [`ConsumerSet::rest`].
    Items(Key),
    /// The ring failed, as [`Consumer::pop`] and [`Consumer::check_presence`] do. It does not rest
    /// any more, and is still in the set: after [`ConsumerSet::rest`] it is looked at again.
    Failed(Key, Error),
    /// The backend behind the ring is gone. The set searches for it, with growing pauses, and what
    /// the ring has can be read meanwhile.
    Away(Key),
    /// The backend behind the ring is there again.
    Back(Key),
    /// The descriptor with this token, of [`ConsumerSet::watch`], is readable or closed.
    Readable(u32),
}

/// Counts of a set's work, to see that an idle one has next to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Sleeps that have ended.
    pub wakeups: u64,
    /// Looks at a ring for items.
    pub looks: u64,
    /// Checks that a ring is still what it was opened as.
    pub checks: u64,
}

/// Any number of consumers, of devices of any kind, in one wait by one thread.
///
/// A consumer in the set *rests* until its ring has an item behind a position; then
/// [`wait`](Self::wait) reports it once. The caller takes as much as it wants, and lets the
/// consumer [`rest`](Self::rest) again. A ring whose items nobody wants now is left alone, and
/// costs nothing. Rings are reported in the order in which they had something: one that always has
/// something comes behind all others.
///
/// A ring that a backend serves (`unix:`) wakes the set by a descriptor: it is not looked at
/// before. All others share one timer, with pauses that grow up to 4 ms while there is nothing, and
/// further where a look at all of them takes long. The set makes no held reads, by which a guest's
/// kernel could wake it: each would be a request in flight of a disk that other programs may use,
/// and reads of the lowest priority in numbers make the kernel's scheduler of requests unfair to
/// them. Each ring is checked for being there once a second, or where there are many every ten.
///
/// A ring fails by itself: see [`Occurrence::Failed`]. A backend that is gone is searched for
/// without waiting, so that it delays no other ring.
///
/// ```
/// use shared_block_ring::{Consumer, ConsumerSet, Error, Occurrence};
/// use std::time::Duration;
/// # use shared_block_ring::{OpenOptions, Producer, create, make_file};
/// # let dir = tempfile::tempdir()?;
/// # let paths = [dir.path().join("one"), dir.path().join("two")];
/// # for path in &paths {
/// #     make_file(path, 1 << 20)?;
/// #     create(&OpenOptions::default().open(path)?, Default::default())?;
/// # }
/// # let mut producer = Producer::attach(OpenOptions::default().open(&paths[1])?, "logs", "web-1")?;
/// # let end = producer.push("hello")?;
/// # producer.advance(end)?;
///
/// let mut set = ConsumerSet::new()?;
/// for path in &paths {
///     let device = OpenOptions::default().open(path)?;
///     set.add(Consumer::attach(device, "logs", "collector")?)?;
/// }
/// let mut occurrences = Vec::new();
/// set.wait(Some(Duration::from_secs(60)), &mut occurrences)?;
/// # let mut lines = Vec::new();
/// for occurrence in occurrences.drain(..) {
///     let Occurrence::Items(key) = occurrence else { continue };
///     let consumer = set.get_mut(key).ok_or("no such ring")?;
///     loop {
///         match consumer.pop_as::<String>(consumer.position()) {
///             Ok((next, line)) => {
///                 println!("{line}");
/// #               lines.push(line);
///                 consumer.advance(next)?;
///             }
///             Err(Error::Retry) => break,
///             Err(e) => return Err(e.into()),
///         }
///     }
///     let position = consumer.position();
///     set.rest(key, position);
/// }
/// # assert_eq!(lines, ["hello"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ConsumerSet<D: RingDevice> {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    members: Members<D>,
    /// What the next wait reports, in order.
    news: VecDeque<Occurrence>,
    /// The times of the next steps of searches, with the members' indexes.
    searches: BTreeSet<(Instant, u32)>,
    /// Indexes of resting members that wake nobody.
    polled: Vec<u32>,
    pauses: Pauses,
    next_poll: Instant,
    next_check: Instant,
    /// Index of the member that is checked next.
    unchecked: u32,
    counters: Counters,
}

impl<D: RingDevice> fmt::Debug for ConsumerSet<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsumerSet({} consumers, {:?})", self.len(), self.counters)
    }
}

/// Events that one look at the epoll takes; more are taken by the next one.
const EVENTS: usize = 256;

/// The number of a descriptor in an event that stands for a watched descriptor.
const WATCHED: u64 = 3;

/// Bits of an event's data for the number of a descriptor.
const NUMBER_BITS: u32 = 2;

/// The most members: an index, beside the number of a descriptor, fits 32 bits of an event's data.
const MOST: u32 = 1 << (32 - NUMBER_BITS);

impl Key {
    /// Returns an event's data for this member's descriptor with that number.
    fn data(self, number: usize) -> u64 {
        let low = u64::from(self.index) << NUMBER_BITS | number as u64;
        u64::from(self.generation) << 32 | low
    }
}

impl<D: RingDevice> ConsumerSet<D> {
    /// Makes an empty set.
    ///
    /// # Errors
    /// Those of `epoll_create1`.
    pub fn new() -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); EVENTS],
            members: Members::default(),
            news: VecDeque::new(),
            searches: BTreeSet::new(),
            polled: Vec::new(),
            pauses: Pauses::default(),
            next_poll: now,
            next_check: now + waiting::CHECK,
            unchecked: 0,
            counters: Counters::default(),
        })
    }

    /// Adds a consumer, which rests at its position.
    ///
    /// While it is in the set nothing else may sleep on its device: no
    /// [`Wait`](crate::wait::Wait), which could connect to another backend unseen.
    ///
    /// # Errors
    /// Those of `epoll_ctl`; the consumer is dropped then.
    pub fn add(&mut self, consumer: Consumer<D>) -> io::Result<Key> {
        if self.members.len() >= MOST as usize {
            return Err(io::Error::other("too many consumers"));
        }
        let position = consumer.position();
        let key = self.members.insert(consumer);
        if let Err(e) = self.join(key) {
            self.remove(key);
            return Err(e);
        }
        self.rest(key, position);
        Ok(key)
    }

    /// Takes a consumer out of the set; `None` if it is not there any more. Nothing is reported of
    /// it after this.
    pub fn remove(&mut self, key: Key) -> Option<Consumer<D>> {
        self.leave(key);
        let member = self.members.remove(key)?;
        if let Some(due) = member.due {
            self.searches.remove(&(due, key.index));
        }
        self.polled.retain(|&index| index != key.index);
        self.news.retain(|news| news.key() != Some(key));
        Some(member.consumer)
    }

    /// Returns a consumer of the set; `None` if it is not there any more.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Consumer<D>> {
        self.members.get_mut(key).map(|member| &mut member.consumer)
    }

    /// Returns the names of all consumers.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.members.keys()
    }

    /// Returns the number of consumers.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns whether there is no consumer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the counts so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Has [`wait`](Self::wait) also end when `descriptor` is readable or closed, and report
    /// `token`, as long as it is. It has to be taken out by [`unwatch`](Self::unwatch) before it is
    /// closed.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    pub fn watch(&mut self, token: u32, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let data = u64::from(token) << 32 | WATCHED;
        Ok(self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, data))?)
    }

    /// Takes a descriptor out that [`watch`](Self::watch) has put in.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    pub fn unwatch(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.delete(descriptor)?)
    }

    /// Lets a consumer rest until there is an item at `at`, which is its position or that behind an
    /// item which was popped. Does nothing for a consumer that is not there any more.
    pub fn rest(&mut self, key: Key, at: Position) {
        if let Err(e) = self.join(key) {
            self.fail(key, Error::Device(self.error(key, e)));
            return;
        }
        let Some(member) = self.members.get_mut(key) else { return };
        let rested = matches!(member.state, State::Resting(_));
        member.state = State::Resting(at);
        if !self.is_polled(key) {
            self.look(key);
        } else if rested || self.look(key) {
            if !rested {
                self.polled.push(key.index);
            }
            self.pauses = Pauses::default();
            self.schedule_poll(Duration::ZERO);
        }
    }

    fn is_polled(&self, key: Key) -> bool {
        self.members.get(key).is_some_and(|member| shared(&member.consumer).is_none())
    }

    /// Looks for an item at the position at which the member rests, if it does. Returns whether it
    /// still rests.
    fn look(&mut self, key: Key) -> bool {
        let Some(member) = self.members.get_mut(key) else { return false };
        let State::Resting(at) = member.state else { return false };
        self.counters.looks += 1;
        let consumer = &mut member.consumer;
        let mut found = consumer.ready(at);
        if matches!(found, Err(Error::Retry)) && shared(consumer).is_some() {
            // Busy rings never come here, so that nobody rings for them.
            if let Some(sleeper) = consumer.device().sleeper() {
                sleeper.announce();
            }
            // Whoever published before the announcement could be seen has not rung.
            found = consumer.ready(at);
        }
        match found {
            Err(Error::Retry) => return true,
            Ok(()) => {
                member.state = State::Reported;
                self.news.push_back(Occurrence::Items(key));
            }
            Err(e) => self.fail(key, e),
        }
        false
    }

    fn fail(&mut self, key: Key, error: Error) {
        let Some(member) = self.members.get_mut(key) else { return };
        member.state = State::Failed;
        self.polled.retain(|&index| index != key.index);
        self.news.push_back(Occurrence::Failed(key, error));
    }

    /// Puts the member's descriptors into the epoll, if they are not there.
    fn join(&mut self, key: Key) -> io::Result<()> {
        let Some(member) = self.members.get_mut(key) else { return Ok(()) };
        let Some(shared) = shared(&member.consumer) else { return Ok(()) };
        if std::mem::replace(&mut member.is_joined, true) {
            return Ok(());
        }
        let epoll = &self.epoll;
        shared.descriptors(&mut |number, fd| {
            Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, key.data(number)))?)
        })
    }

    /// Takes the member's descriptors out of the epoll. To close them is not enough: others may
    /// hold the same event.
    fn leave(&mut self, key: Key) {
        let Some(member) = self.members.get_mut(key) else { return };
        let Some(shared) = shared(&member.consumer) else { return };
        if std::mem::replace(&mut member.is_joined, false) {
            let epoll = &self.epoll;
            // One that could not be put in is not there.
            let delete = |_, fd: BorrowedFd<'_>| {
                let _ = epoll.delete(fd);
                Ok(())
            };
            let _ = shared.descriptors(&mut { delete });
        }
    }

    /// Has the member's device deal with what the wait has found.
    fn step(&mut self, key: Key, cause: Cause) {
        let Some(member) = self.members.get_mut(key) else { return };
        if cause == Cause::Readable(0) {
            let stepped = shared(&member.consumer).map_or(Ok(Peer::Here), |s| s.step(cause));
            match stepped {
                Ok(_) => drop(self.look(key)),
                Err(e) => self.fail(key, e.into()),
            }
            return;
        }
        let was_away = member.due.is_some();
        if let Some(due) = member.due.take() {
            self.searches.remove(&(due, key.index));
        }
        if let Err(e) = self.exchange(key, cause, was_away) {
            self.fail(key, e);
        }
    }

    /// Makes a step after which the device may have other descriptors.
    fn exchange(&mut self, key: Key, cause: Cause, was_away: bool) -> Result<()> {
        self.leave(key);
        let Some(member) = self.members.get(key) else { return Ok(()) };
        let stepped = shared(&member.consumer).map_or(Ok(Peer::Here), |s| s.step(cause));
        // After an error its descriptors stay out, and the search rests as the member does.
        let peer = stepped?;
        let joined = self.join(key);
        match peer {
            Peer::Here => {
                if was_away {
                    self.news.push_back(Occurrence::Back(key));
                }
                self.look(key);
            }
            Peer::Away(pause) => {
                if !was_away {
                    self.news.push_back(Occurrence::Away(key));
                }
                let due = Instant::now() + pause;
                if let Some(member) = self.members.get_mut(key) {
                    member.due = Some(due);
                }
                self.searches.insert((due, key.index));
                if !was_away {
                    // The backend may have ended between the store of a position and its wake-up.
                    self.look(key);
                }
            }
        }
        joined.map_err(|e| self.error(key, e).into())
    }

    fn error(&self, key: Key, source: io::Error) -> DeviceError {
        let name = self.members.get(key).map_or("", |member| member.consumer.device().name());
        DeviceError::new(name, Operation::Wait, source)
    }
}

impl Occurrence {
    fn key(&self) -> Option<Key> {
        match self {
            Self::Items(key) | Self::Failed(key, _) | Self::Away(key) | Self::Back(key) => {
                Some(*key)
            }
            Self::Readable(_) => None,
        }
    }
}

/// Returns the consumer's way to sleep with others.
fn shared<D: RingDevice>(consumer: &Consumer<D>) -> Option<&dyn SharedSleep> {
    consumer.device().sleeper()?.shared()
}

/// The epoll, as a descriptor to wait on.
fn descriptor(epoll: &Epoll) -> BorrowedFd<'_> {
    epoll.0.as_fd()
}
