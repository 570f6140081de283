//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use ring_program::set_up_signals;
use ring_program::standard::Standard;
use std::io::{self, Write};
use std::process::ExitCode;
use vhost_device_blockring::daemon::config::Arguments;
use vhost_device_blockring::daemon::failure::Failure;
use vhost_device_blockring::daemon::server;
use vhost_device_blockring::daemon::settings::Settings;

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
        let parsed = Arguments::try_parse().and_then(|arguments| {
            arguments.log_format.choose();
            if arguments.print_capabilities {
                return Ok(None);
            }
            let invalid = |e| Arguments::command().error(ErrorKind::ValueValidation, e);
            Settings::try_from(arguments).map(Some).map_err(invalid)
        });
        let outcome = match parsed {
            Ok(Some(settings)) => set_up_signals()
                .map_err(|source| Failure::System { what: "set up signals", source })
                .and_then(|()| server::run(&settings)),
            Ok(None) => print(&format!("{}\n", server::capabilities())),
            Err(misuse) if misuse.use_stderr() => {
                ring_program::stderr::block(&misuse.render().to_string());
                return ExitCode::from(USAGE);
            }
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
