//! The errors that end the daemon.

use crate::daemon::sandbox;
use crate::daemon::settings::Invalid;
use crate::front_end;
use crate::front_end::arrival;
use nix::unistd::Uid;
use ring_program::descriptors::remedy;
use shared_block_ring::Error;
use shared_block_ring::format::FormatError;
use std::io;
use std::path::PathBuf;

/// Why the daemon could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(Invalid),
    /// The configuration is wrong; in words that name its file.
    #[error("{0}")]
    Configuration(String),
    /// The ring cannot be served.
    #[error("{}{source}{}", prefix(path, source), of_ring(source))]
    Ring {
        /// The ring's path as given.
        path: String,
        /// Why it cannot be served.
        source: Error,
    },
    /// A socket cannot be listened on.
    #[error("{name}: {source}{}", remedy(source))]
    Socket {
        /// The socket's path or number as given.
        name: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A listening socket was shut down.
    #[error(transparent)]
    ShutDown(#[from] arrival::ShutDown),
    /// The kernel refused something that does not depend on the command line.
    #[error("cannot {what}: {source}{}", remedy(source))]
    System {
        /// The action that failed.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The ring's name led to another file at the end.
    #[error(
        "{path}: the ring's file was moved, removed or replaced while it was served: what was answered since is in the old one alone"
    )]
    Lost {
        /// The ring's path as given.
        path: String,
    },
    /// The ring's file has lost a part.
    #[error(
        "{path}: the ring's file was truncated, or its medium cannot be read: what was answered since is not in it \
         (see `blockring check`)"
    )]
    Truncated {
        /// The ring's path as given.
        path: String,
    },
    /// The ring cannot be opened again as the user that the daemon has become.
    #[error("{path}: {source}{}", of_reopening(source, *user))]
    Reopen {
        /// The ring's path as given.
        path: String,
        /// The operating system's error.
        source: io::Error,
        /// The user that the daemon has become.
        user: Uid,
    },
    /// The daemon cannot be confined.
    #[error("sandbox: {0} (--sandbox off does without)")]
    Sandbox(sandbox::Failure),
    /// The daemon cannot become another user.
    #[error("--user, --group: {0}")]
    Identity(sandbox::Failure),
    /// This process could not become another program.
    #[error("cannot start {}: {source}{}", program.display(), remedy(source))]
    Start {
        /// The program.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The data process has died again and again.
    #[error("the data process has died again and again: see the log")]
    Died,
    /// The data process has ended otherwise than well.
    #[error("the data process has not ended well ({0}): see the log")]
    DataProcess(std::process::ExitStatus),
    /// Front ends cannot be served any more.
    #[error(transparent)]
    FrontEnd(#[from] front_end::failure::Failure),
}

/// The ring's path in front of an error that does not begin with it.
fn prefix(path: &str, error: &Error) -> String {
    match error {
        Error::Device(_) => String::new(),
        _ => format!("{path}: "),
    }
}

/// Returns what to do about a ring that cannot be opened again.
fn of_reopening(source: &io::Error, user: Uid) -> String {
    match remedy(source) {
        words if words.is_empty() => {
            format!(": it must be readable and writable for the daemon's user, {user}")
        }
        words => words,
    }
}

/// Returns what to do about an error of a ring.
fn of_ring(error: &Error) -> String {
    let words = match error {
        Error::Device(device) if device.source.raw_os_error() == Some(libc::EMFILE) => {
            return remedy(&device.source);
        }
        // Without a number it says itself what is missing: the file's folder.
        Error::Device(device) if device.source.raw_os_error() == Some(libc::ENOENT) => {
            " (--size 8M makes it)"
        }
        Error::Device(device) => match device.source.raw_os_error() {
            Some(libc::EROFS) => {
                " (in a service of systemd: ReadWritePaths= has to name its folder)"
            }
            Some(libc::EACCES) => " (this user needs to read and write it: see its owner and mode)",
            _ => "",
        },
        Error::Format(FormatError::NotARing) => " (blockring create makes one)",
        Error::Format(FormatError::TooSmall { .. }) => {
            " (remove it if nobody needs it, and --size 8M makes a ring)"
        }
        Error::RoleTaken { .. } => " (end that one first: SIGTERM loses nothing)",
        _ => "",
    };
    words.to_owned()
}

/// Makes a [`Failure::System`]; `what` completes "cannot".
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_block_ring::device::{DeviceError, Operation};

    #[test]
    fn failure_for_want_of_descriptors_names_the_limit() {
        let error = || io::Error::from_raw_os_error(libc::EMFILE);
        let path = || "ring".to_owned();
        let device = DeviceError::new(path(), Operation::Open, error());
        for failure in [
            system("duplicate a descriptor")(error()),
            Failure::Socket { name: path(), source: error() },
            Failure::Ring { path: path(), source: device.into() },
            Failure::Reopen { path: path(), source: error(), user: Uid::from_raw(1) },
            front_end::failure::system("accept a front end")(error()).into(),
        ] {
            let words = failure.to_string();
            assert!(words.contains("RLIMIT_NOFILE") && words.contains("LimitNOFILE="), "{words}");
            assert!(!words.contains("writable"), "{words}");
        }
    }
}
