//! The state of a forwarder for a scrape.
//!
//! The engine's thread is asked, and answers between two turns: it keeps no second account of its
//! rings, and never waits for the thread that asks.

use super::super::observed::Observed;
use super::rings::RingSpec;
use log::Level;
use nix::sys::eventfd::EventFd;
use ring_metrics::catalogue::{
    ACKNOWLEDGED_BYTES, ACKNOWLEDGED_ITEMS, BUILD, FORWARD_STATE, IN_FLIGHT, LAG_BYTES, LAG_TIME,
    MEMORY, MEMORY_LIMIT, RING_RETRIES, SINK_RETRIES,
};
use ring_metrics::{Ages, Program, RingReading, Scrape, Source};
use shared_block_ring::Position;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The longest wait for the engine's answer. After it the last one counts.
const PATIENCE: Duration = Duration::from_secs(1);

/// The phase of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not open; an attempt follows.
    Closed,
    /// Being opened.
    Opening,
    /// Open, and the sink is not ready.
    Waiting,
    /// Open, and items go into the sink.
    Ready,
    /// Open, and its backend is gone.
    Away,
    /// Left alone until the configuration changes.
    Stopped,
}

impl State {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Closed, "closed"),
        (Self::Opening, "opening"),
        (Self::Waiting, "waiting"),
        (Self::Ready, "ready"),
        (Self::Away, "away"),
        (Self::Stopped, "stopped"),
    ];
}

/// The state of one ring.
#[derive(Debug, Clone)]
pub struct RingStatus {
    pub spec: RingSpec,
    pub state: State,
    /// Items and their bytes that have arrived.
    pub items: u64,
    pub bytes: u64,
    /// The position up to which everything has arrived, if the ring is open.
    pub arrived: Option<Position>,
    /// Memory of the items in flight.
    pub in_flight: u64,
    pub ring_failures: u64,
    pub sink_failures: u64,
}

/// The state of a forwarder.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub rings: BTreeMap<String, RingStatus>,
    pub memory: u64,
    pub memory_limit: u64,
    /// Descriptors that no ring or lane needs.
    pub spare_files: u64,
}

/// The place where the engine leaves its state for a scrape.
#[derive(Debug)]
pub struct Board {
    wanted: AtomicBool,
    /// The last state, and how many were left so far.
    left: Mutex<(Status, u64)>,
    news: Condvar,
    /// What the engine sleeps on.
    wake: Arc<EventFd>,
}

impl Board {
    pub fn new(wake: Arc<EventFd>) -> Self {
        let (wanted, left) = (AtomicBool::new(false), Mutex::default());
        Self { wanted, left, news: Condvar::new(), wake }
    }

    /// Leaves the state, if it is wanted. Called by the engine's thread.
    pub fn leave(&self, status: impl FnOnce() -> Status) {
        if self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::AcqRel) {
            let status = status();
            let mut left = self.lock();
            *left = (status, left.1 + 1);
            self.news.notify_all();
        }
    }

    /// Asks for the state, and returns it.
    fn ask(&self) -> Status {
        let left = self.lock();
        let before = left.1;
        self.wanted.store(true, Ordering::Release);
        // Fails only when the counter is full, and the engine about to wake up anyway.
        let _ = self.wake.write(1);
        let is_old = |left: &mut (Status, u64)| left.1 == before;
        let answered = self.news.wait_timeout_while(left, PATIENCE, is_old);
        answered.unwrap_or_else(PoisonError::into_inner).0.0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Status, u64)> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The metrics of a forwarder.
pub struct Forwarder {
    board: Arc<Board>,
    observed: Observed,
    /// Publications of each ring, as the scrapes so far found them.
    ages: BTreeMap<String, Ages>,
}

impl Forwarder {
    pub fn new(board: Arc<Board>) -> Self {
        Self { board, observed: Observed::new(Level::Info), ages: BTreeMap::new() }
    }

    /// Adds how far what has arrived is behind what is published.
    fn lag(
        &mut self,
        name: &str,
        arrived: Option<Position>,
        reading: &RingReading,
        scrape: &mut Scrape,
    ) {
        let info = &reading.info;
        // While the ring is not open, what has arrived is freed: the consumer's pointer tells it.
        let arrived = arrived.unwrap_or(info.consumer).max(info.consumer);
        scrape.whole(&LAG_BYTES, &[name], info.producer.since(arrived).unwrap_or(0));
        let ages = self.ages.entry(name.to_owned()).or_default();
        if let Some(age) = ages.update(info, arrived, SystemTime::now()) {
            scrape.fraction(&LAG_TIME, &[name], age.as_secs_f64());
        }
    }
}

impl Source for Forwarder {
    fn scrape(&mut self, scrape: &mut Scrape) {
        scrape.whole(&BUILD, &[Program::Forward.name(), env!("CARGO_PKG_VERSION")], 1);
        let status = self.board.ask();
        let specs =
            status.rings.iter().map(|(name, ring)| (name.clone(), ring.spec.clone())).collect();
        let readings = self.observed.report(&specs, status.spare_files, scrape);
        self.ages.retain(|name, _| specs.contains_key(name));
        for (name, ring) in &status.rings {
            let label = &[&**name];
            scrape.whole(&ACKNOWLEDGED_ITEMS, label, ring.items);
            scrape.whole(&ACKNOWLEDGED_BYTES, label, ring.bytes);
            scrape.whole(&IN_FLIGHT, label, ring.in_flight);
            scrape.whole(&RING_RETRIES, label, ring.ring_failures);
            scrape.whole(&SINK_RETRIES, label, ring.sink_failures);
            for (state, word) in State::ALL {
                scrape.flag(&FORWARD_STATE, &[name, word], state == ring.state);
            }
            if let Some(reading) = readings.get(name) {
                self.lag(name, ring.arrived, reading, scrape);
            }
        }
        scrape.whole(&MEMORY, &[], status.memory);
        scrape.whole(&MEMORY_LIMIT, &[], status.memory_limit);
    }

    fn health(&mut self) -> Result<String, String> {
        Ok("ok".to_owned())
    }
}
