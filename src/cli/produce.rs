//! `blockring produce`.

use super::address::{Address, seconds};
use super::failure::{Failure, Outcome};
use super::framing::Framing;
use super::pump::{Limits, Pump};
use shared_block_ring::handover::Role;
use shared_block_ring::{Durability, Producer, Stop};
use std::time::Duration;

const EXAMPLES: &str = "\
Each item is visible to the consumer as soon as the input pauses. When the ring is full or
suspended, produce waits and reads no more input. SIGTERM ends it after what it has read is visible;
whatever is not is named in the error.

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
pub enum OnFull {
    /// Wait for the consumer
    Wait,
    /// End with an error
    Fail,
    /// Drop the item, count it, go on
    Drop,
}

impl Produce {
    pub fn run(self) -> Outcome {
        let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
        let device = self.address.open_until(Role::Producer, &stop)?;
        let mut producer = Producer::attach(device, "blockring", &client())
            .map_err(|source| Failure::During { what: self.address.name().to_owned(), source })?;
        if self.no_flush {
            producer.set_durability(Durability::PageCache);
        }
        let limits = Limits { framing: self.framing, on_full: self.on_full, timeout: self.timeout };
        let mut pump = Pump::new(producer, stop, limits);
        let outcome = pump.run();
        let counts = pump.counts();
        if self.json {
            eprintln!("{}", serde_json::to_string(counts).unwrap_or_default());
        } else if counts.dropped > 0 {
            eprintln!("blockring: the ring was full: {} items dropped", counts.dropped);
        }
        outcome
    }
}

/// Who is attached, as the pointer sector's text tells people.
pub fn client() -> String {
    format!("pid {}", std::process::id())
}
