//! From standard input into a ring: nothing that was read is lost without a word.

use super::address::Device;
use super::failure::{Failure, Outcome};
use super::framing::{Framing, Missing};
use super::produce::OnFull;
use shared_block_ring::format::{HEADER_BYTES, Side};
use shared_block_ring::wait::{Wait, Woken, wait_readable};
use shared_block_ring::{BlockDevice, Error, Producer, Stop};
use std::io::{self, Read, Stdin};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Read from standard input at a time, and so about the size of a batch.
const CHUNK: usize = 64 * 1024;

/// How often a producer looks whether it is to suspend: `suspend --wait` need not wait longer.
const LOOK: Duration = Duration::from_millis(250);

/// How the user wants it.
#[derive(Clone, Copy)]
pub struct Limits {
    pub framing: Framing,
    pub on_full: OnFull,
    pub timeout: Option<Duration>,
}

/// What became of the input.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    /// Visible to the consumer.
    items: u64,
    /// Bytes of their payload.
    bytes: u64,
    pub dropped: u64,
    full_waits: u64,
    suspend_waits: u64,
}

/// A place in the input.
#[derive(Default, Clone, Copy)]
struct Place {
    /// Items before it.
    items: u64,
    /// Bytes before it.
    bytes: u64,
    /// Bytes of payload before it that were not dropped.
    payload: u64,
}

/// What the pump does after a look at the input.
enum Next {
    Read,
    Idle,
    Stop,
}

pub struct Pump {
    producer: Producer<Device>,
    stop: Stop,
    limits: Limits,
    max: usize,
    counts: Counts,
    /// Read, not pushed.
    pending: Vec<u8>,
    /// Behind the last item that was pushed or dropped.
    pushed: Place,
    /// Behind the last item that is visible or was dropped.
    settled: Place,
    /// When it was looked for a suspend last.
    looked: Instant,
}

impl Pump {
    pub fn new(producer: Producer<Device>, stop: Stop, limits: Limits) -> Self {
        let max = producer.device().geometry().capacity().max_item();
        let (counts, pending) = (Counts::default(), Vec::new());
        let (pushed, settled) = (Place::default(), Place::default());
        let looked = Instant::now();
        Self { producer, stop, limits, max, counts, pending, pushed, settled, looked }
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Pushes all input. An error says which of it was not accepted.
    pub fn run(&mut self) -> Outcome {
        let outcome = self.pump();
        if let Err(Failure::Ring(Error::Superseded { .. })) = outcome {
            // The producer stands elsewhere now: to advance it there would settle nothing of ours.
            return outcome.map_err(|failure| self.not_accepted(failure));
        }
        // Whatever went wrong, what was pushed is to be seen: at once, or the error says that it is not.
        let outcome = match self.producer.advance(self.producer.position()) {
            Ok(()) => {
                self.settle();
                outcome
            }
            Err(e) => outcome.and(Err(e.into())),
        };
        outcome.map_err(|failure| self.not_accepted(failure))
    }

    fn pump(&mut self) -> Outcome {
        let mut input = io::stdin();
        let mut chunk = vec![0; CHUNK];
        let mut ended = false;
        loop {
            let done = self.push_pending(ended)?;
            if ended && done {
                return self.advance();
            }
            match self.look(&input)? {
                Next::Read => {}
                Next::Idle => continue,
                Next::Stop if self.pending.is_empty() => return Ok(()),
                Next::Stop => {
                    return Err(Failure::Refused("asked to stop within an item".to_owned()));
                }
            }
            match input.read(&mut chunk) {
                Ok(0) => ended = true,
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(reading()(e)),
            }
        }
    }

    /// More input at once joins the batch; a pause makes the batch visible.
    fn look(&mut self, input: &Stdin) -> Result<Next, Failure> {
        if self.stop.requested() {
            return Ok(Next::Stop);
        }
        let poll = |fds: &[_], timeout| wait_readable(fds, Some(timeout)).map_err(reading());
        if self.looked.elapsed() >= LOOK {
            match self.producer.state() {
                // Of what was pushed the last advance tells.
                Err(Error::Device(_)) if self.stop.requested() => return Ok(Next::Stop),
                looked => looked?,
            };
            self.looked = Instant::now();
        }
        if poll(&[input.as_fd()], Duration::ZERO)?.is_some() {
            return Ok(Next::Read);
        }
        self.advance()?;
        match poll(&[self.stop.fd(), input.as_fd()], LOOK)? {
            Some(0) => Ok(Next::Stop),
            Some(_) => Ok(Next::Read),
            None => Ok(Next::Idle),
        }
    }

    /// Pushes every item that is there whole; whether the input is used up.
    fn push_pending(&mut self, ended: bool) -> Result<bool, Failure> {
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        let outcome = loop {
            let (batch, next, stopped) = self.gather(&pending[at..], ended);
            let pushed = self.push_batch(&batch);
            if pushed.is_ok() {
                at += next;
            }
            match pushed.and(stopped) {
                Ok(Some(done)) => break Ok(done),
                Ok(None) => {}
                Err(e) => break Err(e),
            }
        };
        self.pending = pending;
        self.pending.drain(..at);
        outcome
    }

    /// The next items of `input` with the bytes that each takes there, how many bytes that is, and why there are no more: used up or
    /// not, or an error; `None` when the batch is large enough.
    #[expect(clippy::type_complexity, reason = "used once, right above")]
    fn gather<'a>(
        &self,
        input: &'a [u8],
        ended: bool,
    ) -> (Vec<(&'a [u8], usize)>, usize, Result<Option<bool>, Failure>) {
        let mut batch = Vec::new();
        let mut at = 0;
        // A batch is seen whole or not at all: one that takes all of the ring would wait for all of it to be free.
        let enough = CHUNK.min(self.max / 4);
        let stopped = loop {
            if at >= enough && !batch.is_empty() {
                break Ok(None);
            }
            match self.limits.framing.split(&input[at..], ended, self.max) {
                Ok(None) => break Ok(Some(true)),
                Ok(Some((item, used))) => {
                    batch.push((item, used));
                    at += used;
                    if self.limits.framing == Framing::Whole {
                        break Ok(Some(true));
                    }
                }
                Err(Missing::More) => break Ok(Some(false)),
                Err(Missing::Truncated) => {
                    break Err(Failure::Refused("the input ends within an item".to_owned()));
                }
                Err(Missing::TooLong(length)) => {
                    let (needed, capacity) =
                        (length as u64 + HEADER_BYTES, self.max as u64 + HEADER_BYTES);
                    break Err(Error::TooLarge { needed, capacity }.into());
                }
            }
        };
        (batch, at, stopped)
    }

    /// As many at once as fit, the rest as room comes, as the user wants it.
    fn push_batch(&mut self, batch: &[(&[u8], usize)]) -> Outcome {
        let items: Vec<&[u8]> = batch.iter().map(|(item, _)| *item).collect();
        let mut wait = Wait::new(Side::Consumer, self.limits.timeout);
        let mut waited = None;
        let mut done = 0;
        while done < batch.len() {
            let suspended = match self.producer.push_some(&items[done..]) {
                Ok((count, _)) => {
                    for (item, used) in &batch[done..done + count] {
                        self.pushed.pass(item.len(), *used);
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
                // The consumer can free only what it sees.
                self.advance()?;
                match self.limits.on_full {
                    OnFull::Wait => {}
                    OnFull::Fail => return Err(Failure::Refused("the ring is full".to_owned())),
                    OnFull::Drop => {
                        self.counts.dropped += 1;
                        self.pushed.pass(0, batch[done].1);
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

    fn pause(&self, wait: &mut Wait, suspended: bool) -> Outcome {
        let woken = wait.pause(self.producer.device(), &[self.stop.fd()]).map_err(Error::from)?;
        match (woken, suspended) {
            (Woken::Elapsed, _) => Ok(()),
            (Woken::Readable(_), true) => Err(Failure::Suspended("asked to stop".to_owned())),
            (Woken::Readable(_), false) => {
                Err(Failure::Refused("asked to stop while the ring was full".to_owned()))
            }
            (Woken::TimedOut, true) => Err(Failure::Suspended("no resume in time".to_owned())),
            (Woken::TimedOut, false) => {
                let seconds = self.limits.timeout.unwrap_or_default().as_secs_f64();
                Err(Failure::TimedOut { seconds, what: "the ring stayed full".to_owned() })
            }
        }
    }

    /// Makes everything pushed visible, after a resume if need be.
    fn advance(&mut self) -> Outcome {
        let mut wait = None;
        loop {
            match self.producer.advance(self.producer.position()) {
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
        self.settled = self.pushed;
        self.counts.items = self.settled.items - self.counts.dropped;
        self.counts.bytes = self.settled.payload;
    }

    /// Says which input a failure is about.
    fn not_accepted(&self, failure: Failure) -> Failure {
        let (number, byte) = (self.settled.items + 1, self.settled.bytes);
        let place = format!(
            "not accepted: item {number} of the input (from byte {byte}) and everything behind it"
        );
        match failure {
            Failure::TimedOut { seconds, what } => {
                Failure::TimedOut { seconds, what: format!("{what}; {place}") }
            }
            Failure::Suspended(what) => Failure::Suspended(format!("{what}; {place}")),
            Failure::Ring(source @ Error::Superseded { .. }) => Failure::During {
                what: format!(
                    "cannot tell what became of item {number} of the input (from byte {byte}) and those behind it \
                     (compare with what the consumer has got, and start again with the rest)"
                ),
                source,
            },
            Failure::Ring(source) => Failure::During { what: place, source },
            other => Failure::Refused(format!("{other}; {place}")),
        }
    }
}

impl Place {
    fn pass(&mut self, payload: usize, used: usize) {
        self.items += 1;
        self.bytes += used as u64;
        self.payload += payload as u64;
    }
}

fn reading() -> impl FnOnce(io::Error) -> Failure {
    Failure::io("cannot read standard input")
}
