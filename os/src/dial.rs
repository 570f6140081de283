//! Connecting to the socket of another process, which may be stopped, busy, or gone.

use crate::Limits;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::Mode;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Pause between two attempts to connect to a socket whose queue of connections is full. The kernel
/// tells nobody when there is room.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// Kind of a UNIX socket that [`dial`] connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketKind {
    /// A stream of bytes (`SOCK_STREAM`).
    Stream,
    /// A connection that keeps messages apart (`SOCK_SEQPACKET`).
    Messages,
}

impl From<SocketKind> for SockType {
    fn from(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Stream => Self::Stream,
            SocketKind::Messages => Self::SeqPacket,
        }
    }
}

/// Connects to the socket at `path`, and returns a descriptor that does not block.
///
/// ```
/// use ring_os::{Limits, SocketKind, dial};
/// use std::os::unix::net::{UnixListener, UnixStream};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("socket");
/// let _listener = UnixListener::bind(&path)?;
/// let limits = Limits::within(Duration::from_secs(5));
/// let connection = UnixStream::from(dial(&path, SocketKind::Stream, &limits)?);
/// connection.set_nonblocking(false)?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of [`Limits::check`] where the process behind the socket accepts no connections, and the
/// kernel's.
pub fn dial(path: impl AsRef<Path>, kind: SocketKind, limits: &Limits<'_>) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (address, _folder) = address(path)?;
    loop {
        // A new one each time: a socket that could not be connected is not good for a second
        // attempt everywhere.
        let connection = socket(AddressFamily::Unix, kind.into(), flags, None)?;
        match connect(connection.as_raw_fd(), &address) {
            Ok(()) => return Ok(connection),
            Err(Errno::EAGAIN) => limits.pause(FULL_PAUSE)?,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns the address of the socket at `path`, and what has to stay open while it is used. A path
/// that is too long for an address is named by the descriptor of its folder.
fn address(path: &Path) -> io::Result<(UnixAddr, Option<OwnedFd>)> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path of the socket is empty"));
    }
    let Err(too_long) = UnixAddr::new(path) else { return Ok((UnixAddr::new(path)?, None)) };
    let (Errno::ENAMETOOLONG, Some(name), Some(folder)) =
        (too_long, path.file_name(), path.parent())
    else {
        return Err(too_long.into());
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = openat(AT_FDCWD, folder, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    if !short.exists() {
        let text = "the path is too long for a socket's address, and there is no /proc to shorten it with \
                    (go to the folder and name the socket by a relative path)";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    let address = UnixAddr::new(&short.join(name)).map_err(|_| {
        let text =
            "the name of the socket is too long: with its folder's it must stay below 108 bytes";
        io::Error::new(ErrorKind::InvalidInput, text)
    })?;
    Ok((address, Some(folder)))
}

/// The pauses before a process that went away is looked for again double from the first, since one
/// that is started again at once is there within milliseconds, up to [`LONGEST_RETRY`].
pub const FIRST_RETRY: Duration = Duration::from_millis(10);

/// The longest of these pauses.
pub const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Repeats `attempt` while the process at the other end of its connection goes away in the middle
/// of it, as a backend that is being replaced does. `source` is the reason in an error of the
/// attempt.
///
/// A process that was there once may also be away for some of the later attempts. One that is not
/// there at first is an error at once.
///
/// ```
/// use ring_os::{Limits, persist};
/// use std::io::{Error, ErrorKind};
/// use std::time::Duration;
///
/// let mut attempts = 0;
/// let attempt = || {
///     attempts += 1;
///     // The peer that hung up is started again.
///     if attempts == 1 { Err(Error::from(ErrorKind::UnexpectedEof)) } else { Ok("connected") }
/// };
/// let limits = Limits::within(Duration::from_secs(60));
/// assert_eq!(persist(&limits, attempt, |error| Some(error))?, "connected");
/// assert_eq!(attempts, 2);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// Those of the attempt; when the limits end the wait for the next one, with the reason of
/// [`Limits::check`] in the place of its own.
pub fn persist<T, E>(
    limits: &Limits<'_>,
    mut attempt: impl FnMut() -> Result<T, E>,
    source: impl Fn(&mut E) -> Option<&mut io::Error>,
) -> Result<T, E> {
    let mut pause = FIRST_RETRY;
    let mut was_there = false;
    loop {
        let mut error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match source(&mut error) {
            Some(why) if went_away(why) || was_there && is_absent(why) => {
                was_there = true;
                if let Err(over) = limits.pause(pause) {
                    *why = io::Error::new(over.kind(), format!("{over}; before that: {why}"));
                    return Err(error);
                }
            }
            _ => return Err(error),
        }
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Whether the other end of a connection was closed before the conversation was over.
fn went_away(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Whether nobody listens at a socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Waits until there is something to be read from `fd`, or its other end is gone. For several
/// descriptors, without limits: [`wait_readable`](crate::wait_readable).
///
/// # Errors
/// Those of [`Limits::check`].
pub fn await_readable(fd: BorrowedFd<'_>, limits: &Limits<'_>) -> io::Result<()> {
    while !limits.check(Some(fd))? {}
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    /// Long enough to fail a test, not to pass one.
    const LONG: Duration = Duration::from_secs(60);

    /// A socket that listens and accepts nobody, with a full queue of connections.
    fn full(path: &Path) -> (OwnedFd, Vec<OwnedFd>) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let listening = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(listening.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listening, Backlog::new(1).unwrap()).unwrap();
        let mut waiting = Vec::new();
        loop {
            match dial(path, SocketKind::Stream, &Limits::within(Duration::ZERO)) {
                Ok(connection) => waiting.push(connection),
                Err(e) if e.kind() == ErrorKind::TimedOut => return (listening, waiting),
                Err(e) => panic!("{e}"),
            }
        }
    }

    #[test]
    fn dial_gives_up_at_its_deadline_while_nobody_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _full = full(&path);
        let limits = Limits::within(Duration::from_millis(50));
        let error = dial(&path, SocketKind::Stream, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn dial_ends_when_an_interrupt_is_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _full = full(&path);
        let (stop, asked) = UnixStream::pair().unwrap();
        let (ended, end) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stop = [stop.as_fd()];
                let limits = Limits::default().or_on(&stop);
                ended.send(dial(&path, SocketKind::Stream, &limits).map(drop)).unwrap();
            });
            drop(asked);
            let error = end.recv_timeout(LONG).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        });
    }

    #[test]
    fn dial_connects_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listening, waiting) = full(&path);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| dial(&path, SocketKind::Stream, &Limits::within(LONG)));
            // However far the other thread has come: its connection is the last that is accepted.
            for _ in 0..=waiting.len() {
                let accepted = nix::sys::socket::accept(listening.as_raw_fd()).unwrap();
                nix::unistd::close(accepted).unwrap();
            }
            late.join().unwrap().unwrap();
        });
    }

    /// Attempts that end in this way, one after the other.
    fn attempts(kinds: &[Option<ErrorKind>], limits: &Limits<'_>) -> (io::Result<()>, usize) {
        let mut made = 0;
        let attempt = || {
            made += 1;
            kinds[made - 1].map_or(Ok(()), |kind| Err(io::Error::from(kind)))
        };
        (persist(limits, attempt, |e| Some(e)), made)
    }

    #[test]
    fn persist_repeats_what_a_peer_broke_off_until_it_is_back() {
        use ErrorKind::{ConnectionRefused, NotFound, PermissionDenied, UnexpectedEof};
        let limits = Limits::within(LONG);
        let kinds = [Some(UnexpectedEof), Some(NotFound), Some(ConnectionRefused), None];
        let (outcome, made) = attempts(&kinds, &limits);
        outcome.unwrap();
        assert_eq!(made, 4);
        for first in [NotFound, ConnectionRefused, PermissionDenied] {
            let (outcome, made) = attempts(&[Some(first)], &limits);
            assert_eq!((outcome.unwrap_err().kind(), made), (first, 1));
        }
    }

    #[test]
    fn persist_ends_with_its_limits_and_says_what_was_before() {
        let ended = |limits: &Limits<'_>| {
            let (outcome, made) = attempts(&[Some(ErrorKind::BrokenPipe); 99], limits);
            assert!(made < 99, "{made}");
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains("before that: broken pipe"), "{error}");
            error.kind()
        };
        assert_eq!(ended(&Limits::within(Duration::from_millis(50))), ErrorKind::TimedOut);
        let (stop, asked) = UnixStream::pair().unwrap();
        drop(asked);
        let stop = [stop.as_fd()];
        assert_eq!(ended(&Limits::within(LONG).or_on(&stop)), ErrorKind::Interrupted);
    }
}
