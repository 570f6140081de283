//! New files: never in a file system of device nodes, whole or absent after a crash, with all of
//! their space allocated.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor, stat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use ring_os::{Limits, allocate_within, shown};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Permission bits of a new file: for this user only.
const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Levels of folders that are examined above a new file; deeper paths do not fit `PATH_MAX`.
const MAX_DEPTH: usize = 4096;

/// An open folder, and the name of a file in it. The folder is looked up once; all that follows
/// uses its descriptor.
struct Place {
    folder: OwnedFd,
    name: OsString,
}

impl Place {
    /// Opens the folder of `path`, and refuses one that lies in a file system of device nodes.
    fn of(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        let (folder, name) = match bytes.iter().rposition(|&byte| byte == b'/') {
            None => (&b"."[..], bytes),
            Some(0) => (&b"/"[..], &bytes[1..]),
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
        };
        if matches!(name, b"" | b"." | b"..") {
            let text = "the path names no file: it is empty, or ends like a folder's";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = OsStr::from_bytes(folder);
        let folder =
            openat(AT_FDCWD, folder, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::ENOENT => {
                    let text = format!("there is no folder {}", shown(folder));
                    io::Error::new(io::ErrorKind::NotFound, text)
                }
                errno => errno.into(),
            })?;
        refuse_device_folder(&folder)?;
        Ok(Self { folder, name: OsString::from_vec(name.to_vec()) })
    }

    /// Makes the file under its name. An existing file is an error, and so is a link, whatever it
    /// names.
    fn create(&self) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let made = openat(&self.folder, self.name.as_os_str(), flags, PRIVATE);
        Ok(made.map_err(|errno| self.explain(errno))?.into())
    }

    /// Says of a name that exists that it is a symbolic link, and where that leads.
    fn explain(&self, errno: Errno) -> io::Error {
        match readlinkat(&self.folder, self.name.as_os_str()) {
            Ok(target) if errno == Errno::EEXIST => {
                let target = shown(&target);
                let text = format!(
                    "it is a symbolic link to {target}, and no file is made through a link (remove the link, or name {target} itself)"
                );
                io::Error::new(io::ErrorKind::AlreadyExists, text)
            }
            _ => errno.into(),
        }
    }

    /// Gives `file`, which has no name, the name of this place. Returns false where that takes
    /// `/proc` and there is none.
    fn name(&self, file: &File) -> io::Result<bool> {
        let to = self.name.as_os_str();
        // Root may do this, and on newer kernels the process that has opened the file.
        match linkat(file, "", &self.folder, to, AtFlags::AT_EMPTY_PATH) {
            Err(Errno::ENOENT | Errno::EINVAL) => {}
            done => return done.map(|()| true).map_err(|errno| self.explain(errno)),
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(AT_FDCWD, link.as_str(), &self.folder, to, AtFlags::AT_SYMLINK_FOLLOW) {
            Err(Errno::ENOENT) => Ok(false),
            done => done.map(|()| true).map_err(|errno| self.explain(errno)),
        }
    }

    /// Makes the name durable.
    fn sync(&self) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(nix::unistd::fsync(openat(&self.folder, ".", flags, Mode::empty())?)?)
    }
}

/// Makes a new file of `bytes` zero bytes for a ring, for this user only. A process that finds the
/// file finds all of it, and it is durable.
///
/// All of its space is allocated: a full disk must show now, not as an item that cannot be stored
/// later (which would be a SIGBUS in a mapping).
///
/// Returns the file itself, open for writing: in a folder that others can write to, its name may be
/// another file's by then.
///
/// # Errors
/// The operating system's; [`StorageFull`](io::ErrorKind::StorageFull) if the file system lacks the
/// space; [`Unsupported`](io::ErrorKind::Unsupported) for a folder in a file system of device
/// nodes.
pub fn make_file(path: impl AsRef<Path>, bytes: u64) -> io::Result<File> {
    make_file_within(path, bytes, &Limits::default())
}

/// Makes the same within limits: if they end the work, there is no file.
///
/// # Errors
/// Those of [`make_file`]; [`TimedOut`](io::ErrorKind::TimedOut) and
/// [`Interrupted`](io::ErrorKind::Interrupted) if the limits have ended the work.
pub fn make_file_within(
    path: impl AsRef<Path>,
    bytes: u64,
    limits: &Limits<'_>,
) -> io::Result<File> {
    let place = Place::of(path.as_ref())?;
    // The file gets its name last: a death before that leaves nothing.
    let flags = OFlag::O_WRONLY | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
    if let Ok(unnamed) = openat(&place.folder, ".", flags, PRIVATE) {
        let file = File::from(unnamed);
        allocate_within(&file, bytes, limits)?;
        file.sync_all()?;
        if place.name(&file)? {
            place.sync()?;
            return Ok(file);
        }
    }
    // The file system has no files without a name, or cannot name them.
    let file = place.create()?;
    let made = allocate_within(&file, bytes, limits)
        .and_then(|()| file.sync_all())
        .and_then(|()| place.sync());
    made.map(|()| file).inspect_err(|_| {
        // The file is this process's, and of no use.
        let _ = unlinkat(&place.folder, place.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    })
}

/// Makes a new, empty file for this user only, open for writing. The name is durable after
/// [`sync_name`].
///
/// # Errors
/// The operating system's: an existing file is one. As [`make_file`].
pub fn make_empty(path: impl AsRef<Path>) -> io::Result<File> {
    Place::of(path.as_ref())?.create()
}

/// Makes the name of a new file durable: syncing the file itself does not promise that.
///
/// # Errors
/// The operating system's.
pub fn sync_name(path: impl AsRef<Path>) -> io::Result<()> {
    let folder = path.as_ref().parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Refuses the path of a regular file, existing or not, whose folder lies in a file system of
/// device nodes such as `/dev`: the file would be in memory there, and the path is most often a
/// disk's name that was misspelt. File systems of their own below it (`/dev/shm`, `/dev/hugepages`)
/// pass.
///
/// # Errors
/// [`Unsupported`](io::ErrorKind::Unsupported) for such a folder; the operating system's.
pub fn refuse_among_devices(path: impl AsRef<Path>) -> io::Result<()> {
    Place::of(path.as_ref()).map(drop)
}

fn refuse_device_folder<F: AsFd>(folder: &F) -> io::Result<()> {
    if in_device_file_system(folder.as_fd().try_clone_to_owned()?)? {
        let text = "the folder belongs to a file system of device nodes, where a file is in memory and lost at the next boot \
                    (is the disk there? lsblk lists those that are; a ring in memory can be in /dev/shm)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(())
}

/// Returns whether `folder` belongs to such a file system. The magic number of the file system does
/// not tell: devtmpfs has that of tmpfs, and a container's `/dev` is a tmpfs.
fn in_device_file_system(folder: OwnedFd) -> io::Result<bool> {
    let here = fstat(&folder)?;
    let dev = stat("/dev").ok();
    if dev.is_some_and(|dev| dev.st_dev == here.st_dev)
        && stat("/").is_ok_and(|root| root.st_dev != here.st_dev)
    {
        return Ok(true);
    }
    if is_devtmpfs(here.st_dev) {
        return Ok(true);
    }
    // A `/dev` that is no file system of its own, or not this process's, is recognised by its null
    // device.
    let (mut folder, mut at) = (folder, here);
    for _ in 0..MAX_DEPTH {
        if dev.is_some_and(|dev| same(&dev, &at)) || has_null_device(&folder) {
            return Ok(true);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // The folders above may not be read: nothing more is known.
        let Ok(above) = openat(&folder, "..", flags, Mode::empty()) else { break };
        let found = fstat(&above)?;
        if same(&found, &at) || found.st_dev != here.st_dev {
            break;
        }
        (folder, at) = (above, found);
    }
    Ok(false)
}

fn same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn has_null_device(folder: &OwnedFd) -> bool {
    /// Major and minor number of `/dev/null`.
    const NULL: (u64, u64) = (1, 3);
    fstatat(folder, "null", AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|node| {
        node.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits()
            && (major(node.st_rdev), minor(node.st_rdev)) == NULL
    })
}

/// Returns whether the file system with that number is mounted as a devtmpfs, as far as `/proc`
/// shows.
fn is_devtmpfs(number: u64) -> bool {
    let number = format!("{}:{}", major(number), minor(number));
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    // "25 30 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw": paths can have any bytes but a line
    // feed.
    String::from_utf8_lossy(&mounts).lines().any(|line| {
        line.split(' ').nth(2) == Some(number.as_str())
            && line.split_once(" - ").is_some_and(|(_, about)| about.starts_with("devtmpfs "))
    })
}
