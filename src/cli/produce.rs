//! `blockring produce`.

use super::address::{Address, Device, seconds};
use super::failure::{Failure, Outcome};
use super::framing::{Framing, Missing};
use shared_block_ring::format::HEADER_BYTES;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken, wait_readable};
use shared_block_ring::{BlockDevice, Durability, Error, Position, Producer, Stop};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

/// Read from standard input at a time.
const CHUNK: usize = 64 * 1024;

/// How often an idle producer looks whether it is to suspend: `suspend --wait` need not wait longer.
const IDLE_LOOK: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Each item is visible to the consumer as soon as the input pauses. When the ring is full or suspended, produce waits and
reads no more input; SIGTERM ends it after everything that it has read and that fits is visible.

Examples:
  journalctl -f | blockring produce serial:logs
  blockring produce --framing whole /dev/vdb < report.pdf
  blockring produce --on-full drop --timeout 5 ring.img < events";

/// Push standard input into a ring
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Produce {
    #[command(flatten)]
    address: Address,
    /// How items are told apart in the input
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// What to do when the ring is full
    #[arg(long, value_enum, default_value = "wait")]
    on_full: OnFull,
    /// Wait at most this long for space or for a resume
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Flush nothing: faster, and safe unless the machine itself fails
    #[arg(long)]
    no_flush: bool,
    /// Report counts as a line of JSON on standard error at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnFull {
    /// Wait for the consumer
    Wait,
    /// End with an error
    Fail,
    /// Drop the item, count it, go on
    Drop,
}

#[derive(Default, serde::Serialize)]
struct Counts {
    items: u64,
    bytes: u64,
    dropped: u64,
    full_waits: u64,
    suspend_waits: u64,
}

struct Pump<'a> {
    command: &'a Produce,
    producer: Producer<Device>,
    stop: Stop,
    counts: Counts,
    max: usize,
    /// Read and not pushed.
    pending: Vec<u8>,
    /// Bytes of input before `pending`.
    taken: u64,
}

impl Produce {
    pub fn run(self) -> Outcome {
        let device = self.address.open(Role::Producer)?;
        let max = device.geometry().capacity().max_item();
        let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
        let mut producer = Producer::attach(device, "blockring", &client())
            .map_err(|source| Failure::During { what: self.address.name().to_owned(), source })?;
        if self.no_flush {
            producer.set_durability(Durability::PageCache);
        }
        let counts = Counts::default();
        let mut pump =
            Pump { command: &self, producer, stop, counts, max, pending: Vec::new(), taken: 0 };
        let outcome = pump.run();
        // Whatever went wrong, what was pushed is not lost.
        let advanced = pump.advance();
        if self.json {
            eprintln!("{}", serde_json::to_string(&pump.counts).unwrap_or_default());
        } else if pump.counts.dropped > 0 {
            eprintln!("blockring: the ring was full: {} items dropped", pump.counts.dropped);
        }
        outcome.and(advanced)
    }
}

impl Pump<'_> {
    fn run(&mut self) -> Outcome {
        let input = io::stdin();
        let mut chunk = vec![0; CHUNK];
        let mut ended = false;
        loop {
            let done = self.push_pending(ended)?;
            if ended && done {
                return Ok(());
            }
            // More input at once joins the batch; a pause publishes it.
            if wait_readable(&[input.as_fd()], Some(Duration::ZERO)).map_err(reading())?.is_none() {
                self.advance()?;
                match wait_readable(&[self.stop.fd(), input.as_fd()], Some(IDLE_LOOK))
                    .map_err(reading())?
                {
                    Some(1) => {}
                    Some(_) => return Ok(()),
                    None => {
                        self.producer.state()?;
                        continue;
                    }
                }
            } else if self.stop.requested() {
                return Ok(());
            }
            match input.lock().read(&mut chunk) {
                Ok(0) => ended = true,
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(reading()(e)),
            }
        }
    }

    /// Pushes every whole item; whether the input is used up.
    fn push_pending(&mut self, ended: bool) -> Result<bool, Failure> {
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        let outcome = loop {
            match self.command.framing.split(&pending[at..], ended, self.max) {
                Ok(None) => break Ok(true),
                Err(Missing::More) => break Ok(false),
                Ok(Some((item, used))) => {
                    if let Err(failure) = self.push(item) {
                        break Err(self.not_accepted(failure, used));
                    }
                    at += used;
                    self.taken += used as u64;
                    if self.command.framing == Framing::Whole {
                        break Ok(true);
                    }
                }
                Err(Missing::Truncated) => {
                    let text = "the input ends within an item".to_owned();
                    break Err(self.not_accepted(Failure::Refused(text), pending.len() - at));
                }
                Err(Missing::TooLong(length)) => {
                    let needed = length as u64 + HEADER_BYTES;
                    let capacity = self.max as u64 + HEADER_BYTES;
                    let failure = Error::TooLarge { needed, capacity }.into();
                    break Err(self.not_accepted(failure, length));
                }
            }
        };
        self.pending = pending;
        self.pending.drain(..at);
        outcome
    }

    /// Says which input a failure is about.
    fn not_accepted(&self, failure: Failure, len: usize) -> Failure {
        let number = self.counts.items + self.counts.dropped + 1;
        let place = format!(
            "not accepted: item {number} of the input (from byte {}, {len} bytes or more) and everything behind it",
            self.taken
        );
        match failure {
            Failure::TimedOut { seconds, what } => {
                Failure::TimedOut { seconds, what: format!("{what}; {place}") }
            }
            Failure::Suspended(what) => Failure::Suspended(format!("{what}; {place}")),
            Failure::Ring(source) => Failure::During { what: place, source },
            other => Failure::Refused(format!("{place}: {other}")),
        }
    }

    fn push(&mut self, item: &[u8]) -> Outcome {
        let mut wait = Wait::new(self.command.timeout);
        let mut waited = None;
        loop {
            match self.producer.push(item) {
                Ok(_) => break,
                Err(Error::Retry) => {
                    // The consumer can free only what it sees.
                    self.advance()?;
                    match self.command.on_full {
                        OnFull::Wait => {}
                        OnFull::Fail => {
                            return Err(Failure::Refused("the ring is full".to_owned()));
                        }
                        OnFull::Drop => {
                            self.counts.dropped += 1;
                            return Ok(());
                        }
                    }
                    self.counts.full_waits += u64::from(waited != Some(false));
                    waited = Some(false);
                }
                Err(Error::Suspended) => {
                    self.counts.suspend_waits += u64::from(waited != Some(true));
                    waited = Some(true);
                }
                Err(e) => return Err(e.into()),
            }
            self.pause(&mut wait, waited == Some(true))?;
        }
        self.counts.items += 1;
        self.counts.bytes += item.len() as u64;
        Ok(())
    }

    fn pause(&self, wait: &mut Wait, suspended: bool) -> Outcome {
        match wait.pause(self.producer.device(), &[self.stop.fd()]).map_err(Error::from)? {
            Woken::Elapsed => Ok(()),
            Woken::Readable(_) if suspended => {
                Err(Failure::Suspended("asked to stop while the ring was suspended".to_owned()))
            }
            Woken::Readable(_) => {
                Err(Failure::Refused("asked to stop while the ring was full".to_owned()))
            }
            Woken::TimedOut if suspended => Err(Failure::Suspended("no resume in time".to_owned())),
            Woken::TimedOut => {
                let seconds = self.command.timeout.unwrap_or_default().as_secs_f64();
                Err(Failure::TimedOut { seconds, what: "the ring stayed full".to_owned() })
            }
        }
    }

    /// Makes everything pushed visible, after a resume if need be.
    fn advance(&mut self) -> Outcome {
        let to: Position = self.producer.position();
        let mut wait = Wait::new(self.command.timeout);
        loop {
            match self.producer.advance(to) {
                Ok(()) => return Ok(()),
                Err(Error::Suspended) => self.pause(&mut wait, true)?,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn reading() -> impl FnOnce(io::Error) -> Failure {
    Failure::io("cannot read standard input")
}

/// Who is attached, as the pointer sector's text tells people.
pub fn client() -> String {
    format!("pid {}", std::process::id())
}
