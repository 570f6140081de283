//! Driving the queue: chains in, completions out, strictly in the order of the available ring.
//!
//! At most one request is unfinished ("parked") at a time, and nothing behind it executes. The used index is published after
//! every request, before the next change of the region: a backend that is killed anywhere resumes from the used index alone,
//! and what is replayed then is idempotent. A stop needs no waiting for the same reason: a parked request is
//! given back to the available ring.

use crate::completion::{Finished, give_back, in_memory};
use crate::counters::Counters;
use crate::dirty::GuestMemory;
use crate::executor::{Executor, Outcome};
use crate::fault;
use crate::flusher::Flusher;
use crate::pace::Pace;
use crate::parked::{Parked, Why};
use crate::request::{Kind, MAX_BYTES, Request};
use crate::vring::{Memory, Vring};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use shared_block_ring::device::bell::Bell;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Requests in a turn: a guest that never pauses must not keep the front end's messages waiting.
const TURN: usize = 256;

/// Bytes of data in a turn, likewise: some milliseconds. It is over when they are exceeded.
const TURN_BYTES: u64 = 2 * MAX_BYTES;

/// The thread's state: one queue, and the ring behind it.
pub struct Worker {
    executor: Executor,
    counters: Arc<Counters>,
    flusher: Flusher,
    /// On which the host says that it moved, while a read is held.
    bell: Bell,
    timer: TimerFd,
    again: EventFd,
    hold: Duration,
    request: Request,
    parked: Option<Parked>,
    tickets: u64,
    /// No FLUSH feature: every write is durable before it is answered.
    write_through: bool,
    /// After a failed flush nothing is known about what is on the medium, and a second try would only hide it.
    medium_failed: bool,
    broken: Pace,
    unsignalled: Pace,
    vring: Option<Vring>,
}

impl Worker {
    /// Serves `executor`'s ring.
    pub fn new(
        executor: Executor,
        counters: Arc<Counters>,
        flusher: Flusher,
        bell: Bell,
        hold: Duration,
    ) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            executor,
            counters,
            flusher,
            bell,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            again: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            hold,
            request: Request::default(),
            parked: None,
            tickets: 0,
            write_through: false,
            medium_failed: false,
            broken: Pace::default(),
            unsignalled: Pace::default(),
            vring: None,
        })
    }

    /// Readable when a flush has finished.
    pub fn flush_event(&self) -> &EventFd {
        self.flusher.event()
    }

    /// Readable when the host has moved while a read is held.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Readable when a read has been held long enough.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Readable when a turn was cut short.
    pub fn again_event(&self) -> &EventFd {
        &self.again
    }

    /// What the front end has negotiated.
    pub fn set_write_through(&mut self, on: bool) {
        self.write_through = on;
    }

    /// Gives the parked request back: whoever starts the queue next finds it first in the available ring.
    pub fn stop(&mut self) {
        if self.parked.take().is_some() {
            self.unhold();
            if let Some(vring) = &self.vring {
                give_back(&mut vring.get_mut());
            }
        }
        self.executor.forget();
    }

    /// Lets go of a front end that is gone.
    pub fn disconnect(&mut self) {
        self.stop();
        self.vring = None;
    }

    /// The queue was kicked, or a turn was cut short.
    pub fn kicked(&mut self, vring: &Vring, memory: &Memory) {
        // Not readable unless a turn was cut short.
        let _ = self.again.read();
        self.vring = Some(vring.clone());
        self.turn(vring, memory, None);
    }

    /// Flushes have finished.
    pub fn flushed(&mut self, vring: &Vring, memory: &Memory) {
        while let Some((ticket, result)) = self.flusher.finished() {
            if let Err(e) = &result
                && !self.medium_failed
            {
                log::error!(
                    "cannot make the region durable: {e}; writes and flushes fail from here on"
                );
                self.medium_failed = true;
            }
            let durable = result.is_ok();
            // Unless a stop has given its request back meanwhile.
            let awaited = |parked: &mut Parked| matches!(parked.why, Why::Flush { ticket: awaited, .. } if awaited == ticket);
            if let Some(Parked { head, why: Why::Flush { len, .. } }) = self.parked.take_if(awaited)
            {
                self.counters.flushes.add(u64::from(durable));
                let finished =
                    if durable { Finished::ok(head, len) } else { Finished::failed(head) };
                self.turn(vring, memory, Some(finished));
            }
        }
    }

    /// The host has moved.
    pub fn rung(&mut self, vring: &Vring, memory: &Memory) {
        self.bell.awake();
        self.turn(vring, memory, None);
    }

    /// A read was held long enough.
    pub fn timed_out(&mut self, vring: &Vring, memory: &Memory) {
        if nix::unistd::read(&self.timer, &mut [0; 8]).is_err() {
            // Disarmed since.
            return;
        }
        if let Some(parked) = self.parked.take_if(|parked| matches!(parked.why, Why::Held)) {
            self.bell.awake();
            let outcome = self.executor.execute(&*memory.memory(), &self.request, false);
            self.turn(vring, memory, Some(Finished::from(parked.head, &outcome)));
        }
    }

    /// Works until the queue is empty, a request parks, or the turn is over.
    fn turn(&mut self, vring: &Vring, memory: &Memory, finished: Option<Finished>) {
        let mut state = vring.turn();
        if !state.is_enabled() || !state.get_queue().ready() {
            if finished.is_some() {
                give_back(&mut state);
            }
            return;
        }
        let mem = memory.memory();
        let mut answered = 0;
        let driven = if vring.is_odd() {
            Err(virtio_queue::Error::InvalidSize)
        } else if in_memory(state.get_queue(), &mem) {
            self.drive(&mut state, &mem, finished, &mut answered)
        } else {
            Err(virtio_queue::Error::FindMemoryRegion)
        };
        if let Err(e) = driven {
            self.stop_broken(&mut state, &e);
        }
        if answered > 0
            && state.needs_notification().unwrap_or(true)
            && let Err(e) = state.signal_used_queue()
            && self.unsignalled.due()
        {
            log::warn!("cannot interrupt the guest: {e}");
        }
    }

    /// Addresses or indices that no driver of good faith writes: the queue is not looked at until the guest resets it.
    fn stop_broken(&mut self, state: &mut VringState<Memory>, error: &virtio_queue::Error) {
        self.counters.broken.count();
        if self.broken.due() {
            let times = self.counters.broken.get();
            log::error!(
                "the queue is broken and stopped until the guest resets it: {error} ({times} so far)"
            );
        }
        if self.parked.take().is_some() {
            self.unhold();
        }
        give_back(state);
        state.get_queue_mut().set_ready(false);
    }

    fn drive<M>(
        &mut self,
        state: &mut VringState<Memory>,
        mem: &M,
        finished: Option<Finished>,
        answered: &mut u32,
    ) -> Result<(), virtio_queue::Error>
    where
        M: Deref<Target = GuestMemory> + Clone,
    {
        if let Some(finished) = finished {
            self.answer(state, mem, &finished)?;
            *answered += 1;
        }
        let mut bytes = 0;
        for _ in 0..TURN {
            let (head, outcome) = match self.parked.take() {
                Some(parked) => match self.unpark(state, mem, parked)? {
                    Some(unparked) => unparked,
                    None => return Ok(()),
                },
                None => match self.take(state, mem)? {
                    Some(taken) => taken,
                    None if state.enable_notification()? => continue,
                    None => return Ok(()),
                },
            };
            bytes += self.request.data_len;
            if !self.park(head, &outcome) {
                if let Outcome::Walking(judgement) = outcome {
                    // Its budget is a turn's.
                    self.parked = Some(Parked { head, why: Why::Walking(judgement) });
                    break;
                }
                self.answer(state, mem, &Finished::from(head, &outcome))?;
                *answered += 1;
            }
            if bytes > TURN_BYTES {
                break;
            }
        }
        // Through the event loop, so that the front end's messages get their turn.
        self.again.write(1).map_err(|_| virtio_queue::Error::QueueNotReady)
    }

    /// The next request of the available ring, carried out as far as it goes.
    fn take<M>(
        &mut self,
        state: &mut VringState<Memory>,
        mem: &M,
    ) -> Result<Option<(u16, Outcome)>, virtio_queue::Error>
    where
        M: Deref<Target = GuestMemory> + Clone,
    {
        // Not `pop_descriptor_chain`: it answers "nothing" to an available index that is out of bounds.
        let Some(chain) = state.get_queue_mut().iter(mem.clone())?.next() else { return Ok(None) };
        let head = chain.head_index();
        let outcome = match self.request.parse(&**mem, chain) {
            Ok(()) if fault::region_lost() => Outcome::Failed,
            Ok(())
                if self.medium_failed
                    && matches!(self.request.kind(), Kind::Write | Kind::Flush) =>
            {
                self.counters.failed.count();
                Outcome::Failed
            }
            Ok(()) => self.executor.execute(&**mem, &self.request, true),
            Err(reason) => self.executor.refuse(reason),
        };
        Ok(Some((head, outcome)))
    }

    /// Sets a request aside that waits for somebody else.
    fn park(&mut self, head: u16, outcome: &Outcome) -> bool {
        let why = match outcome {
            Outcome::Hold => {
                self.counters.held.count();
                let time = Expiration::OneShot(TimeSpec::from(self.hold));
                if let Err(e) = self.timer.set(time, TimerSetTimeFlags::empty()) {
                    log::warn!("a held read ends only with the next request: {e}");
                }
                Why::Held
            }
            Outcome::Flush => self.flush(0),
            Outcome::Done(len) if self.write_through && self.request.kind() == Kind::Write => {
                self.flush(*len)
            }
            _ => return false,
        };
        self.parked = Some(Parked { head, why });
        true
    }

    fn flush(&mut self, len: u32) -> Why {
        self.tickets += 1;
        if !self.flusher.request(self.tickets) {
            // Cannot be: the thread ends with us. If it did, an unanswered flush is the safe answer.
            log::error!("the flusher thread is gone");
        }
        Why::Flush { ticket: self.tickets, len }
    }

    /// The outcome of a parked request, or `None` with it parked again.
    fn unpark<M>(
        &mut self,
        state: &mut VringState<Memory>,
        mem: &M,
        parked: Parked,
    ) -> Result<Option<(u16, Outcome)>, virtio_queue::Error>
    where
        M: Deref<Target = GuestMemory> + Clone,
    {
        let head = parked.head;
        match parked.why {
            Why::Walking(judgement) => {
                Ok(Some((head, self.executor.resume(&**mem, &self.request, judgement))))
            }
            Why::Flush { .. } => {
                self.parked = Some(parked);
                Ok(None)
            }
            Why::Held => {
                // Announce, then look once more: the host looks for a sleeper after it has moved.
                self.bell.announce();
                let mut outcome = self.executor.execute(&**mem, &self.request, true);
                if matches!(outcome, Outcome::Hold) && state.enable_notification()? {
                    // Something follows, and must not wait for this.
                    outcome = self.executor.execute(&**mem, &self.request, false);
                }
                if matches!(outcome, Outcome::Hold) {
                    self.parked = Some(parked);
                    return Ok(None);
                }
                self.unhold();
                Ok(Some((head, outcome)))
            }
        }
    }

    fn unhold(&self) {
        self.bell.awake();
        if let Err(e) = self.timer.unset() {
            log::debug!("cannot disarm the timer, which then rings for nothing: {e}");
        }
    }

    fn answer<M>(
        &self,
        state: &mut VringState<Memory>,
        mem: &M,
        finished: &Finished,
    ) -> Result<(), virtio_queue::Error>
    where
        M: Deref<Target = GuestMemory>,
    {
        let mut len = finished.len;
        // Found out by carrying it out, perhaps.
        let code = if fault::region_lost() {
            Finished::failed(finished.head).status
        } else {
            finished.status
        };
        // What was parked is still in `request`: nothing else was parsed since.
        if let Some(at) = self.request.status()
            && mem.write_obj(code, at).is_ok()
        {
            len += 1;
        }
        state.add_used(finished.head, len)
    }
}
