//! Accepting connections on a listening socket that other processes may share.
//!
//! Between the look that finds a connection and the call that accepts it, another process can
//! accept it. Whether the call then waits for the next connection or fails with `EAGAIN` is a flag
//! of the open file description, which those processes can change; a socket cannot be opened again
//! for a description of its own. The vhost-user library accepts by itself, and repeats the call at
//! once after `EAGAIN`. So a separate thread accepts, which need not be waited for, and whose
//! descriptor is replaced when no connection waits any more.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;
use vhost::vhost_user::Listener;

/// The time between two looks whether the connection still waits: the longest that the library
/// repeats a call that fails with `EAGAIN`.
const LOOK: Duration = Duration::from_millis(10);

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

/// Has `start` accept the connection that waits on `listening`, on a thread of its own. Returns its
/// result; `None` once `stop` is readable, or if another process has accepted the connection.
///
/// A `start` that waits in the kernel for the next connection is waited for, too. At a stop it is
/// left behind: its later result is dropped, and it ends with the process.
///
/// # Errors
///
/// No thread or no descriptor can be made.
pub fn accept<T, E>(
    listening: BorrowedFd<'_>,
    stop: BorrowedFd<'_>,
    start: impl FnOnce(&mut Listener) -> Result<T, E> + Send + 'static,
) -> io::Result<Option<Result<T, E>>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let mut listener = Listener::from(UnixListener::from(listening.try_clone_to_owned()?));
    let number = listener.as_raw_fd();
    let ended = new_event()?;
    let signal = SignalOnDrop(ended.try_clone()?);
    let thread = std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
        let _signal = signal;
        let outcome = start(&mut listener);
        (outcome, listener)
    })?;
    let mut is_replaced = false;
    loop {
        let timeout = (!is_replaced).then_some(LOOK);
        let readable = wait_readable(&[ended.as_fd(), stop], timeout)?;
        if readable == Some(0) {
            break;
        }
        let stopped = readable.is_some();
        // While a connection waits, the thread has not got to its call yet.
        if !is_replaced && (stopped || look(listening)? != Arrival::Waiting) {
            // SAFETY: `number` is the descriptor of the listener, which the thread returns and
            // which is not closed before `thread` has ended. The file that it refers to is replaced
            // in one step: a call under way goes on with the socket, the next one finds an event,
            // and fails.
            let replaced = unsafe { libc::dup3(ended.as_raw_fd(), number, libc::O_CLOEXEC) };
            Errno::result(replaced)?;
            is_replaced = true;
        }
        if stopped {
            return Ok(None);
        }
    }
    let (outcome, _listener) =
        thread.join().map_err(|_| io::Error::other("the accepting thread has panicked"))?;
    // After the replacement an error is that of the call on the event.
    Ok(if is_replaced && outcome.is_err() { None } else { Some(outcome) })
}

/// Makes an event readable when it is dropped, also by a panic.
struct SignalOnDrop(OwnedFd);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        // The counter of a fresh event takes a one.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }
}
