//! The epoll set with the sockets of all desks: a sleep costs the same, however many there are.

use crate::data_path::kicks::timeout;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// The most sockets that one wait returns. The kernel returns the others at the next waits, before
/// it returns one of these again.
const ROUND: usize = 256;

/// A socket's place in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The desk's number; 0 is no desk's.
    pub desk: u32,
    /// The socket's number at the desk.
    pub number: u32,
}

impl Token {
    fn to_data(self) -> u64 {
        u64::from(self.desk) << 32 | u64::from(self.number)
    }

    fn from_data(data: u64) -> Self {
        let half = |half: u64| u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default();
        Self { desk: half(data >> 32), number: half(data) }
    }
}

/// The set. A clone is the same set.
#[derive(Debug, Clone)]
pub struct Set(Arc<Epoll>);

impl Set {
    /// Makes an empty set.
    ///
    /// # Errors
    ///
    /// The kernel makes no such set.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    /// Adds a descriptor, which is returned by each [`wait`](Self::wait) that finds it readable.
    ///
    /// # Errors
    ///
    /// The kernel does not take it.
    pub fn add(&self, fd: impl AsFd, token: Token) -> nix::Result<()> {
        self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.to_data()))
    }

    /// Takes a descriptor out. To close it would not do: another process may have a duplicate.
    pub fn delete(&self, fd: impl AsFd) {
        if let Err(e) = self.0.delete(fd) {
            log::debug!("cannot forget a socket: {e}");
        }
    }

    /// Sleeps until a descriptor is readable or at its end, or until this time. Returns those that
    /// are, each once.
    ///
    /// # Errors
    ///
    /// The kernel cannot wait.
    pub fn wait(&self, until: Option<Instant>) -> nix::Result<Vec<Token>> {
        let timeout = until.map_or(EpollTimeout::NONE, timeout);
        let mut events = [EpollEvent::empty(); ROUND];
        match self.0.wait(&mut events, timeout) {
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e),
            Ok(count) => {
                Ok(events[..count].iter().map(|event| Token::from_data(event.data())).collect())
            }
        }
    }
}

/// A socket in the set, until this is dropped.
#[derive(Debug)]
pub struct Watched {
    set: Set,
    socket: OwnedFd,
}

impl Watched {
    /// Adds `socket` to `set`.
    ///
    /// # Errors
    ///
    /// The kernel does not take it.
    pub fn new(set: &Set, socket: OwnedFd, token: Token) -> nix::Result<Self> {
        set.add(&socket, token)?;
        Ok(Self { set: set.clone(), socket })
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.set.delete(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn readable() -> UnixStream {
        let (socket, mut other) = UnixStream::pair().unwrap();
        other.write_all(b"!").unwrap();
        socket
    }

    #[test]
    fn wait_returns_readable_sockets_until_they_are_dropped() {
        let set = Set::new().unwrap();
        let token = Token { desk: u32::MAX, number: 7 };
        let socket = readable();
        let duplicate = socket.try_clone().unwrap();
        let watched = Watched::new(&set, socket.into(), token).unwrap();
        assert_eq!(set.wait(None).unwrap(), [token]);
        assert_eq!(set.wait(None).unwrap(), [token], "nobody has read it");
        drop(watched);
        assert_eq!(set.wait(Some(Instant::now())).unwrap(), []);
        drop(duplicate);
        let (idle, _other) = UnixStream::pair().unwrap();
        let _watched = Watched::new(&set, idle.into(), token).unwrap();
        assert_eq!(set.wait(Some(Instant::now() + Duration::from_millis(1))).unwrap(), []);
    }

    #[test]
    fn wait_returns_each_readable_socket_before_any_of_them_again() {
        const SOCKETS: u32 = 300;
        let set = Set::new().unwrap();
        let watch =
            |number| Watched::new(&set, readable().into(), Token { desk: 1, number }).unwrap();
        let _all: Vec<_> = (0..SOCKETS).map(watch).collect();
        let mut seen: Vec<_> = set.wait(None).unwrap();
        assert_eq!(seen.len(), ROUND);
        seen.extend(set.wait(None).unwrap());
        let mut first: Vec<_> = seen[..SOCKETS as usize].iter().map(|token| token.number).collect();
        first.sort_unstable();
        assert_eq!(first, (0..SOCKETS).collect::<Vec<_>>());
    }
}
