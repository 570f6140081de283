//! One attack of root in the guest on its ring, with an honest producer beside it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use qemu_tests::program;
use qemu_tests::redteam::{Failure, Raid, Report, attacks};

/// Tries an attack, publishes honest items before and after, and says what was refused
#[derive(Parser)]
struct Arguments {
    /// Its name
    attack: String,
    /// The serial number of the disk
    #[arg(long)]
    serial: String,
    /// What honest items follow from
    #[arg(long)]
    seed: u64,
    /// The number of the first one
    #[arg(long)]
    next: u32,
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(words);
    program::report(&format!("redteam: {}", arguments.attack), run(&arguments))
}

fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let attack = attacks().into_iter().find(|attack| attack.name == arguments.attack);
    let attack = attack.ok_or_else(|| Failure::Unsound("there is no such attack".into()))?;
    Raid::begin(&arguments.serial, arguments.seed, arguments.next)?.carry_out(&attack)
}
