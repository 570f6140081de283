//! One end of a ring as a load for tests: random items whose hashes must agree at both ends,
//! numbered items of several lives of a guest, and times of single operations.

mod report;
mod stream;
mod timing;

use clap::{Parser, Subcommand};
use qemu_tests::load::{self, Device, Failure};
use qemu_tests::program;
use report::Report;
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, Durability, Error, Producer};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use stream::Push;

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
    /// Push numbered items, each with what the file LIFE says, until that is "end"; print when
    /// superseded
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
    /// Push an item of 64 bytes so often, and print how long it takes until the other end can have
    /// it
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
    /// Wait for the consumer so often, and write a byte to an I/O port each time that the wait
    /// ends; print what a plain read takes
    Wake {
        /// Path, serial:NAME, unix:PATH or pci:ADDRESS
        address: String,
        times: u32,
        /// The port
        port: u16,
    },
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    program::report("ringload", run(&Arguments::parse_from(words)))
}

fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let patience = Duration::from_secs(arguments.patience);
    match arguments.command {
        Command::Produce { ref address, items, max, seed, batch, push_only } => {
            let push = Push { items, max, seed, batch, publish: !push_only };
            Ok(stream::produce(&mut arguments.producer(address)?, &push, patience)?)
        }
        Command::Consume { ref address, items, batch } => {
            Ok(stream::consume(&mut arguments.consumer(address)?, items, batch, patience)?)
        }
        Command::Feed { ref address, ref life } => {
            load::feed(&mut arguments.producer(address)?, life)?;
            Ok(Report::default())
        }
        Command::Drain { ref address, ref life } => {
            load::drain(&mut arguments.consumer(address)?, life)?;
            Ok(Report::default())
        }
        Command::Show { ref address, items } => {
            timing::show(&mut arguments.producer(address)?, items)
        }
        Command::Look { ref address } => {
            timing::look(&arguments.open(address, Role::Control)?)?;
            Ok(Report::default())
        }
        Command::Wake { ref address, times, port } => {
            timing::wake(&arguments.open(address, Role::Control)?, times, port, patience)
        }
    }
}

impl Arguments {
    fn producer(&self, address: &str) -> Result<Producer<Device>, Failure> {
        let device = self.open(address, Role::Producer)?;
        let mut producer = Producer::attach(device, "load", "ringload")?;
        producer.set_durability(self.durability());
        Ok(producer)
    }

    fn consumer(&self, address: &str) -> Result<Consumer<Device>, Failure> {
        let device = self.open(address, Role::Consumer)?;
        let mut consumer = Consumer::attach(device, "load", "ringload")?;
        consumer.set_durability(self.durability());
        Ok(consumer)
    }

    fn durability(&self) -> Durability {
        if self.no_flush { Durability::PageCache } else { Durability::Flush }
    }

    fn open(&self, address: &str, role: Role) -> Result<Device, Error> {
        let Some(disk) = load::driven(address)? else { return load::open(address, role, None) };
        if self.poll {
            disk.set_spin(Duration::MAX);
        }
        Ok(Box::new(disk))
    }
}
