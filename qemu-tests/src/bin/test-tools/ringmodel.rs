//! Random operations on the rings of block devices against a queue of vectors, in a guest.

use clap::Parser;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use qemu_tests::program::failed;
use ring_simulation::model::{follow, operations};
use shared_block_ring::{BlockDevice, CreateOptions, FileDevice, OpenOptions, create};
use std::ffi::OsString;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whether the rings on block devices are queues; whatever is on the devices is lost
#[derive(Parser)]
struct Arguments {
    /// Block devices
    #[arg(required = true)]
    devices: Vec<PathBuf>,
    /// Random sequences of operations on each
    #[arg(long)]
    cases: u32,
    /// The same seed makes the same sequences
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(words);
    for path in &arguments.devices {
        match run(path, &arguments) {
            Ok(()) => println!("{}: {} cases", path.display(), arguments.cases),
            Err(e) => {
                let why = format!("{} with --seed {}: {e}", path.display(), arguments.seed);
                return failed("ringmodel", why);
            }
        }
    }
    ExitCode::SUCCESS
}

fn open(path: &Path) -> FileDevice {
    OpenOptions::default().open(path).unwrap_or_else(|e| panic!("{e}"))
}

fn run(path: &Path, arguments: &Arguments) -> Result<(), String> {
    let device = OpenOptions::default().open(path).map_err(|e| e.to_string())?;
    let sector_size = device.geometry().sector_size();
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&arguments.seed.to_le_bytes());
    let config = Config { cases: arguments.cases, failure_persistence: None, ..Config::default() };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let outcome =
        TestRunner::new_with_rng(config, random).run(&operations(sector_size), |operations| {
            // A ring of its own for each case, so that a failing one can be made shorter.
            device.write(0, &[IoSlice::new(&vec![0; sector_size.bytes()])]).expect("to wipe");
            create(&device, CreateOptions::default()).expect("to create");
            follow(|_| open(path), operations);
            Ok(())
        });
    outcome.map_err(|e| e.to_string())
}
