//! Errors of the helpers, worded so that a failed test explains itself.

use std::path::Path;
use std::time::Duration;
use std::{fmt, io};

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of a helper.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, and its file or program.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A command failed: `cargo build` of the programs under test, or one that makes a system.
    #[error("{command} failed:\n{stderr}")]
    Build {
        /// The command line.
        command: String,
        /// Its standard error.
        stderr: String,
    },
    /// Something the tests need is not on this machine.
    #[error("{what} is missing; {remedy}")]
    Missing {
        /// The missing part.
        what: String,
        /// Advice.
        remedy: String,
    },
    /// A wait reached its bound.
    #[error("{what}: not within {after:?}\n{log}")]
    Timeout {
        /// The awaited condition.
        what: String,
        /// The bound.
        after: Duration,
        /// The tail of the guest's console or of the daemon's log.
        log: String,
    },
    /// The process died while something was still expected of it.
    #[error("{what}: the process ended before that\n{log}")]
    Died {
        /// The awaited condition.
        what: String,
        /// The tail of the guest's console or of the daemon's log.
        log: String,
    },
    /// The guest or QEMU answered with something that makes no sense here.
    #[error("{what}: {answer}")]
    Answer {
        /// The request.
        what: String,
        /// The answer.
        answer: String,
    },
}

impl Error {
    /// Whether QEMU has aborted by an assertion for which `GuestBuilder::boot` repeats a start.
    pub(crate) fn is_known_abort(&self) -> bool {
        // In an emulated guest's access to its devices. What a back end could cause is not there.
        const FUNCTIONS: [&str; 2] = ["msix_table_mmio_write", "iotlb_to_section"];
        let is_known = |line: &str| {
            let names = |function| line.contains(&format!(" {function}: Assertion `"));
            FUNCTIONS.into_iter().any(names)
        };
        matches!(self, Self::Died { log, .. } if log.lines().any(is_known))
    }

    /// Returns a function for `map_err`: an I/O error of the operation `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Returns a function for `map_err`: an I/O error of the operation `what` on `path`.
    pub(crate) fn file(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{doing} {}", path.display()))
    }
}

// A test that returns `Err` prints the `Debug` form: let that be the readable one, with the log's
// lines as lines.
impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Returns the last lines of a log, short enough to read in a failed test's output.
pub(crate) fn tail(log: &[u8]) -> String {
    const BYTES: usize = 4096;
    let start = log.len().saturating_sub(BYTES);
    let text = String::from_utf8_lossy(&log[start..]);
    // Unless the log is whole, its first line is probably cut.
    match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest.to_owned(),
        _ => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_abort_of_qemu_is_told_from_other_ends() {
        let died = |log: &str| Error::Died { what: "the guest's boot".into(), log: log.into() };
        for assertion in [
            "qemu: hw/pci/msix.c:228: msix_table_mmio_write: Assertion `addr + size <= 80' failed.",
            "qemu: system/physmem.c:2671: iotlb_to_section: Assertion `index < map' failed.",
        ] {
            assert!(died(assertion).is_known_abort(), "{assertion}");
        }
        for other in [
            "qemu: -no-such-option: invalid option",
            "qemu: hw/virtio/vhost-user.c:1: vhost_user_read: Assertion `ok' failed.",
            "msix_table_mmio_write\nqemu: a.c:1: b: Assertion `ok' failed.",
        ] {
            assert!(!died(other).is_known_abort(), "{other}");
        }
    }
}
