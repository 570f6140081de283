//! Standard input, output and error as they were when the process began.
//!
//! Rust's runtime opens `/dev/null` in the place of each of descriptors 0 to 2 that is closed,
//! before `main`. That keeps a ring's file from becoming "standard output", but hides that output
//! is lost. The descriptors are therefore recorded before the runtime starts: afterwards a closed
//! one looks like an intended `/dev/null`.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// Descriptors 0 to 2 that were closed when the process began, one bit each.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// The C runtime calls every function in this section once, on the only thread, before `main` and
/// with it before Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = record;

/// Records the closed descriptors. Uses nothing of Rust's runtime: a system call and an atomic.
extern "C" fn record() {
    for (number, bit) in [(0, 1), (1, 2), (2, 4)] {
        // SAFETY: F_GETFD changes nothing, and takes any number: one that is not open is answered
        // with an error.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

/// One of the three descriptors that every process begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// Descriptor 0.
    Input,
    /// Descriptor 1.
    Output,
    /// Descriptor 2.
    Error,
}

impl Standard {
    /// Returns whether the descriptor was closed when the process began (`>&-` in a shell).
    pub fn was_closed(self) -> bool {
        let bit = match self {
            Self::Input => 1,
            Self::Output => 2,
            Self::Error => 4,
        };
        CLOSED.load(Ordering::Relaxed) & bit != 0
    }

    /// Verifies that the descriptor can be read (input) or written (output and error), as far as
    /// that is known before it is tried.
    ///
    /// # Errors
    /// [`NotConnected`](ErrorKind::NotConnected) for a descriptor that was closed when the process
    /// began, [`PermissionDenied`](ErrorKind::PermissionDenied) for one that is open in the other
    /// direction only. The text says what to do.
    pub fn check(self) -> io::Result<()> {
        if self.was_closed() {
            let text = match self {
                Self::Input => "closed (give < /dev/null for no input)",
                Self::Output => "closed (give > /dev/null to discard the output)",
                Self::Error => "closed (give 2> /dev/null to discard the messages)",
            };
            return Err(io::Error::new(ErrorKind::NotConnected, text));
        }
        let flags = OFlag::from_bits_retain(fcntl(self.fd(), FcntlArg::F_GETFL)?);
        let (wrong, text) = match self {
            Self::Input => (OFlag::O_WRONLY, "open for writing only"),
            Self::Output | Self::Error => (OFlag::O_RDONLY, "open for reading only"),
        };
        if flags & OFlag::O_ACCMODE == wrong || flags.contains(OFlag::O_PATH) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, text));
        }
        Ok(())
    }

    /// Returns the descriptor itself, which Rust's runtime keeps open.
    pub fn fd(self) -> BorrowedFd<'static> {
        let number = match self {
            Self::Input => libc::STDIN_FILENO,
            Self::Output => libc::STDOUT_FILENO,
            Self::Error => libc::STDERR_FILENO,
        };
        // SAFETY: Rust's runtime opens descriptors 0 to 2 before `main`, and nothing in this
        // workspace closes them.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}
