//! `blockring consume`.

use super::address::{Address, Device, seconds};
use super::failure::{Failure, Outcome};
use super::framing::Framing;
use super::produce::client;
use super::progress::Progress;
use shared_block_ring::format::{FormatError, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Durability, Error, Position, Stop, parse_size};
use std::io::{self, Write};
use std::time::Duration;

/// Items are written and advanced over in portions of about this size, or when the ring is empty.
const PORTION: usize = 64 * 1024;

const EXAMPLES: &str = "\
An item leaves the ring only after the operating system has accepted all of its output: a full disk
or a closed pipe loses nothing. What a reader that dies leaves unread in a pipe is gone all the
same: let it acknowledge by other means.

Examples:
  blockring consume ring.img                        print what is there
  blockring consume --follow serial:commands        and wait for more
  blockring consume --count 1 --timeout 10 ring.img wait up to 10 s for one item
  blockring consume --on-corrupt skip ring.img      what is whole of a damaged ring";

/// Pop items from a ring to standard output
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Consume {
    #[command(flatten)]
    address: Address,
    /// How items are told apart in the output
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// Wait for more items
    #[arg(long, short)]
    follow: bool,
    /// End after this many items
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Wait for the next item, at most this long
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
    /// What to do about items that are not what the producer wrote
    #[arg(long, value_enum, default_value = "stop")]
    on_corrupt: OnCorrupt,
    /// Flush nothing: faster, and safe unless the machine itself fails
    #[arg(long)]
    no_flush: bool,
    /// Give space back once SIZE (such as 64K) can be given back in one go, or when the ring is empty: what was
    /// delivered and not given back comes again after a crash
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    advance_every: u64,
    /// Look for new items for N microseconds before sleeping, which takes the whole of a processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    spin_us: u64,
    /// Show counts and rate on standard error as it goes
    #[arg(long)]
    progress: bool,
    /// Report counts as a line of JSON on standard error at the end
    #[arg(long)]
    json: bool,
}

/// What a damaged ring is to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnCorrupt {
    /// End with an error, and leave them in the ring
    Stop,
    /// Report and count them, and go on behind them
    Skip,
}

/// What was delivered, and how often there was nothing to deliver.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    pub items: u64,
    pub bytes: u64,
    pub empty_waits: u64,
    /// Corrupt stretches that were skipped, and what they would have been in bytes of the ring.
    pub skipped_spans: u64,
    pub skipped_bytes: u64,
    /// Bytes of the ring that no checksum covers.
    pub unchecked_bytes: u64,
}

/// Items on their way to standard output.
#[derive(Default)]
struct Portion {
    bytes: Vec<u8>,
    /// For each item: where its output ends in `bytes`, where the ring goes on, and its length.
    items: Vec<(usize, Position, usize)>,
}

impl Consume {
    pub fn run(self) -> Outcome {
        let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
        let mut consumer = Consumer::attach(
            self.address.open_until(Role::Consumer, &stop)?,
            "blockring",
            &client(),
        )
        .map_err(|source| Failure::During { what: self.address.name().to_owned(), source })?;
        if self.no_flush {
            consumer.set_durability(Durability::PageCache);
        }
        consumer.advance_every(self.advance_every);
        let mut counts = Counts::default();
        let mut progress = Progress::new(self.progress);
        let outcome = self.pump(&mut consumer, &stop, &mut counts, &mut progress);
        // Whatever has ended it: what was delivered is not to come again.
        let settled = consumer.settle().map_err(Failure::from);
        counts.unchecked_bytes = consumer.unchecked();
        progress.finish(&counts);
        if self.json {
            eprintln!("{}", serde_json::to_string(&counts).unwrap_or_default());
        }
        outcome.and(settled)
    }

    fn pump(
        &self,
        consumer: &mut Consumer<Device>,
        stop: &Stop,
        counts: &mut Counts,
        progress: &mut Progress,
    ) -> Outcome {
        let mut portion = Portion::default();
        let mut wait = None;
        loop {
            let left = self.count.map(|count| count - counts.items);
            let more = match self.collect(consumer, &mut portion, left) {
                Err(Failure::Ring(Error::Format(damage))) if self.on_corrupt == OnCorrupt::Skip => {
                    skip(consumer, damage, counts)?;
                    continue;
                }
                other => other?,
            };
            if portion.items.is_empty() {
                if more || left == Some(0) || !(self.follow || self.timeout.is_some()) {
                    return Ok(());
                }
                let wait = wait.get_or_insert_with(|| {
                    counts.empty_waits += 1;
                    Wait::new(Side::Producer, self.timeout)
                        .spin(Duration::from_micros(self.spin_us))
                });
                match wait.pause(consumer.device(), &[stop.fd()]).map_err(Error::from)? {
                    Woken::Elapsed => {}
                    Woken::Readable(_) => return Ok(()),
                    Woken::TimedOut => {
                        let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                        return Err(Failure::TimedOut { seconds, what: "no item".to_owned() });
                    }
                }
                continue;
            }
            wait = None;
            portion.deliver(consumer, counts)?;
            progress.show(counts);
            if stop.requested() {
                return Ok(());
            }
        }
    }

    /// Takes items until the portion is large enough; false when the ring is empty.
    fn collect(
        &self,
        consumer: &mut Consumer<Device>,
        portion: &mut Portion,
        left: Option<u64>,
    ) -> Result<bool, Failure> {
        let mut at = consumer.position();
        while portion.bytes.len() < PORTION
            && left.is_none_or(|left| (portion.items.len() as u64) < left)
        {
            let item = match consumer.pop(at) {
                Ok(item) => item,
                Err(Error::Retry) => return Ok(false),
                // What was found before the damage is whole: deliver it first.
                Err(_) if !portion.items.is_empty() => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            self.framing.join(item.bytes, &mut portion.bytes).map_err(writing())?;
            at = item.next;
            portion.items.push((portion.bytes.len(), at, item.bytes.len()));
        }
        Ok(true)
    }
}

/// Goes on behind a damaged stretch, if its end is known.
fn skip(consumer: &mut Consumer<Device>, damage: FormatError, counts: &mut Counts) -> Outcome {
    let (FormatError::Span { to, .. } | FormatError::ItemLength { producer: to, .. }) = damage
    else {
        return Err(Error::Format(damage).into());
    };
    let bytes = to.since(consumer.position()).unwrap_or(0);
    consumer.advance(to)?;
    eprintln!("blockring: skipped {bytes} bytes of the ring: {damage}");
    counts.skipped_spans += 1;
    counts.skipped_bytes += bytes;
    Ok(())
}

impl Portion {
    /// Writes everything, and advances over the items whose output was accepted, also when not all of it was.
    fn deliver(&mut self, consumer: &mut Consumer<Device>, counts: &mut Counts) -> Outcome {
        let (accepted, outcome) = write_all(&self.bytes);
        let whole = self.items.iter().take_while(|(end, ..)| *end <= accepted);
        let mut last = None;
        for (_, next, length) in whole {
            last = Some(*next);
            counts.items += 1;
            counts.bytes += *length as u64;
        }
        self.bytes.clear();
        self.items.clear();
        if let Some(next) = last {
            consumer.advance(next)?;
        }
        outcome.map_err(writing())
    }
}

/// Bytes accepted by the operating system, and why not all of them.
fn write_all(bytes: &[u8]) -> (usize, io::Result<()>) {
    // Not through the standard library's line buffer, which hides how much was accepted.
    let mut output = match io::stdout().lock().flush() {
        Ok(()) => Raw,
        Err(e) => return (0, Err(e)),
    };
    let mut accepted = 0;
    while accepted < bytes.len() {
        match output.write(&bytes[accepted..]) {
            Ok(0) => return (accepted, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => accepted += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (accepted, Err(e)),
        }
    }
    (accepted, Ok(()))
}

/// Standard output without a buffer.
struct Raw;

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn writing() -> impl FnOnce(io::Error) -> Failure {
    Failure::io("standard output did not accept everything (what it did not is still in the ring)")
}
