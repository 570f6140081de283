//! Threads that drive the queues of many rings, each a share of its own.
//!
//! A ring at which nothing happens costs its thread nothing: it is in the set that the thread
//! sleeps by, and in no list. One that has requests, or had some a moment ago, takes a turn after
//! the others; one whose turns cost much leaves some of them out. A thread that has too much to do
//! gives a ring to one that has less.

mod load;
mod parts;
mod thread;

use crate::data_path::queue_thread::{SharedWorker, on_processor};
use load::MEASURE;
use shared_block_ring::device::bell::new_event;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thread::IoThread;

/// The time between two looks for threads that hang.
pub const LOOK: Duration = Duration::from_secs(5);

/// Looks in succession that find a thread in the same turn before it is taken to hang.
const LOOKS: u32 = 6;

/// The data of the event by which others wake a thread.
const CALL: u64 = u64::MAX;

/// The number of a ring among those that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingNumber(pub u64);

/// Is told of a ring that is served no more, because its code has panicked.
pub type OnPanic = Arc<dyn Fn(RingNumber) + Send + Sync>;

/// The threads. They end when this is dropped.
pub struct IoThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    peers: Vec<Peer>,
    /// The rings that a thread serves, or is about to.
    served: Mutex<BTreeSet<RingNumber>>,
    panicked: OnPanic,
    /// When they were started.
    start: Instant,
}

impl Shared {
    fn served(&self) -> MutexGuard<'_, BTreeSet<RingNumber>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    /// Thousandths of the time that it is busy, `now` in milliseconds since the start of the
    /// threads: none if it sleeps for longer than what it was measured over.
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
        let (served, panicked, start) = (Mutex::default(), Arc::clone(panicked), Instant::now());
        let shared = Arc::new(Shared { peers, served, panicked, start });
        let mut all = Self { shared, threads: Vec::new() };
        for own in 0..count {
            let thread = IoThread::new(Arc::clone(&all.shared), own)?;
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
        self.shared.peers.len()
    }

    /// The number of rings that each thread serves, or is about to.
    pub fn rings(&self) -> Vec<u32> {
        self.shared.peers.iter().map(|peer| peer.rings.load(Ordering::Relaxed)).collect()
    }

    /// Has the thread with the fewest rings serve one more.
    pub fn serve(&self, ring: RingNumber, worker: Arc<SharedWorker>) {
        let fewest = self.shared.peers.iter().min_by_key(|peer| peer.rings.load(Ordering::Relaxed));
        if let Some(peer) = fewest {
            self.shared.served().insert(ring);
            peer.serve(ring, worker);
        }
    }

    /// Returns the rings in whose turns threads hang: each of [`LOOKS`] looks in succession has
    /// found the thread in the same turn. To be called every [`LOOK`].
    pub fn hanging(&self, before: &mut Turns) -> Vec<RingNumber> {
        before.0.resize(self.shared.peers.len(), (0, 0));
        let mut hanging = Vec::new();
        for (peer, (turns, looks)) in self.shared.peers.iter().zip(&mut before.0) {
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
        // It may move between threads meanwhile: one that none of them has found is asked for
        // again, unless its code has panicked, and it is served no more.
        while self.shared.served().contains(&ring) {
            for peer in &self.shared.peers {
                let (answer, served) = sync_channel(1);
                peer.send(Command::Release(ring, answer));
                if served.recv().unwrap_or(true) {
                    self.shared.served().remove(&ring);
                    return;
                }
            }
        }
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.shared.peers.iter().for_each(|peer| peer.send(Command::End));
        for thread in self.threads.drain(..) {
            // A ring's panic is caught; another one has been reported on standard error.
            let _ = thread.join();
        }
    }
}
