//! One of the threads: its rings, and what it sleeps by.

use super::load::{Load, to_give};
use super::parts::{Parts, Sweep};
use super::{CALL, Command, Peer, RingNumber, Shared};
use crate::data_path::kicks::{Woken, timeout};
use crate::data_path::queue_thread::{Progress, SharedWorker};
use crate::data_path::worker::TurnEnd;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use ring_program::scope;
use shared_block_ring::device::event::drain;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Turns between two readings of the clock, at most.
const TURNS_PER_CLOCK: u32 = 64;

/// The time between two looks for rings that were woken, while others are busy.
const GLANCE: Duration = Duration::from_micros(20);

/// How long a ring rests whose worker another thread has just now: that one wakes this thread when
/// it no longer waits for the worker, but not when it lets go of it.
const REST: Duration = Duration::from_millis(1);

/// Events that are taken at a time.
const EVENTS: usize = 64;

/// The pause after a wait that has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A ring, as its thread knows it.
struct Ring {
    number: RingNumber,
    worker: Arc<SharedWorker>,
    progress: Progress,
    /// The first sweep in which it takes a turn again.
    due: Sweep,
    /// It takes turns.
    active: bool,
    /// When it takes one, if nothing happens before.
    until: Option<Instant>,
    /// A kick is nothing that happens before: a limit of the ring is used up.
    deaf: bool,
    /// Requests that it had taken when the load was last measured.
    measured: u64,
}

/// One thread's rings, and what it sleeps by.
pub(super) struct IoThread {
    shared: Arc<Shared>,
    own: usize,
    epoll: Epoll,
    rings: BTreeMap<u64, Ring>,
    /// The rings that take turns, the next one first.
    active: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    parts: Parts,
    load: Load,
    over: bool,
}

impl IoThread {
    /// Makes the thread with the number `own` among those that share `shared`.
    pub fn new(shared: Arc<Shared>, own: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.peers[own].wake, EpollEvent::new(EpollFlags::EPOLLIN, CALL))?;
        let (rings, active, timers) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        let (parts, load, over) = (Parts::default(), Load::new(), false);
        Ok(Self { shared, own, epoll, rings, active, timers, parts, load, over })
    }

    fn peer(&self) -> &Peer {
        &self.shared.peers[self.own]
    }

    /// Serves rings until it is told to end.
    pub fn run(mut self) {
        loop {
            if self.peer().called.swap(false, Ordering::Acquire) {
                self.obey();
            }
            if self.over {
                return;
            }
            self.sweep();
            self.balance();
            if let Err(e) = self.look() {
                log::error!("cannot wait for the guests' requests: {e}");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    fn obey(&mut self) {
        let commands = {
            let mut commands = self.peer().commands.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *commands)
        };
        for command in commands {
            match command {
                Command::Serve(number, worker) => self.take_in(number, worker),
                Command::Release(number, answer) => {
                    let was_here = self.let_go(number.0).is_some();
                    // Who asked waits for the answer.
                    let _ = answer.send(was_here);
                }
                Command::End => self.over = true,
            }
        }
    }

    fn take_in(&mut self, number: RingNumber, worker: Arc<SharedWorker>) {
        if let Err(e) = self.epoll.add(worker.fd(), EpollEvent::new(EpollFlags::EPOLLIN, number.0))
        {
            log::error!("cannot wait for the requests of one more ring: {e}");
        }
        let (progress, due) = (Progress::default(), Sweep::default());
        let (until, deaf, measured) = (None, false, 0);
        // A turn finds out what there is to do.
        let ring = Ring { number, worker, progress, due, active: true, until, deaf, measured };
        self.rings.insert(number.0, ring);
        self.active.push_back(number.0);
    }

    fn let_go(&mut self, key: u64) -> Option<Ring> {
        let ring = self.rings.remove(&key)?;
        // Others have duplicates of the descriptor, so that closing ours would not take it out.
        let _ = self.epoll.delete(ring.worker.fd());
        if let Some(until) = ring.until {
            self.timers.remove(&(until, key));
        }
        self.active.retain(|other| *other != key);
        self.peer().rings.fetch_sub(1, Ordering::Relaxed);
        Some(ring)
    }

    /// Lets each of the active rings take one turn, but for those that have had their part.
    fn sweep(&mut self) {
        let turns = self.active.len();
        let now = (self.load.turns >= TURNS_PER_CLOCK || turns >= TURNS_PER_CLOCK as usize / 8)
            .then(|| self.load.read());
        self.load.turns += u32::try_from(turns).unwrap_or(u32::MAX).max(1);
        for _ in 0..turns {
            let Some(key) = self.active.pop_front() else { return };
            let Some(ring) = self.rings.get_mut(&key) else { continue };
            if !self.parts.takes_turn(ring.due) {
                self.active.push_back(key);
                continue;
            }
            let before = ring.progress.arrivals;
            let peer = &self.shared.peers[self.own];
            peer.turns.store(peer.turns.load(Ordering::Relaxed) + 1, Ordering::Release);
            peer.current.store(key, Ordering::Release);
            // A panic leaves the region as it is, and every request is judged by that. What is left
            // of this ring is used no more.
            let turn = catch_unwind(AssertUnwindSafe(|| {
                scope::within(key, || ring.worker.fair_turn(&mut ring.progress, now))
            }));
            peer.current.store(0, Ordering::Release);
            self.load.worked |= ring.progress.arrivals != before;
            ring.due = self.parts.charge(ring.progress.cost);
            match turn {
                Ok(Some(TurnEnd::GiveWay | TurnEnd::More | TurnEnd::Poll)) => {
                    self.active.push_back(key);
                }
                Ok(Some(TurnEnd::Sleep(until))) => self.rest(key, until, false),
                Ok(Some(TurnEnd::Rest { until, deaf })) => self.rest(key, Some(until), deaf),
                Ok(None) => self.rest(key, Some(self.load.clock + REST), false),
                Err(_) => self.give_up(key),
            }
        }
        self.parts.end_sweep();
    }

    /// Has a ring take no turn until something happens there, which a kick is not for one that is
    /// `deaf`, or until this time.
    fn rest(&mut self, key: u64, until: Option<Instant>, deaf: bool) {
        let Some(ring) = self.rings.get_mut(&key) else { return };
        ring.active = false;
        (ring.until, ring.deaf) = (until, deaf);
        self.timers.extend(until.map(|until| (until, key)));
    }

    /// Serves a ring no more whose code has panicked, and tells of that.
    fn give_up(&mut self, key: u64) {
        if let Some(ring) = self.let_go(key) {
            ring.worker.abandon();
        }
        self.shared.served().remove(&RingNumber(key));
        (self.shared.panicked)(RingNumber(key));
    }

    /// Looks for rings that were woken. Sleeps until then if no ring is active.
    fn look(&mut self) -> io::Result<()> {
        let idle = self.active.is_empty();
        let until = if idle {
            self.load.read();
            self.peer().asleep.store(self.milliseconds().max(1), Ordering::Relaxed);
            self.timers.first().map_or(EpollTimeout::NONE, |(at, _)| timeout(*at))
        } else {
            if self.load.clock.saturating_duration_since(self.load.looked) < GLANCE
                && self.load.turns < TURNS_PER_CLOCK
            {
                return Ok(());
            }
            self.load.looked = self.load.clock;
            EpollTimeout::ZERO
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, until) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        if idle {
            self.peer().asleep.store(0, Ordering::Relaxed);
            self.load.read();
        }
        for event in &events[..count] {
            if event.data() == CALL {
                drain(self.peer().wake.as_fd())?;
            } else {
                self.wake(event.data())?;
            }
        }
        while let Some(&(at, key)) = self.timers.first().filter(|(at, _)| *at <= self.load.clock) {
            self.timers.remove(&(at, key));
            if let Some(ring) = self.rings.get_mut(&key) {
                ring.until = None;
                activate(ring, &mut self.active);
            }
        }
        Ok(())
    }

    fn wake(&mut self, key: u64) -> io::Result<()> {
        let Some(ring) = self.rings.get_mut(&key) else { return Ok(()) };
        let Woken { kicked, by_others } = ring.worker.wait(Some(self.load.clock))?;
        ring.progress.kicked |= kicked;
        if ring.deaf && !by_others {
            return Ok(());
        }
        if let Some(until) = ring.until.take() {
            self.timers.remove(&(until, key));
        }
        activate(ring, &mut self.active);
        Ok(())
    }

    /// The milliseconds since the start of the threads, as of the last reading of the clock.
    fn milliseconds(&self) -> u64 {
        let since = self.load.clock.saturating_duration_since(self.shared.start);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Gives a ring to a thread that has far less to do, if this one has too much.
    fn balance(&mut self) {
        let Some(busy) = self.load.take() else { return };
        self.peer().busy.store(busy, Ordering::Relaxed);
        let mut served = Vec::new();
        for ring in self.rings.values_mut() {
            let requests = ring.progress.arrivals - ring.measured;
            ring.measured = ring.progress.arrivals;
            if requests > 0 {
                served.push((requests, ring.number));
            }
        }
        let shared = Arc::clone(&self.shared);
        let now = self.milliseconds();
        let Some(least) = shared.peers.iter().min_by_key(|peer| peer.load(now)) else { return };
        let Some(number) = to_give(busy, least.load(now), &mut served) else { return };
        if let Some(ring) = self.let_go(number.0) {
            log::debug!("ring {} goes to a thread with less to do", number.0);
            least.serve(number, ring.worker);
        }
    }
}

fn activate(ring: &mut Ring, active: &mut VecDeque<u64>) {
    if !std::mem::replace(&mut ring.active, true) {
        active.push_back(ring.number.0);
    }
}
