//! Looking at a listening socket that other processes may share.
//!
//! Between the look that finds a connection and the call that accepts it, another process can
//! accept it. Whether the call then waits for the next connection or fails with `EAGAIN` is a flag
//! of the open file description, which those processes can change; a socket cannot be opened again
//! for a description of its own. So the call is made by a thread that nobody waits for.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::BorrowedFd;

/// The state of a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// No connection waits.
    None,
    /// A connection that waits to be accepted.
    Waiting,
    /// The socket listens no more: a process that shares it has shut it down.
    ShutDown,
}

/// A listening socket was shut down by another process that shares it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name}: another process has shut this listening socket down, and nobody can connect any more (end what shares the socket, then \
     start this backend again; for --fd, with a new listening socket)"
)]
pub struct ShutDown {
    /// The socket's path or number as given.
    pub name: String,
}

/// Looks at a listening socket, without waiting.
///
/// # Errors
///
/// The operating system's.
pub fn look(listening: BorrowedFd<'_>) -> io::Result<Arrival> {
    // A shutdown of the receiving direction alone refuses connections, and is not reported as a
    // hang-up.
    let receiving_shut = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut polled = [PollFd::new(listening, PollFlags::POLLIN | receiving_shut)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Err(Errno::EINTR) => return Ok(Arrival::None),
        other => other?,
    };
    // Nix does not know this event, and returns no events where there is one that it does not know.
    let events = polled[0].revents();
    Ok(match events {
        Some(events) if events.is_empty() => Arrival::None,
        Some(events) if events == PollFlags::POLLIN => Arrival::Waiting,
        _ => Arrival::ShutDown,
    })
}
