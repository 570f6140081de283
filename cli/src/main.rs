//! `blockring`: a ring from the shell. One file a subcommand.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod address;
mod bench;
mod bind;
mod check;
mod consume;
mod create;
mod ctl;
mod ending;
mod export;
mod facts;
mod failure;
mod fate;
mod forward;
mod framing;
mod health;
mod input;
mod inspect;
mod journal;
mod journald;
mod life;
mod listen;
mod observed;
mod output;
mod oversize;
mod passed;
mod produce;
mod progress;
mod pump;
mod pusher;
mod repair;
mod sample;
mod signals;
mod splitter;
mod suspend;
mod top;

use clap::{CommandFactory, Parser, Subcommand};
use ending::{Stream, interruptible, plain, stoppable, stoppable_except_on_hangup};
use failure::{Failure, Outcome};
use output::{message, print};
use ring_program::LogFormat;
use ring_program::manual::{self, Asked};
use shared_block_ring::device::shown;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
ADDRESS names the ring:
  PATH               a file or a block device
  serial:NAME        the disk with that serial number
  unix:PATH          a ring that vhost-device-blockring serves with --consumer-socket PATH
  vhost-user:PATH    the disk of the vhost-user-blk backend that listens at PATH, without a virtual
                     machine
  pci:0000:00:04.0   a virtio disk of this machine that `blockring bind` has taken from the kernel
`journal` and `repair` take the first two only.

Exit codes:
  0  normal end
  1  error
  2  wrong use of options or arguments
  3  timed out
  4  the ring is suspended
  5  not a ring, or a corrupt one
  6  superseded: another instance of this process moved the ring, as after the restore of an older
     snapshot of a virtual machine
Standard output that is closed or full, or whose reader is gone, is an error. Messages that standard
error does not accept are dropped. The first SIGTERM or SIGINT ends every wait.";

/// A crash-safe queue on a block device
#[derive(Parser)]
#[command(name = "blockring", version, after_help = HELP)]
struct Arguments {
    /// Form of messages and log: text, or one JSON object a line
    #[arg(
        long,
        global = true,
        value_name = "text|json",
        default_value = "text",
        hide_short_help = true
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Create),
    Produce(produce::Produce),
    Consume(consume::Consume),
    Forward(Box<forward::Forward>),
    Export(export::Export),
    Diagnostics(facts::Diagnostics),
    Suspend(suspend::Suspend),
    Resume(suspend::Resume),
    Health(health::Health),
    Top(top::Top),
    Inspect(inspect::Inspect),
    Check(check::Check),
    Repair(repair::Repair),
    Journal(journal::Journal),
    Bench(bench::Bench),
    Ctl(ctl::Ctl),
    Bind(bind::Bind),
    Unbind(bind::Unbind),
}

#[global_allocator]
static MEMORY: ring_program::Memory = ring_program::Memory;

/// Parses, runs, and turns the outcome into an exit code; errors go to standard error.
fn main() -> ExitCode {
    ring_program::run("blockring", "warn", || {
        ring_program::end_on_panic();
        parse_and_carry_out()
    })
}

fn parse_and_carry_out() -> ExitCode {
    let code = match Asked::<Arguments>::parse() {
        Ok(Asked::Run(arguments)) => {
            arguments.log_format.choose();
            carry_out(arguments.command)
        }
        Ok(Asked::Pages(directory)) => plain(|| write_pages(&directory)),
        Err(answer) if answer.use_stderr() => {
            message(&rendered(&answer, std::io::stderr().is_terminal()));
            2
        }
        Err(answer) => {
            let text = rendered(&answer, std::io::stdout().is_terminal());
            plain(|| print(text.trim_end(), None))
        }
    };
    code.into()
}

fn write_pages(directory: &Path) -> Outcome {
    let written = manual::write(&Arguments::command(), &["vhost-device-blockring(1)"], directory);
    let what = format!("cannot write man pages and completions below {}", shown(directory));
    written.map_err(Failure::io(what))
}

/// Runs a command, and returns its exit code.
fn carry_out(command: Command) -> u8 {
    let on_error = |json: bool| json.then_some(Stream::Error);
    match command {
        Command::Create(command) => plain(|| command.run()),
        Command::Produce(c) => stoppable(on_error(c.json), |stop, counts| c.run(stop, counts)),
        Command::Consume(c) => stoppable(on_error(c.json), |stop, counts| c.run(stop, counts)),
        Command::Forward(c) => {
            stoppable_except_on_hangup(on_error(c.json), |stop, report| c.run(stop, report))
        }
        Command::Export(c) => stoppable(None, |stop, ()| c.run(stop)),
        Command::Diagnostics(c) => interruptible(c.json, |facts| c.run(facts)),
        Command::Suspend(command) => plain(|| command.run()),
        Command::Resume(command) => plain(|| command.run()),
        Command::Top(c) => stoppable(None, |stop, (): &mut ()| c.run(stop)),
        Command::Health(c) => interruptible(c.json, |verdicts| c.run(verdicts)),
        Command::Inspect(c) => interruptible(c.json, |whole| c.run(whole)),
        Command::Check(c) => interruptible(c.json, |verdict| c.run(verdict)),
        Command::Repair(c) => interruptible(c.json, |report| c.run(report)),
        Command::Journal(c) => stoppable(on_error(c.json), |stop, report| c.run(stop, report)),
        Command::Bench(c) => {
            let json = c.json.then_some(Stream::Output);
            stoppable(json, |stop, report| c.run(stop, report))
        }
        Command::Ctl(c) => {
            let json = c.json.then_some(Stream::Output);
            stoppable(json, |stop, report| c.run(stop, report))
        }
        Command::Bind(command) => plain(|| command.run()),
        Command::Unbind(command) => plain(|| command.run()),
    }
}

/// Returns the help, the version or the error about the arguments, with colours for a terminal.
fn rendered(answer: &clap::Error, colours: bool) -> String {
    let text = answer.render();
    if colours { text.ansi().to_string() } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_behind_the_options_fit_into_the_width_of_help() {
        // A longer line would be broken, and its rest be a line of its own.
        const WIDTH: usize = 100;
        let program = Arguments::command();
        let actions = program.get_subcommands().flat_map(clap::Command::get_subcommands);
        for command in program.get_subcommands().chain(actions).chain([&program]) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{}: {line}", command.get_name());
            }
        }
    }
}
