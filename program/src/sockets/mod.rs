//! Listening on a path: never one that another process serves, always one that a dead process has
//! left behind. Or on a socket that this process was started with, whose path is left alone.

mod access;
mod passed;
mod place;

pub use access::{Access, GROUP_MODE, parse_mode};
pub use passed::{Misdescribed, Passed, PassedSockets, require_listening, take};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use nix::sys::stat::fchmod;
use place::Place;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket, or one for datagrams. The path of one that this process has made is removed
/// with it.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    name: String,
    /// The file of a socket that this process has made.
    own: Option<OwnFile>,
}

/// The path of a socket that this process has made, and the file there: what another program needs
/// that this process becomes, to go on with the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPath {
    /// The path, as given.
    pub path: PathBuf,
    /// The file's device and its number there.
    inode: (libc::dev_t, libc::ino_t),
}

/// The file of a socket that this process has made.
#[derive(Debug)]
struct OwnFile {
    place: Place,
    inode: (libc::dev_t, libc::ino_t),
    path: PathBuf,
}

impl Listening {
    /// Listens at a path, whose file gets the owner, the group and the mode of `access`.
    pub fn on(path: &Path, kind: SockType, access: &Access) -> io::Result<Self> {
        Self::prepared(path, kind, access, |_| Ok(()))
    }

    /// Does the same with a socket that `prepare` has set options of before it has a name: no
    /// process can send to it earlier.
    pub fn prepared(
        path: &Path,
        kind: SockType,
        access: &Access,
        prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Self> {
        // The new file is reached there by its folder's descriptor, whatever path that has by then.
        if !Path::new("/proc/self/fd").exists() {
            let text =
                "there is no /proc, without which no socket is made (mount -t proc proc /proc)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let place = Place::new(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, kind, flags, None)?;
        prepare(&socket)?;
        // The kernel gives the file the mode that the socket has at the bind: at no time can others
        // connect.
        fchmod(&socket, Access::default().mode)?;
        let draft = place.draft(&socket)?;
        draft.set(access)?;
        // Listening first: a process that finds the name can connect. A socket for datagrams takes
        // them without that.
        if kind != SockType::Datagram {
            listen(&socket, Backlog::new(BACKLOG)?)?;
        }
        let inode = draft.publish(kind, access.owner)?;
        let own = Some(OwnFile { place, inode, path: path.to_owned() });
        Ok(Self { socket, name: path.display().to_string(), own })
    }

    /// Takes a listening socket that this process was started with. Whoever has made it removes its
    /// path. `name` is the socket's, for messages.
    pub fn inherited(socket: OwnedFd, name: String) -> Self {
        Self { socket, name, own: None }
    }

    /// Goes on with a socket that this process has made when it ran another program.
    ///
    /// # Errors
    ///
    /// It does not listen, or the folder of its path cannot be opened.
    pub fn resumed(socket: OwnedFd, OwnPath { path, inode }: OwnPath) -> io::Result<Self> {
        require_listening(&socket)?;
        let name = path.display().to_string();
        let own = Some(OwnFile { place: Place::new(&path)?, inode, path });
        Ok(Self { socket, name, own })
    }

    /// The path of a socket that this process has made.
    pub fn own_path(&self) -> Option<OwnPath> {
        let own = self.own.as_ref()?;
        Some(OwnPath { path: own.path.clone(), inode: own.inode })
    }

    /// The socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// Its path as given, or the name of one that was inherited.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether its path leads to another file now, or to none: no other process can
    /// connect. That of one that was inherited is not looked at.
    pub fn is_lost(&self) -> bool {
        let Some(OwnFile { inode, path, .. }) = &self.own else { return false };
        match std::fs::symlink_metadata(path) {
            Ok(about) => (about.dev(), about.ino()) != *inode,
            Err(e) => matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// The folder from which the socket's file will be removed.
    pub fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.own.as_ref().map(|own| own.place.folder())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A name that is left behind is replaced by the next process that listens there.
        if let Some(OwnFile { place, inode, .. }) = &self.own
            && let Err(e) = place.remove(*inode)
        {
            log::info!("{}: left behind: {e}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::Uid;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

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
    fn a_socket_for_datagrams_is_respected_too_and_takes_them_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let live = on(&path, SockType::Datagram).unwrap();
        for kind in [SockType::Datagram, SockType::Stream] {
            let error = on(&path, kind).unwrap_err().to_string();
            assert!(error.contains("another process listens there"), "{error}");
        }
        UnixDatagram::unbound().unwrap().send_to(b"item", &path).unwrap();
        drop(live);
        assert_eq!(files(&dir), 0);
        drop(UnixDatagram::bind(&path).unwrap());
        drop(on(&path, SockType::Datagram).unwrap());
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
        assert!(!first.is_lost());
        std::fs::remove_file(&path).unwrap();
        assert!(first.is_lost());
        let second = on(&path, SockType::Stream).unwrap();
        assert!(first.is_lost() && !second.is_lost());
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn inherited_socket_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let passed = UnixListener::bind(&path).unwrap();
        let listening = Listening::inherited(passed.into(), "guest".to_owned());
        assert!(listening.folder().is_none());
        drop(listening);
        assert_eq!(files(&dir), 1);
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
