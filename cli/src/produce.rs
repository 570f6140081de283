//! `blockring produce`.

use super::address::{Address, Device, seconds};
use super::failure::{Failure, Outcome};
use super::framing::Framing;
use super::input::{Input, Source};
use super::journald::{self, Trail};
use super::listen::{self, Entrance, ListenOptions};
use super::output::{require_messages, say};
use super::oversize::OnTooLarge;
use super::pump::{Division, Pump};
use super::pusher::{self, Patience, Pusher};
use ring_program::Stop;
use ring_program::text::items;
use shared_block_ring::handover::Role;
use shared_block_ring::{DebugInfo, Durability, Position, Producer};
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

With --journald the input is the journal of this machine, read by journalctl. The ring says which
entry was sent last, so that the next start continues behind it, whatever has ended this one: each
entry is sent once. While the ring is full the entries stay in the journal. SIGTERM is a normal end
at any time.

With --listen the items come from many local processes, until SIGTERM. A datagram is an item, and
has no answer: while the ring is full its sender waits. A connection has records as --framing
divides them. After each group of records that is in the ring (flushed, without --no-flush) its
sender can read a line with a number: so many records of this connection are safe, from the first
one on. A sender that sends those behind the last number again, over a new connection, loses
none, whatever has ended produce. It may shut down its side to end its records, and then reads
the last number and the end. A sender that does not read the numbers is not waited for; a later
line has the newest number. A record that is too large closes its connection behind the records
before it, and such a datagram is dropped; both are counted as too_large_dropped. SIGTERM takes
what was sent by then. A service manager is told of start and end (NOTIFY_SOCKET), and that
produce is alive (WATCHDOG_USEC). The sockets of `--listen passed` are the service manager's: they
stay as they are when produce ends, and what was not received by then is received after the next
start.

With --json the last line of standard error is one JSON object, however produce ends: items,
bytes, in_doubt, dropped, too_large_dropped, too_large_split, full_waits, suspend_waits,
exit_code and error; with --listen also connections, datagrams, groups, incomplete and unnamed.

Examples:
  tail -F /var/log/app.log | blockring produce serial:logs
  blockring produce --journald --on-too-large drop serial:logs   all of the journal, each entry once
  blockring produce --listen unixgram:/dev/log --socket-mode 666 --credentials serial:logs
  blockring produce --listen unix:/run/orders --framing length --socket-group shop serial:orders
  blockring produce --framing whole /dev/vdb < report.pdf
  blockring produce --on-full drop --timeout 5 ring.img < events
  blockring produce --on-too-large drop --json ring.img < events    no item is too large
  tar c /etc | blockring produce --framing whole --on-too-large split /dev/vdb";

/// Push standard input, or what other programs send, into a ring
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Produce {
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    journal: journald::Options,
    #[command(flatten)]
    sockets: ListenOptions,
    /// How the input is divided into items [default: lines]
    #[arg(long, value_enum)]
    framing: Option<Framing>,
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

/// Counts of items, and with `--listen` of what was received.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    #[serde(flatten)]
    items: pusher::Counts,
    #[serde(flatten)]
    received: Option<listen::Counts>,
}

/// Where items come from.
enum Origin {
    Input(Input),
    Journal,
    Sockets(Vec<Entrance>),
}

impl Produce {
    pub fn run(self, stop: &Stop, counts: &mut Counts) -> Outcome {
        let origin = self.origin()?;
        require_messages(self.json)?;
        let device = match self.address.open(Role::Producer, stop, self.timeout) {
            // No input was read yet.
            Err(failure) if failure.is_stop() => return Ok(()),
            opened => opened?,
        };
        let mut entrances = Vec::new();
        let (mut producer, input, trail) = match origin {
            Origin::Input(input) => {
                self.address.refuse_as_input(&device)?;
                (self.attach(device, &client())?, Some(Box::new(input) as Box<dyn Source>), None)
            }
            Origin::Journal => match self.continue_journal(device, stop) {
                // No entry was read yet.
                Err(Failure::Stopped(_)) => return Ok(()),
                start => start?,
            },
            Origin::Sockets(all) => {
                entrances = all;
                (self.attach(device, &client())?, None, None)
            }
        };
        if self.no_flush {
            producer.set_durability(Durability::PageCache);
        }
        let patience = Patience { on_full: self.on_full, timeout: self.timeout };
        let framing = match trail {
            Some(_) => Framing::Export,
            None => self.framing.unwrap_or(Framing::Lines),
        };
        let mut pusher = Pusher::new(producer, stop, patience, trail);
        let on_too_large = self.on_too_large;
        let outcome = if let Some(mut input) = input {
            let division = Division { framing, on_too_large, timeout: self.timeout };
            Pump::new(&mut pusher, stop, division).run(&mut *input)
        } else {
            let received = counts.received.insert(listen::Counts::default());
            let sockets = (&self.sockets, entrances);
            listen::run(sockets, (framing, on_too_large), &mut pusher, stop, received)
        };
        counts.items = pusher.counts;
        if !self.json {
            let dropped = counts.items.dropped;
            if dropped > 0 {
                say(format_args!("the ring was full: {dropped} {} dropped", items(dropped)));
            }
            counts.items.too_large.say();
        }
        outcome
    }

    fn origin(&self) -> Result<Origin, Failure> {
        if self.journal.journald {
            if self.on_too_large == OnTooLarge::Split {
                let text = "--on-too-large split does not go with --journald: a part of an entry is none (drop leaves such an entry out)";
                return Err(Failure::Usage(text.to_owned()));
            }
            return Ok(Origin::Journal);
        }
        if self.sockets.listen.is_empty() {
            return Ok(Origin::Input(Input::open()?));
        }
        let entrances = self.sockets.entrances()?;
        self.sockets.check(&entrances, self.framing, self.on_full, self.on_too_large)?;
        Ok(Origin::Sockets(entrances))
    }

    fn attach(&self, device: Device, client: &str) -> Result<Producer<Device>, Failure> {
        Producer::attach(device, "blockring", client).map_err(Failure::about(self.address.name()))
    }

    /// Becomes the producer, and opens the journal behind the entry that the ring says was sent
    /// last.
    fn continue_journal(&self, device: Device, stop: &Stop) -> Result<Start, Failure> {
        let name = self.address.name();
        let info = DebugInfo::read(&device).map_err(Failure::about(name.clone()))?;
        let trail = Trail::of_ring(&info.producer_text, info.producer);
        // The text that is there stays: it may be all that tells that entry.
        let producer = self.attach(device, &trail.text().unwrap_or_else(client))?;
        if producer.position() != info.producer {
            let text = format!("{name}: another producer was there meanwhile: start again");
            return Err(Failure::Refused(text));
        }
        if trail.sent().is_none() && info.producer > Position::ZERO {
            say(format_args!(
                "{name}: the ring does not tell which entry of the journal was sent last, so all are sent"
            ));
        }
        let journal = self.journal.open(trail.sent(), stop)?;
        Ok((producer, Some(Box::new(journal)), Some(trail)))
    }
}

/// A producer, its input unless that is sockets, and what the ring says of the journal, if that is
/// the input.
type Start = (Producer<Device>, Option<Box<dyn Source>>, Option<Trail>);

/// Returns the name of this process for the text of the pointer sector.
pub fn client() -> String {
    format!("pid {}", std::process::id())
}
