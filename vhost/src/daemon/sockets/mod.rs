//! Listening on a path: never one that another process serves, always one that a dead process has
//! left behind.

mod place;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, getsockname,
    getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid};
use place::Place;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Owner, group and mode of a socket's file: a process that may write to the file can connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The file's mode.
    pub mode: Mode,
    /// The file's owner, if that is not the daemon's user.
    pub owner: Option<Uid>,
    /// The file's group, if that is not the daemon's.
    pub group: Option<Gid>,
}

impl Default for Access {
    fn default() -> Self {
        Self { mode: Mode::S_IRUSR | Mode::S_IWUSR, owner: None, group: None }
    }
}

/// A listening socket, whose path is removed with it.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    place: Place,
    inode: (libc::dev_t, libc::ino_t),
    path: PathBuf,
}

impl Listening {
    /// Listens at a path, whose file gets the owner, the group and the mode of `access`.
    pub fn on(path: &Path, kind: SockType, access: &Access) -> io::Result<Self> {
        let place = Place::new(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, kind, flags, None)?;
        // The kernel gives the file the mode that the socket has at the bind: at no time can others
        // connect.
        fchmod(&socket, Access::default().mode)?;
        let draft = place.draft(&socket)?;
        draft.set(access)?;
        // Listening first: a process that finds the name can connect.
        listen(&socket, Backlog::new(BACKLOG)?)?;
        let inode = draft.publish(kind, access.owner)?;
        Ok(Self { socket, place, inode, path: path.to_owned() })
    }

    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// Its path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds the socket's name.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.place.folder()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A name that is left behind is replaced by the next daemon.
        if let Err(e) = self.place.remove(self.inode) {
            log::info!("{}: left behind: {e}", self.path.display());
        }
    }
}

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
