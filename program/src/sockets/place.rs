//! Giving a socket its name in a folder that other users may write to as well (`/tmp`): none of
//! their files is followed, replaced or removed, and nobody connects before owner and mode are set.
//!
//! A socket is bound in a new private folder, and gets its real name when it listens. The owner of
//! the outer folder can move the private one away or put something else in its place, but neither
//! enter it nor exchange it for us: it is held open. Owner and mode are set by the name in there
//! only. The outer folder is held open too, so that the other parts of the path may change.

use super::Access;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::socket::{SockFlag, SockType, UnixAddr, bind, connect, getsockopt, socket, sockopt};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, fchownat, geteuid, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The socket's name in the private folder.
const DRAFT: &str = "s";

/// How long two daemons that start at once wait for each other. They need microseconds; another
/// process that locks the folder does not prevent a start.
const FOLDER_PATIENCE: Duration = Duration::from_secs(2);

/// The time between two tries to lock.
const FOLDER_PAUSE: Duration = Duration::from_millis(5);

/// How often another process may exchange the file under the name while it is looked at.
const ATTEMPTS: u32 = 8;

/// A name in a folder that is held open.
#[derive(Debug)]
pub struct Place {
    folder: File,
    name: OsString,
}

/// The identity of a file, whatever its name.
type Inode = (libc::dev_t, libc::ino_t);

/// A bound socket without its real name, which is removed unless it gets that.
pub struct Draft<'a> {
    place: &'a Place,
    /// The private folder: no other user can make, remove or rename anything in it.
    private: OwnedFd,
    /// The private folder's name, if nobody has moved it.
    name: OsString,
}

impl Place {
    /// Opens the folder of `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| invalid("not the name of a file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let folder = File::open(folder).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let text = format!("there is no folder {}", folder.display());
                io::Error::new(io::ErrorKind::NotFound, text)
            }
            _ => e,
        })?;
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

    /// Binds `socket` in a new private folder.
    pub fn draft(&self, socket: &OwnedFd) -> io::Result<Draft<'_>> {
        // A random name, which nobody can occupy in advance.
        let name = OsString::from(format!(".{}", Uuid::new_v4()));
        mkdirat(&self.folder, name.as_os_str(), Mode::S_IRWXU)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let private = openat(&self.folder, name.as_os_str(), flags, Mode::empty())?;
        // Another process may have exchanged it. Another folder of our user that no other may enter
        // is as good.
        let about = fstat(&private)?;
        let others = Mode::S_IRWXG | Mode::S_IRWXO;
        if Uid::from_raw(about.st_uid) != geteuid() || about.st_mode & others.bits() != 0 {
            let text = "somebody replaces what we make in this folder";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let bound = address(&private, DRAFT).and_then(|at| Ok(bind(socket.as_raw_fd(), &at)?));
        match bound {
            Ok(()) => Ok(Draft { place: self, private, name }),
            Err(e) => {
                self.remove_folder(&name);
                Err(e)
            }
        }
    }

    /// Removes the name if it still is that file's.
    pub fn remove(&self, inode: Inode) -> io::Result<()> {
        match self.look()? {
            Some(about) if inode_of(&about) == inode => {
                Ok(unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?)
            }
            _ => Ok(()),
        }
    }

    /// Removes the private folder, or an empty one that another process has put in its place.
    fn remove_folder(&self, name: &OsStr) {
        let _ = unlinkat(&self.folder, name, UnlinkatFlags::RemoveDir);
    }

    /// Returns the file under the name, with a descriptor for it. No link is followed, and the file
    /// is opened for no access (`O_PATH`).
    fn find(&self) -> io::Result<Option<(OwnedFd, FileStat)>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.folder, self.name.as_os_str(), flags, Mode::empty()) {
            Ok(found) => {
                let about = fstat(&found)?;
                Ok(Some((found, about)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn look(&self) -> io::Result<Option<FileStat>> {
        match fstatat(&self.folder, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(about)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Locks the folder, so that daemons which start at once do not take each other's sockets for
    /// stale ones: they look at one and replace it under this lock.
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
                // A file system without locks, or another process that keeps the lock.
                Err(_) => return None,
            }
        }
    }

    /// Checks that the file under the name is a socket that may be replaced, since nobody listens
    /// there.
    fn check_stale(
        found: &OwnedFd,
        about: &FileStat,
        kind: SockType,
        owner: Option<Uid>,
    ) -> io::Result<()> {
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
        match connect(probe.as_raw_fd(), &UnixAddr::new(by_descriptor(found).as_os_str())?) {
            Err(Errno::ECONNREFUSED) => Ok(()),
            Ok(()) => {
                // The process that listens there.
                let peer = getsockopt(&probe, sockopt::PeerCredentials);
                // A socket for datagrams does not tell.
                let pid = peer.map(|peer| peer.pid()).ok().filter(|pid| *pid > 0);
                let who = pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                in_use(&who)
            }
            Err(Errno::EPROTOTYPE | Errno::EAGAIN) => in_use("another process"),
            Err(e) => Err(e.into()),
        }
    }
}

impl Draft<'_> {
    /// Sets owner and mode; the owner first, so that no other group gets the mode's rights.
    pub fn set(&self, access: &Access) -> io::Result<()> {
        let private = &self.private;
        if access.owner.is_some() || access.group.is_some() {
            fchownat(private, DRAFT, access.owner, access.group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        // No link: we have made it, in a folder where no other user can make one.
        Ok(fchmodat(private, DRAFT, access.mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Gives the socket its real name, in place of a stale socket if there is one. Returns the
    /// file's identity.
    pub fn publish(self, kind: SockType, owner: Option<Uid>) -> io::Result<Inode> {
        let place = self.place;
        let about = fstatat(&self.private, DRAFT, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let _lock = place.lock();
        for _ in 0..ATTEMPTS {
            let Some((found, old)) = place.find()? else {
                // Unlike a rename, a link never replaces a file.
                match linkat(
                    &self.private,
                    DRAFT,
                    &place.folder,
                    place.name.as_os_str(),
                    AtFlags::empty(),
                ) {
                    Ok(()) => return Ok(inode_of(&about)),
                    Err(Errno::EEXIST) => continue,
                    Err(e) => return Err(e.into()),
                }
            };
            Place::check_stale(&found, &old, kind, owner)?;
            if place.look()?.is_some_and(|now| inode_of(&now) == inode_of(&old)) {
                log::info!(
                    "{}: replacing the socket of a process that is gone",
                    place.name.display()
                );
                // A process that can put another file there now could remove it too: it owns the
                // folder or the file.
                renameat(&self.private, DRAFT, &place.folder, place.name.as_os_str())?;
                return Ok(inode_of(&about));
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody keeps replacing it"))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = unlinkat(&self.private, DRAFT, UnlinkatFlags::NoRemoveDir);
        self.place.remove_folder(&self.name);
    }
}

/// Returns a path to an open descriptor, whatever its name is now.
fn by_descriptor(fd: &OwnedFd) -> OsString {
    OsString::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Returns the address of a name in an open folder, whatever the folder's path and its length are.
fn address(folder: &OwnedFd, name: &str) -> io::Result<UnixAddr> {
    let mut path = by_descriptor(folder);
    path.push("/");
    path.push(name);
    Ok(UnixAddr::new(path.as_os_str())?)
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
