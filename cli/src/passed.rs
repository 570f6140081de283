//! The sockets that a service manager passes to this process.

use super::failure::Failure;
use ring_program::sockets::{Passed, PassedSockets, take};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};

/// A socket that a service manager has passed.
pub struct PassedSocket {
    pub socket: OwnedFd,
    about: Passed,
}

impl fmt::Display for PassedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Passed { number, name } = &self.about;
        write!(f, "socket `{name}` (descriptor {number})")
    }
}

impl PassedSocket {
    /// Returns its name (`FileDescriptorName=`).
    pub fn name(&self) -> &str {
        &self.about.name
    }
}

/// Returns whether a service manager has passed any socket to this process.
pub fn is_any() -> bool {
    PassedSockets::from_environment().is_ok_and(|passed| !passed.all.is_empty())
}

/// Takes the descriptor of that number, which an option names.
///
/// # Errors
/// This process was not started with such a one, or an option has named it before.
pub fn take_named(number: RawFd, option: &str) -> Result<OwnedFd, Failure> {
    // SAFETY: the command line names it for this purpose, and what was taken once is refused, as is
    // what this process has opened. No command takes sockets of a service manager, too.
    let taken = unsafe { take(number) };
    taken.map_err(|e| Failure::Usage(format!("{option}: descriptor {number}: {e}")))
}

/// Takes all sockets that were passed. A second call finds none of them.
///
/// # Errors
/// The environment describes them wrongly; one of them is not there.
pub fn take_all() -> Result<Vec<PassedSocket>, Failure> {
    let found = PassedSockets::from_environment();
    let found = found.map_err(|e| Failure::Usage(e.to_string()))?;
    if let Some(process) = found.other_process {
        log::warn!("LISTEN_FDS is for process {process}: those descriptors are not used");
    }
    let open = |about: Passed| {
        // SAFETY: each number comes once from the environment, by which this process owns those
        // descriptors: nothing else in it takes inherited ones. What it has opened is refused.
        let socket = unsafe { take(about.number) };
        let what = format!("descriptor {} of LISTEN_FDS", about.number);
        Ok(PassedSocket { socket: socket.map_err(Failure::io(what))?, about })
    };
    found.all.into_iter().map(open).collect()
}
