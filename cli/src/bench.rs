//! `blockring bench`.

use super::address::{Address, positive, positive_seconds};
use super::failure::{Failure, Outcome};
use super::output::{print, require_output};
use super::produce::client;
use indicatif::HumanCount;
use ring_program::{Stop, parse_size};
use serde::Serialize;
use shared_block_ring::format::{HEADER_BYTES, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Durability, Error, Producer, RingDevice};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
The items are real items, all zero bytes, and a consumer of the ring receives them: use a ring that
is not needed for anything else. Run a consumer at the same time, or the ring becomes full. Time in
which the ring is full is not counted.

Examples:
  blockring consume --follow unix:ring.out > /dev/null & blockring bench vhost-user:ring.sock
  blockring bench --bytes 1K --batch 1 --durability flush serial:bench
  blockring bench --seconds 10 --json pci:0000:00:04.0";

/// Measure how fast a ring accepts items
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    #[command(flatten)]
    address: Address,
    /// Size of an item in bytes (K and M are powers of 1024)
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_size)]
    bytes: u64,
    /// Items in a batch, which is published as a whole
    #[arg(long, value_name = "N", default_value = "64", value_parser = positive::<NonZeroUsize>)]
    batch: NonZeroUsize,
    /// Duration of the measurement in seconds
    #[arg(long, value_name = "S", default_value = "3", allow_negative_numbers = true)]
    #[arg(value_parser = positive_seconds)]
    seconds: Duration,
    /// What a batch waits for before the next one
    #[arg(long, value_enum, default_value = "none")]
    durability: Kind,
    /// Print one JSON object instead of text, also if the command fails
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Its items and its pointer are durable: two flushes
    Flush,
    /// Its items and the pointer of the batch before are durable: one flush
    Ordered,
    /// The device has answered: no flush
    None,
}

impl From<Kind> for Durability {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Flush => Self::Flush,
            Kind::Ordered => Self::Ordered,
            Kind::None => Self::PageCache,
        }
    }
}

/// The measured counts and rates, as `--json` prints them.
#[derive(Serialize)]
pub struct Report {
    items: u64,
    item_bytes: u64,
    batch: usize,
    /// Time in which the ring had room.
    seconds: f64,
    full_seconds: f64,
    items_per_second: f64,
    megabytes_per_second: f64,
    /// Time of a batch, from before its push until its advance has returned.
    batch_p50_us: f64,
    batch_p99_us: f64,
    batch_max_us: f64,
}

impl Bench {
    pub fn run(self, stop: &Stop, report: &mut Option<Report>) -> Outcome {
        require_output()?;
        let device = self.address.open(Role::Producer, stop, None)?;
        let mut producer = Producer::attach(device, "bench", &client())
            .map_err(Failure::about(self.address.name()))?;
        producer.set_durability(self.durability.into());
        let report = report.insert(self.measure(&mut producer, stop)?);
        if self.json { Ok(()) } else { print(&report.words(), Some(stop)) }
    }

    fn measure<D: RingDevice>(
        &self,
        producer: &mut Producer<D>,
        stop: &Stop,
    ) -> Result<Report, Failure> {
        let needed =
            self.bytes.saturating_add(HEADER_BYTES).saturating_mul(self.batch.get() as u64);
        let capacity = producer.device().geometry().capacity().get();
        if needed > capacity {
            return Err(Error::TooLarge { needed, capacity }.into());
        }
        let payload = vec![0u8; usize::try_from(self.bytes).unwrap_or(usize::MAX)];
        let items = vec![&payload[..]; self.batch.get()];
        let (start, mut full) = (Instant::now(), Duration::ZERO);
        let mut times = Vec::new();
        // At least one batch is tried: only a full ring leaves nothing to report.
        loop {
            let before = Instant::now();
            match producer.push_batch(&items).and_then(|end| producer.advance(end)) {
                Ok(()) => times.push(before.elapsed()),
                Err(e) if e.is_transient() => {
                    let left = self.seconds.saturating_sub(start.elapsed());
                    let woken = Wait::new(Side::Consumer, Some(left))
                        .pause(producer.device(), &[stop.fd()])
                        .map_err(Error::from)?;
                    full += before.elapsed();
                    if woken == Woken::TimedOut {
                        break;
                    }
                }
                Err(e) => return Err(e.into()),
            }
            if start.elapsed() >= self.seconds || stop.requested() {
                break;
            }
        }
        // With `Ordered` nothing else has made the last pointer durable.
        producer.flush()?;
        if times.is_empty() {
            return Err(Failure::Refused("the ring is full, and nobody consumes".to_owned()));
        }
        Ok(self.report(times, start.elapsed().saturating_sub(full), full))
    }

    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    fn report(&self, mut times: Vec<Duration>, taken: Duration, full: Duration) -> Report {
        times.sort_unstable();
        let quantile = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
        let items = (times.len() * self.batch.get()) as u64;
        let rate = items as f64 / taken.as_secs_f64().max(1e-9);
        Report {
            items,
            item_bytes: self.bytes,
            batch: self.batch.get(),
            seconds: taken.as_secs_f64(),
            full_seconds: full.as_secs_f64(),
            items_per_second: rate,
            megabytes_per_second: rate * self.bytes as f64 / 1e6,
            batch_p50_us: quantile(50),
            batch_p99_us: quantile(99),
            batch_max_us: quantile(100),
        }
    }
}

impl Report {
    fn words(&self) -> String {
        let full = if self.full_seconds > 0.0 {
            format!(" (and {:.2} s in which the ring was full)", self.full_seconds)
        } else {
            String::new()
        };
        format!(
            "{} items of {} bytes, {} at once, in {:.2} s{full}: {:.0} items/s, {:.1} MB/s\n\
             a batch took {:.1} us (half of them at most), {:.1} us (99 %), {:.1} us (the longest)",
            HumanCount(self.items),
            self.item_bytes,
            self.batch,
            self.seconds,
            self.items_per_second,
            self.megabytes_per_second,
            self.batch_p50_us,
            self.batch_p99_us,
            self.batch_max_us,
        )
    }
}
