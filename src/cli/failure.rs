//! How a command ends when it does not end well.

use shared_block_ring::Error;
use std::io::{self, ErrorKind};
use std::process::ExitCode;
use std::sync::Arc;

/// What went wrong; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The ring or its device.
    #[error(transparent)]
    Ring(#[from] Error),
    /// The same, with what the command was doing.
    #[error("{what}: {source}")]
    During {
        /// What the command was doing, and to what.
        what: String,
        /// Why it could not.
        source: Error,
    },
    /// What ended a journal, as everybody is told who uses it.
    #[error("{what}: {source}")]
    Ended {
        /// The journal.
        what: String,
        /// Why it cannot go on.
        source: Arc<Error>,
    },
    /// Standard input, standard output, or a file that is not a ring's device.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A refusal in words.
    #[error("{0}")]
    Refused(String),
    /// `--timeout` elapsed.
    #[error("timed out after {seconds} s: {what}")]
    TimedOut {
        /// As given.
        seconds: f64,
        /// What did not happen.
        what: String,
    },
    /// `--timeout` elapsed while the ring was suspended.
    #[error("suspended: {0}")]
    Suspended(String),
    /// A check that found the ring damaged.
    #[error("{0}")]
    Corrupt(String),
}

impl Failure {
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// What whoever meets it can do, where the error does not say.
    pub fn remedy(&self) -> Option<&'static str> {
        let (Self::Ring(Error::Device(error)) | Self::During { source: Error::Device(error), .. }) =
            self
        else {
            return None;
        };
        match (error.operation, error.source.kind()) {
            ("connect to", ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Some("is its backend running? vhost-device-blockring makes the socket")
            }
            ("open", ErrorKind::InvalidInput) => {
                Some("a backend's sockets are named unix:PATH, for consumers, and vhost-user:PATH")
            }
            ("write", _) if error.source.raw_os_error() == Some(libc::EIO) => Some(
                "a backend refuses what the ring's rules or the guest's role do not allow; its log says why",
            ),
            _ => None,
        }
    }

    pub fn code(&self) -> ExitCode {
        match self {
            Self::TimedOut { .. } => 3,
            Self::Suspended(_) => 4,
            Self::Corrupt(_) => 5,
            Self::Ring(error) | Self::During { source: error, .. } => code_of(error),
            Self::Ended { source, .. } => code_of(source),
            Self::Io { .. } | Self::Refused(_) => 1,
        }
        .into()
    }
}

fn code_of(error: &Error) -> u8 {
    match error {
        Error::Suspended => 4,
        Error::Format(_) => 5,
        Error::Superseded { .. } => 6,
        _ => 1,
    }
}

pub type Outcome = Result<(), Failure>;
