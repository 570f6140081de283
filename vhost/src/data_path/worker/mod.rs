//! Driving one queue: chains in, answers out, strictly in the order of the available ring.
//!
//! At most one request is unfinished at a time, and nothing behind it is carried out. The used
//! index is published after every request, before the next change of the region: a backend that is
//! killed anywhere resumes from the used index alone, and what is replayed then is idempotent. For
//! the same reason a stop waits for nothing: the unfinished request returns to the available ring.

mod step;

use crate::data_path::counters::Counters;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::executor::Executor;
use crate::data_path::fault::{Owner, Watched};
use crate::data_path::flusher::Flusher;
use crate::data_path::polling::{Poller, Polling};
use crate::data_path::queue::{Broken, SplitQueue};
use crate::data_path::request::Request;
use crate::data_path::request_state::RequestState;
use crate::data_path::shared_queue::{Memory, SharedQueue, give_back, is_running};
use crate::data_path::waiters::Waiters;
use ring_program::Pace;
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::Bell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::Unfinished;
use vhost_user_backend::VringState;
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};

/// Answers between two interrupt decisions while there is more to do. One is also made when the
/// queue is empty.
const INTERRUPT_BATCH: u16 = 8;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// Another thread waits for what the worker holds.
    GiveWay,
    /// There is nothing to do until an event, or until this time.
    Sleep(Option<Instant>),
}

/// The state of the queue's thread: one queue, and the ring behind it.
pub struct Worker {
    executor: Executor,
    counters: Arc<Counters>,
    flusher: Flusher,
    /// Signalled by the host when it has moved while a read is held.
    bell: Watched<Bell>,
    /// The longest that a read is held.
    hold: Duration,
    poller: Poller,
    /// The parsed form of the unfinished request, or else of the last one.
    request: Request,
    unfinished: Option<Unfinished>,
    /// Every write is durable before it is answered: FLUSH was not negotiated, or the guest's
    /// driver has chosen it.
    write_through: bool,
    broken_log: Pace,
    interrupt_log: Pace,
    queue: Option<SharedQueue>,
    /// Guest memory. Replaced by [`set_memory`](Worker::set_memory) alone: the front end's thread
    /// prepares it first.
    memory: Option<Watched<Arc<GuestMemory>>>,
    /// See [`SplitQueue::signalled`].
    signalled: Option<u16>,
    /// The queue's rings do not lie in guest memory, which was counted and logged.
    rings_missing: bool,
    /// The connection is about to end.
    closed: bool,
}

impl Worker {
    /// Makes a worker that serves `executor`'s ring.
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
            bell: Watched::new(bell, Owner::Ring),
            hold,
            poller: Poller::new(polling),
            request: Request::default(),
            unfinished: None,
            write_through: false,
            broken_log: Pace::default(),
            interrupt_log: Pace::default(),
            queue: None,
            memory: None,
            signalled: None,
            rings_missing: false,
            closed: false,
        }
    }

    /// The thread that makes the region durable. Its event tells when a flush has finished.
    pub fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// The bell that the host rings when it has moved while a read is held.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Sets `suspend` in sector 2 on behalf of a process without a role. Returns false where
    /// another process edits that sector: to be tried again.
    pub fn suspend(&self, suspend: bool) -> Result<bool, DeviceError> {
        self.executor.suspend(suspend)
    }

    /// Sets whether each write is durable before it is answered.
    pub fn set_write_through(&mut self, on: bool) {
        self.write_through = on;
    }

    /// Replaces guest memory by what the front end shares now.
    pub fn set_memory(&mut self, memory: &Memory) {
        // What was shared before may be used until here, and is watched for as long.
        self.memory = Some(Watched::new(memory.memory().into_inner(), Owner::FrontEnd));
    }

    /// Takes the queue of a front end that has connected.
    pub fn connect(&mut self, queue: SharedQueue) {
        self.queue = Some(queue);
    }

    /// Gives the unfinished request back: after the queue's next start it is the first in the
    /// available ring.
    pub fn stop(&mut self) {
        let was_unfinished = self.abandon_request();
        if let Some(queue) = &self.queue {
            let mut state = queue.lock_for_turn();
            // If the queue was stopped already, the request was given back then, and the indices
            // may be new ones.
            if was_unfinished && !queue.take_restarted() {
                give_back(state.get_queue_mut());
            }
        }
        self.forget_queue();
    }

    /// Forgets what is known of the queue but its indices.
    fn forget_queue(&mut self) {
        self.abandon_request();
        (self.signalled, self.rings_missing) = (None, false);
        self.executor.forget();
    }

    /// Answers nothing more to this front end. It reads the used index when the connection ends,
    /// and the next backend goes on from there: an answer after that reading would be given twice.
    pub fn close(&mut self) {
        self.stop();
        self.closed = true;
    }

    /// Drops queue and memory of a front end that is gone.
    pub fn disconnect(&mut self) {
        self.stop();
        (self.queue, self.memory) = (None, None);
        self.closed = false;
    }

    /// The event that the driver kicks, if there is one.
    pub fn kick(&self) -> Option<Arc<std::fs::File>> {
        self.queue.as_ref().and_then(SharedQueue::kick)
    }

    /// The front end's queue.
    pub fn queue(&self) -> Option<&SharedQueue> {
        self.queue.as_ref()
    }

    /// Whether the front end shares memory of the guest.
    pub fn has_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.num_regions() > 0)
    }

    /// Whether the queue runs, and nothing was ever offered in it.
    pub fn is_untouched(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| {
            let state = queue.lock_for_turn();
            is_running(&state) && state.get_queue().next_avail() == 0
        })
    }

    /// Serves requests, and polls for more as long as it may, until there is nothing to do or one
    /// of `waiters` needs what the worker holds.
    pub fn turn(&mut self, waiters: &Waiters) -> TurnEnd {
        self.flusher.poll();
        let (Some(queue), Some(memory)) = (self.queue.clone(), self.memory.as_deref().cloned())
        else {
            return TurnEnd::Sleep(None);
        };
        let mut state = queue.lock_for_turn();
        if self.closed || !is_running(&state) {
            return TurnEnd::Sleep(None);
        }
        if queue.take_restarted() {
            self.forget_queue();
        }
        // `memory` is held for the whole turn: memory that the front end takes back is unmapped
        // when the turn ends, and the front end's thread waits for that.
        let end = if queue.has_invalid_size() {
            Err(Broken::Size)
        } else {
            SplitQueue::open(state.get_queue(), &memory, self.signalled).and_then(|mut split| {
                self.rings_missing = false;
                let end = self.serve(&mut split, &memory, waiters, &state);
                split.close(state.get_queue_mut());
                self.signalled = split.signalled();
                end
            })
        };
        end.unwrap_or_else(|broken| {
            match broken {
                Broken::Rings => self.wait_for_memory(&mut state),
                broken => self.stop_broken(&mut state, broken),
            }
            TurnEnd::Sleep(None)
        })
    }

    /// Waits for rings that are not in guest memory. A front end may take back the memory that they
    /// are in for a moment, to share it again in other pieces (`REM_MEM_REG`, `ADD_MEM_REG`): so
    /// the queue is looked at again whenever something has changed.
    fn wait_for_memory(&mut self, state: &mut VringState<Memory>) {
        if !std::mem::replace(&mut self.rings_missing, true) {
            self.report_broken(
                Broken::Rings,
                "not served until the guest resets it or they are there",
            );
        }
        if self.abandon_request() {
            give_back(state.get_queue_mut());
        }
        self.signalled = None;
    }

    /// Stops a queue whose addresses or indices no correct driver writes, until the guest resets
    /// it.
    fn stop_broken(&mut self, state: &mut VringState<Memory>, broken: Broken) {
        self.report_broken(broken, "stopped until the guest resets it");
        self.abandon_request();
        self.signalled = None;
        give_back(state.get_queue_mut());
        state.get_queue_mut().set_ready(false);
    }

    fn report_broken(&mut self, broken: Broken, until: &str) {
        self.counters.broken.count();
        if self.broken_log.due() {
            let times = self.counters.broken.get();
            log::error!("the queue is broken and {until}: {broken} ({times} so far)");
        }
    }

    /// The queue's loop: steps until there is nothing to do, then polls, then asks for a kick.
    fn serve(
        &mut self,
        queue: &mut SplitQueue<'_>,
        mem: &GuestMemory,
        waiters: &Waiters,
        state: &VringState<Memory>,
    ) -> Result<TurnEnd, Broken> {
        queue.suppress_kicks()?;
        if self.is_holding() {
            self.bell.awake();
        }
        self.poller.start_turn();
        let end = loop {
            let worked = self.step(queue, mem)?;
            if waiters.any() {
                break TurnEnd::GiveWay;
            }
            if worked {
                self.poller.worked();
                if queue.unsignalled() >= INTERRUPT_BATCH {
                    self.interrupt(queue, state)?;
                }
                continue;
            }
            self.interrupt(queue, state)?;
            if self.poller.polls_on() {
                continue;
            }
            // Behind a flush that is under way nothing is taken from the queue: there is no kick to
            // wait for.
            let has_more = !self.is_flushing() && queue.ask_for_kick()?;
            if has_more || self.announce_sleep() {
                queue.suppress_kicks()?;
                continue;
            }
            self.poller.sleeps();
            break TurnEnd::Sleep(self.held_until());
        };
        self.interrupt(queue, state)?;
        Ok(end)
    }

    /// Interrupts the guest once for everything answered since the last decision, if its driver
    /// wants that.
    fn interrupt(
        &mut self,
        queue: &mut SplitQueue<'_>,
        state: &VringState<Memory>,
    ) -> Result<(), Broken> {
        if queue.wants_interrupt()?
            && let Some(shared) = &self.queue
            && let Err(e) = shared.interrupt(state)
            && self.interrupt_log.due()
        {
            log::warn!("cannot interrupt the guest: {e}");
        }
        Ok(())
    }

    /// Announces to the host that a read is held and we are about to sleep, then looks once more:
    /// the host looks for a sleeper after it has moved. Returns whether it has moved.
    fn announce_sleep(&mut self) -> bool {
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

    /// Forgets the unfinished request. Returns whether there was one.
    fn abandon_request(&mut self) -> bool {
        if self.is_holding() {
            self.bell.awake();
        }
        self.unfinished.take().is_some()
    }

    fn is_flushing(&self) -> bool {
        matches!(self.unfinished, Some(Unfinished { state: RequestState::Flushing { .. }, .. }))
    }

    fn is_holding(&self) -> bool {
        self.held_until().is_some()
    }

    /// When the read that is held has to be answered.
    fn held_until(&self) -> Option<Instant> {
        match self.unfinished {
            Some(Unfinished { state: RequestState::Held { until }, .. }) => Some(until),
            _ => None,
        }
    }
}
