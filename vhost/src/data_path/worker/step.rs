//! One request, from its descriptor chain to its entry in the used ring.
//!
//! [`Worker::step`] is the whole way. What a request waits for in between is its
//! [`RequestState`]; what is done with the ring's bytes is the [`Executor`]'s.
//!
//! [`Executor`]: crate::data_path::executor::Executor

use super::Worker;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::fault;
use crate::data_path::queue::{Broken, Chain, SplitQueue};
use crate::data_path::request::Kind;
use crate::data_path::request_state::{Answer, RequestState};
use std::sync::atomic::Ordering;
use std::time::Instant;
use vm_memory::Bytes;

/// The one request of a queue that is not answered. Its parsed form is [`Worker`]'s `request`.
pub(super) struct Unfinished {
    /// The chain's first descriptor.
    pub head: u16,
    pub state: RequestState,
}

impl Worker {
    /// Takes the unfinished request one step further or, if there is none, the next one that the
    /// driver has offered. Returns false if there is nothing to do now.
    pub(super) fn step(
        &mut self,
        queue: &mut SplitQueue<'_>,
        mem: &GuestMemory,
    ) -> Result<bool, Broken> {
        self.flusher.poll();
        if self.must_wait(queue)? {
            return Ok(false);
        }
        let (head, state) = match self.unfinished.take() {
            Some(Unfinished { head, state }) => (head, self.go_on(mem, state)),
            None => match queue.next_chain()? {
                Some(chain) => (chain.head(), self.start(mem, chain)),
                None => return Ok(false),
            },
        };
        let answered = match state {
            RequestState::Done(answer) => self.answer(queue, mem, head, answer),
            state => {
                self.unfinished = Some(Unfinished { head, state });
                Ok(())
            }
        };
        // Waking the host takes longer than a request, and so comes after the guest has its answer.
        // Whatever became of that answer, the host has to learn that the pointer has moved.
        self.executor.wake_host();
        answered.map(|()| true)
    }

    /// Whether the unfinished request, if there is one, waits for an event that has not happened.
    fn must_wait(&mut self, queue: &mut SplitQueue<'_>) -> Result<bool, Broken> {
        Ok(match &self.unfinished {
            Some(Unfinished { state: RequestState::Held { until }, .. }) => {
                !self.executor.has_news() && !queue.has_next()? && Instant::now() < *until
            }
            Some(Unfinished { state: RequestState::Flushing { ticket, .. }, .. }) => {
                self.flusher.outcome(*ticket).is_none()
            }
            _ => false,
        })
    }

    /// Parses a chain, and carries the request out as far as that goes now.
    fn start(&mut self, mem: &GuestMemory, chain: Chain<'_>) -> RequestState {
        if let Err(reason) = self.request.parse(mem, chain) {
            return self.executor.refuse(reason);
        }
        if fault::anything_lost() {
            return RequestState::Done(Answer::FAILED);
        }
        let needs_medium = matches!(self.request.kind(), Kind::Write | Kind::Flush);
        if needs_medium && self.flusher.has_failed() {
            self.counters.failed.count();
            return RequestState::Done(Answer::FAILED);
        }
        let state = self.executor.execute(mem, &self.request, Some(self.hold));
        self.make_durable(state)
    }

    /// Goes on with a request whose wait is over.
    fn go_on(&mut self, mem: &GuestMemory, state: RequestState) -> RequestState {
        match state {
            RequestState::Walking(judgement) => {
                let state = self.executor.resume(mem, &self.request, judgement);
                self.make_durable(state)
            }
            RequestState::Held { .. } => self.executor.execute(mem, &self.request, None),
            RequestState::Flushing { ticket, answer } => match self.flusher.outcome(ticket) {
                Some(true) => {
                    self.counters.flushes.count();
                    RequestState::Done(answer)
                }
                Some(false) => RequestState::Done(Answer::FAILED),
                None => RequestState::Flushing { ticket, answer },
            },
            done @ RequestState::Done(_) => done,
        }
    }

    /// Begins the flush that a carried out request waits for, if it is one that waits: a FLUSH, and
    /// without that feature each write.
    fn make_durable(&mut self, state: RequestState) -> RequestState {
        let flushes = match self.request.kind() {
            Kind::Flush => true,
            Kind::Write => self.write_through,
            Kind::Read | Kind::GetId | Kind::Unsupported => false,
        };
        match state {
            RequestState::Done(answer) if flushes && answer.is_ok() => {
                RequestState::Flushing { ticket: self.flusher.request(), answer }
            }
            state => state,
        }
    }

    /// Writes the status byte and the used ring's entry.
    fn answer(
        &self,
        queue: &mut SplitQueue<'_>,
        mem: &GuestMemory,
        head: u16,
        answer: Answer,
    ) -> Result<(), Broken> {
        let Answer { mut status, mut written } = answer;
        // A loss may have been met while the request was carried out.
        if fault::anything_lost() {
            if fault::guest_lost() {
                return Err(Broken::Memory);
            }
            status = Answer::FAILED.status;
        }
        // An unfinished request is still in `request`: nothing else was parsed since.
        if let Some(at) = self.request.status()
            && mem.store(status, at, Ordering::Relaxed).is_ok()
        {
            written += 1;
        }
        queue.add_used(head, written)
    }
}
