//! The sockets of `--listen`.

use crate::address::strip;
use crate::failure::Failure;
use nix::errno::Errno;
use nix::sys::socket::{
    Backlog, ControlMessageOwned, MsgFlags, SockType, UnixAddr, listen, recvmsg, setsockopt,
    sockopt,
};
use ring_program::sockets::{Access, Listening};
use shared_block_ring::device::shown;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use super::sender::Sender;

/// The most connections that wait to be accepted; a further one waits in `connect`.
const BACKLOG: i32 = 128;

/// Prefix of a socket for datagrams.
const DATAGRAMS: &str = "unixgram:";

/// Prefix of a socket for streams.
const STREAMS: &str = "unix:";

/// A value of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub kind: Kind,
    path: PathBuf,
}

/// Kind of a socket: records over connections, or datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Streams,
    Datagrams,
}

impl Endpoint {
    /// Reads `unix:PATH` or `unixgram:PATH`.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let prefixes = [(DATAGRAMS, Kind::Datagrams), (STREAMS, Kind::Streams)];
        let found = prefixes.iter().find_map(|(prefix, kind)| Some((*kind, strip(text, prefix)?)));
        match found {
            Some((kind, path)) if !path.is_empty() => {
                Ok(Self { kind, path: OsString::from(path).into() })
            }
            Some(_) => Err("it needs a path behind the colon".to_owned()),
            None => Err("it takes unixgram:PATH or unix:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.kind == Kind::Streams { STREAMS } else { DATAGRAMS };
        write!(f, "{prefix}{}", shown(&self.path))
    }
}

/// The name of a socket, which is removed when this is dropped.
pub struct Name {
    text: String,
    listening: Listening,
    is_lost: bool,
}

impl Name {
    /// Warns if nobody finds the socket any more.
    pub fn look(&mut self) {
        let is_lost = self.listening.is_lost();
        match (self.is_lost, is_lost) {
            (false, true) => log::warn!(
                "{self}: the socket was removed or replaced: nobody can connect there any more (end this command and start it again)"
            ),
            (true, false) => log::warn!("{self}: is there again"),
            _ => {}
        }
        self.is_lost = is_lost;
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A socket to which processes connect.
pub struct Streams {
    pub name: Name,
    socket: UnixListener,
}

impl Streams {
    pub fn on(endpoint: &Endpoint, access: &Access) -> Result<Self, Failure> {
        let text = endpoint.to_string();
        let open = || {
            let listening = Listening::on(&endpoint.path, SockType::Stream, access)?;
            listen(listening.fd(), Backlog::new(BACKLOG)?)?;
            let socket = UnixListener::from(listening.fd().try_clone()?);
            Ok((socket, listening))
        };
        let (socket, listening) = open().map_err(Failure::io(format!("--listen {text}")))?;
        Ok(Self { name: Name { text, listening, is_lost: false }, socket })
    }

    /// Accepts a connection; none if nobody waits.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(e) if is_transient(&e) => Ok(None),
            // The process is gone again.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Streams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket to which processes send datagrams.
pub struct Datagrams {
    pub name: Name,
    socket: UnixDatagram,
}

/// A datagram that was received.
pub struct Datagram {
    /// Bytes that were sent; more than the buffer has if the rest was cut off.
    pub length: usize,
    /// The process that has sent it; unknown if it has sent descriptors along.
    pub sender: Option<Sender>,
}

impl Datagrams {
    pub fn on(endpoint: &Endpoint, access: &Access) -> Result<Self, Failure> {
        let text = endpoint.to_string();
        let open = || {
            // Before the first datagram: the kernel notes the sender when it is sent.
            let listening =
                Listening::prepared(&endpoint.path, SockType::Datagram, access, |socket| {
                    Ok(setsockopt(socket, sockopt::PassCred, &true)?)
                })?;
            let socket = UnixDatagram::from(listening.fd().try_clone()?);
            Ok((socket, listening))
        };
        let (socket, listening) = open().map_err(Failure::io(format!("--listen {text}")))?;
        Ok(Self { name: Name { text, listening, is_lost: false }, socket })
    }

    /// Receives a datagram into `buffer`; none if there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        // No room for descriptors: the kernel closes those that were sent along, and says that
        // something is missing.
        let mut control = nix::cmsg_space!(libc::ucred);
        let mut parts = [IoSliceMut::new(buffer)];
        // With MSG_TRUNC the length is that of the whole datagram.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let received =
            recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        match received {
            Ok(message) => {
                let sender = message.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|one| match one {
                        ControlMessageOwned::ScmCredentials(found) => Some(found.into()),
                        _ => None,
                    })
                });
                Ok(Some(Datagram { length: message.bytes, sender }))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes no more datagrams: a later send fails. Those that were sent before can be received.
    pub fn close(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Read)
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns whether the call is to be repeated when the socket is ready.
pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_a_prefix_and_a_path() {
        for (text, kind) in
            [("unix:/run/in", Kind::Streams), ("unixgram:/dev/log", Kind::Datagrams)]
        {
            let endpoint = Endpoint::parse(OsStr::new(text));
            assert!(endpoint.is_ok_and(|found| found.kind == kind && found.to_string() == text));
        }
        for (text, words) in [("unix:", "path"), ("/run/in", "unixgram:PATH"), ("tcp:1", "unix")] {
            let error = Endpoint::parse(OsStr::new(text)).err().unwrap_or_default();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
