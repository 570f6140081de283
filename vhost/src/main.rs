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
use vhost_device_blockring::daemon::config_file;
use vhost_device_blockring::daemon::failure::Failure;
use vhost_device_blockring::daemon::server;
use vhost_device_blockring::daemon::settings::{Invalid, Settings};
use vhost_device_blockring::daemon::sockets::{self, PassedSockets, Purpose};

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
            Ok(Asked::Run(arguments)) => match carry_out(arguments) {
                Err(Failure::Usage(e)) => {
                    return misuse(&Arguments::command().error(ErrorKind::ValueValidation, e));
                }
                outcome => outcome,
            },
            Ok(Asked::Pages(directory)) => write_pages(&directory),
            Err(answer) if answer.use_stderr() => return misuse(&answer),
            Err(help) => print(&help.render().to_string()),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                // Other failures were told where the ring is served.
                if let Failure::Configuration(words) = &failure {
                    ServiceManager::connect().status(words);
                }
                ring_program::say!("{failure}");
                ExitCode::FAILURE
            }
        }
    })
}

/// Does what the command line, and the file that it names, ask for.
fn carry_out(line: Arguments) -> Result<(), Failure> {
    line.log_format.choose();
    if line.print_capabilities {
        return print(&format!("{}\n", server::capabilities()));
    }
    let config = line.config.clone();
    let arguments = match &config {
        None => line,
        Some(path) => {
            let words: Vec<_> = std::env::args_os().collect();
            let arguments = config_file::add(path, &words).map_err(Failure::Configuration)?;
            arguments.log_format.choose();
            arguments
        }
    };
    let invalid = |e: Invalid| match &config {
        // The words are about a file then, not about the use of this program.
        Some(path) => Failure::Configuration(format!("{}: {e}", path.display())),
        None => Failure::Usage(e),
    };
    if arguments.check_config {
        return check(arguments).map_err(invalid).and_then(|sound| print(&sound));
    }
    let passed = PassedSockets::from_environment().map_err(|e| invalid(e.into()))?;
    let settings = Settings::new(arguments, &passed).map_err(invalid)?;
    if let Some(other) = passed.other_process {
        log::warn!("LISTEN_FDS is for process {other}: those descriptors are not used");
    }
    serve(&settings)
}

/// Checks arguments, and opens nothing. Returns what to print if they are sound.
fn check(arguments: Arguments) -> Result<String, Invalid> {
    let has_entrance = arguments.socket_path.is_some() || arguments.fd.is_some();
    let names_consumers =
        !arguments.consumer_user.is_empty() || !arguments.consumer_group.is_empty();
    let mut assumed = Vec::new();
    if !has_entrance {
        assumed.push(Purpose::Guest);
    }
    if names_consumers && arguments.consumer_socket.is_none() {
        assumed.push(Purpose::Consumer);
    }
    let settings = Settings::new(arguments, &sockets::assumed(&assumed))?;
    let needed = assumed
        .iter()
        .map(|purpose| format!("; a service manager has to pass the socket `{}`", purpose.name()));
    let needed: String = needed.collect();
    Ok(format!("the configuration is sound; ring: {}{needed}\n", settings.ring.display()))
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
