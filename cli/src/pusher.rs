//! The ring's side of `produce`: items are pushed, waits are bounded, and it is known which items
//! are accepted.

use super::address::Device;
use super::failure::{Failure, Outcome};
use super::fate::{Fate, Place, is_unbounded};
use super::journald::Trail;
use super::life::Life;
use super::oversize::TooLarge;
use super::produce::OnFull;
use super::splitter::Piece;
use ring_program::Stop;
use shared_block_ring::device::{Displaced, Lookout};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Error, Producer, RingDevice};
use std::time::{Duration, Instant};

/// Time between two looks at whether the ring is to be suspended; `suspend --wait` waits at least
/// as long.
pub const LOOK: Duration = Duration::from_millis(250);

/// What to do while the ring is full, and the bound on each wait.
#[derive(Clone, Copy)]
pub struct Patience {
    pub on_full: OnFull,
    pub timeout: Option<Duration>,
}

/// Counts of items and of waits.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    /// Items that are accepted for sure, and visible to the consumer.
    pub items: u64,
    /// Payload bytes of these items.
    bytes: u64,
    /// Items after these of which a failure leaves unknown whether they are visible.
    pub in_doubt: u64,
    /// Items that were dropped because the ring was full.
    pub dropped: u64,
    #[serde(flatten)]
    pub too_large: TooLarge,
    full_waits: u64,
    suspend_waits: u64,
}

/// A producer, and how far it has come.
pub struct Pusher<'a> {
    producer: Producer<Device>,
    stop: &'a Stop,
    patience: Patience,
    pub counts: Counts,
    /// The place behind the last item that was pushed or dropped.
    pushed: Place,
    /// The place behind the last item that is visible or was dropped.
    settled: Place,
    /// The value of `settled` when the ring was last seen to be there.
    confirmed: Place,
    /// Advances that have published items.
    groups: u64,
    /// The time of the last look for a suspend.
    looked: Instant,
    /// The time of the next look at whether the ring is still there.
    lookout: Lookout,
    /// The entries of the journal that were sent last, if that is the input.
    trail: Option<Trail>,
    /// The signs of life, if a service manager is told of this process.
    life: Option<Life>,
}

impl<'a> Pusher<'a> {
    /// `trail` is what the ring says of the entries of the journal that were sent, if those are the
    /// input.
    pub fn new(
        producer: Producer<Device>,
        stop: &'a Stop,
        patience: Patience,
        trail: Option<Trail>,
    ) -> Self {
        let (pushed, settled, confirmed) = Default::default();
        Self {
            producer,
            stop,
            patience,
            counts: Counts::default(),
            pushed,
            settled,
            confirmed,
            groups: 0,
            looked: Instant::now(),
            lookout: Lookout::default(),
            trail,
            life: None,
        }
    }

    /// Gives signs of life from now on.
    pub fn give_signs(&mut self, life: Life) {
        self.life = Some(life);
    }

    /// Tells the service manager of the end.
    pub fn stopping(&self) {
        if let Some(life) = &self.life {
            life.manager().stopping("ends");
        }
    }

    /// Returns the size in bytes of the largest item.
    pub fn max_item(&self) -> usize {
        self.producer.device().geometry().capacity().max_item()
    }

    /// Returns whether the input is the journal.
    pub fn reads_journal(&self) -> bool {
        self.trail.is_some()
    }

    /// Returns whether an item is an entry of the journal that was read before.
    pub fn is_reprint(&mut self, item: &[u8]) -> bool {
        self.trail.as_mut().is_some_and(|trail| trail.is_reprint(item))
    }

    /// Ends the work that `outcome` has ended: what was pushed is published, if that is possible.
    /// `explain` adds to a failure which items are accepted, in doubt, and not accepted.
    pub fn finish(
        &mut self,
        outcome: Outcome,
        explain: impl Fn(Fate, Failure) -> Failure,
    ) -> Outcome {
        self.publish_last(outcome).map_err(|failure| {
            let fate = self.fate(&failure);
            self.counts.items = fate.from.items;
            self.counts.bytes = fate.from.payload;
            self.counts.in_doubt = fate.to.unwrap_or(self.pushed).items - fate.from.items;
            explain(fate, failure)
        })
    }

    fn publish_last(&mut self, mut outcome: Outcome) -> Outcome {
        let is_stopped = matches!(outcome, Err(Failure::Stopped(_) | Failure::Suspended(_)));
        // Entries of the journal that the ring has not taken are read again at the next start.
        let is_kept = self.reads_journal() && self.stop.requested();
        if is_stopped && is_kept {
            outcome = Ok(());
        }
        if let Err(Failure::Ring(Error::Superseded { .. } | Error::Format(_))) = outcome {
            // Another ring that overwrote this one looks superseded or corrupt, too.
            self.confirm()?;
        }
        if let Err(Failure::Ring(Error::Superseded { .. })) = outcome {
            // The producer is at a position of another instance: an advance there would publish no
            // item of this one.
            return outcome;
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
        there.and(outcome)
    }

    /// Verifies that the published items are in the ring that the address names.
    pub fn confirm(&mut self) -> Outcome {
        self.producer.check_presence()?;
        self.confirmed = self.settled;
        Ok(())
    }

    /// Looks at the ring about once a second, and for a suspend four times a second. Returns
    /// whether to go on: an answer that does not come because the process was asked to stop is no
    /// failure.
    pub fn look_now_and_then(&mut self) -> Result<bool, Failure> {
        self.sign();
        self.confirm_now_and_then()?;
        if self.looked.elapsed() >= LOOK {
            match self.producer.state() {
                // The last advance reports on the items that were pushed.
                Err(Error::Device(_)) if self.stop.requested() => return Ok(false),
                looked => looked?,
            };
            self.looked = Instant::now();
        }
        Ok(true)
    }

    fn sign(&mut self) {
        if let Some(life) = &mut self.life {
            life.sign();
        }
    }

    fn confirm_now_and_then(&mut self) -> Outcome {
        if self.lookout.is_due() { self.confirm() } else { Ok(()) }
    }

    /// Passes over input that is in no item.
    pub fn pass(&mut self, used: u64) {
        self.pushed.pass(used, true);
    }

    /// Pushes as many items at once as fit, and the others as the options say. Before each wait for
    /// room `published` is called with the number of items that are visible or dropped.
    pub fn push_batch(
        &mut self,
        items: &[&[u8]],
        batch: &[Piece],
        mut published: impl FnMut(&mut Self, usize) -> Outcome,
    ) -> Outcome {
        let mut wait = Wait::new(Side::Consumer, self.patience.timeout);
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
                    wait = Wait::new(Side::Consumer, self.patience.timeout);
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
                match self.patience.on_full {
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
                    published(self, done)?;
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
        self.sign();
        let timer = self.life.as_ref().and_then(Life::timer);
        let ends: Vec<_> = [self.stop.fd()].into_iter().chain(timer).collect();
        let woken = wait.pause(self.producer.device(), &ends).map_err(Error::from)?;
        match (woken, suspended) {
            // Only the first of them is the request to stop.
            (Woken::Elapsed | Woken::Readable(1..), _) => Ok(()),
            (Woken::Readable(_), true) => Err(Failure::Suspended("asked to stop".to_owned())),
            (Woken::Readable(_), false) => {
                Err(Failure::Stopped("asked to stop while the ring was full".to_owned()))
            }
            (Woken::TimedOut, true) => Err(Failure::Suspended("no resume in time".to_owned())),
            (Woken::TimedOut, false) => {
                let seconds = self.patience.timeout.unwrap_or_default().as_secs_f64();
                Err(Failure::TimedOut { seconds, what: "the ring stayed full".to_owned() })
            }
        }
    }

    /// Publishes all items that were pushed, together with the place in the journal.
    fn publish(&mut self) -> Result<(), Error> {
        let position = self.producer.position();
        if let Some(trail) = &mut self.trail {
            trail.begin(position);
            // An older text does not fit the new position, and says nothing then.
            if let Some(text) = trail.text() {
                self.producer.set_client(&text);
            }
        }
        self.producer.advance(position)
    }

    /// Does the same; while the ring is suspended, waits for the resume first.
    pub fn advance(&mut self) -> Outcome {
        let mut wait = None;
        loop {
            match self.publish() {
                Ok(()) => break,
                Err(Error::Suspended) => {
                    let wait = wait.get_or_insert_with(|| {
                        self.counts.suspend_waits += 1;
                        Wait::new(Side::Consumer, self.patience.timeout)
                    });
                    self.pause(wait, true)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.settle();
        Ok(())
    }

    /// Returns how many groups of items were published, each with one advance.
    pub fn groups(&self) -> u64 {
        self.groups
    }

    fn settle(&mut self) {
        if let Some(trail) = &mut self.trail {
            trail.settle();
        }
        self.groups += u64::from(self.settled.items < self.pushed.items);
        self.settled = self.pushed;
        self.counts.items = self.settled.items;
        self.counts.bytes = self.settled.payload;
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
