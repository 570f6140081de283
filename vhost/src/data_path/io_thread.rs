//! Threads that drive the queues of many rings, each a share of its own.
//!
//! A ring at which nothing happens costs its thread nothing: it is in the set that the thread
//! sleeps by, and in no list. One that has requests, or had some a moment ago, takes a turn after
//! the others. A thread that has too much to do gives a ring to one that has less.

use crate::data_path::kicks::timeout;
use crate::data_path::queue_thread::{Progress, SharedWorker, on_processor};
use crate::data_path::worker::TurnEnd;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use ring_program::scope;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::device::event::drain;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Turns between two readings of the clock, at most.
const TURNS_PER_CLOCK: u32 = 64;

/// The time between two looks for rings that were woken, while others are busy.
const GLANCE: Duration = Duration::from_micros(20);

/// The time between two looks for threads that hang.
pub const LOOK: Duration = Duration::from_secs(5);

/// Looks in succession that find a thread in the same turn before it is taken to hang.
const LOOKS: u32 = 6;

/// The time over which it is measured how busy a thread is.
const MEASURE: Duration = Duration::from_millis(50);

/// Thousandths of its time that a thread is busy when it looks for one that is less so.
const TOO_BUSY: u32 = 800;

/// How much less busy that one has to be, in thousandths.
const FAR_LESS: u32 = 300;

/// Events that are taken at a time.
const EVENTS: usize = 64;

/// The data of the event by which others wake a thread.
const CALL: u64 = u64::MAX;

/// The pause after a wait that has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The number of a ring among those that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingNumber(pub u64);

/// Is told of a ring that is served no more, because its code has panicked.
pub type OnPanic = Arc<dyn Fn(RingNumber) + Send + Sync>;

/// The threads. They end when this is dropped.
pub struct IoThreads {
    peers: Arc<[Peer]>,
    threads: Vec<JoinHandle<()>>,
}

/// What the other threads know of one.
struct Peer {
    commands: Mutex<Vec<Command>>,
    /// Commands have come.
    called: AtomicBool,
    wake: OwnedFd,
    /// Thousandths of the time that it was busy lately.
    busy: AtomicU32,
    /// Milliseconds since the start of the threads at which it went to sleep; 0 while it is awake.
    asleep: AtomicU64,
    /// Rings that it serves, or is about to.
    rings: AtomicU32,
    /// The turns that it has begun, and the ring of the one that is under way; 0 between two.
    turns: AtomicU64,
    current: AtomicU64,
}

/// What was found of the threads by the looks before.
#[derive(Debug, Default)]
pub struct Turns(Vec<(u64, u32)>);

enum Command {
    Serve(RingNumber, Arc<SharedWorker>),
    /// Serve it no more. Answered whether this thread has served it.
    Release(RingNumber, SyncSender<bool>),
    End,
}

impl Peer {
    fn new() -> io::Result<Self> {
        let (commands, called, wake) = (Mutex::default(), AtomicBool::new(false), new_event()?);
        let (busy, rings) = (AtomicU32::new(0), AtomicU32::new(0));
        let (turns, current) = (AtomicU64::new(0), AtomicU64::new(0));
        let asleep = AtomicU64::new(0);
        Ok(Self { commands, called, wake, busy, asleep, rings, turns, current })
    }

    fn send(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.called.store(true, Ordering::Release);
        // A full counter wakes it as well.
        let _ = nix::unistd::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Thousandths of the time that it is busy, `now` in milliseconds since the start of the threads:
    /// none if it sleeps for longer than what it was measured over.
    fn load(&self, now: u64) -> u32 {
        let asleep = self.asleep.load(Ordering::Relaxed);
        let is_idle = asleep != 0 && u128::from(now.saturating_sub(asleep)) > MEASURE.as_millis();
        if is_idle { 0 } else { self.busy.load(Ordering::Relaxed) }
    }

    fn serve(&self, ring: RingNumber, worker: Arc<SharedWorker>) {
        self.rings.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Serve(ring, worker));
    }
}

impl IoThreads {
    /// Starts `count` threads, or one for each processor in `cpus`, which run there alone. A ring
    /// whose code panics is served no more, and `panicked` told.
    ///
    /// # Errors
    ///
    /// No thread can be made, or it may not run on a processor.
    pub fn start(count: usize, cpus: &[usize], panicked: &OnPanic) -> io::Result<Self> {
        let count = if cpus.is_empty() { count.max(1) } else { cpus.len() };
        let peers: Vec<_> = (0..count).map(|_| Peer::new()).collect::<io::Result<_>>()?;
        let mut all = Self { peers: peers.into(), threads: Vec::new() };
        let start = Instant::now();
        for own in 0..count {
            let (peers, panicked) = (Arc::clone(&all.peers), Arc::clone(panicked));
            let thread = IoThread::new(peers, own, panicked, start)?;
            let spawn = || {
                let name = format!("queues {own}");
                std::thread::Builder::new().name(name).spawn(move || thread.run())
            };
            all.threads.push(match cpus.get(own) {
                Some(cpu) => on_processor(*cpu, spawn)?,
                None => spawn()?,
            });
        }
        Ok(all)
    }

    /// The number of threads.
    pub fn count(&self) -> usize {
        self.peers.len()
    }

    /// The number of rings that each thread serves, or is about to.
    pub fn rings(&self) -> Vec<u32> {
        self.peers.iter().map(|peer| peer.rings.load(Ordering::Relaxed)).collect()
    }

    /// Has the thread with the fewest rings serve one more.
    pub fn serve(&self, ring: RingNumber, worker: Arc<SharedWorker>) {
        let fewest = self.peers.iter().min_by_key(|peer| peer.rings.load(Ordering::Relaxed));
        if let Some(peer) = fewest {
            peer.serve(ring, worker);
        }
    }

    /// Returns the rings in whose turns threads hang: each of [`LOOKS`] looks in succession has
    /// found the thread in the same turn. To be called every [`LOOK`].
    pub fn hanging(&self, before: &mut Turns) -> Vec<RingNumber> {
        before.0.resize(self.peers.len(), (0, 0));
        let mut hanging = Vec::new();
        for (peer, (turns, looks)) in self.peers.iter().zip(&mut before.0) {
            let current = peer.current.load(Ordering::Acquire);
            let now = peer.turns.load(Ordering::Acquire);
            *looks = if current != 0 && now == *turns { *looks + 1 } else { 0 };
            *turns = now;
            if *looks == LOOKS {
                hanging.push(RingNumber(current));
            }
        }
        hanging
    }

    /// Has a ring served no more: no turn of it is under way when this returns.
    pub fn release(&self, ring: RingNumber) {
        // It may move between threads meanwhile; one that is not found is asked for again.
        loop {
            let mut found = false;
            for peer in &*self.peers {
                let (answer, served) = sync_channel(1);
                peer.send(Command::Release(ring, answer));
                found |= served.recv().unwrap_or(true);
            }
            if found {
                return;
            }
        }
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.peers.iter().for_each(|peer| peer.send(Command::End));
        for thread in self.threads.drain(..) {
            // A ring's panic is caught; another one has been reported on standard error.
            let _ = thread.join();
        }
    }
}

/// A ring, as its thread knows it.
struct Ring {
    number: RingNumber,
    worker: Arc<SharedWorker>,
    progress: Progress,
    /// It takes turns.
    active: bool,
    /// When it takes one, if nothing happens before.
    until: Option<Instant>,
    /// Requests that it had taken when the load was last measured.
    measured: u64,
}

/// One thread's rings, and what it sleeps by.
struct IoThread {
    peers: Arc<[Peer]>,
    own: usize,
    panicked: OnPanic,
    epoll: Epoll,
    rings: BTreeMap<u64, Ring>,
    /// The rings that take turns, the next one first.
    active: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    load: Load,
    /// The start of the threads.
    start: Instant,
    over: bool,
}

/// How busy the thread is.
struct Load {
    /// The last reading of the clock, and turns since then.
    clock: Instant,
    turns: u32,
    /// A turn has had work since then.
    worked: bool,
    since: Instant,
    busy: Duration,
    looked: Instant,
}

impl Load {
    fn new() -> Self {
        let now = Instant::now();
        let busy = Duration::ZERO;
        Self { clock: now, turns: 0, worked: false, since: now, busy, looked: now }
    }

    /// Reads the clock. The time since the last reading was busy if there was work.
    fn read(&mut self) -> Instant {
        let now = Instant::now();
        if std::mem::take(&mut self.worked) {
            self.busy += now.saturating_duration_since(self.clock);
        }
        (self.clock, self.turns) = (now, 0);
        now
    }

    /// Takes the thousandths of the time in which the thread was busy, if it was measured for long
    /// enough.
    fn take(&mut self) -> Option<u32> {
        let all = self.clock.saturating_duration_since(self.since);
        if all < MEASURE {
            return None;
        }
        let share = self.busy.as_micros() * 1000 / all.as_micros().max(1);
        (self.since, self.busy) = (self.clock, Duration::ZERO);
        Some(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

impl IoThread {
    fn new(peers: Arc<[Peer]>, own: usize, panicked: OnPanic, start: Instant) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&peers[own].wake, EpollEvent::new(EpollFlags::EPOLLIN, CALL))?;
        let (rings, active, timers) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        let load = Load::new();
        let over = false;
        Ok(Self { peers, own, panicked, epoll, rings, active, timers, load, start, over })
    }

    fn peer(&self) -> &Peer {
        &self.peers[self.own]
    }

    fn run(mut self) {
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
        let progress = Progress::default();
        let (until, measured) = (None, 0);
        // A turn finds out what there is to do.
        let ring = Ring { number, worker, progress, active: true, until, measured };
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

    /// Lets each of the active rings take one turn.
    fn sweep(&mut self) {
        let turns = self.active.len();
        let now = (self.load.turns >= TURNS_PER_CLOCK || turns >= TURNS_PER_CLOCK as usize / 8)
            .then(|| self.load.read());
        self.load.turns += u32::try_from(turns).unwrap_or(u32::MAX).max(1);
        for _ in 0..turns {
            let Some(key) = self.active.pop_front() else { return };
            let Some(ring) = self.rings.get_mut(&key) else { continue };
            let before = ring.progress.arrivals;
            let peer = &self.peers[self.own];
            peer.turns.store(peer.turns.load(Ordering::Relaxed) + 1, Ordering::Release);
            peer.current.store(key, Ordering::Release);
            // A panic leaves the region as it is, and every request is judged by that. What is left
            // of this ring is used no more.
            let turn = catch_unwind(AssertUnwindSafe(|| {
                scope::within(key, || ring.worker.fair_turn(&mut ring.progress, now))
            }));
            peer.current.store(0, Ordering::Release);
            self.load.worked |= ring.progress.arrivals != before;
            match turn {
                // The thread that has it wakes us when it is done.
                Ok(None | Some(TurnEnd::GiveWay | TurnEnd::More | TurnEnd::Poll)) => {
                    self.active.push_back(key);
                }
                Ok(Some(TurnEnd::Sleep(until))) => {
                    ring.active = false;
                    ring.until = until;
                    self.timers.extend(until.map(|until| (until, key)));
                }
                Err(_) => {
                    let gone = self.let_go(key);
                    (self.panicked)(gone.map_or(RingNumber(key), |ring| ring.number));
                }
            }
        }
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
        ring.progress.kicked |= ring.worker.wait(Some(self.load.clock))?;
        if let Some(until) = ring.until.take() {
            self.timers.remove(&(until, key));
        }
        activate(ring, &mut self.active);
        Ok(())
    }

    /// The milliseconds since the start of the threads, as of the last reading of the clock.
    fn milliseconds(&self) -> u64 {
        let since = self.load.clock.saturating_duration_since(self.start);
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
        let peers = Arc::clone(&self.peers);
        let now = self.milliseconds();
        let Some(least) = peers.iter().min_by_key(|peer| peer.load(now)) else { return };
        let Some(number) = to_give(busy, least.load(now), &mut served) else { return };
        if let Some(ring) = self.let_go(number.0) {
            log::debug!("ring {} goes to a thread with less to do", number.0);
            least.serve(number, ring.worker);
        }
    }
}

/// Returns the ring that a thread gives to another one, if it is too busy and that one far less so.
/// Both are so busy in thousandths; `served` has the rings that have had requests lately, each with
/// their number.
fn to_give(busy: u32, other: u32, served: &mut [(u64, RingNumber)]) -> Option<RingNumber> {
    let difference = busy.saturating_sub(other);
    if busy < TOO_BUSY || difference < FAR_LESS || served.len() < 2 {
        return None;
    }
    // Of the rings that make up at most half of the difference, the one with most requests: more
    // would only turn the scales.
    let all: u64 = served.iter().map(|(requests, _)| requests).sum();
    let most = all * u64::from(difference) / u64::from(busy) / 2;
    served.sort_unstable();
    let fits = served.iter().rev().find(|(requests, _)| *requests <= most);
    fits.map(|(_, number)| *number)
}

fn activate(ring: &mut Ring, active: &mut VecDeque<u64>) {
    if !std::mem::replace(&mut ring.active, true) {
        active.push_back(ring.number.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_thread_gives_the_ring_that_evens_the_load_out() {
        let give = |busy, other, requests: &[u64]| {
            let numbers = (1..).map(RingNumber);
            let mut served: Vec<_> = requests.iter().copied().zip(numbers).collect();
            to_give(busy, other, &mut served).map(|RingNumber(number)| number)
        };
        assert_eq!(give(1000, 0, &[100, 300, 100]), Some(3), "300 of 500 would be too much");
        assert_eq!(give(1000, 0, &[100, 240, 160]), Some(2));
        assert_eq!(give(1000, 600, &[100, 240, 160]), Some(1), "a fifth of the load");
        assert_eq!(give(1000, 800, &[100, 100]), None, "the other one has little less");
        assert_eq!(give(700, 0, &[100, 100]), None, "it is not too busy");
        assert_eq!(give(1000, 0, &[100]), None, "its only ring");
        assert_eq!(give(1000, 0, &[400, 500]), Some(1));
        assert_eq!(give(1000, 600, &[500, 500]), None, "each would turn the scales");
    }
}
