//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::CommandFactory;
use clap::error::ErrorKind;
use ring_program::manual::{self, Asked};
use ring_program::standard::Standard;
use ring_program::{ServiceManager, leave_stops_to_parent, set_up_signals};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use vhost_device_blockring::daemon::config::Arguments;
use vhost_device_blockring::daemon::config_file;
use vhost_device_blockring::daemon::failure::Failure;
use vhost_device_blockring::daemon::rings::folder::Folder;
use vhost_device_blockring::daemon::rings::options::Options;
use vhost_device_blockring::daemon::rings::{self, data_process};
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
    if line.data_process {
        return serve_orders();
    }
    if let Some(folder) = line.config.clone().filter(|path| path.is_dir()) {
        return serve_folder(folder, line);
    }
    if let Some(option) = line.of_many_rings() {
        return Err(Failure::Usage(Invalid::OfManyRings(option)));
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
    warn_of_others(&passed);
    serve(&settings)
}

/// Logs that sockets were passed to another process.
fn warn_of_others(passed: &PassedSockets) {
    if let Some(other) = passed.other_process {
        log::warn!("LISTEN_FDS is for process {other}: those descriptors are not used");
    }
}

/// Serves the rings that the control process, which has started this one, sends by standard input.
fn serve_orders() -> Result<(), Failure> {
    let set_up = |source| Failure::System { what: "set up signals", source };
    set_up_signals().and_then(|()| leave_stops_to_parent()).map_err(set_up)?;
    let orders = io::stdin().as_fd().try_clone_to_owned();
    data_process::run(orders.map_err(|source| Failure::System { what: "take orders", source })?)
}

/// Serves, or checks, the rings of a folder.
fn serve_folder(folder: PathBuf, line: Arguments) -> Result<(), Failure> {
    let check = line.check_config;
    let passed = PassedSockets::from_environment().map_err(|e| Failure::Usage(e.into()))?;
    let options = Options::new(folder, line, std::env::args_os().collect(), &passed);
    let options = options.map_err(Failure::Usage)?;
    if check {
        return check_folder(&options.folder);
    }
    warn_of_others(&passed);
    let manager = Arc::new(ServiceManager::connect());
    let outcome = rings::server::run(options, &manager);
    if let Err(failure) = &outcome {
        manager.status(&failure.to_string());
    }
    outcome
}

/// Checks the files of all rings, and opens no ring.
fn check_folder(folder: &Folder) -> Result<(), Failure> {
    let rings = folder.read().map_err(Failure::Configuration)?;
    let wrong: Vec<_> = rings.values().filter_map(|ring| ring.settings.as_ref().err()).collect();
    if wrong.is_empty() {
        let count = rings.len();
        let follows = rings::reexec::answer_if_asked().unwrap_or_default();
        return print(&format!("the configuration is sound; rings: {count}\n{follows}"));
    }
    let words: Vec<_> = wrong.into_iter().map(String::as_str).collect();
    Err(Failure::Configuration(words.join("; ")))
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
