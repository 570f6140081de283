//! The users of a disk or a file: mounts, swaps, volumes, loop devices and processes, as the kernel
//! shows them.

use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use ring_os::entry_names;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folders in which the kernel shows devices and processes.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Machine {
    /// The folders of this machine.
    fn default() -> Self {
        Self { sysfs: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// Returns whether both descriptors are open on one file or block device, or one of them on a loop
/// device that shows the other's.
pub(super) fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    let beneath = |about| fstat(Machine::default().beneath(about)?.0).ok();
    Ok(same(&one, &other)
        || beneath(one).is_some_and(|shown| same(&shown, &other))
        || beneath(other).is_some_and(|shown| same(&shown, &one)))
}

fn same(one: &FileStat, other: &FileStat) -> bool {
    let block = |about: &FileStat| {
        SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK
    };
    match (block(one), block(other)) {
        // A block device may have several nodes.
        (true, true) => one.st_rdev == other.st_rdev,
        (false, false) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// A disk or a partition of one: its node, and its folder in sysfs.
struct Part {
    node: PathBuf,
    folder: PathBuf,
}

impl Machine {
    /// Returns the node of the device that the kernel calls `name`.
    pub fn node(&self, name: &str) -> PathBuf {
        // The kernel writes a slash in a device's name as an exclamation mark in sysfs.
        self.dev.join(name.replace('!', "/"))
    }

    /// Returns the user of the disk of that name or a partition of it, with the remedy, in words.
    ///
    /// # Errors
    /// The operating system's.
    pub fn user_of_disk(&self, disk: &str) -> io::Result<Option<String>> {
        for part in self.parts(disk)? {
            if let Some(why) = self.user_of_part(&part)? {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// Returns the same for the block device with that number: for a partition, of its disk, too.
    pub(super) fn user_of_number(&self, number: u64) -> io::Result<Option<String>> {
        let link = format!("dev/block/{}:{}", major(number), minor(number));
        let folder = fs::canonicalize(self.sysfs.join(link))?;
        let name =
            |folder: &Path| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !folder.join("partition").exists() {
            return self.user_of_disk(&name(&folder));
        }
        let mut parts = vec![folder.as_path()];
        parts.extend(folder.parent());
        for folder in parts {
            let part = Part { node: self.node(&name(folder)), folder: folder.to_owned() };
            if let Some(why) = self.user_of_part(&part)? {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// Returns the loop device that shows a file or block device, as far as its path is seen from
    /// here.
    pub(super) fn loop_over(&self, file: &Metadata) -> Option<PathBuf> {
        let block = self.sysfs.join("block");
        entry_names(&block).ok()?.into_iter().find_map(|name| {
            let backing = fs::read(block.join(&name).join("loop/backing_file")).ok()?;
            let backing = OsStr::from_bytes(backing.strip_suffix(b"\n").unwrap_or(&backing));
            let backing = fs::metadata(backing).ok()?;
            let same = if file.file_type().is_block_device() {
                backing.file_type().is_block_device() && backing.rdev() == file.rdev()
            } else {
                (backing.dev(), backing.ino()) == (file.dev(), file.ino())
            };
            same.then(|| self.node(&name))
        })
    }

    /// Opens the file or block device that the loop device `about` shows, as far as its path is
    /// seen from here, and returns it with the offset of what is shown.
    pub(super) fn beneath(&self, about: FileStat) -> Option<(File, i64)> {
        if SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT != SFlag::S_IFBLK {
            return None;
        }
        let (path, offset) = self.backing_file(about.st_rdev)?;
        let offset = i64::try_from(offset).ok()?;
        // Without waiting: a pipe may have taken its place.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).write(true).custom_flags(flags).open(path).ok()?;
        Some((file, offset))
    }

    /// Returns the path of the file that the loop device with that number shows, and the byte of it
    /// that the loop device begins at; `None` for other devices.
    pub(super) fn backing_file(&self, number: u64) -> Option<(PathBuf, u64)> {
        let number = format!("dev/block/{}:{}/loop", major(number), minor(number));
        let folder = self.sysfs.join(number);
        let path = fs::read(folder.join("backing_file")).ok()?;
        let path = OsStr::from_bytes(path.strip_suffix(b"\n").unwrap_or(&path));
        let offset = fs::read_to_string(folder.join("offset")).ok()?.trim_end().parse().ok()?;
        Some((path.into(), offset))
    }

    /// Returns a process that has one of these files open, and the file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn process_with(&self, paths: &[PathBuf]) -> io::Result<Option<(String, PathBuf)>> {
        let own = std::process::id().to_string();
        for process in entry_names(&self.proc)? {
            if process == own || process.parse::<u32>().is_err() {
                continue;
            }
            let folder = self.proc.join(&process);
            // A process that has ended meanwhile, or that this user may not see, shows no files.
            for file in entry_names(folder.join("fd")).unwrap_or_default() {
                let target = fs::read_link(folder.join("fd").join(file)).unwrap_or_default();
                if paths.contains(&target) {
                    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
                    return Ok(Some((format!("process {process} ({})", name.trim_end()), target)));
                }
            }
        }
        Ok(None)
    }

    fn parts(&self, disk: &str) -> io::Result<Vec<Part>> {
        let folder = self.sysfs.join("block").join(disk);
        let part = |name: &str, folder| Part { node: self.node(name), folder };
        let mut parts = vec![part(disk, folder.clone())];
        for name in entry_names(&folder)? {
            let folder = folder.join(&name);
            if folder.join("partition").exists() {
                parts.push(part(&name, folder));
            }
        }
        Ok(parts)
    }

    fn user_of_part(&self, part: &Part) -> io::Result<Option<String>> {
        let node = part.node.display();
        if let Some(place) = self.mounted_at(part)? {
            return Ok(Some(format!("{node} is mounted at {place} (umount {node})")));
        }
        let swaps = read_if_there(&self.proc.join("swaps"))?;
        let is_node = |word: Option<&str>| word.is_some_and(|word| Path::new(word) == part.node);
        if swaps.lines().any(|line| is_node(line.split_whitespace().next())) {
            return Ok(Some(format!("{node} is a swap (swapoff {node})")));
        }
        if let Some(holder) = entry_names(part.folder.join("holders"))?.into_iter().next() {
            let holder_node = self.node(&holder);
            let remedy = match holder.get(..2) {
                Some("dm") => "dmsetup remove, or vgchange -an, takes it off".to_owned(),
                Some("md") => format!("mdadm --stop {}", holder_node.display()),
                _ => "take it off first".to_owned(),
            };
            let holder_node = holder_node.display();
            return Ok(Some(format!("{holder_node} is built upon {node} ({remedy})")));
        }
        // A loop device claims nothing of the disk that it shows.
        for name in entry_names(self.sysfs.join("block"))? {
            let file = self.sysfs.join("block").join(&name).join("loop/backing_file");
            if is_node(Some(read_if_there(&file)?.trim_end())) {
                let holder = self.node(&name);
                let holder = holder.display();
                return Ok(Some(format!("{holder} shows {node} (losetup -d {holder})")));
            }
        }
        let user = self.process_with(std::slice::from_ref(&part.node))?;
        Ok(user.map(|(process, _)| format!("{process} has {node} open (end it first)")))
    }

    /// Returns the folder that a part is mounted at, as the kernel writes it, with \040 for a
    /// space.
    fn mounted_at(&self, part: &Part) -> io::Result<Option<String>> {
        let number = read_if_there(&part.folder.join("dev"))?;
        let mounts = read_if_there(&self.proc.join("self/mountinfo"))?;
        // "36 35 254:1 / /mnt rw,relatime shared:1 - ext4 /dev/vda1 rw"; some file systems have a
        // number of their own.
        let place = mounts.lines().find_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(2);
            let (device, place) = (mount.next()?, mount.nth(1)?);
            let source = Path::new(source.split(' ').nth(1)?);
            (device == number.trim_end() || source == part.node).then(|| place.to_owned())
        });
        Ok(place)
    }
}

/// Reads a text file of the kernel's, in which paths can have any bytes; empty if it is absent.
fn read_if_there(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}
