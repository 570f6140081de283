//! The errors of a command: words, exit code and remedy.

use shared_block_ring::Error;
use shared_block_ring::device::{Displaced, Operation};
use shared_block_ring::format::FormatError;
use std::io::{self, ErrorKind};
use std::sync::Arc;

/// An error of a command; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An error of the ring or of its device.
    #[error(transparent)]
    Ring(#[from] Error),
    /// An error of the ring, with what the command was doing.
    #[error("{what}: {source}")]
    During {
        /// The operation and its object.
        what: String,
        /// The error of the library.
        source: Error,
    },
    /// The error that has ended a journal; all users of the journal share it.
    #[error("{what}: {source}")]
    Ended {
        /// The name of the journal.
        what: String,
        /// The error of the library.
        source: Arc<Error>,
    },
    /// An error on standard input, standard output, or a file that is not a ring.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A refusal, in words.
    #[error("{0}")]
    Refused(String),
    /// A request to stop has ended a wait, in words.
    #[error("{0}")]
    Stopped(String),
    /// Options that are missing, or do not fit together, in words.
    #[error("{0}")]
    Usage(String),
    /// There is nothing at the path, in words.
    #[error("{0}")]
    Missing(String),
    /// Standard output is the ring itself. Nothing may be written there, not even a report of this
    /// failure.
    #[error("{0}")]
    OutputIsRing(String),
    /// `--timeout` elapsed.
    #[error("timed out after {seconds} s: {what}")]
    TimedOut {
        /// The value of the option.
        seconds: f64,
        /// The event that did not come.
        what: String,
    },
    /// A wait for a backend has timed out, in words.
    #[error("{0}")]
    Late(String),
    /// `--timeout` elapsed while the ring was suspended.
    #[error("suspended: {0}")]
    Suspended(String),
    /// A ring is not healthy.
    #[error("{what}")]
    Unhealthy {
        /// The number of rings that are not, in words.
        what: String,
        /// The exit code of the worst of them.
        code: u8,
    },
    /// A command has found the ring damaged.
    #[error("{0}")]
    Corrupt(String),
}

impl Failure {
    /// Returns a function that adds the name of the ring to an error of the library. The error of a
    /// device has it already.
    pub fn about(name: String) -> impl Fn(Error) -> Self {
        move |source| match source {
            Error::Device(_) => Self::Ring(source),
            source => Self::During { what: name.clone(), source },
        }
    }

    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Returns the error of the library, if this is one.
    fn ring(&self) -> Option<&Error> {
        match self {
            Self::Ring(error) | Self::During { source: error, .. } => Some(error),
            Self::Ended { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Returns what the user can do about the error, where its text does not say it.
    fn remedy(&self) -> Option<&'static str> {
        let error = match self.ring()? {
            Error::Device(error) => error,
            Error::Format(damage) => return remedy_of_damage(damage),
            _ => return None,
        };
        if let Some(displaced) = Displaced::of(error) {
            return Some(match displaced {
                Displaced::Removed | Displaced::Replaced { .. } | Displaced::Moved { .. } => {
                    "once the right ring is at the path, start this command again"
                }
                Displaced::Resized { .. } | Displaced::Cut { .. } => {
                    "restore the size, see what blockring check says of the ring, then start this command again"
                }
                Displaced::Overwritten { .. } => {
                    "see what blockring check says of the ring that is there now, then start this command again"
                }
                Displaced::AnotherRing => {
                    "start this command again if that is the ring it should use"
                }
                _ => return None,
            });
        }
        match (error.operation, error.source.kind()) {
            (Operation::Connect, ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Some("is its backend running? vhost-device-blockring makes the socket")
            }
            (Operation::Open, ErrorKind::PermissionDenied) => {
                Some("run the command as a user who may open it, such as root")
            }
            (Operation::Write, _) if error.source.raw_os_error() == Some(libc::EIO) => Some(
                "a backend refuses what the ring's rules or the guest's role do not allow; its log says why",
            ),
            _ => None,
        }
    }

    /// Returns what is wrong with the bytes of the ring, if that is the error.
    pub fn damage(&self) -> Option<&FormatError> {
        match self.ring()? {
            Error::Format(damage) => Some(damage),
            _ => None,
        }
    }

    /// Returns whether there is nothing at the path, or nobody listens there.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Missing(_) => true,
            _ => matches!(self.ring(), Some(Error::Device(error)) if matches!(
                error.source.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            )),
        }
    }

    /// Returns whether a signal has ended a wait of the library.
    pub fn is_stop(&self) -> bool {
        self.ring().is_some_and(|error| ended_by(error, ErrorKind::Interrupted))
    }

    /// Returns the error and its remedy in words.
    pub fn words(&self) -> String {
        match self.remedy() {
            Some(remedy) => format!("{self} ({remedy})"),
            None => self.to_string(),
        }
    }

    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::TimedOut { .. } | Self::Late(_) => 3,
            Self::Suspended(_) => 4,
            Self::Corrupt(_) => 5,
            Self::Unhealthy { code, .. } => *code,
            Self::Ring(error) | Self::During { source: error, .. } => code_of(error),
            Self::Ended { source, .. } => code_of(source),
            Self::Io { .. }
            | Self::Refused(_)
            | Self::Stopped(_)
            | Self::Missing(_)
            | Self::OutputIsRing(_) => 1,
        }
    }
}

/// Returns the words of an error without the ring's name in front, for a line that begins with it.
pub fn without_name<'a>(words: &'a str, name: &str) -> &'a str {
    words.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(words)
}

/// Returns what the user can do about damaged bytes, where the text does not say it.
fn remedy_of_damage(damage: &FormatError) -> Option<&'static str> {
    match damage {
        FormatError::NotARing => {
            Some("is it the right file or device? blockring create makes a ring")
        }
        FormatError::Span { .. } | FormatError::Count { .. } | FormatError::ItemLength { .. } => {
            Some(
                "blockring check says more; items cannot be repaired: blockring consume --on-corrupt skip gives up what is damaged, and what follows is taken again",
            )
        }
        FormatError::IdentityChecksum { .. }
        | FormatError::Misaligned { .. }
        | FormatError::Slots { .. }
        | FormatError::Pointers { .. } => Some("blockring repair says what it can restore"),
        _ => None,
    }
}

fn code_of(error: &Error) -> u8 {
    match error {
        Error::Suspended => 4,
        // The option is wrong; nothing is known of the ring yet.
        Error::Format(FormatError::DeviceSectorSize { .. }) => 1,
        Error::Format(_) => 5,
        Error::Superseded { .. } => 6,
        error if ended_by(error, ErrorKind::TimedOut) => 3,
        _ => 1,
    }
}

/// Returns whether the library has ended a wait for that reason. Its error has no number of the
/// operating system.
fn ended_by(error: &Error, kind: ErrorKind) -> bool {
    matches!(error, Error::Device(error)
        if error.source.kind() == kind && error.source.raw_os_error().is_none())
}

pub type Outcome = Result<(), Failure>;
