//! One request, from its descriptor chain to its entry in the used ring.
//!
//! [`Carrier::step`] is the whole way. What a request waits for in between is its
//! [`RequestState`]; what is done with the ring's bytes is the [`Executor`]'s.

use super::ahead::Ahead;
use crate::data_path::counters::Counters;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::executor::{Executor, Replay};
use crate::data_path::fault::Losses;
use crate::data_path::flusher::{Flusher, Ticket};
use crate::data_path::probes;
use crate::data_path::queue::{Broken, Chain, SplitQueue};
use crate::data_path::request::{Kind, Request};
use crate::data_path::request_state::{Answer, RequestState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// What carries out the requests of all queues.
pub(super) struct Carrier {
    pub executor: Executor,
    pub counters: Arc<Counters>,
    pub flusher: Flusher,
    /// The longest that a read is held.
    pub hold: Duration,
    /// Every write is durable before it is answered: FLUSH was not negotiated, or the guest's
    /// driver has chosen it.
    pub write_through: bool,
    /// Requests taken so far. A read that is held is answered when another comes, by any queue: who
    /// makes it may wait for what a process holds that was killed in the read.
    pub arrivals: u64,
    /// Looks at held reads in this turn: the first one is thorough.
    pub held_looks: u32,
    /// The queue with a write for which items are being walked. What the walk has seen must stay
    /// unchanged until that write is carried out or given up: the writes of other queues wait.
    pub walking: Option<usize>,
    /// Looked at before and after each request.
    pub losses: Losses,
    /// What this turn has cost up to now, in bytes that a processor could have copied instead, and
    /// what it may cost.
    pub spent: u64,
    pub allowance: u64,
}

/// Looks at held reads, one of which is thorough.
const HELD_LOOKS: u32 = 64;

/// What a turn may cost if others wait for theirs: more than 64 requests of 4 KiB, or one that is
/// longer than that.
pub(super) const FAIR_ALLOWANCE: u64 = 320 << 10;

/// What a request costs beside its bytes that the fast path does not take, and one that is refused.
const SLOW: u64 = 4 << 10;
const REFUSED: u64 = 80 << 10;

/// The most writes that share a flush in one queue.
const SHARED_FLUSH: usize = 64;

/// How far a queue is.
#[derive(Default)]
pub(super) struct Progress {
    /// The parsed form of the unfinished request, or else of the last one.
    request: Request,
    pub unfinished: Option<Unfinished>,
    /// Requests taken when the unfinished one was.
    arrived: u64,
    /// Writes of data in front of the unfinished request that are carried out, and not answered. If
    /// a backend is killed they are all carried out again, in their order, which changes nothing:
    /// no pointer moves between them.
    stored: Vec<Stored>,
    /// The flush that those are answered after, once it is requested.
    ticket: Option<Ticket>,
    pub replay: Replay,
    /// See [`SplitQueue::signalled`].
    pub signalled: Option<u16>,
    /// The queue's rings do not lie in guest memory, which was counted and logged.
    pub rings_missing: bool,
}

/// A write that is carried out, and not answered.
struct Stored {
    /// The chain's first descriptor.
    head: u16,
    status: Option<GuestAddress>,
    answer: Answer,
}

/// The one request of a queue that is not carried out, or not answered.
pub(super) struct Unfinished {
    /// The chain's first descriptor.
    head: u16,
    pub state: RequestState,
}

impl Progress {
    /// When the read that is held has to be answered. One behind writes that wait for their flush
    /// waits for that first.
    pub fn held_until(&self) -> Option<Instant> {
        match self.unfinished {
            Some(Unfinished { state: RequestState::Held { until }, .. })
                if self.ticket.is_none() =>
            {
                Some(until)
            }
            _ => None,
        }
    }

    /// Whether the unfinished request is the last that was taken.
    pub fn is_last(&self, arrivals: u64) -> bool {
        self.arrived == arrivals
    }

    /// Whether there is a request that was taken and is not answered.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some() || !self.stored.is_empty()
    }

    /// Forgets what was taken and is not answered. Returns whether there was anything.
    pub fn abandon(&mut self) -> bool {
        let was_unfinished = self.is_unfinished();
        self.unfinished = None;
        self.stored.clear();
        self.ticket = None;
        was_unfinished
    }

    /// Leaves a request unfinished: there is nothing to do for it now.
    fn wait<T>(&mut self, head: u16, state: RequestState) -> Option<T> {
        self.unfinished = Some(Unfinished { head, state });
        None
    }

    /// Whether the unfinished request waits for something that no kick tells of: nothing is taken
    /// from the queue until then.
    pub fn is_blocked(&self) -> bool {
        let by_state = matches!(
            self.unfinished,
            Some(Unfinished { state: RequestState::Flushing { .. } | RequestState::Parsed, .. })
        );
        by_state || self.ticket.is_some()
    }
}

impl Carrier {
    /// Takes the unfinished request of a queue one step further or, if there is none, the next one
    /// that the driver has offered. Returns false if there is nothing to do now.
    pub fn step(
        &mut self,
        number: usize,
        queue: &mut SplitQueue<'_>,
        ahead: &mut Ahead,
        progress: &mut Progress,
        mem: &GuestMemory,
    ) -> Result<bool, Broken> {
        self.flusher.poll();
        if let Some(ticket) = progress.ticket {
            return self.answer_stored(number, queue, progress, mem, ticket);
        }
        let (head, state) = if progress.unfinished.is_some() {
            let Some(taken) = self.go_on(queue, progress, mem)? else { return Ok(false) };
            taken
        } else {
            let Some(head) = queue.next_head()? else { return Ok(false) };
            if self.take_fast_path(number, queue, ahead, progress, head)? {
                return Ok(true);
            }
            queue.take();
            (head, self.start(number, mem, progress, queue.chain(head)))
        };
        self.charge(&progress.request, &state);
        self.note_walk(number, &state);
        let answered = match state {
            RequestState::Stored(_) => self.set_aside(queue, progress, head, state),
            _ if !progress.stored.is_empty() => self.set_aside(queue, progress, head, state),
            RequestState::Done(answer) => {
                progress.replay.answered();
                // An unfinished request is still in `request`: nothing else was parsed since.
                self.answer_request((number, queue), mem, head, progress.request.status(), answer)
            }
            state => {
                progress.unfinished = Some(Unfinished { head, state });
                Ok(())
            }
        };
        // Waking the host takes longer than a request, and so comes after the guest has its answer.
        // Whatever became of that answer, the host has to learn that the pointer has moved.
        self.executor.wake_host();
        answered.map(|()| true)
    }

    /// Carries a request out and answers it, if the fast path takes it: a read, or a write of free
    /// bytes that need not be durable at once. Returns whether it did; if not, nothing has changed.
    #[inline]
    fn take_fast_path(
        &mut self,
        number: usize,
        queue: &mut SplitQueue<'_>,
        ahead: &mut Ahead,
        progress: &mut Progress,
        head: u16,
    ) -> Result<bool, Broken> {
        if let Some((sector, len)) = ahead.later_write(queue) {
            self.executor.prefetch(sector, len);
        }
        let Some(chain) = ahead.chain(queue, head)? else { return Ok(false) };
        let memory = queue.memory();
        let Some((kind, sector)) = chain.parse(memory) else { return Ok(false) };
        let waits = kind == Kind::Write
            && (self.write_through || self.walking.is_some() || self.flusher.has_failed());
        if waits || !progress.stored.is_empty() || self.losses.anything_lost() {
            return Ok(false);
        }
        let Some(start) = self.executor.admit(kind, sector, chain.data_len()) else {
            return Ok(false);
        };
        let Some(data) = chain.data(memory) else { return Ok(false) };
        let Some(status) = chain.status(memory) else { return Ok(false) };
        queue.take();
        self.arrivals = self.arrivals.wrapping_add(1);
        self.spent += chain.data_len();
        probes::request_begin(number, head, kind, sector, chain.data_len());
        let answer = self.executor.carry_out(kind, &data, start);
        progress.replay.answered();
        let Answer { status: byte, written } = answer.unless_lost(&self.losses)?;
        // Within the slice, which has one byte.
        let stored = status.store(byte, 0, Ordering::Relaxed).is_ok();
        probes::request_end(number, head, byte);
        queue.add_used(head, written + u32::from(stored))?;
        Ok(true)
    }

    /// Adds a write to those that share a flush, or keeps another request until they are answered.
    /// Requests that flush when no more of them can come.
    #[cold]
    fn set_aside(
        &mut self,
        queue: &mut SplitQueue<'_>,
        progress: &mut Progress,
        head: u16,
        state: RequestState,
    ) -> Result<(), Broken> {
        match state {
            RequestState::Stored(answer) => {
                progress.stored.push(Stored { head, status: progress.request.status(), answer });
                if progress.stored.len() == SHARED_FLUSH || !queue.has_next()? {
                    progress.ticket = Some(self.flusher.request());
                }
            }
            state => {
                progress.ticket = Some(match state {
                    RequestState::Flushing { ticket, .. } => ticket,
                    _ => self.flusher.request(),
                });
                progress.unfinished = Some(Unfinished { head, state });
            }
        }
        Ok(())
    }

    /// Answers the writes that share a flush, when it has finished.
    #[cold]
    fn answer_stored(
        &mut self,
        number: usize,
        queue: &mut SplitQueue<'_>,
        progress: &mut Progress,
        mem: &GuestMemory,
        ticket: Ticket,
    ) -> Result<bool, Broken> {
        let Some(durable) = self.flusher.outcome(ticket) else { return Ok(false) };
        progress.ticket = None;
        progress.replay.answered();
        for Stored { head, status, answer } in progress.stored.drain(..) {
            self.counters.flushes.add(u64::from(durable));
            let answer = if durable { answer } else { Answer::FAILED };
            self.answer_request((number, queue), mem, head, status, answer)?;
        }
        Ok(true)
    }

    /// Has the writes of a queue that wait for others to share their flush wait no longer.
    pub fn flush_stored(&mut self, progress: &mut Progress) {
        let waits = progress.unfinished.is_none() && progress.ticket.is_none();
        if waits && !progress.stored.is_empty() {
            progress.ticket = Some(self.flusher.request());
        }
    }

    /// Charges a step of a request that the fast path has not taken. A correct driver has next to
    /// none refused, so that it does not notice what that costs.
    fn charge(&mut self, request: &Request, state: &RequestState) {
        let refused = matches!(state, RequestState::Done(answer) if !answer.is_ok());
        self.spent += if refused { REFUSED } else { SLOW + request.data_len };
    }

    /// Whether the turn has cost what it may, so that others have theirs first.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.spent >= self.allowance
    }

    /// Notes whether this queue is the one with a walk.
    fn note_walk(&mut self, number: usize, state: &RequestState) {
        if matches!(state, RequestState::Walking(_)) {
            self.walking = Some(number);
        } else if self.walking == Some(number) {
            self.walking = None;
        }
    }

    /// Parses a chain, and carries the request out as far as that goes now.
    fn start(
        &mut self,
        number: usize,
        mem: &GuestMemory,
        progress: &mut Progress,
        chain: Chain<'_>,
    ) -> RequestState {
        self.arrivals = self.arrivals.wrapping_add(1);
        progress.arrived = self.arrivals;
        let head = chain.head();
        match progress.request.parse(mem, chain) {
            Ok(()) => {
                let Request { sector, data_len, .. } = progress.request;
                probes::request_begin(number, head, progress.request.kind(), sector, data_len);
                self.execute(mem, progress)
            }
            Err(reason) => self.executor.refuse(reason),
        }
    }

    /// Carries a parsed request out as far as that goes now.
    #[inline]
    fn execute(&mut self, mem: &GuestMemory, progress: &mut Progress) -> RequestState {
        if self.losses.anything_lost() {
            return RequestState::Done(Answer::FAILED);
        }
        let Progress { request, replay, .. } = progress;
        let needs_medium = matches!(request.kind(), Kind::Write | Kind::Flush);
        if needs_medium && self.flusher.has_failed() {
            self.counters.failed.count();
            return RequestState::Done(Answer::FAILED);
        }
        if self.walking.is_some() && request.kind() == Kind::Write {
            return RequestState::Parsed;
        }
        let state = self.executor.execute(mem, request, replay, Some(self.hold));
        self.make_durable(request, state)
    }

    /// Takes the unfinished request, if its wait is over, and goes on with it.
    #[cold]
    fn go_on(
        &mut self,
        queue: &mut SplitQueue<'_>,
        progress: &mut Progress,
        mem: &GuestMemory,
    ) -> Result<Option<(u16, RequestState)>, Broken> {
        let Some(Unfinished { head, state }) = progress.unfinished.take() else { return Ok(None) };
        let Progress { request, replay, arrived, .. } = progress;
        let state = match state {
            RequestState::Held { until } => {
                let is_last = *arrived == self.arrivals && !queue.has_next()?;
                if is_last && self.holds(until) {
                    return Ok(progress.wait(head, RequestState::Held { until }));
                }
                self.executor.execute(mem, request, replay, None)
            }
            RequestState::Flushing { ticket, answer } => match self.flusher.outcome(ticket) {
                Some(true) => {
                    self.counters.flushes.count();
                    RequestState::Done(answer)
                }
                Some(false) => RequestState::Done(Answer::FAILED),
                None => return Ok(progress.wait(head, RequestState::Flushing { ticket, answer })),
            },
            RequestState::Parsed if self.walking.is_some() => {
                return Ok(progress.wait(head, RequestState::Parsed));
            }
            RequestState::Parsed => self.execute(mem, progress),
            RequestState::Walking(judgement) => {
                let state = self.executor.resume(mem, request, replay, judgement);
                self.make_durable(request, state)
            }
            done @ (RequestState::Done(_) | RequestState::Stored(_)) => done,
        };
        Ok(Some((head, state)))
    }

    /// Whether to hold a read on. Most looks while the worker polls are short: neither the clock is
    /// read, nor the whole sector.
    fn holds(&mut self, until: Instant) -> bool {
        let is_short = !self.held_looks.is_multiple_of(HELD_LOOKS);
        self.held_looks = self.held_looks.wrapping_add(1);
        if is_short {
            return !self.executor.has_moved();
        }
        !self.executor.has_news() && Instant::now() < until
    }

    /// Begins the flush that a carried out request waits for, if it is one that waits: a FLUSH, and
    /// without that feature each write.
    fn make_durable(&mut self, request: &Request, state: RequestState) -> RequestState {
        let flushes = match request.kind() {
            Kind::Flush => true,
            Kind::Write => self.write_through,
            Kind::Read | Kind::GetId | Kind::Unsupported => false,
        };
        match state {
            RequestState::Done(answer)
                if flushes
                    && answer.is_ok()
                    && request.kind() == Kind::Write
                    && self.executor.is_data(request) =>
            {
                RequestState::Stored(answer)
            }
            RequestState::Done(answer) if flushes && answer.is_ok() => {
                RequestState::Flushing { ticket: self.flusher.request(), answer }
            }
            state => state,
        }
    }

    /// Writes the status byte and the used ring's entry, in the queue of that number.
    #[inline]
    fn answer_request(
        &self,
        (number, queue): (usize, &mut SplitQueue<'_>),
        mem: &GuestMemory,
        head: u16,
        status_at: Option<GuestAddress>,
        answer: Answer,
    ) -> Result<(), Broken> {
        let Answer { status, mut written } = answer.unless_lost(&self.losses)?;
        if let Some(at) = status_at
            && mem.store(status, at, Ordering::Relaxed).is_ok()
        {
            written += 1;
        }
        probes::request_end(number, head, status);
        queue.add_used(head, written)
    }
}

impl Answer {
    /// Returns the answer, or a failure if a loss of memory was met while the request was carried
    /// out.
    #[inline]
    fn unless_lost(self, losses: &Losses) -> Result<Self, Broken> {
        if !losses.anything_lost() {
            Ok(self)
        } else if losses.guest_lost() {
            Err(Broken::Memory)
        } else {
            Ok(Self { status: Self::FAILED.status, ..self })
        }
    }
}
