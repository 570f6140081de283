//! The sockets of `--listen`.

use crate::failure::Failure;
use crate::passed::PassedSocket;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockType, SockaddrLike, SockaddrStorage,
    UnixAddr, getsockname, getsockopt, listen, recvmsg, setsockopt, sockopt,
};
use ring_program::sockets::{Access, Listening, require_listening};
use shared_block_ring::device::shown;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::sender::Sender;

/// The most connections that wait to be accepted; a further one waits in `connect`.
const BACKLOG: i32 = 128;

/// Prefix of a socket for datagrams.
const DATAGRAMS: &str = "unixgram:";

/// Prefix of a socket for streams.
const STREAMS: &str = "unix:";

/// The sockets of a service manager.
const PASSED: &str = "passed";

/// A value of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket that this process makes.
    Path(Kind, PathBuf),
    /// All sockets that a service manager passes.
    Passed,
}

/// Kind of a socket: records over connections, or datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Streams,
    Datagrams,
}

impl Endpoint {
    /// Reads `unix:PATH`, `unixgram:PATH` or `passed`.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        if text == PASSED {
            return Ok(Self::Passed);
        }
        let prefixes = [(DATAGRAMS, Kind::Datagrams), (STREAMS, Kind::Streams)];
        let found = prefixes.iter().find_map(|(prefix, kind)| {
            let path = text.as_bytes().strip_prefix(prefix.as_bytes())?;
            Some((*kind, OsStr::from_bytes(path)))
        });
        match found {
            Some((kind, path)) if !path.is_empty() => {
                Ok(Self::Path(kind, OsString::from(path).into()))
            }
            Some(_) => Err("it needs a path behind the colon".to_owned()),
            None => Err("it takes unixgram:PATH, unix:PATH or passed".to_owned()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(kind, path) => write!(f, "{}{}", kind.prefix(), shown(path)),
            Self::Passed => f.write_str(PASSED),
        }
    }
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Streams => STREAMS,
            Self::Datagrams => DATAGRAMS,
        }
    }
}

/// A socket to listen at.
pub struct Entrance {
    pub kind: Kind,
    text: String,
    source: Source,
}

enum Source {
    Path(PathBuf),
    Passed(OwnedFd),
}

impl Entrance {
    pub fn at(kind: Kind, path: &Path) -> Self {
        let text = format!("{}{}", kind.prefix(), shown(path));
        Self { kind, text, source: Source::Path(path.to_owned()) }
    }

    /// Takes a socket that was passed, if items can be received there.
    pub fn passed(passed: PassedSocket) -> Result<Self, Failure> {
        let found = kind_of(&passed.socket);
        let (kind, address) = found.map_err(Failure::io(passed.to_string()))?;
        let text = format!("{}{address}, {passed}", kind.prefix());
        Ok(Self { kind, text, source: Source::Passed(passed.socket) })
    }

    pub fn is_passed(&self) -> bool {
        matches!(self.source, Source::Passed(_))
    }
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns the kind of a socket that was passed, and its address in words.
fn kind_of(socket: &OwnedFd) -> io::Result<(Kind, String)> {
    let refuse = |words: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    let kind = getsockopt(socket, sockopt::SockType)?;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    let kind = match kind {
        _ if address.family() != Some(AddressFamily::Unix) => None,
        SockType::Stream => Some(Kind::Streams),
        SockType::Datagram => Some(Kind::Datagrams),
        _ => None,
    };
    let Some(kind) = kind else {
        return refuse(
            "not a UNIX socket for connections or datagrams (ListenStream= or ListenDatagram= with a path in a socket unit)",
        );
    };
    if kind == Kind::Streams {
        require_listening(socket)?;
    }
    let address: UnixAddr = getsockname(socket.as_raw_fd())?;
    let path = address.path().map(shown);
    Ok((kind, path.unwrap_or_else(|| "(no path)".to_owned())))
}

/// The name of a socket, which is removed when this is dropped unless the socket was passed.
pub struct Name {
    text: String,
    listening: Listening,
    is_lost: bool,
    is_passed: bool,
}

impl Name {
    fn new(text: String, listening: Listening, is_passed: bool) -> Self {
        Self { text, listening, is_lost: false, is_passed }
    }

    /// Returns whether the socket outlives this process.
    pub fn is_passed(&self) -> bool {
        self.is_passed
    }

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
    pub fn on(entrance: Entrance, access: &Access) -> Result<Self, Failure> {
        let is_passed = entrance.is_passed();
        let Entrance { text, source, .. } = entrance;
        let open = || {
            let listening = match source {
                Source::Path(path) => {
                    let listening = Listening::on(&path, SockType::Stream, access)?;
                    listen(listening.fd(), Backlog::new(BACKLOG)?)?;
                    listening
                }
                Source::Passed(socket) => Listening::inherited(socket, text.clone()),
            };
            let socket = UnixListener::from(listening.fd().try_clone()?);
            // A service manager's blocks.
            socket.set_nonblocking(true)?;
            Ok((socket, listening))
        };
        let (socket, listening) = open().map_err(Failure::io(format!("--listen {text}")))?;
        Ok(Self { name: Name::new(text, listening, is_passed), socket })
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
    /// `credentials` tells that senders are to be named.
    pub fn on(entrance: Entrance, access: &Access, credentials: bool) -> Result<Self, Failure> {
        let is_passed = entrance.is_passed();
        let Entrance { text, source, .. } = entrance;
        // The kernel notes the sender when a datagram is sent.
        let name_senders = |socket: &OwnedFd| Ok(setsockopt(socket, sockopt::PassCred, &true)?);
        let open = || {
            let listening = match source {
                // Before the first datagram.
                Source::Path(path) => {
                    Listening::prepared(&path, SockType::Datagram, access, name_senders)?
                }
                Source::Passed(socket) => {
                    if credentials && !getsockopt(&socket, sockopt::PassCred)? {
                        log::warn!(
                            "{text}: the kernel has not noted who sent the datagrams that wait there (PassCredentials=yes in the socket unit)"
                        );
                    }
                    name_senders(&socket)?;
                    Listening::inherited(socket, text.clone())
                }
            };
            let socket = UnixDatagram::from(listening.fd().try_clone()?);
            Ok((socket, listening))
        };
        let (socket, listening) = open().map_err(Failure::io(format!("--listen {text}")))?;
        Ok(Self { name: Name::new(text, listening, is_passed), socket })
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

    /// Takes no more datagrams: a later send fails. Those that were sent before can be received. A
    /// socket that was passed stays as it is, for the next process that is started with it.
    pub fn close(&self) -> io::Result<()> {
        if self.name.is_passed() { Ok(()) } else { self.socket.shutdown(Shutdown::Read) }
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
            let is_so = |found: Endpoint| {
                found.to_string() == text && matches!(found, Endpoint::Path(its, _) if its == kind)
            };
            assert!(endpoint.is_ok_and(is_so));
        }
        assert_eq!(Endpoint::parse(OsStr::new("passed")), Ok(Endpoint::Passed));
        for (text, words) in [("unix:", "path"), ("/run/in", "unixgram:PATH"), ("tcp:1", "unix")] {
            let error = Endpoint::parse(OsStr::new(text)).err().unwrap_or_default();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
