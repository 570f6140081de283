//! `blockring produce`.

use super::address::{Address, seconds};
use super::failure::{Failure, Outcome};
use super::framing::Framing;
use super::input::Input;
use super::output::{require_messages, say};
use super::oversize::OnTooLarge;
use super::pump::{Counts, Limits, Pump};
use ring_program::Stop;
use shared_block_ring::handover::Role;
use shared_block_ring::{Durability, Producer};
use std::time::Duration;

const EXAMPLES: &str = "\
Items become visible to the consumer as soon as the input pauses. While the ring is full or
suspended, produce waits and reads no more input. After SIGTERM it publishes the items that it has
read, and ends; if it cannot publish all of them, the error names the first one that was not
accepted, and its byte in the input.

An item that is larger than the ring ends produce with an error that names its size; the items
before it are published. With --on-too-large drop such an item is dropped and counted. With
--on-too-large split it is pushed in parts, in order. Each part is an ordinary item, and nothing
marks it as a part; all but the last are as large as an item can be. `consume --framing whole` joins
the parts again.

With --json the last line of standard error is one JSON object, however produce ends: items, bytes,
in_doubt, dropped, too_large_dropped, too_large_split, full_waits, suspend_waits, exit_code and error.

Examples:
  journalctl -f | blockring produce serial:logs
  blockring produce --framing whole /dev/vdb < report.pdf
  blockring produce --on-full drop --timeout 5 ring.img < events
  blockring produce --on-too-large drop --json ring.img < events    no item is too large
  tar c /etc | blockring produce --framing whole --on-too-large split /dev/vdb";

/// Push standard input into a ring
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Produce {
    #[command(flatten)]
    address: Address,
    /// How the input is divided into items
    #[arg(long, value_enum, default_value = "lines")]
    framing: Framing,
    /// What to do when the ring is full
    #[arg(long, value_enum, default_value = "wait")]
    on_full: OnFull,
    /// What to do about an item that is larger than the ring
    #[arg(long, value_enum, default_value = "fail")]
    on_too_large: OnTooLarge,
    /// Longest wait, in seconds, for free space (exit code 3), for a resume (4) or for the
    /// backend's answer (3); also the longest time to read an item that is too large, to name its
    /// size (1)
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Do not flush the device: faster; items survive the end of any process, but not a crash of
    /// the machine or a power loss
    #[arg(long)]
    no_flush: bool,
    /// Report counts, exit code and error as one JSON object in the last line of standard error
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFull {
    /// Wait for the consumer
    Wait,
    /// End with an error
    Fail,
    /// Drop the item, count it, and go on
    Drop,
}

impl Produce {
    pub fn run(self, stop: &Stop, counts: &mut Counts) -> Outcome {
        let input = Input::open()?;
        require_messages(self.json)?;
        let device = match self.address.open(Role::Producer, stop, self.timeout) {
            // No input was read yet.
            Err(failure) if failure.is_stop() => return Ok(()),
            opened => opened?,
        };
        self.address.refuse_as_input(&device)?;
        let mut producer = Producer::attach(device, "blockring", &client())
            .map_err(Failure::about(self.address.name()))?;
        if self.no_flush {
            producer.set_durability(Durability::PageCache);
        }
        let limits = Limits {
            framing: self.framing,
            on_full: self.on_full,
            on_too_large: self.on_too_large,
            timeout: self.timeout,
        };
        let mut pump = Pump::new(producer, stop, limits);
        let outcome = pump.run(&input);
        *counts = pump.into_counts();
        if !self.json {
            if counts.dropped > 0 {
                say(format_args!("the ring was full: {} items dropped", counts.dropped));
            }
            counts.too_large.say();
        }
        outcome
    }
}

/// Returns the name of this process for the text of the pointer sector.
pub fn client() -> String {
    format!("pid {}", std::process::id())
}
