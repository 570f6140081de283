//! The sockets of the daemon: those that it makes, and those that it was started with.

mod passed;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
pub use passed::{Misdirected, Sorted, assumed};
pub use ring_program::sockets::{Access, Listening, Misdescribed, OwnPath, PassedSockets};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a listening socket comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The daemon makes it at this path.
    Path(PathBuf, Access),
    /// The daemon was started with it.
    Inherited(Inherited),
    /// A client of the control socket has sent it.
    Received(Received),
}

/// A listening socket that a client has sent.
#[derive(Debug, Clone)]
pub struct Received {
    /// The socket.
    pub socket: Arc<OwnedFd>,
    /// What it is for.
    pub purpose: Purpose,
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }
}

impl Eq for Received {}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket `{}` that a client has passed", self.purpose.name())
    }
}

/// A descriptor that the daemon was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// The descriptor's number.
    pub number: RawFd,
    /// The purpose by which a service manager has named it; `None` for that of `--fd`.
    pub purpose: Option<Purpose>,
}

/// What a socket that a service manager passes is for. Its name in `LISTEN_FDNAMES` says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Front ends connect to it.
    Guest,
    /// Processes on the host connect to it for the hand-over.
    Consumer,
    /// Metrics and health are offered on it.
    Metrics,
}

impl Purpose {
    /// All purposes, in the order of messages.
    pub const ALL: [Self; 3] = [Self::Guest, Self::Consumer, Self::Metrics];

    /// Returns the name of such a socket.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Consumer => "consumer",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.purpose {
            Some(purpose) => {
                write!(f, "socket `{}` (descriptor {})", purpose.name(), self.number)
            }
            None => write!(f, "--fd {}", self.number),
        }
    }
}

/// Takes the listening socket that the parent process has left open.
///
/// A number is no proof of owning what it names, so that a safe program cannot call this:
///
/// ```compile_fail,E0133
/// use vhost_device_blockring::daemon::sockets::{Inherited, inherited};
/// inherited(Inherited { number: 3, purpose: None }).unwrap();
/// ```
///
/// # Errors
/// The number is none of an inherited descriptor, or the descriptor is not a listening socket of
/// the kind that its purpose needs; it is closed then.
///
/// # Safety
/// Nothing else in this process uses an inherited descriptor by that number, and this is called
/// once for it. A descriptor that this process has opened itself is refused, provided that it was
/// opened to be closed when a program is started (`O_CLOEXEC`), as the standard library does.
pub unsafe fn inherited(from: Inherited) -> io::Result<OwnedFd> {
    let Inherited { number, purpose } = from;
    // SAFETY: the caller vouches for the number.
    let socket = unsafe { ring_program::sockets::take(number) }?;
    require(&socket, purpose)?;
    Ok(socket)
}

/// Checks that a socket listens, and is of the kind that its purpose needs.
///
/// # Errors
/// It is not.
pub fn require(socket: &OwnedFd, purpose: Option<Purpose>) -> io::Result<()> {
    ring_program::sockets::require_listening(socket)?;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    let is_unix = address.family() == Some(AddressFamily::Unix);
    let kind = getsockopt(socket, sockopt::SockType)?;
    match purpose {
        None | Some(Purpose::Guest) if !is_unix || kind != SockType::Stream => invalid(
            "not a UNIX stream socket: front ends send descriptors by such a one (ListenStream= with a path in a socket unit)",
        ),
        Some(Purpose::Consumer) if !is_unix || kind != SockType::SeqPacket => invalid(
            "not a UNIX socket of sequential packets (ListenSequentialPacket= with a path in a socket unit)",
        ),
        // The metrics' server says itself what it takes.
        _ => Ok(()),
    }
}

/// Sets a listening socket not to block: a connection that another process accepts first is not
/// waited for. Service managers set it to block.
pub(super) fn do_not_block(socket: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn invalid<T>(text: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}
