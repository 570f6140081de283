//! The limit of open descriptors: as high as this process may have it, and as it was for what the
//! process starts.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::sync::OnceLock;

/// The way to a higher limit, for messages.
pub const REMEDY: &str = "raise it: LimitNOFILE= in the service, ulimit -Hn in a shell";

/// Returns what to say behind an error that a process has met which may open no more descriptors:
/// the limit, and the way to a higher one. Nothing for other errors.
#[must_use]
pub fn remedy(error: &io::Error) -> String {
    if error.raw_os_error() == Some(libc::EMFILE) {
        format!(" (the limit of this process is RLIMIT_NOFILE; {REMEDY})")
    } else {
        String::new()
    }
}

/// The limits, soft and hard, before they were raised.
static ORIGINAL: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the limit to the highest that this process may set, and returns the limit in force.
/// Programs that use `select` fail with a limit beyond 1,024: so a program that is started gets the
/// original limit ([`restore_limits`](crate::restore_limits)).
///
/// # Errors
/// The operating system's, if the limit cannot be read.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The first call's limits stay.
    let _ = ORIGINAL.set((soft, hard));
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Ok(hard),
        Err(e) => {
            log::debug!("cannot raise the limit of open descriptors from {soft} to {hard}: {e}");
            Ok(soft)
        }
    }
}

/// Returns the limits before they were raised, soft and hard; none if they were not.
pub fn original() -> Option<(u64, u64)> {
    ORIGINAL.get().copied()
}

/// Returns how many descriptors this process has open.
///
/// # Errors
/// The operating system's; there may be no `/proc`.
pub fn open() -> io::Result<u64> {
    // One of them is that of the folder.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedy_is_for_the_limit_of_this_process_alone() {
        let words = |number| remedy(&io::Error::from_raw_os_error(number));
        assert!(words(libc::EMFILE).contains("LimitNOFILE="));
        assert_eq!((words(libc::ENFILE), words(libc::ENOENT)), (String::new(), String::new()));
    }
}
