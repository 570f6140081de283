//! Driving the queue: chains in, completions out, strictly in the order of the available ring.
//!
//! At most one request is unfinished ("parked") at a time, and nothing behind it executes. The used index is published after
//! every request, before the next change of the region: a backend that is killed anywhere resumes from the used index alone,
//! and what is replayed then is idempotent. A stop needs no waiting for the same reason: a parked request is
//! given back to the available ring.

mod step;

use crate::counters::Counters;
use crate::dirty::GuestMemory;
use crate::executor::Executor;
use crate::flusher::Flusher;
use crate::pace::Pace;
use crate::parked::{Parked, Why};
use crate::polling::{Looking, Polling};
use crate::queue::{Broken, Split};
use crate::request::Request;
use crate::vring::{Claims, Memory, Vring};
use shared_block_ring::device::bell::Bell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_user_backend::VringState;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

/// Completions that the driver may have to wait to be told of: an interrupt is decided on once for so many, or when the queue is empty.
const BATCH: u16 = 8;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Somebody waits for what the worker holds.
    GiveWay,
    /// There is nothing to do until an event, or this time.
    Sleep(Option<Instant>),
}

/// The thread's state: one queue, and the ring behind it.
pub struct Worker {
    executor: Executor,
    counters: Arc<Counters>,
    flusher: Flusher,
    /// On which the host says that it moved, while a read is held.
    bell: Bell,
    hold: Duration,
    looking: Looking,
    request: Request,
    parked: Option<Parked>,
    /// No FLUSH feature: every write is durable before it is answered.
    write_through: bool,
    broken: Pace,
    unsignalled: Pace,
    vring: Option<Vring>,
    memory: Option<Memory>,
    /// See [`Split::told`].
    told: Option<u16>,
    /// The connection is about to end.
    closed: bool,
}

impl Worker {
    /// Serves `executor`'s ring.
    pub fn new(
        executor: Executor,
        counters: Arc<Counters>,
        flusher: Flusher,
        bell: Bell,
        hold: Duration,
        polling: Polling,
    ) -> Self {
        Self {
            executor,
            counters,
            flusher,
            bell,
            hold,
            looking: Looking::new(polling),
            request: Request::default(),
            parked: None,
            write_through: false,
            broken: Pace::default(),
            unsignalled: Pace::default(),
            vring: None,
            memory: None,
            told: None,
            closed: false,
        }
    }

    /// Tells when a flush has finished.
    pub fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// Rung when the host has moved while a read is held.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What the front end has negotiated.
    pub fn set_write_through(&mut self, on: bool) {
        self.write_through = on;
    }

    /// The front end has shared other memory.
    pub fn set_memory(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// A front end has come, with a queue.
    pub fn connect(&mut self, vring: Vring) {
        self.vring = Some(vring);
    }

    /// Gives the parked request back: whoever starts the queue next finds it first in the available ring.
    pub fn stop(&mut self) {
        if self.unpark()
            && let Some(vring) = &self.vring
        {
            give_back(&mut vring.turn());
        }
        self.told = None;
        self.executor.forget();
    }

    /// Answers nothing more to this front end. It looks at the used index when the connection ends, and has the next backend go on
    /// from there: what was answered after that look would be answered twice.
    pub fn close(&mut self) {
        self.stop();
        self.closed = true;
    }

    /// Lets go of a front end that is gone.
    pub fn disconnect(&mut self) {
        self.stop();
        (self.vring, self.memory) = (None, None);
        self.closed = false;
    }

    /// What the driver kicks, if there is one.
    pub fn kick(&self) -> Option<Arc<std::fs::File>> {
        self.vring.as_ref().and_then(Vring::kick)
    }

    /// Works, and looks for more as long as it may, until there is nothing to do or somebody has to be given way.
    pub fn turn(&mut self, claims: &Claims) -> Rest {
        self.hear_flushes();
        let (Some(vring), Some(memory)) = (self.vring.clone(), self.memory.clone()) else {
            return Rest::Sleep(None);
        };
        let mut state = vring.turn();
        if self.closed || !state.is_enabled() || !state.get_queue().ready() {
            return Rest::Sleep(None);
        }
        // Held for the whole turn: memory that the front end takes back is unmapped when it ends, which is waited for.
        let mem = memory.memory();
        let driven = if vring.is_odd() {
            Err(Broken::Size)
        } else {
            Split::open(state.get_queue(), &mem, self.told).and_then(|mut queue| {
                let driven = self.drive(&mut queue, &mem, claims, &state);
                queue.close(state.get_queue_mut());
                self.told = queue.told();
                driven
            })
        };
        driven.unwrap_or_else(|broken| {
            self.stop_broken(&mut state, broken);
            Rest::Sleep(None)
        })
    }

    /// Addresses or indices that no driver of good faith writes: the queue is not looked at until the guest resets it.
    fn stop_broken(&mut self, state: &mut VringState<Memory>, broken: Broken) {
        self.counters.broken.count();
        if self.broken.due() {
            let times = self.counters.broken.get();
            log::error!(
                "the queue is broken and stopped until the guest resets it: {broken} ({times} so far)"
            );
        }
        self.unpark();
        self.told = None;
        give_back(state);
        state.get_queue_mut().set_ready(false);
    }

    fn drive(
        &mut self,
        queue: &mut Split<'_>,
        mem: &GuestMemory,
        claims: &Claims,
        state: &VringState<Memory>,
    ) -> Result<Rest, Broken> {
        queue.stop_listening()?;
        if self.is_holding() {
            self.bell.awake();
        }
        self.looking.begin();
        let rest = loop {
            let worked = self.step(queue, mem)?;
            if claims.pending() {
                break Rest::GiveWay;
            }
            if worked {
                self.looking.worked();
                if queue.untold() >= BATCH {
                    self.interrupt(queue, state)?;
                }
                continue;
            }
            self.interrupt(queue, state)?;
            if self.looking.goes_on() {
                continue;
            }
            if queue.listen()? || self.news_while_falling_asleep() {
                queue.stop_listening()?;
                continue;
            }
            self.looking.sleeps();
            let until = match &self.parked {
                Some(Parked { why: Why::Held { until }, .. }) => Some(*until),
                _ => None,
            };
            break Rest::Sleep(until);
        };
        self.interrupt(queue, state)?;
        Ok(rest)
    }

    /// Once for everything answered since the last time.
    fn interrupt(
        &mut self,
        queue: &mut Split<'_>,
        state: &VringState<Memory>,
    ) -> Result<(), Broken> {
        if queue.wants_interrupt()?
            && let Err(e) = state.signal_used_queue()
            && self.unsignalled.due()
        {
            log::warn!("cannot interrupt the guest: {e}");
        }
        Ok(())
    }

    /// Announces that we sleep, then looks once more: the host looks for a sleeper after it has moved.
    fn news_while_falling_asleep(&mut self) -> bool {
        if !self.is_holding() {
            return false;
        }
        self.bell.announce();
        let news = self.executor.has_news();
        if news {
            self.bell.awake();
        }
        news
    }

    /// Forgets the parked request. Whether there was one.
    fn unpark(&mut self) -> bool {
        if self.is_holding() {
            self.bell.awake();
        }
        self.parked.take().is_some()
    }

    fn is_holding(&self) -> bool {
        matches!(self.parked, Some(Parked { why: Why::Held { .. }, .. }))
    }
}

/// Completion is in order, so everything behind the used index is unanswered: it is found again when the queue starts.
fn give_back(state: &mut VringState<Memory>) {
    let queue = state.get_queue_mut();
    queue.set_next_avail(queue.next_used());
}
