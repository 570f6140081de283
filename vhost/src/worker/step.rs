//! One request, from its chain to its place in the used ring, with whatever it has to wait for in between.

use super::Worker;
use crate::completion::Finished;
use crate::dirty::GuestMemory;
use crate::executor::Outcome;
use crate::fault;
use crate::parked::{Parked, Why};
use crate::queue::{Broken, Chain, Split};
use crate::request::Kind;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vm_memory::Bytes;

impl Worker {
    /// One request, or one step of a parked one. False when there is nothing to be done now.
    pub(super) fn step(
        &mut self,
        queue: &mut Split<'_>,
        mem: &GuestMemory,
    ) -> Result<bool, Broken> {
        self.hear_flushes();
        let Some(parked) = self.parked.take() else {
            let Some(chain) = queue.take()? else { return Ok(false) };
            let head = chain.head();
            let outcome = self.take(mem, chain);
            self.settle(queue, mem, head, outcome)?;
            return Ok(true);
        };
        let head = parked.head;
        match parked.why {
            Why::Walking(judgement) => {
                let outcome = self.executor.resume(mem, &self.request, judgement);
                self.settle(queue, mem, head, outcome)?;
            }
            Why::Flush { len, durable: Some(durable), .. } => {
                self.counters.flushes.add(u64::from(durable));
                let finished =
                    if durable { Finished::ok(head, len) } else { Finished::failed(head) };
                self.answer(queue, mem, &finished)?;
            }
            Why::Held { until }
                if self.executor.has_news() || queue.has_next()? || Instant::now() >= until =>
            {
                let outcome = self.executor.execute(mem, &self.request, false);
                self.settle(queue, mem, head, outcome)?;
            }
            Why::Flush { .. } | Why::Held { .. } => {
                self.parked = Some(parked);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Carries a request out as far as it goes.
    fn take(&mut self, mem: &GuestMemory, chain: Chain<'_>) -> Outcome {
        match self.request.parse(mem, chain) {
            Ok(()) if fault::region_lost() => Outcome::Failed,
            Ok(())
                if self.flusher.has_failed()
                    && matches!(self.request.kind(), Kind::Write | Kind::Flush) =>
            {
                self.counters.failed.count();
                Outcome::Failed
            }
            Ok(()) => self.executor.execute(mem, &self.request, true),
            Err(reason) => self.executor.refuse(reason),
        }
    }

    /// Answers a request, or sets it aside if it waits for somebody else. Then the host may be told what it has changed.
    fn settle(
        &mut self,
        queue: &mut Split<'_>,
        mem: &GuestMemory,
        head: u16,
        outcome: Outcome,
    ) -> Result<(), Broken> {
        let settled = self.answer_or_park(queue, mem, head, outcome);
        self.executor.ring();
        settled
    }

    fn answer_or_park(
        &mut self,
        queue: &mut Split<'_>,
        mem: &GuestMemory,
        head: u16,
        outcome: Outcome,
    ) -> Result<(), Broken> {
        let why = match outcome {
            Outcome::Hold => {
                self.counters.held.count();
                Why::Held { until: Instant::now() + self.hold }
            }
            Outcome::Walking(judgement) => Why::Walking(judgement),
            Outcome::Flush => self.flush(0),
            Outcome::Done(len) if self.write_through && self.request.kind() == Kind::Write => {
                self.flush(len)
            }
            outcome => return self.answer(queue, mem, &Finished::from(head, &outcome)),
        };
        self.parked = Some(Parked { head, why });
        Ok(())
    }

    fn flush(&mut self, len: u32) -> Why {
        Why::Flush { ticket: self.flusher.request(), len, durable: None }
    }

    /// Takes note of flushes that have finished, whether their requests are still here or were given back by a stop.
    pub(super) fn hear_flushes(&mut self) {
        while let Some((finished, is_durable)) = self.flusher.finished() {
            if let Some(Parked { why: Why::Flush { ticket, durable, .. }, .. }) = &mut self.parked
                && *ticket == finished
            {
                *durable = Some(is_durable);
            }
        }
    }

    fn answer(
        &self,
        queue: &mut Split<'_>,
        mem: &GuestMemory,
        finished: &Finished,
    ) -> Result<(), Broken> {
        let mut len = finished.len;
        // Found out by carrying it out, perhaps.
        let code = if fault::region_lost() {
            Finished::failed(finished.head).status
        } else {
            finished.status
        };
        // What was parked is still in `request`: nothing else was parsed since.
        if let Some(at) = self.request.status()
            && mem.store(code, at, Ordering::Relaxed).is_ok()
        {
            len += 1;
        }
        queue.answer(finished.head, len)
    }
}
