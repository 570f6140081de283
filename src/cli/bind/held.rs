//! Who would lose a device: file systems, volumes, processes.

use super::Machine;
use nix::errno::Errno;
use shared_block_ring::pci::{PciAddress, names};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A disk that nobody can mount, claim or build upon meanwhile.
#[derive(Debug)]
pub struct Free {
    _exclusive: File,
}

/// A disk or a partition of one: its node, and its folder in sysfs.
struct Part {
    node: PathBuf,
    folder: PathBuf,
}

/// Makes sure of a disk that nobody uses. The inner error says who does, and what to do about that.
pub fn free(machine: &Machine, disk: &str) -> io::Result<Result<Free, String>> {
    let node = machine.node(disk);
    // First, so that what is looked at afterwards stays so. The kernel refuses it while the disk or a partition is mounted, a swap or
    // under a volume: it knows of what cannot be seen from here, mounts of other namespaces for instance.
    let exclusive =
        File::options().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(&node);
    let busy =
        exclusive.as_ref().is_err_and(|e| e.raw_os_error() == Some(Errno::EBUSY as libc::c_int));
    let exclusive = if busy { None } else { Some(exclusive?) };
    for part in parts(machine, disk)? {
        if let Some(why) = user_of(machine, &part)? {
            return Ok(Err(why));
        }
    }
    Ok(exclusive.map(|file| Free { _exclusive: file }).ok_or_else(|| {
        format!(
            "{} is in use by something that cannot be seen from here, a mount in another namespace perhaps (end it first)",
            node.display()
        )
    }))
}

/// The process that drives a device which the kernel does not, as far as `/proc` shows it.
pub fn driven_by(machine: &Machine, address: PciAddress) -> io::Result<Option<String>> {
    let sysfs = &machine.sysfs;
    let mut ways = vec![sysfs.config(address)];
    ways.extend((0..6).map(|bar| sysfs.resource(address, bar)));
    // Processes are shown with the paths behind all links.
    let mut ways: Vec<_> = ways.iter().filter_map(|path| path.canonicalize().ok()).collect();
    ways.extend(sysfs.uio(address)?.map(|uio| machine.node(&uio)));
    ways.extend(
        sysfs.iommu_group(address)?.map(|group| machine.dev.join("vfio").join(group.to_string())),
    );
    let user = user_of_any(machine, &ways)?;
    Ok(user.map(|(process, way)| {
        format!("{process} drives {address} through {} (end it first)", way.display())
    }))
}

fn parts(machine: &Machine, disk: &str) -> io::Result<Vec<Part>> {
    let folder = machine.sysfs.root().join("block").join(disk);
    let part = |name: &str, folder| Part { node: machine.node(name), folder };
    let mut parts = vec![part(disk, folder.clone())];
    for name in names(&folder)? {
        let folder = folder.join(&name);
        if folder.join("partition").exists() {
            parts.push(part(&name, folder));
        }
    }
    Ok(parts)
}

fn user_of(machine: &Machine, part: &Part) -> io::Result<Option<String>> {
    let node = part.node.display();
    if let Some(place) = mounted_at(machine, part)? {
        return Ok(Some(format!("{node} is mounted at {place} (umount {node})")));
    }
    let swaps = read_if_there(&machine.proc.join("swaps"))?;
    let is_node = |word: Option<&str>| word.is_some_and(|word| Path::new(word) == part.node);
    if swaps.lines().any(|line| is_node(line.split_whitespace().next())) {
        return Ok(Some(format!("{node} is a swap (swapoff {node})")));
    }
    if let Some(holder) = names(&part.folder.join("holders"))?.into_iter().next() {
        let holder_node = machine.node(&holder);
        let remedy = match holder.get(..2) {
            Some("dm") => "dmsetup remove, or vgchange -an, takes it off".to_owned(),
            Some("md") => format!("mdadm --stop {}", holder_node.display()),
            _ => "take it off first".to_owned(),
        };
        let holder_node = holder_node.display();
        return Ok(Some(format!("{holder_node} is built upon {node} ({remedy})")));
    }
    // A loop device claims nothing.
    for name in names(&machine.sysfs.root().join("block"))? {
        let file = machine.sysfs.root().join("block").join(&name).join("loop/backing_file");
        if is_node(Some(read_if_there(&file)?.trim_end())) {
            let holder = machine.node(&name);
            let holder = holder.display();
            return Ok(Some(format!("{holder} shows {node} (losetup -d {holder})")));
        }
    }
    let user = user_of_any(machine, std::slice::from_ref(&part.node))?;
    Ok(user.map(|(process, _)| format!("{process} has {node} open (end it first)")))
}

/// Where, in the words of the kernel, which writes a space as \040.
fn mounted_at(machine: &Machine, part: &Part) -> io::Result<Option<String>> {
    let number = read_if_there(&part.folder.join("dev"))?;
    let mounts = read_if_there(&machine.proc.join("self/mountinfo"))?;
    // "36 35 254:1 / /mnt rw,relatime shared:1 - ext4 /dev/vda1 rw"; some file systems have a number of their own.
    let place = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, place) = (mount.next()?, mount.nth(1)?);
        let source = Path::new(source.split(' ').nth(1)?);
        (device == number.trim_end() || source == part.node).then(|| place.to_owned())
    });
    Ok(place)
}

/// A process with one of these files open, and which one.
fn user_of_any(machine: &Machine, paths: &[PathBuf]) -> io::Result<Option<(String, PathBuf)>> {
    let own = std::process::id().to_string();
    for process in names(&machine.proc)? {
        if process == own || process.parse::<u32>().is_err() {
            continue;
        }
        let folder = machine.proc.join(&process);
        // A process that has ended meanwhile, or that this user may not look at, has none.
        for file in names(&folder.join("fd")).unwrap_or_default() {
            let target = fs::read_link(folder.join("fd").join(file)).unwrap_or_default();
            if paths.contains(&target) {
                let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
                return Ok(Some((format!("process {process} ({})", name.trim_end()), target)));
            }
        }
    }
    Ok(None)
}

fn read_if_there(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        outcome => outcome,
    }
}
