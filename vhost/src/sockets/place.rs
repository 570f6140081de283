//! The name of a socket in a folder that others may write to as well (`/tmp`): nothing of theirs is followed, replaced or removed, and
//! nobody connects before owner and mode are right.
//!
//! A socket is bound under a name of its own, and gets the real one when it listens. The folder is held open meanwhile and every name is
//! looked up in it, so that the path's other parts may change.

use super::Access;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, renameat};
use nix::sys::socket::{SockFlag, SockType, UnixAddr, bind, connect, getsockopt, socket, sockopt};
use nix::sys::stat::{FchmodatFlags, FileStat, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Uid, UnlinkatFlags, fchownat, geteuid, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Names tried for a socket that has no name yet: what a killed predecessor of the same number has left is passed over.
const DRAFTS: u32 = 16;

/// How long two daemons that start at once wait for each other. It takes them microseconds; whoever else locks the folder does not keep us
/// from starting.
const FOLDER_PATIENCE: Duration = Duration::from_secs(2);

/// Between looks at the lock.
const FOLDER_PAUSE: Duration = Duration::from_millis(5);

/// How often somebody may put something else under the name while we look at it.
const ATTEMPTS: u32 = 8;

/// A name in a folder.
#[derive(Debug)]
pub struct Place {
    folder: File,
    name: OsString,
}

/// Which file it is, whatever its name.
type Inode = (libc::dev_t, libc::ino_t);

/// A bound socket that does not have its real name yet; removed unless it gets it.
pub struct Draft<'a> {
    place: &'a Place,
    name: OsString,
}

impl Place {
    /// The place that `path` names.
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| invalid("not the name of a file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")))?;
        let about = fstat(&folder)?;
        if !kind_is(&about, SFlag::S_IFDIR) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if about.st_mode & libc::S_IWOTH != 0 && about.st_mode & libc::S_ISVTX == 0 {
            log::warn!(
                "{}: everybody may replace files in this folder, and so this socket",
                path.display()
            );
        }
        Ok(Self { folder, name: name.to_owned() })
    }

    /// The folder.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Binds `socket` to a name that nobody looks for.
    pub fn draft(&self, socket: &OwnedFd) -> io::Result<Draft<'_>> {
        for number in 0..DRAFTS {
            let mut name = OsString::from(format!(".{}.{number}.", std::process::id()));
            name.push(&self.name);
            match bind(socket.as_raw_fd(), &self.address(&name)?) {
                Ok(()) => return Ok(Draft { place: self, name }),
                Err(Errno::EADDRINUSE) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "too many abandoned sockets beside it"))
    }

    /// Removes the file if it is still that one.
    pub fn remove(&self, inode: Inode) -> io::Result<()> {
        match self.look(&self.name)? {
            Some(about) if inode_of(&about) == inode => {
                Ok(unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?)
            }
            _ => Ok(()),
        }
    }

    /// By the open folder: no other part of the path counts, and its length does not either.
    fn address(&self, name: &OsStr) -> io::Result<UnixAddr> {
        let mut path = OsString::from(format!("/proc/self/fd/{}/", self.folder.as_raw_fd()));
        path.push(name);
        Ok(UnixAddr::new(path.as_os_str())?)
    }

    fn look(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        match fstatat(&self.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(about)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Keeps daemons that start at once from taking each other's socket for a stale one: they look at it and replace it under this lock.
    fn lock(&self) -> Option<Flock<File>> {
        let mut folder = self.folder.try_clone().ok()?;
        let start = Instant::now();
        loop {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(lock),
                Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < FOLDER_PATIENCE => {
                    folder = back;
                    std::thread::sleep(FOLDER_PAUSE);
                }
                // A file system without locks, or somebody who keeps it locked.
                Err(_) => return None,
            }
        }
    }

    /// Whether what is under the name is a socket that we may replace, since its owner is gone.
    fn check_stale(&self, about: &FileStat, kind: SockType, owner: Option<Uid>) -> io::Result<()> {
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        let in_use = |who: &str| {
            refuse(format!(
                "in use: {who} listens there (choose another path, or end it first: SIGTERM costs a backend's guest nothing)"
            ))
        };
        if !kind_is(about, SFlag::S_IFSOCK) {
            return refuse(
                "there is a file that is not a socket: choose another path, or remove it"
                    .to_owned(),
            );
        }
        let uid = Uid::from_raw(about.st_uid);
        if !uid.is_root() && uid != geteuid() && Some(uid) != owner {
            return refuse(format!(
                "there is a socket of user {uid}: choose another path, or remove it"
            ));
        }
        let probe = socket(
            nix::sys::socket::AddressFamily::Unix,
            kind,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        match connect(probe.as_raw_fd(), &self.address(&self.name)?) {
            Err(Errno::ECONNREFUSED) => Ok(()),
            Ok(()) => {
                // Of who listens there.
                let pid = getsockopt(&probe, sockopt::PeerCredentials).map(|peer| peer.pid());
                let who = pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                in_use(&who)
            }
            Err(Errno::EPROTOTYPE | Errno::EAGAIN) => in_use("another process"),
            Err(e) => Err(e.into()),
        }
    }
}

impl Draft<'_> {
    /// Owner and mode; the owner first, so that no group gets what the mode is not meant to give it.
    pub fn set(&self, access: &Access) -> io::Result<()> {
        let (folder, name) = (&self.place.folder, self.name.as_os_str());
        if access.owner.is_some() || access.group.is_some() {
            fchownat(folder, name, access.owner, access.group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        // Nobody but us can have put a link there: the name is ours, in a folder that is ours or sticky.
        Ok(fchmodat(folder, name, access.mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Gives it its real name, in place of a stale socket if there is one. Which file it is.
    pub fn publish(self, kind: SockType, owner: Option<Uid>) -> io::Result<Inode> {
        let place = self.place;
        let about = place.look(&self.name)?.ok_or(io::ErrorKind::NotFound)?;
        let _lock = place.lock();
        for _ in 0..ATTEMPTS {
            let Some(old) = place.look(&place.name)? else {
                // Unlike a rename, it never replaces anything.
                match linkat(
                    &place.folder,
                    self.name.as_os_str(),
                    &place.folder,
                    place.name.as_os_str(),
                    AtFlags::empty(),
                ) {
                    Ok(()) => return Ok(inode_of(&about)),
                    Err(Errno::EEXIST) => continue,
                    Err(e) => return Err(e.into()),
                }
            };
            place.check_stale(&old, kind, owner)?;
            if place.look(&place.name)?.is_some_and(|now| inode_of(&now) == inode_of(&old)) {
                log::info!(
                    "{}: replacing the socket of a process that is gone",
                    place.name.display()
                );
                renameat(
                    &place.folder,
                    self.name.as_os_str(),
                    &place.folder,
                    place.name.as_os_str(),
                )?;
                return Ok(inode_of(&about));
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody keeps replacing it"))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Not there any more if it was renamed.
        let _ = unlinkat(&self.place.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

fn inode_of(about: &FileStat) -> Inode {
    (about.st_dev, about.st_ino)
}

fn kind_is(about: &FileStat, kind: SFlag) -> bool {
    about.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
