//! The errors that end the daemon.

use crate::daemon::sandbox;
use crate::daemon::settings::Invalid;
use crate::front_end;
use crate::front_end::arrival;
use nix::unistd::Uid;
use shared_block_ring::Error;
use shared_block_ring::format::FormatError;
use std::io;

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
    #[error("{}{source}{}", prefix(path, source), remedy(source))]
    Ring {
        /// The ring's path as given.
        path: String,
        /// Why it cannot be served.
        source: Error,
    },
    /// A socket cannot be listened on.
    #[error("{name}: {source}")]
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
    #[error("cannot {what}: {source}")]
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
    #[error("{path}: {source}: it must be readable and writable for the daemon's user, {user}")]
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

fn remedy(error: &Error) -> &'static str {
    match error {
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
    }
}

/// Makes a [`Failure::System`]; `what` completes "cannot".
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { what, source }
}
