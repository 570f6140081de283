//! Driving the queues of one ring: chains in, answers out, in each queue strictly in the order of
//! its available ring.
//!
//! Of each queue at most one request is unfinished at a time, and nothing behind it is carried out.
//! Across queues every request is judged against the region as it is when its turn comes, one at a
//! time. The used index is published after every request, before the next change of the region: a
//! backend that is killed anywhere resumes from the used indices alone, and what is replayed then
//! is idempotent. Where each write has to be durable, writes of data are answered together: they
//! are idempotent in their order, too. For the same reason a stop waits for nothing: what is
//! unanswered returns to the available ring.

mod ahead;
mod limited;
mod session;
mod step;
mod turn;

use crate::data_path::counters::Counters;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::executor::Executor;
use crate::data_path::fault::{Losses, Owner, Watched};
use crate::data_path::flusher::Flusher;
use crate::data_path::polling::{Poller, Polling};
use crate::data_path::queue_set::QueueSet;
use crate::data_path::rate::{Limiter, Rates};
use crate::data_path::shared_queue::{Memory, SharedQueue, give_back, is_running};
use crate::data_path::waiters::Mark;
use ring_program::Pace;
use shared_block_ring::DebugInfo;
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::Bell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::{Carrier, Progress};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

/// What a request costs beside its bytes, in bytes.
const REQUEST: u64 = 1 << 10;

/// Steps of one queue before the others are looked at.
const VISIT: usize = 16;

/// How long a turn may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Until there is nothing to do: the thread serves no other ring.
    Whole,
    /// Until the others of this thread have waited long enough, or there is nothing to do just now.
    /// A recent reading of the clock, if the thread has made one since the last turn.
    Fair(Option<Instant>),
    /// Until the requests that were taken before can go on no further: a limit of the ring is used
    /// up, and no other one is taken. The worker itself puts this in the place of another share.
    Unfinished,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// Another thread waits for what the worker holds.
    GiveWay,
    /// There is more to do, and others wait for their share.
    More,
    /// There is nothing to do just now, and it pays to look again soon: nobody kicks meanwhile.
    Poll,
    /// There is nothing to do until an event, or until this time.
    Sleep(Option<Instant>),
    /// A limit of the ring is used up: there is nothing to do until an event, or until this time.
    Rest {
        /// When there is something to do at the latest.
        until: Instant,
        /// Whether a kick is no such event: nothing that was taken waits for the next request.
        deaf: bool,
    },
}

/// The state of the queues' thread: the queues, and the ring behind them.
pub struct Worker {
    carrier: Carrier,
    /// Signalled by the host when it has moved while a read is held.
    bell: Watched<Bell>,
    poller: Poller,
    broken_log: Pace,
    interrupt_log: Pace,
    queues: Arc<[SharedQueue]>,
    /// How far each of them is.
    progress: Vec<Progress>,
    /// The queues that were running when they were last looked at.
    running: QueueSet,
    /// Those that have to be looked at in the next turn.
    due: QueueSet,
    /// Those with an unfinished request.
    unfinished: QueueSet,
    /// When `running` was found out.
    looked_at: Option<Mark>,
    /// Guest memory. Replaced by [`set_memory`](Worker::set_memory) alone: the front end's thread
    /// prepares it first.
    memory: Option<Watched<Arc<GuestMemory>>>,
    /// The connection is about to end.
    closed: bool,
    /// The last turn has ended without a sleep behind it, so that the next one goes on with it.
    goes_on: bool,
    /// The limits, if there are any.
    limiter: Option<Box<Limiter>>,
    /// Steps of one queue before the others are looked at: none once a limit is used up.
    visit: usize,
    /// Rounds in this turn, at most.
    rounds: u32,
    /// Requests that were taken before this turn.
    arrivals_before: u64,
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
        let (write_through, walking) = (false, None);
        let poller = Poller::new(polling, Arc::clone(&counters));
        let losses = executor.losses().clone();
        let bell = Watched::new(bell, Owner::Ring, &losses);
        Self {
            carrier: Carrier {
                executor,
                counters,
                flusher,
                hold,
                write_through,
                arrivals: 0,
                held_looks: 0,
                walking,
                losses,
                spent: 0,
                allowance: u64::MAX,
            },
            bell,
            poller,
            broken_log: Pace::default(),
            interrupt_log: Pace::default(),
            queues: Arc::default(),
            progress: Vec::new(),
            running: QueueSet::EMPTY,
            due: QueueSet::EMPTY,
            unfinished: QueueSet::EMPTY,
            looked_at: None,
            memory: None,
            closed: false,
            goes_on: false,
            limiter: None,
            visit: VISIT,
            rounds: 0,
            arrivals_before: 0,
        }
    }

    /// The flushes that make the region durable. Their event tells when one has finished.
    pub fn flusher(&self) -> &Flusher {
        &self.carrier.flusher
    }

    /// The losses of the ring's memory, and of its front end's.
    pub fn losses(&self) -> &Losses {
        &self.carrier.losses
    }

    /// Ends the flushes: see [`Flusher::end`].
    pub fn end_flushes(&mut self) -> Option<io::Result<()>> {
        self.carrier.flusher.end()
    }

    /// The bell that the host rings when it has moved while a read is held.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Sets `suspend` in sector 2 on behalf of a process without a role. Returns false where
    /// another process edits that sector: to be tried again.
    pub fn suspend(&self, suspend: bool) -> Result<bool, DeviceError> {
        self.carrier.executor.suspend(suspend)
    }

    /// Returns what the ring's control sectors say; `None` where that is no ring.
    pub fn info(&self) -> Option<DebugInfo> {
        DebugInfo::read(self.carrier.executor.device()).ok()
    }

    /// Sets the limits. What was done before is charged with the next request.
    pub fn limit(&mut self, rates: Rates) {
        self.limiter = Limiter::new(rates, Instant::now()).map(Box::new);
    }

    /// Sets whether each write is durable before it is answered.
    pub fn set_write_through(&mut self, on: bool) {
        self.carrier.write_through = on;
    }

    /// Replaces guest memory by what the front end shares now.
    pub fn set_memory(&mut self, memory: &Memory) {
        // What was shared before may be used until here, and is watched for as long.
        let memory = memory.memory().into_inner();
        self.memory = Some(Watched::new(memory, Owner::FrontEnd, &self.carrier.losses));
        self.looked_at = None;
    }

    /// Takes the queues of a front end that has connected, at most
    /// [`MAX_QUEUES`](crate::data_path::queue_set::MAX_QUEUES).
    pub fn connect(&mut self, queues: Vec<SharedQueue>) {
        self.progress = queues.iter().map(|_| Progress::default()).collect();
        self.queues = queues.into();
        self.looked_at = None;
    }

    /// Stops a queue, and gives its unfinished request back: after the queue's next start it is the
    /// first in the available ring.
    pub fn stop(&mut self, number: usize) {
        let queues = Arc::clone(&self.queues);
        let Some(queue) = queues.get(number) else { return };
        let was_unfinished = self.abandon_request(number);
        let mut state = queue.lock_for_turn();
        // If the queue was stopped already, the request was given back then, and the indices may be
        // new ones.
        if was_unfinished && !queue.take_restarted() {
            give_back(state.get_queue_mut());
        }
        self.forget_queue(number);
    }

    /// Stops all queues.
    pub fn stop_all(&mut self) {
        (0..self.queues.len()).for_each(|number| self.stop(number));
    }

    /// Forgets what is known of a queue but its indices.
    fn forget_queue(&mut self, number: usize) {
        self.abandon_request(number);
        self.progress[number].signalled = None;
        self.progress[number].rings_missing = false;
        self.carrier.executor.forget();
    }

    /// Answers nothing more to this front end. It reads the used indices when the connection ends,
    /// and the next backend goes on from there: an answer after that reading would be given twice.
    pub fn close(&mut self) {
        self.stop_all();
        self.closed = true;
    }

    /// Forgets the queues without a look at them: a turn has panicked, and may have left any state.
    pub fn abandon(&mut self) {
        self.unfinished = QueueSet::EMPTY;
        self.connect(Vec::new());
        self.closed = true;
    }

    /// Drops queues and memory of a front end that is gone.
    pub fn disconnect(&mut self) {
        self.stop_all();
        self.connect(Vec::new());
        self.memory = None;
        self.closed = false;
    }

    /// The number of requests taken so far.
    pub fn arrivals(&self) -> u64 {
        self.carrier.arrivals
    }

    /// What the last turn has cost, in bytes that a processor could have copied instead.
    pub fn cost(&self) -> u64 {
        let taken = self.carrier.arrivals.wrapping_sub(self.arrivals_before);
        self.carrier.spent.saturating_add(taken.saturating_mul(REQUEST))
    }

    /// Whether a queue runs.
    pub fn runs(&self) -> bool {
        self.queues.iter().any(|queue| is_running(&queue.lock_for_turn()))
    }

    /// Whether a queue runs, and nothing was ever offered in any that does.
    pub fn is_untouched(&self) -> bool {
        let mut running = self.queues.iter().filter_map(|queue| {
            let state = queue.lock_for_turn();
            is_running(&state).then(|| state.get_queue().next_avail())
        });
        running.next().is_some_and(|first| first == 0) && running.all(|next| next == 0)
    }

    /// Forgets a queue's unfinished request. Returns whether there was one.
    fn abandon_request(&mut self, number: usize) -> bool {
        let progress = &mut self.progress[number];
        if progress.held_until().is_some() {
            self.bell.awake();
        }
        if self.carrier.walking == Some(number) {
            self.carrier.walking = None;
        }
        self.unfinished.set(number, false);
        progress.abandon()
    }

    fn is_holding(&self) -> bool {
        !self.unfinished.is_empty() && self.held_until().is_some()
    }

    /// When the first of the reads that are held has to be answered.
    fn held_until(&self) -> Option<Instant> {
        self.unfinished.into_iter().filter_map(|number| self.progress[number].held_until()).min()
    }
}
