//! Why the daemon ends.

use crate::sandbox;
use nix::unistd::Uid;
use shared_block_ring::Error;
use std::io;
use vhost_user_backend::Error as DaemonError;

/// Why the daemon could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The ring.
    #[error("{path}: {source}{}", remedy(source))]
    Ring {
        /// As given.
        path: String,
        /// What is wrong with it.
        source: Error,
    },
    /// A socket, by its path or number.
    #[error("{name}: {source}")]
    Socket {
        /// As given.
        name: String,
        /// Why it cannot be served.
        source: io::Error,
    },
    /// The kernel refused something that does not depend on what was asked.
    #[error("cannot {what}: {source}")]
    System {
        /// Of the daemon's own needs.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The ring cannot be opened again by whom the daemon has become.
    #[error("{path}: {source}: it must be readable and writable for the daemon's user, {user}")]
    Reopen {
        /// As given.
        path: String,
        /// The operating system's error.
        source: io::Error,
        /// Who that is.
        user: Uid,
    },
    /// The sandbox.
    #[error("sandbox: {0} (--sandbox off does without)")]
    Sandbox(sandbox::Failure),
    /// Another user.
    #[error("--user, --group: {0}")]
    Identity(sandbox::Failure),
    /// The vhost-user library.
    #[error("vhost-user: {0}")]
    VhostUser(DaemonError),
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        Self::VhostUser(error)
    }
}

fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Device(device) if device.source.kind() == io::ErrorKind::NotFound => {
            " (--size 8M makes it)"
        }
        Error::Format(shared_block_ring::format::FormatError::NotARing) => {
            " (blockring create makes one)"
        }
        Error::Held { .. } => " (end that one first: SIGTERM loses nothing)",
        _ => "",
    }
}

/// Names what the kernel has refused.
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { what, source }
}
