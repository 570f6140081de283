//! Listening on a path: never on one that another process answers, always on one that a dead process left behind.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A listening socket; its path goes with it.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listening {
    /// For this user only.
    pub fn on(path: &Path, kind: SockType) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let new = || socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None);
        let socket = new()?;
        // Before any other thread runs: the mask is the process's.
        let mask = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let bound = match bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => clear_stale(path, &address, &new()?)
                .and_then(|()| Ok(bind(socket.as_raw_fd(), &address)?)),
            other => other.map_err(Into::into),
        };
        umask(mask);
        bound?;
        listen(&socket, Backlog::new(16)?)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Gone already: somebody has cleaned up after us.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on, and nothing else.
fn clear_stale(path: &Path, address: &UnixAddr, probe: &OwnedFd) -> io::Result<()> {
    let refuse = |text: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, text.to_owned()));
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return refuse("there is a file that is not a socket: choose another path, or remove it");
    }
    match connect(probe.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EPROTOTYPE | Errno::EAGAIN) => {
            refuse("in use: another process listens there")
        }
        Err(Errno::ECONNREFUSED) => {
            log::info!("{}: replacing the socket of a process that is gone", path.display());
            std::fs::remove_file(path)
        }
        Err(e) => Err(e.into()),
    }
}

/// The listening socket that our parent has left open as descriptor `number`. To be called once, before anything else opens
/// descriptors.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let invalid = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text.to_owned()));
    // SAFETY: only looked at; a number that is no descriptor answers EBADF.
    let looked_at = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
    if number < 3 || fcntl(looked_at, FcntlArg::F_GETFD).is_err() {
        return invalid("no such inherited descriptor");
    }
    // SAFETY: our parent passed it to us by number, and nothing in this process has opened it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    if getsockopt(&socket, sockopt::AcceptConn).ok() == Some(true) {
        Ok(socket)
    } else {
        invalid("not a listening socket: pass the listening one, front ends are accepted on it")
    }
}

/// Bounds what a peer that connects and then says nothing can hold up.
pub fn limit_patience(socket: &OwnedFd, patience: Duration) -> nix::Result<()> {
    let time = nix::sys::time::TimeVal::new(
        patience.as_secs().cast_signed(),
        patience.subsec_micros().into(),
    );
    setsockopt(socket, sockopt::ReceiveTimeout, &time)?;
    setsockopt(socket, sockopt::SendTimeout, &time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_live_socket_is_respected_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let live = Listening::on(&path, SockType::SeqPacket).unwrap();
        for kind in [SockType::SeqPacket, SockType::Stream] {
            let error = Listening::on(&path, kind).unwrap_err().to_string();
            assert!(error.contains("in use"), "{error}");
        }
        drop(live);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        Listening::on(&path, SockType::SeqPacket).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error =
            Listening::on(&dir.path().join("file"), SockType::Stream).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
    }
}
