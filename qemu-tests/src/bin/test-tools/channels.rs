//! Sends messages on one of the ways out of a guest, as fast as it goes: what `ring-bench --measure
//! guest` runs in its guest.

use clap::{Parser, ValueEnum};
use qemu_tests::load::{self, Device, Failure, PATIENCE};
use qemu_tests::program;
use serde_json::json;
use shared_block_ring::device::AlignedBuf;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Durability, Producer};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Block in which a disk is written.
const SECTOR: usize = 512;

/// Send messages for some time, and print how many a second
#[derive(Parser)]
struct Arguments {
    channel: Channel,
    /// Path or serial:NAME
    address: String,
    /// Bytes of a message
    #[arg(long)]
    bytes: usize,
    /// Messages that are sent at once
    #[arg(long)]
    batch: u32,
    /// What each batch is before the next one is sent
    #[arg(long)]
    until: Until,
    #[arg(long)]
    ms: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Until {
    /// Taken by the channel
    Sent,
    /// Safe from a power cut
    Durable,
    /// Popped by the host
    Popped,
}

#[derive(Clone, Copy, ValueEnum)]
enum Channel {
    /// A ring on a disk
    Ring,
    /// A port of a virtio console
    Port,
    /// A plain disk, from one end to the other
    Disk,
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    program::report("channels", run(&Arguments::parse_from(words)))
}

fn run(arguments: &Arguments) -> Result<serde_json::Value, Failure> {
    let mut way = Way::open(arguments)?;
    // Set-up is done before the clock starts.
    way.send()?;
    way.settle(Duration::ZERO)?;
    let start = Instant::now();
    let mut sent = 0_u32;
    while start.elapsed() < Duration::from_millis(arguments.ms) {
        way.send()?;
        if arguments.until == Until::Popped {
            way.settle(PATIENCE)?;
        }
        sent += 1;
    }
    way.settle(Duration::ZERO)?;
    let rate = f64::from(sent) * f64::from(arguments.batch) / start.elapsed().as_secs_f64();
    let messages = (u64::from(sent) + 1) * u64::from(arguments.batch);
    Ok(json!({ "messages": messages, "rate": rate }))
}

/// A channel with a batch of messages for it.
enum Way {
    Ring { producer: Box<Producer<Device>>, items: Vec<Vec<u8>> },
    Port { port: File, bytes: Vec<u8> },
    Disk { disk: File, bytes: AlignedBuf, at: u64, end: u64, durable: bool },
}

impl Way {
    fn open(arguments: &Arguments) -> Result<Self, Failure> {
        let Arguments { channel, address, bytes, batch, until, .. } = arguments;
        let batch = usize::try_from(*batch).unwrap_or(usize::MAX);
        let durable = *until == Until::Durable;
        let all = bytes.saturating_mul(batch);
        match channel {
            Channel::Ring => {
                let device = load::open(address, Role::Producer, None)?;
                let mut producer = Producer::attach(device, "bench", "channels")?;
                let durability = if durable { Durability::Flush } else { Durability::PageCache };
                producer.set_durability(durability);
                Ok(Self::Ring { producer: Box::new(producer), items: vec![vec![7; *bytes]; batch] })
            }
            Channel::Port => {
                let port = File::options().write(true).open(load::path(address)?)?;
                Ok(Self::Port { port, bytes: vec![7; all] })
            }
            Channel::Disk => {
                let mut options = File::options();
                let options = options.write(true).custom_flags(libc::O_DIRECT);
                let mut disk = options.open(load::path(address)?)?;
                let end = disk.seek(SeekFrom::End(0))?;
                let mut bytes = AlignedBuf::zeroed(all.next_multiple_of(SECTOR));
                bytes.fill(7);
                Ok(Self::Disk { disk, bytes, at: 0, end, durable })
            }
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        match self {
            Self::Ring { producer, items } => {
                let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
                let end = loop {
                    match producer.push_batch(items) {
                        Err(e) if e.is_transient() => pause(producer, &mut wait)?,
                        pushed => break pushed?,
                    }
                };
                Ok(producer.advance(end)?)
            }
            Self::Port { port, bytes } => Ok(port.write_all(bytes)?),
            Self::Disk { disk, bytes, at, end, durable } => {
                disk.write_all_at(bytes, *at)?;
                if *durable {
                    disk.sync_data()?;
                }
                *at += bytes.len() as u64;
                if *at + bytes.len() as u64 > *end {
                    *at = 0;
                }
                Ok(())
            }
        }
    }

    /// Waits until the host has popped what is in a ring; the other channels have taken what they
    /// were given. Looks again and again for as long as `spin`, and then sleeps.
    fn settle(&self, spin: Duration) -> Result<(), Failure> {
        let Self::Ring { producer, .. } = self else { return Ok(()) };
        let mut wait = Wait::new(Side::Consumer, Some(PATIENCE)).spin(spin);
        while producer.debug_info()?.used > 0 {
            pause(producer, &mut wait)?;
        }
        Ok(())
    }
}

fn pause(producer: &Producer<Device>, wait: &mut Wait) -> Result<(), Failure> {
    match wait.pause(producer.device(), &[])? {
        Woken::TimedOut => Err(Failure::Stuck),
        _ => Ok(()),
    }
}
