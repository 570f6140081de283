//! Listening on a path: never on one that another process answers, always on one that a dead process left behind.

mod place;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, getsockopt, listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid};
use place::Place;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Who may connect, as far as the file system decides it: whoever may write to the socket's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Of the file.
    pub mode: Mode,
    /// Its owner, where that is not who makes it.
    pub owner: Option<Uid>,
    /// Its group, where that is not the maker's.
    pub group: Option<Gid>,
}

impl Default for Access {
    fn default() -> Self {
        Self { mode: Mode::S_IRUSR | Mode::S_IWUSR, owner: None, group: None }
    }
}

/// A listening socket; its path goes with it.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    place: Place,
    inode: (libc::dev_t, libc::ino_t),
    path: PathBuf,
}

impl Listening {
    /// For those whom `access` lets in.
    pub fn on(path: &Path, kind: SockType, access: &Access) -> io::Result<Self> {
        let place = Place::new(path)?;
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // The kernel gives the file the mode that the socket has by then: there is no moment at which others may connect.
        fchmod(&socket, Access::default().mode)?;
        let draft = place.draft(&socket)?;
        draft.set(access)?;
        // Whoever finds the name is answered.
        listen(&socket, Backlog::new(BACKLOG)?)?;
        let inode = draft.publish(kind, access.owner)?;
        Ok(Self { socket, place, inode, path: path.to_owned() })
    }

    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// The folder that its name is in.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.place.folder()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The next daemon replaces it.
        if let Err(e) = self.place.remove(self.inode) {
            log::info!("{}: left behind: {e}", self.path.display());
        }
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
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn on(path: &Path, kind: SockType) -> io::Result<Listening> {
        Listening::on(path, kind, &Access::default())
    }

    fn refused(path: &Path, words: &str) {
        let error = on(path, SockType::Stream).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    #[test]
    fn a_live_socket_is_respected_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let live = on(&path, SockType::SeqPacket).unwrap();
        for kind in [SockType::SeqPacket, SockType::Stream] {
            let error = on(&path, kind).unwrap_err().to_string();
            assert!(error.contains("in use"), "{error}");
        }
        let mine = format!("process {}", std::process::id());
        let error = on(&path, SockType::SeqPacket).unwrap_err().to_string();
        assert!(error.contains(&mine), "{error}");
        drop(live);
        assert_eq!(files(&dir), 0);
        drop(UnixListener::bind(&path).unwrap());
        drop(on(&path, SockType::SeqPacket).unwrap());
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "precious").unwrap();
        refused(&path("file"), "not a socket");
        symlink("file", path("link")).unwrap();
        refused(&path("link"), "not a socket");
        symlink("nothing", path("dangling")).unwrap();
        refused(&path("dangling"), "not a socket");
        std::fs::create_dir(path("folder")).unwrap();
        refused(&path("folder"), "not a socket");
        assert!(on(&path("nowhere/socket"), SockType::Stream).is_err());
        assert!(on(Path::new("/"), SockType::Stream).is_err());
        assert_eq!(std::fs::read(path("file")).unwrap(), b"precious");
        assert!(!path("nothing").exists());
        // Not even a stale socket behind a link is replaced.
        drop(UnixListener::bind(path("stale")).unwrap());
        symlink("stale", path("to-stale")).unwrap();
        refused(&path("to-stale"), "not a socket");
        assert_eq!(files(&dir), 6);
    }

    #[test]
    fn a_socket_of_another_user_is_not_replaced() {
        if !nix::unistd::geteuid().is_root() {
            // Only root can make one.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        refused(&path, "user 12345");
        let access = Access { owner: Some(Uid::from_raw(12345)), ..Access::default() };
        let own = Listening::on(&path, SockType::Stream, &access).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 12345);
        drop(own);
    }

    #[test]
    fn owner_and_mode_are_right_from_the_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let usual = on(&path, SockType::Stream).unwrap();
        let about = std::fs::metadata(&path).unwrap();
        assert!(about.file_type().is_socket());
        assert_eq!(about.permissions().mode() & 0o7777, 0o600);
        drop(usual);
        let mode = Mode::from_bits_truncate(0o660);
        let group = Some(nix::unistd::getegid());
        let access = Access { mode, owner: None, group };
        let open = Listening::on(&path, SockType::Stream, &access).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(open);
    }

    #[test]
    fn only_our_own_file_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = on(&path, SockType::Stream).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = on(&path, SockType::Stream).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn of_many_that_find_a_stale_socket_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let (path, barrier) = (&path, &std::sync::Barrier::new(4));
            let sockets: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    on(path, SockType::Stream)
                };
                let all: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(sockets.iter().filter(|socket| socket.is_ok()).count(), 1, "{sockets:?}");
            UnixStream::connect(path).unwrap();
        }
        assert_eq!(files(&dir), 0);
    }
}
