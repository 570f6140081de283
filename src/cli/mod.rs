//! The command line: one file a subcommand.

mod address;
mod bench;
mod bind;
mod check;
mod consume;
mod create;
mod facts;
mod failure;
mod framing;
mod journal;
mod produce;
mod progress;
mod pump;
mod repair;
mod suspend;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes: 0 normal end, 1 error, 2 usage, 3 timed out, 4 suspended, 5 not a ring or corrupt,
6 superseded.

ADDRESS is the path of a file or a block device, serial:NAME for the disk with that serial number,
unix:PATH for a ring that vhost-device-blockring serves with --consumer-socket PATH,
vhost-user:PATH for the disk that a vhost-user-blk backend serves there, without a virtual machine,
or pci:0000:00:04.0 for a virtio disk of this machine that its kernel was made to leave to us.";

/// A crash-safe queue on a block device
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Create),
    Produce(produce::Produce),
    Consume(consume::Consume),
    Diagnostics(facts::Diagnostics),
    Suspend(suspend::Suspend),
    Resume(suspend::Resume),
    Check(check::Check),
    Repair(repair::Repair),
    Journal(journal::Journal),
    Bench(bench::Bench),
    Bind(bind::Bind),
    Unbind(bind::Unbind),
}

/// Parses, runs, and turns the outcome into an exit code; errors go to standard error.
pub fn run() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let outcome = match Arguments::parse().command {
        Command::Create(command) => command.run(),
        Command::Produce(command) => command.run(),
        Command::Consume(command) => command.run(),
        Command::Diagnostics(command) => command.run(),
        Command::Suspend(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Repair(command) => command.run(),
        Command::Journal(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Bind(command) => command.run(),
        Command::Unbind(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let remedy = failure.remedy().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
            eprintln!("blockring: {failure}{remedy}");
            failure.code()
        }
    }
}
