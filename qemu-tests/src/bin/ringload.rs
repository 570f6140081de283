//! Pushes or pops random items, and hashes what it saw: run at both ends of a ring, the hashes must agree.

use clap::{Parser, Subcommand};
use qemu_tests::load::{self, Device, Failure, Random};
use qemu_tests::program;
use serde::Serialize;
use sha2::{Digest, Sha256};
use shared_block_ring::device::AlignedBuf;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Consumer, Durability, Error, Position, Producer};
use std::fmt::Write;
use std::io::{self, IoSliceMut};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A load of random items for a ring
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Give up when the other end has not moved for this many seconds
    #[arg(long, global = true, default_value_t = 60)]
    patience: u64,
    /// Flush nothing
    #[arg(long, global = true)]
    no_flush: bool,
    /// Look for the answer of a pci:ADDRESS, and never sleep
    #[arg(long, global = true)]
    poll: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Push random items
    Produce {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        #[arg(long)]
        items: u64,
        /// Longest payload
        #[arg(long)]
        max: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Items that become visible together
        #[arg(long, default_value_t = 1)]
        batch: usize,
        /// End without making them visible
        #[arg(long)]
        push_only: bool,
    },
    /// Pop items
    Consume {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        #[arg(long)]
        items: u64,
        /// Items that are given back together
        #[arg(long, default_value_t = 1)]
        batch: u64,
    },
    /// Push numbered items, each with what the file LIFE says, until that is "end"; print when superseded
    Feed {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        life: PathBuf,
    },
    /// Pop and print them, until the file LIFE says "end"
    Drain {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        life: PathBuf,
    },
    /// Push an item of 64 bytes so often, and print how long it takes until the other end can have it
    Show {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        #[arg(long)]
        items: usize,
    },
    /// Read the consumer's pointer sector once
    Look {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
    },
    /// Wait for the consumer so often, and write a byte to an I/O port each time that the wait ends; print what a plain read takes
    Wake {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        times: u32,
        /// The port
        port: u16,
    },
}

/// What a run saw.
#[derive(Serialize, Default)]
struct Report {
    items: u64,
    bytes: u64,
    /// Of every item's length (u32, little-endian) and payload.
    sha256: String,
    /// Times that it had to wait for the other end.
    waits: u64,
    /// Median of a read of one sector, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_ns: Option<u64>,
    /// Time from a push until its item is visible, in nanoseconds: of the quickest tenth, and of half of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    shown_ns: Option<[u64; 2]>,
}

fn main() -> ExitCode {
    program::report("ringload", run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let patience = Duration::from_secs(arguments.patience);
    let open = |address: &str, role| open(address, role, arguments.poll);
    let durability = if arguments.no_flush { Durability::PageCache } else { Durability::Flush };
    match &arguments.command {
        Command::Produce { address, items, max, seed, batch, push_only } => {
            let mut producer =
                Producer::attach(open(address, Role::Producer)?, "load", "ringload")?;
            producer.set_durability(durability);
            Ok(produce(&mut producer, *items, *max, *seed, *batch, *push_only, patience)?)
        }
        Command::Consume { address, items, batch } => {
            let mut consumer =
                Consumer::attach(open(address, Role::Consumer)?, "load", "ringload")?;
            consumer.set_durability(durability);
            Ok(consume(&mut consumer, *items, *batch, patience)?)
        }
        Command::Feed { address, life } => {
            let mut producer =
                Producer::attach(open(address, Role::Producer)?, "load", "ringload")?;
            producer.set_durability(durability);
            load::feed(&mut producer, life)?;
            Ok(Tally::default().report())
        }
        Command::Drain { address, life } => {
            let mut consumer =
                Consumer::attach(open(address, Role::Consumer)?, "load", "ringload")?;
            consumer.set_durability(durability);
            load::drain(&mut consumer, life)?;
            Ok(Tally::default().report())
        }
        Command::Show { address, items } => {
            let mut producer =
                Producer::attach(open(address, Role::Producer)?, "load", "ringload")?;
            producer.set_durability(durability);
            show(&mut producer, *items)
        }
        Command::Look { address } => {
            let device = open(address, Role::Control)?;
            let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
            device.read(Side::Consumer.sector(), &mut [IoSliceMut::new(&mut sector)])?;
            Ok(Tally::default().report())
        }
        Command::Wake { address, times, port } => {
            Ok(wake(&open(address, Role::Control)?, *times, *port, patience)?)
        }
    }
}

fn open(address: &str, role: Role, poll: bool) -> Result<Device, Error> {
    match load::driven(address)? {
        Some(disk) => {
            if poll {
                disk.set_spin(Duration::MAX);
            }
            Ok(Box::new(disk))
        }
        None => load::open(address, role, None),
    }
}

fn show(producer: &mut Producer<Device>, items: usize) -> Result<Report, Failure> {
    let mut times = Vec::with_capacity(items);
    for _ in 0..items {
        let start = Instant::now();
        let end = producer.push(&[7; 64])?;
        producer.advance(end)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let shown_ns = Some([10, 2].map(|part| nanoseconds(&times, part)));
    Ok(Report { shown_ns, ..Report::default() })
}

/// What one in `part` of the sorted times is below.
fn nanoseconds(times: &[Duration], part: usize) -> u64 {
    let time = times.get(times.len() / part).map_or(0, Duration::as_nanos);
    u64::try_from(time).unwrap_or(u64::MAX)
}

fn wake(device: &Device, times: u32, port: u16, patience: Duration) -> Result<Report, Failure> {
    const READS: usize = 201;
    let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
    let mut reads = [Duration::ZERO; READS];
    for time in &mut reads {
        let start = Instant::now();
        device.read(Side::Consumer.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        *time = start.elapsed();
    }
    reads.sort_unstable();
    // SAFETY: it lets this process write to a port that no driver of the guest's kernel uses, and touches no memory.
    if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    for _ in 0..times {
        if Wait::new(Side::Consumer, Some(patience)).pause(device, &[])? == Woken::TimedOut {
            return Err(Error::Retry.into());
        }
        // SAFETY: the port is the test's debug console, which takes any byte; nothing of ours changes by it.
        unsafe { std::arch::asm!("out dx, al", in("dx") port, in("al") b'w') };
        // As who was woken would.
        device.read(Side::Consumer.sector(), &mut [IoSliceMut::new(&mut sector)])?;
    }
    Ok(Report { read_ns: Some(nanoseconds(&reads, 2)), ..Report::default() })
}

fn produce(
    producer: &mut Producer<Device>,
    items: u64,
    max: u64,
    seed: u64,
    batch: usize,
    push_only: bool,
    patience: Duration,
) -> Result<Report, Error> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut pending: Vec<Vec<u8>> = Vec::new();
    for number in 1..=items {
        let item = random_item(&mut random, max);
        tally.add(&item);
        pending.push(item);
        if pending.len() < batch && number < items {
            continue;
        }
        let position = patiently(producer, patience, &mut tally.waits, |producer| {
            producer.push_batch(&pending)
        })?;
        if push_only {
            producer.flush()?;
        } else {
            patiently(producer, patience, &mut tally.waits, |producer| producer.advance(position))?;
        }
        pending.clear();
    }
    Ok(tally.report())
}

fn consume(
    consumer: &mut Consumer<Device>,
    items: u64,
    batch: u64,
    patience: Duration,
) -> Result<Report, Error> {
    let mut tally = Tally::default();
    let mut at: Position = consumer.position();
    while tally.items < items {
        match consumer.pop(at) {
            Ok(item) => {
                tally.add(item.bytes);
                at = item.next;
                if tally.items.is_multiple_of(batch) || tally.items == items {
                    consumer.advance(at)?;
                }
            }
            Err(Error::Retry) => {
                // What we keep may be what the producer waits for.
                consumer.advance(at)?;
                let mut wait = Wait::new(Side::Producer, Some(patience));
                tally.waits += 1;
                while matches!(consumer.pop(at), Err(Error::Retry)) {
                    if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
                        return Err(Error::Retry);
                    }
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(tally.report())
}

fn patiently<T>(
    producer: &mut Producer<Device>,
    patience: Duration,
    waits: &mut u64,
    mut attempt: impl FnMut(&mut Producer<Device>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut wait = Wait::new(Side::Consumer, Some(patience));
    let mut first = true;
    loop {
        match attempt(producer) {
            Err(e) if e.is_transient() => {
                *waits += u64::from(std::mem::take(&mut first));
                if wait.pause(producer.device(), &[])? == Woken::TimedOut {
                    return Err(e);
                }
            }
            other => return other,
        }
    }
}

#[derive(Default)]
struct Tally {
    items: u64,
    bytes: u64,
    waits: u64,
    hash: Sha256,
}

impl Tally {
    fn add(&mut self, item: &[u8]) {
        self.items += 1;
        self.bytes += item.len() as u64;
        // An item's length is a u32 on the ring.
        self.hash.update(u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.hash.update(item);
    }

    fn report(self) -> Report {
        let sha256 = self.hash.finalize().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        let Self { items, bytes, waits, .. } = self;
        Report { items, bytes, sha256, waits, ..Report::default() }
    }
}

fn random_item(random: &mut Random, max: u64) -> Vec<u8> {
    let len = usize::try_from(random.below(max + 1)).unwrap_or(0);
    let mut item = vec![0; len];
    random.fill(&mut item);
    item
}
