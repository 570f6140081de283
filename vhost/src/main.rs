//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::CommandFactory;
use clap::error::ErrorKind;
use ring_program::manual::{self, Asked};
use ring_program::standard::Standard;
use ring_program::{ServiceManager, set_up_signals};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use vhost_device_blockring::daemon::config::Arguments;
use vhost_device_blockring::daemon::failure::Failure;
use vhost_device_blockring::daemon::server;
use vhost_device_blockring::daemon::settings::{Invalid, Settings};
use vhost_device_blockring::daemon::sockets::PassedSockets;

/// Exit code of a command line that cannot be understood.
const USAGE: u8 = 2;

/// The log filter unless the environment sets one. The virtqueue crate logs each error of a
/// guest's; we log them ourselves, at a limited rate.
const LOG: &str = "info,virtio_queue=off";

#[global_allocator]
static MEMORY: ring_program::Memory = ring_program::Memory;

fn main() -> ExitCode {
    // The sandbox needs a process with one thread: messages before it wait until it is applied.
    ring_program::stderr::hold();
    ring_program::run("vhost-device-blockring", LOG, || {
        let outcome = match Asked::<Arguments>::parse() {
            Ok(Asked::Run(arguments)) => {
                arguments.log_format.choose();
                if arguments.print_capabilities {
                    print(&format!("{}\n", server::capabilities()))
                } else {
                    match settings(arguments) {
                        Ok(settings) => serve(&settings),
                        Err(e) => {
                            let kind = ErrorKind::ValueValidation;
                            return misuse(&Arguments::command().error(kind, e));
                        }
                    }
                }
            }
            Ok(Asked::Pages(directory)) => write_pages(&directory),
            Err(answer) if answer.use_stderr() => return misuse(&answer),
            Err(help) => print(&help.render().to_string()),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                ring_program::say!("{failure}");
                ExitCode::FAILURE
            }
        }
    })
}

/// Checks the command line, beside the sockets that a service manager has passed.
fn settings(arguments: Arguments) -> Result<Settings, Invalid> {
    let passed = PassedSockets::from_environment()?;
    let settings = Settings::new(arguments, &passed)?;
    if let Some(other) = passed.other_process {
        log::warn!("LISTEN_FDS is for process {other}: those descriptors are not used");
    }
    Ok(settings)
}

/// Serves the ring, and tells the service manager about it, if there is one.
fn serve(settings: &Settings) -> Result<(), Failure> {
    let set_up = |source| Failure::System { what: "set up signals", source };
    set_up_signals().map_err(set_up)?;
    let manager = Arc::new(ServiceManager::connect());
    let outcome = server::run(settings, &manager);
    if let Err(failure) = &outcome {
        manager.status(&failure.to_string());
    }
    outcome
}

fn write_pages(directory: &Path) -> Result<(), Failure> {
    let others = ["blockring(1)", "qemu-system-x86_64(1)"];
    manual::write(&Arguments::command(), &others, directory)
        .map_err(|source| Failure::System { what: "write man pages and completions", source })
}

/// Says what is wrong with the command line, and returns the exit code.
fn misuse(error: &clap::Error) -> ExitCode {
    ring_program::stderr::block(&error.render().to_string());
    ExitCode::from(USAGE)
}

/// Writes to standard output.
///
/// # Errors
///
/// Standard output is closed, or does not take all of the text.
fn print(text: &str) -> Result<(), Failure> {
    let write = || {
        Standard::Output.check()?;
        let mut output = io::stdout();
        output.write_all(text.as_bytes())?;
        output.flush()
    };
    write().map_err(|source| Failure::System { what: "write to standard output", source })
}
