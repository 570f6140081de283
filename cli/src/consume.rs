//! `blockring consume`.

use super::address::{Address, Device, seconds, whole};
use super::failure::{Failure, Outcome};
use super::framing::{Ambiguous, Framing, OnSeparator};
use super::output::{Halt, Sink, require_messages, require_output, say};
use super::produce::client;
use super::progress::Progress;
use ring_program::standard::Standard;
use ring_program::{Stop, parse_size};
use shared_block_ring::device::Lookout;
use shared_block_ring::format::{FormatError, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Durability, Error, Position, RingDevice};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Size in bytes of a portion, about: items are written and then freed in portions, or when the
/// ring is empty.
const PORTION: usize = 64 * 1024;

const EXAMPLES: &str = "\
An item is removed from the ring only after the operating system has accepted all of its bytes on
standard output, so a full disk or a closed pipe loses no item. If standard output is a file and the
disk has room for only a part of an item, that part is cut off again, and the file ends with a whole
item. In a pipe, or in a file that other programs write to, the part cannot be cut off: the error
says how many bytes of the next item were written. Items that a reader left unread in a pipe when it
died are lost: let the reader acknowledge items in another way. If consume itself is killed during a
write, its file can end with a part of an item: the next consume warns of it.

The ring has one checksum for everything that the producer published since consume last looked, not
one for each item. If the checksum is wrong it is not known which of these items are damaged.
With --on-corrupt stop, the default, consume ends with exit code 5 and leaves all of them in the
ring. With --on-corrupt skip it frees all of them, the undamaged ones too, and goes on with what is
published later. A consume that starts on a damaged ring therefore skips everything that is in it.
If the length of an item is impossible, the items behind it cannot be found, and skip frees
everything that is published. Standard error says how many bytes were skipped.

SIGTERM and SIGINT end consume with exit code 0, even while standard output accepts nothing; the
exit code is 1 if a part of an item had been written.

An item that contains the byte that ends items in the output (a line feed with --framing lines)
would look like two items. It ends consume with an error, and stays in the ring. Read it with
--framing length or nul, or use --on-separator escape.

With --json the last line of standard error is one JSON object, however consume ends: items, bytes,
empty_waits, skipped_spans, skipped_bytes, unchecked_bytes, exit_code and error.

Examples:
  blockring consume ring.img                        print the items in the ring
  blockring consume --follow serial:commands        print them, and wait for more
  blockring consume --count 1 --timeout 10 ring.img wait up to 10 s for one item
  blockring consume --on-corrupt skip ring.img      skip the damaged part of a ring
  blockring consume --on-separator escape ring.img  write each item as a line, whatever it contains";

/// Pop items from a ring to standard output
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Consume {
    #[command(flatten)]
    address: Address,
    /// How items are separated in the output
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// What to do about an item that contains the byte that ends items in the output
    #[arg(long, value_enum, default_value = "fail")]
    on_separator: OnSeparator,
    /// Wait for more items
    #[arg(long, short)]
    follow: bool,
    /// End after this many items
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    count: Option<u64>,
    /// Wait for the next item, and end with exit code 3 if none comes in this many seconds; also
    /// the longest wait for the backend's answer, and for standard output to accept more
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// What to do if the checksum of published items is wrong
    #[arg(long, value_enum, default_value = "stop")]
    on_corrupt: OnCorrupt,
    /// Do not flush the device: faster; after a crash of the machine or a power loss, items that
    /// were written may come again
    #[arg(long)]
    no_flush: bool,
    /// Free the space of written items in steps of at least SIZE (such as 64K), and when the ring
    /// is empty; items that were written and not yet freed come again after a crash
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    advance_every: u64,
    /// Poll for new items for N microseconds before sleeping; polling uses a whole processor
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<u64>)]
    spin_us: u64,
    /// Show counts and rate on standard error while it runs
    #[arg(long)]
    progress: bool,
    /// Report counts, exit code and error as one JSON object in the last line of standard error
    #[arg(long)]
    pub json: bool,
}

/// What a consumer does with a damaged ring.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnCorrupt {
    /// End with an error, and leave everything in the ring
    Stop,
    /// Free everything that the checksum covers, undamaged items too; report and count the bytes,
    /// and go on with what follows
    Skip,
}

/// Counts of delivered items, of waits and of skipped bytes.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    pub items: u64,
    pub bytes: u64,
    pub empty_waits: u64,
    /// Corrupt spans that were skipped; `skipped_bytes` is their size in bytes of the ring.
    pub skipped_spans: u64,
    pub skipped_bytes: u64,
    /// Bytes of the ring that were delivered without a checksum.
    pub unchecked_bytes: u64,
}

/// The times of the looks at whether the ring is still there.
#[derive(Default)]
struct Looks {
    lookout: Lookout,
    /// Items that were delivered when the ring was last seen to be there.
    confirmed: u64,
}

impl Looks {
    /// Looks at the ring, about once a second.
    fn look(&mut self, consumer: &Consumer<Device>, counts: &Counts) -> Outcome {
        if self.lookout.is_due() {
            consumer.check_presence()?;
            self.confirmed = counts.items;
        }
        Ok(())
    }

    /// Looks at the ring at the end. It sends a request to the device only if items were delivered
    /// since the last look, or if the ring looks like another one (`is_odd`): otherwise nothing
    /// depends on the answer, and a backend that is gone would not give it.
    fn last(&self, consumer: &Consumer<Device>, counts: &Counts, is_odd: bool) -> Outcome {
        if is_odd || self.confirmed < counts.items {
            return Ok(consumer.check_presence()?);
        }
        Ok(consumer.device().check_presence().map_err(Error::from)?)
    }
}

/// Items on their way to standard output.
#[derive(Default)]
struct Portion {
    bytes: Vec<u8>,
    /// For each item: the end of its output in `bytes`, the position behind it in the ring, and its
    /// length.
    items: Vec<(usize, Position, usize)>,
}

impl Consume {
    pub fn run(self, stop: &Stop, counts: &mut Counts) -> Outcome {
        require_output()?;
        require_messages(self.json)?;
        let output = Sink::new(Standard::Output.fd()).map_err(writing(""))?;
        let device = match self.address.open(Role::Consumer, stop, self.timeout) {
            // No item was taken yet.
            Err(failure) if failure.is_stop() => return Ok(()),
            opened => opened?,
        };
        self.warn_of_open_item(&output);
        let mut consumer = Consumer::attach(device, "blockring", &client())
            .map_err(Failure::about(self.address.name()))?;
        if self.no_flush {
            consumer.set_durability(Durability::PageCache);
        }
        consumer.advance_every(self.advance_every);
        let mut progress = Progress::new(self.progress);
        let mut output = Output { sink: output, stop, timeout: self.timeout };
        let mut looks = Looks::default();
        let outcome = self.pump(&mut consumer, &mut output, counts, &mut progress, &mut looks);
        // Whatever has ended the loop, delivered items must not be delivered again.
        let settled = consumer.flush().map_err(Failure::from);
        counts.unchecked_bytes = consumer.unchecked_bytes();
        progress.finish(counts);
        let outcome = outcome.and(settled);
        let is_odd =
            matches!(outcome, Err(Failure::Ring(Error::Superseded { .. } | Error::Format(_))));
        // Exit code 0 promises that the ring consumed is still the one that the address names.
        let there = looks.last(&consumer, counts, is_odd);
        // Another ring that was written over this one looks superseded or corrupt.
        if is_odd { there.and(outcome) } else { outcome.and(there) }
    }

    /// Warns if the file to append to ends with a part of an item, as far as this process can see.
    fn warn_of_open_item(&self, output: &Sink<BorrowedFd<'_>>) {
        let Some(delimiter) = self.framing.delimiter() else { return };
        let open = output.open_record(delimiter, 1).unwrap_or_default();
        if !open.is_empty() {
            say(
                "standard output is a file that ends within an item, as after a crash: the next item will continue it",
            );
        }
    }

    fn pump(
        &self,
        consumer: &mut Consumer<Device>,
        output: &mut Output<'_>,
        counts: &mut Counts,
        progress: &mut Progress,
        looks: &mut Looks,
    ) -> Outcome {
        let mut portion = Portion::default();
        let mut wait = None;
        loop {
            looks.look(consumer, counts)?;
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
                match wait.pause(consumer.device(), &[output.stop.fd()]).map_err(Error::from)? {
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
            let all = portion.deliver(consumer, output, counts)?;
            progress.show(counts);
            if !all || output.stop.requested() {
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
                // The items before the damage are whole: they are delivered first.
                Err(_) if !portion.items.is_empty() => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            if let Err(e) = self.framing.join(item.bytes, self.on_separator, &mut portion.bytes) {
                return if portion.items.is_empty() { Err(ambiguous(at, &e)) } else { Ok(true) };
            }
            at = item.next;
            portion.items.push((portion.bytes.len(), at, item.bytes.len()));
        }
        Ok(true)
    }
}

fn ambiguous(at: Position, why: &Ambiguous) -> Failure {
    Failure::Refused(format!(
        "cannot write the item at position {at}: {why}; it is still in the ring ({})",
        why.remedy()
    ))
}

/// Frees a damaged span, if its end is known, and goes on behind it.
fn skip(consumer: &mut Consumer<Device>, damage: FormatError, counts: &mut Counts) -> Outcome {
    let (FormatError::Span { to, .. } | FormatError::ItemLength { producer: to, .. }) = damage
    else {
        return Err(Error::Format(damage).into());
    };
    let bytes = to.since(consumer.position()).unwrap_or(0);
    consumer.advance(to)?;
    say(format_args!("skipped {bytes} bytes of the ring: {damage}"));
    counts.skipped_spans += 1;
    counts.skipped_bytes += bytes;
    Ok(())
}

/// Standard output, and what ends a wait for it.
struct Output<'a> {
    sink: Sink<BorrowedFd<'a>>,
    stop: &'a Stop,
    /// Longest time in which standard output may accept nothing.
    timeout: Option<Duration>,
}

impl Portion {
    /// Writes the items, and frees those whose output was accepted completely, also when an error
    /// ends the write. Returns whether all of them were accepted; the others stay in the ring if
    /// the process is asked to stop while standard output accepts nothing.
    fn deliver(
        &mut self,
        consumer: &mut Consumer<Device>,
        output: &mut Output<'_>,
        counts: &mut Counts,
    ) -> Result<bool, Failure> {
        let whole = |at: usize| {
            let count = self.items.partition_point(|(end, ..)| *end <= at);
            count.checked_sub(1).map_or(0, |last| self.items[last].0)
        };
        let stop = Some(output.stop.fd());
        let (accepted, outcome) = output.sink.write(&self.bytes, &whole, stop, output.timeout);
        let mut part = accepted - whole(accepted);
        // Before the items are freed: the next consume must find whole items in the file.
        if output.sink.cut(part).unwrap_or(false) {
            part = 0;
        }
        let mut last = None;
        for (_, next, length) in self.items.iter().take_while(|(end, ..)| *end <= accepted) {
            last = Some(*next);
            counts.items += 1;
            counts.bytes += *length as u64;
        }
        self.bytes.clear();
        self.items.clear();
        if let Some(next) = last {
            consumer.advance(next)?;
        }
        match outcome {
            Ok(()) => Ok(true),
            Err(Halt::Stopped) if part == 0 => Ok(false),
            Err(halt) => Err(not_accepted(halt, part)),
        }
    }
}

/// Returns the failure for output that was not accepted, with the size of the part of the next item
/// that was.
fn not_accepted(halt: Halt, part: usize) -> Failure {
    let part = match part {
        0 => String::new(),
        part => format!("; the first {part} bytes of the next item went out all the same"),
    };
    match halt {
        Halt::TimedOut(timeout) => Failure::TimedOut {
            seconds: timeout.as_secs_f64(),
            what: format!("standard output accepted nothing (the rest is still in the ring){part}"),
        },
        halt => writing(&part)(halt.into_error()),
    }
}

fn writing(part: &str) -> impl FnOnce(io::Error) -> Failure {
    Failure::io(format!(
        "standard output did not accept everything (what it did not is still in the ring){part}"
    ))
}
