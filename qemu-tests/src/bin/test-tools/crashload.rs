//! One end of a ring in a crash campaign: on the host or in a guest, until it is told to stop or is
//! killed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use qemu_tests::load::item::Recipe;
use qemu_tests::load::log::{Line, Log};
use qemu_tests::load::{Failure, Random, consume, open, produce};
use qemu_tests::program::failed;
use ring_program::Stop;
use shared_block_ring::format::SectorSize;
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, Producer};

const NAME: &str = "crashload";

/// Pushes or pops the items of a crash campaign, and logs what it does before and after
#[derive(Parser)]
struct Arguments {
    end: End,
    /// Path, serial:NAME or unix:PATH
    address: String,
    /// What all items follow from
    #[arg(long)]
    seed: u64,
    /// This process's number, in the items of a producer
    #[arg(long)]
    run: u32,
    /// End after this many batches
    #[arg(long)]
    batches: Option<u32>,
    /// Bytes in a sector of a file
    #[arg(long)]
    sector_size: Option<u32>,
    /// A file, or port:NAME of a virtio-serial port, instead of standard output
    #[arg(long)]
    log: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum End {
    Produce,
    Consume,
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(words);
    let mut log = match open_log(arguments.log.as_deref()) {
        Ok(log) => log,
        Err(e) => return failed(NAME, format_args!("the log: {e}")),
    };
    match run(&arguments, &mut log).and_then(|()| Ok(log.write(&Line::End)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let status = failed(NAME, &e);
            // If that fails, too, the exit status tells.
            let _ = log.write(&Line::Failed(e.to_string()));
            status
        }
    }
}

fn open_log(address: Option<&str>) -> io::Result<Log> {
    match address {
        Some(address) => Log::open(address),
        // Not through the standard library's buffer.
        None => Ok(Log::to(File::from(io::stdout().as_fd().try_clone_to_owned()?))),
    }
}

fn run(arguments: &Arguments, log: &mut Log) -> Result<(), Failure> {
    let Arguments { end, address, seed, run, batches, sector_size, .. } = arguments;
    let stop = Stop::on_signal()?;
    let recipe = Recipe { seed: *seed };
    let sector_size = sector_size.map(SectorSize::new).transpose();
    let sector_size = sector_size.map_err(shared_block_ring::Error::from)?;
    log.write(&Line::Run(*run))?;
    match end {
        End::Produce => {
            let device = open(address, Role::Producer, sector_size)?;
            let mut producer = Producer::attach(device, "crash", "crashload")?;
            log.write(&Line::Attached)?;
            produce(&mut producer, recipe, *run, *batches, log, &stop)
        }
        End::Consume => {
            let device = open(address, Role::Consumer, sector_size)?;
            let mut consumer = Consumer::attach(device, "crash", "crashload")?;
            log.write(&Line::Attached)?;
            let mut random = Random::of(*seed, &[4, u64::from(*run)]);
            consume(&mut consumer, &mut random, log, &stop)
        }
    }
}
