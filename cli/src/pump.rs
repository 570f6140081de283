//! The loop of `produce`, from its input into a ring. Every byte that was read is pushed, or
//! named in the error.

use super::address::Device;
use super::failure::{Failure, Outcome};
use super::fate::{Fate, Place, is_unbounded};
use super::framing::Framing;
use super::input::{CHUNK, Source, reading};
use super::journald::Trail;
use super::oversize::{Counting, OnTooLarge, TooLarge, refusal};
use super::produce::OnFull;
use super::splitter::{Piece, Size, Splitter, Step};
use ring_program::Stop;
use shared_block_ring::device::{Displaced, Lookout};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken, wait_readable};
use shared_block_ring::{BlockDevice, Error, Producer, RingDevice};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Time between two looks at whether the ring is to be suspended; `suspend --wait` waits at least
/// as long.
const LOOK: Duration = Duration::from_millis(250);

/// The options of `produce`.
#[derive(Clone, Copy)]
pub struct Limits {
    pub framing: Framing,
    pub on_full: OnFull,
    pub on_too_large: OnTooLarge,
    pub timeout: Option<Duration>,
}

/// Counts of items and of waits.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    /// Items that are accepted for sure, and visible to the consumer.
    items: u64,
    /// Payload bytes of these items.
    bytes: u64,
    /// Items after these of which a failure leaves unknown whether they are visible.
    in_doubt: u64,
    /// Items that were dropped because the ring was full.
    pub dropped: u64,
    #[serde(flatten)]
    pub too_large: TooLarge,
    full_waits: u64,
    suspend_waits: u64,
}

/// What the loop does after a look at the input.
enum Next {
    Read,
    Idle,
    Stop,
}

pub struct Pump<'a> {
    producer: Producer<Device>,
    stop: &'a Stop,
    limits: Limits,
    max: usize,
    counts: Counts,
    /// The place behind the last item that was pushed or dropped.
    pushed: Place,
    /// The place behind the last item that is visible or was dropped.
    settled: Place,
    /// The value of `settled` when the ring was last seen to be there.
    confirmed: Place,
    /// Bytes of the input in the record that is being dropped.
    dropping: u64,
    counting: Counting,
    /// The time of the last look for a suspend.
    looked: Instant,
    /// The time of the next look at whether the ring is still there.
    lookout: Lookout,
    /// The entries of the journal that were sent last, if that is the input.
    trail: Option<Trail>,
}

impl<'a> Pump<'a> {
    /// `trail` is what the ring says of the entries of the journal that were sent, if those are the
    /// input.
    pub fn new(
        producer: Producer<Device>,
        stop: &'a Stop,
        limits: Limits,
        trail: Option<Trail>,
    ) -> Self {
        let max = producer.device().geometry().capacity().max_item();
        let counts = Counts::default();
        let (pushed, settled, confirmed) = Default::default();
        let (dropping, counting, looked) = (0, Counting::default(), Instant::now());
        Self {
            producer,
            stop,
            limits,
            max,
            counts,
            pushed,
            settled,
            confirmed,
            dropping,
            counting,
            looked,
            lookout: Lookout::default(),
            trail,
        }
    }

    /// Returns the counts.
    pub fn into_counts(self) -> Counts {
        self.counts
    }

    /// Pushes all input. An error says which items are accepted, in doubt, and not accepted.
    pub fn run(&mut self, input: &mut dyn Source) -> Outcome {
        let mut outcome = self.pump(input);
        let is_stopped = matches!(outcome, Err(Failure::Stopped(_) | Failure::Suspended(_)));
        // Entries of the journal that the ring has not taken are read again at the next start.
        let is_kept = self.trail.is_some() && self.stop.requested();
        if is_stopped && is_kept {
            outcome = Ok(());
        }
        if let Err(Failure::Ring(Error::Superseded { .. } | Error::Format(_))) = outcome {
            // Another ring that overwrote this one looks superseded or corrupt, too.
            self.confirm().map_err(|failure| self.explain(failure))?;
        }
        if let Err(Failure::Ring(Error::Superseded { .. })) = outcome {
            // The producer is at a position of another instance: an advance there would publish no
            // item of this one.
            return outcome.map_err(|failure| self.explain(failure));
        }
        // Whatever ended the loop, items that were pushed are published now, or the error names
        // them.
        let outcome = match self.publish() {
            Ok(()) => {
                self.settle();
                outcome
            }
            Err(Error::Suspended) if is_kept => outcome,
            Err(e) => outcome.and(Err(e.into())),
        };
        // Items in a ring that no consumer finds are not accepted.
        let there = if self.confirmed.bytes < self.settled.bytes {
            self.confirm()
        } else {
            // Without a request to the device: nothing depends on the answer, and a backend that is
            // gone would not give it.
            self.producer.device().check_presence().map_err(|e| Error::from(e).into())
        };
        there.and(outcome).map_err(|failure| self.explain(failure))
    }

    /// Verifies that the published items are in the ring that the address names.
    fn confirm(&mut self) -> Outcome {
        self.producer.check_presence()?;
        self.confirmed = self.settled;
        Ok(())
    }

    /// Does the same about once a second.
    fn confirm_now_and_then(&mut self) -> Outcome {
        if self.lookout.is_due() { self.confirm() } else { Ok(()) }
    }

    fn pump(&mut self, input: &mut dyn Source) -> Outcome {
        let split = self.limits.on_too_large == OnTooLarge::Split;
        let mut splitter = Splitter::new(self.limits.framing, self.max, split);
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.push_all(&mut splitter)? {
                return self.advance();
            }
            if let Some(size) = splitter.too_large() {
                // The input may pause within this item.
                self.count(size)?;
            }
            match self.look(input)? {
                Next::Read => {}
                Next::Idle => continue,
                Next::Stop => return self.stopped(&splitter),
            }
            match input.read(&mut chunk)? {
                Some(0) => splitter.end(),
                Some(count) => splitter.feed(&chunk[..count]),
                None => {}
            }
        }
    }

    fn stopped(&self, splitter: &Splitter) -> Outcome {
        if splitter.is_between_records() || self.trail.is_some() {
            return Ok(());
        }
        Err(match splitter.too_large() {
            Some(size) if self.limits.on_too_large == OnTooLarge::Fail => {
                refusal("ring", size, self.max)
            }
            _ => Failure::Refused("asked to stop within an item".to_owned()),
        })
    }

    /// More input at once joins the batch; a pause makes the batch visible.
    fn look(&mut self, input: &mut dyn Source) -> Result<Next, Failure> {
        if self.stop.requested() {
            return Ok(Next::Stop);
        }
        let poll = |fds: &[_], timeout| wait_readable(fds, Some(timeout)).map_err(reading());
        self.confirm_now_and_then()?;
        if self.looked.elapsed() >= LOOK {
            match self.producer.state() {
                // The last advance reports on the items that were pushed.
                Err(Error::Device(_)) if self.stop.requested() => return Ok(Next::Stop),
                looked => looked?,
            };
            self.looked = Instant::now();
        }
        if input.has_read_ahead() || poll(&[input.as_fd()], Duration::ZERO)?.is_some() {
            return Ok(Next::Read);
        }
        self.advance()?;
        match poll(&[self.stop.fd(), input.as_fd()], LOOK)? {
            Some(0) => Ok(Next::Stop),
            Some(_) => Ok(Next::Read),
            None => Ok(Next::Idle),
        }
    }

    /// Pushes every item that was read whole, and returns whether the input is used up.
    fn push_all(&mut self, splitter: &mut Splitter) -> Result<bool, Failure> {
        loop {
            let (batch, next) = self.gather(splitter);
            let items: Vec<&[u8]> = batch.iter().map(|piece| splitter.bytes(piece)).collect();
            self.push_batch(&items, &batch)?;
            match next {
                None => {}
                Some(Step::TooLarge(piece, size)) => self.pass(&piece, size)?,
                Some(Step::Truncated) => {
                    return Err(Failure::Refused("the input ends within an item".to_owned()));
                }
                Some(step) => return Ok(step == Step::End),
            }
        }
    }

    /// Returns the next items of the input, and the step behind them if that is no item.
    fn gather(&self, splitter: &mut Splitter) -> (Vec<Piece>, Option<Step>) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        // A batch becomes visible as a whole: one as large as the ring would wait until all of the
        // ring is free.
        let enough = CHUNK.min(self.max / 4) as u64;
        while bytes < enough || batch.is_empty() {
            match splitter.next() {
                Step::Item(piece) => {
                    bytes += piece.used;
                    batch.push(piece);
                }
                other => return (batch, Some(other)),
            }
        }
        (batch, None)
    }

    /// Passes over a piece of a record that is too large and not split.
    fn pass(&mut self, piece: &Piece, size: Size) -> Outcome {
        if piece.first {
            // Items before this record do not wait for its end.
            self.advance()?;
        }
        if self.limits.on_too_large == OnTooLarge::Fail {
            return self.count(size);
        }
        self.dropping += piece.used;
        if piece.last {
            self.counts.too_large.dropped += 1;
            self.pushed.pass(std::mem::take(&mut self.dropping), true);
        }
        Ok(())
    }

    /// Refuses an item that is too large, once its size is known as far as the error names it.
    fn count(&mut self, size: Size) -> Outcome {
        let refused = self.limits.on_too_large == OnTooLarge::Fail
            && self.counting.is_over(size, self.limits.timeout);
        if refused { Err(refusal("ring", size, self.max)) } else { Ok(()) }
    }

    /// Pushes as many items at once as fit, and the others as the options say.
    fn push_batch(&mut self, items: &[&[u8]], batch: &[Piece]) -> Outcome {
        let mut wait = Wait::new(Side::Consumer, self.limits.timeout);
        let mut waited = None;
        let mut done = 0;
        while done < batch.len() {
            let suspended = match self.producer.push_some(&items[done..]) {
                Ok((count, _)) => {
                    for piece in &batch[done..done + count] {
                        self.pushed.push(piece);
                        self.counts.too_large.note(piece);
                    }
                    if let Some(trail) = &mut self.trail {
                        items[done..done + count].iter().for_each(|item| trail.push(item));
                    }
                    done += count;
                    wait = Wait::new(Side::Consumer, self.limits.timeout);
                    waited = None;
                    continue;
                }
                Err(Error::Retry) => false,
                Err(Error::Suspended) => true,
                Err(e) => return Err(e.into()),
            };
            if !suspended {
                // The consumer can free only visible items.
                self.advance()?;
                match self.limits.on_full {
                    OnFull::Wait => {}
                    OnFull::Fail => return Err(Failure::Refused("the ring is full".to_owned())),
                    OnFull::Drop => {
                        self.counts.dropped += 1;
                        self.counts.too_large.note(&batch[done]);
                        self.pushed.pass(batch[done].used, batch[done].last);
                        done += 1;
                        continue;
                    }
                }
            }
            if waited.replace(suspended) != Some(suspended) {
                let waits = if suspended {
                    &mut self.counts.suspend_waits
                } else {
                    &mut self.counts.full_waits
                };
                *waits += 1;
            }
            self.pause(&mut wait, suspended)?;
        }
        Ok(())
    }

    fn pause(&mut self, wait: &mut Wait, suspended: bool) -> Outcome {
        self.confirm_now_and_then()?;
        let woken = wait.pause(self.producer.device(), &[self.stop.fd()]).map_err(Error::from)?;
        match (woken, suspended) {
            (Woken::Elapsed, _) => Ok(()),
            (Woken::Readable(_), true) => Err(Failure::Suspended("asked to stop".to_owned())),
            (Woken::Readable(_), false) => {
                Err(Failure::Stopped("asked to stop while the ring was full".to_owned()))
            }
            (Woken::TimedOut, true) => Err(Failure::Suspended("no resume in time".to_owned())),
            (Woken::TimedOut, false) => {
                let seconds = self.limits.timeout.unwrap_or_default().as_secs_f64();
                Err(Failure::TimedOut { seconds, what: "the ring stayed full".to_owned() })
            }
        }
    }

    /// Publishes all items that were pushed, together with the place in the journal.
    fn publish(&mut self) -> Result<(), Error> {
        let position = self.producer.position();
        if let Some(trail) = &mut self.trail {
            trail.begin(position);
            self.producer.set_client(trail.text().as_deref().unwrap_or_default());
        }
        self.producer.advance(position)
    }

    /// Does the same; while the ring is suspended, waits for the resume first.
    fn advance(&mut self) -> Outcome {
        let mut wait = None;
        loop {
            match self.publish() {
                Ok(()) => break,
                Err(Error::Suspended) => {
                    let wait = wait.get_or_insert_with(|| {
                        self.counts.suspend_waits += 1;
                        Wait::new(Side::Consumer, self.limits.timeout)
                    });
                    self.pause(wait, true)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        if let Some(trail) = &mut self.trail {
            trail.settle();
        }
        self.settled = self.pushed;
        self.counts.items = self.settled.items;
        self.counts.bytes = self.settled.payload;
    }

    /// Adds to a failure which items are accepted, in doubt, and not accepted.
    fn explain(&mut self, failure: Failure) -> Failure {
        let fate = self.fate(&failure);
        self.counts.items = fate.from.items;
        self.counts.bytes = fate.from.payload;
        self.counts.in_doubt = fate.to.unwrap_or(self.pushed).items - fate.from.items;
        fate.explain(failure)
    }

    fn fate(&self, failure: &Failure) -> Fate {
        if is_unbounded(failure) {
            return Fate { from: self.settled, to: None };
        }
        // An advance that failed was one over all items that are pushed.
        let exposed = !self.producer.in_doubt().is_empty();
        let to = Some(if exposed { self.pushed } else { self.settled });
        let is_displaced = matches!(failure, Failure::Ring(Error::Device(error))
            if Displaced::of(error).is_some());
        // Items settled since then may be in a ring that no consumer finds.
        Fate { from: if is_displaced { self.confirmed } else { self.settled }, to }
    }
}
