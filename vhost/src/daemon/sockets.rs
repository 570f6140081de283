//! The sockets of the daemon: those that it makes, and one that it may inherit.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
pub use ring_program::sockets::{Access, Listening};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The listening socket that the parent process has left open as descriptor `number`.
///
/// A number is no proof of owning what it names, so that a safe program cannot call this:
///
/// ```compile_fail,E0133
/// vhost_device_blockring::daemon::sockets::inherited(3).unwrap();
/// ```
///
/// # Errors
/// The number is none of an inherited descriptor, or the descriptor is not a listening socket; it
/// is closed then.
///
/// # Safety
/// Nothing else in this process uses an inherited descriptor by that number, and this is called
/// once for it. A descriptor that this process has opened itself is refused, provided that it was
/// opened to be closed when a program is started (`O_CLOEXEC`), as the standard library does.
pub unsafe fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let invalid = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text.to_owned()));
    // SAFETY: F_GETFD changes nothing, and takes any number: one that is not open is answered with
    // an error.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // A descriptor that this process has opened itself is closed when a program is started, so it
    // is not inherited.
    if number < 3 || flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return invalid("no such inherited descriptor");
    }
    // SAFETY: it is open, and by the caller's word nothing else in this process has it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    if getsockopt(&socket, sockopt::AcceptConn).ok() != Some(true) {
        return invalid(
            "not a listening socket: pass the listening one, front ends are accepted on it",
        );
    }
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    let is_stream = getsockopt(&socket, sockopt::SockType)? == SockType::Stream;
    if address.family() != Some(AddressFamily::Unix) || !is_stream {
        return invalid("not a UNIX stream socket: front ends send descriptors by such a one");
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn descriptor_that_this_process_has_opened_is_not_taken_as_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let own = UnixListener::bind(dir.path().join("socket")).unwrap();
        own.set_nonblocking(true).unwrap();
        // SAFETY: the standard library has opened it to be closed when a program is started, so
        // that it is refused.
        let error = unsafe { inherited(own.as_raw_fd()) }.unwrap_err().to_string();
        assert!(error.contains("no such inherited descriptor"), "{error}");
        assert_eq!(own.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is open");
    }
}
