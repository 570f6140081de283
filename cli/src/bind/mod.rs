//! `blockring bind` and `blockring unbind`: take a virtio disk from the kernel, and give it back.

mod change;
mod choice;
mod held;
mod steps;
#[cfg(test)]
mod tests;

use super::failure::{Failure, Outcome};
use super::output::{print, require_output, say};
use change::{Device, Target, change, state_of};
use choice::{Driver, Offer, choose};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Uid;
use shared_block_ring::device::Machine;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use steps::{State, VIRTIO};
use virtio_blk_driver::pci::{Claim, ParsePciAddressError, PciAddress, Sysfs};

/// Longest wait for the node of a disk after the kernel got the device back.
const NODE: Duration = Duration::from_secs(5);

/// Take a virtio disk from the kernel, so that a process can use it as pci:ADDRESS
#[derive(clap::Args)]
#[command(after_help = "\
The command refuses a disk that is mounted, used as swap, part of a volume or open in a process. It
does not change what is on the disk, and it loads no kernel module: it says which module would give
interrupts. If a step fails the device is left as it was. `blockring unbind` gives the device back
to the kernel, whatever state it is in, and so does a reboot.

A process that drives a device can make it write to all memory of the machine: the right to do that
is as powerful as root.

Examples:
  basename \"$(realpath /sys/block/vdb/device/..)\"   the ADDRESS of /dev/vdb
  blockring bind --dry-run 0000:00:04.0             print the shell commands, and change nothing
  blockring bind 0000:00:04.0                       bind to the best driver that is loaded
  blockring bind --driver uio_pci_generic 00:04.0   bind to this driver")]
pub struct Bind {
    /// PCI address of the disk, as in 0000:00:04.0
    #[arg(value_parser = address)]
    address: PciAddress,
    /// Driver that gets the device [default: the first of these that is loaded and fits the device]
    #[arg(long)]
    driver: Option<Driver>,
    /// Print the changes as shell commands, and make none of them
    #[arg(long)]
    dry_run: bool,
}

/// Give a virtio disk back to the kernel
#[derive(clap::Args)]
#[command(after_help = "\
It works from any state that `bind`, another tool or a killed process has left the device in. The
command refuses a device that a process is driving.

Examples:
  blockring unbind 0000:00:04.0             /dev/vdb is there again
  blockring unbind --dry-run 0000:00:04.0   print the shell commands, and change nothing")]
pub struct Unbind {
    /// PCI address of the disk, as in 0000:00:04.0
    #[arg(value_parser = address)]
    address: PciAddress,
    /// Print the changes as shell commands, and make none of them
    #[arg(long)]
    dry_run: bool,
}

/// Reads a PCI address, with or without the prefix that it has as a ring's ADDRESS.
fn address(text: &str) -> Result<PciAddress, ParsePciAddressError> {
    text.strip_prefix("pci:").unwrap_or(text).parse()
}

impl Bind {
    pub fn run(self) -> Outcome {
        require_output()?;
        let change = Change::of(Machine::default(), self.address)?;
        let (sysfs, now) = (&change.sysfs, &change.now);
        let fail = Failure::io(self.address.to_string());
        let offer = Offer {
            iommu: sysfs.iommu_group(self.address).map_err(fail)?.is_some(),
            vfio: sysfs.has_driver("vfio-pci"),
            uio: sysfs.has_driver("uio_pci_generic"),
        };
        let choice = choose(self.driver, now, offer).map_err(|why| change.refused(why))?;
        let driver = choice.driver.name().unwrap_or("no driver");
        let goal = choice.driver.goal();
        let done = change.carry_out(&goal, self.dry_run)?;
        if let Some(advice) = choice.advice {
            say(format_args!("{}: {advice}", self.address));
        }
        done.print(|already| format!("{} is bound to {driver}{already}", self.address))
    }
}

impl Unbind {
    pub fn run(self) -> Outcome {
        require_output()?;
        let change = Change::of(Machine::default(), self.address)?;
        if !change.sysfs.has_driver(VIRTIO) {
            return Err(change.refused("the kernel has no driver virtio-pci (modprobe virtio-pci)"));
        }
        let done = change.carry_out(&State::of_the_kernel(), self.dry_run)?;
        if done == Done::Planned {
            return Ok(());
        }
        let disk = change.disk_again()?;
        done.print(|already| format!("{} is {}{already}", self.address, disk.display()))
    }
}

/// Returns why a file of a device may not be opened for writing, with the remedy, where an error of
/// that kind has a reason that is known.
fn denial(kind: io::ErrorKind, is_read_only: bool, is_root: bool) -> Option<&'static str> {
    match kind {
        // The kernel reports missing rights before a read-only mount, as to root in a user
        // namespace.
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied if is_read_only => {
            Some(
                "/sys is mounted read-only, as in a container (run this command on the host, or in a privileged container)",
            )
        }
        io::ErrorKind::PermissionDenied if is_root => {
            Some("not even root may do that here, as in a container (run this command on the host)")
        }
        io::ErrorKind::PermissionDenied => {
            Some("only root may give a device to another driver (sudo)")
        }
        _ => None,
    }
}

/// How a change has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Changed,
    Already,
    Planned,
}

impl Done {
    fn print(self, words: impl FnOnce(&'static str) -> String) -> Outcome {
        match self {
            Self::Changed => print(&words(""), None),
            Self::Already => print(&words(" already"), None),
            Self::Planned => Ok(()),
        }
    }
}

/// A change of the driver of a virtio disk, and the state before it.
struct Change {
    machine: Machine,
    sysfs: Sysfs,
    address: PciAddress,
    now: State,
}

impl Change {
    fn of(machine: Machine, address: PciAddress) -> Result<Self, Failure> {
        let fail = || Failure::io(address.to_string());
        let sysfs = Sysfs::at(&machine.sysfs);
        let there = || -> Result<String, Failure> {
            let disks = sysfs.virtio_blk().map_err(Failure::io("/sys/bus/pci/devices"))?;
            let disks: Vec<_> = disks.iter().map(PciAddress::to_string).collect();
            Ok(if disks.is_empty() { "there is none".to_owned() } else { disks.join(", ") })
        };
        if !sysfs.exists(address) {
            let text = format!("there is no PCI device {address} (virtio disks: {})", there()?);
            return Err(Failure::Refused(text));
        }
        let ids = sysfs.vendor_device(address).map_err(fail())?;
        if !ids.is_virtio_blk() {
            let text = format!(
                "{address} is no virtio disk but {:04x}:{:04x} (virtio disks: {})",
                ids.vendor,
                ids.device,
                there()?
            );
            return Err(Failure::Refused(text));
        }
        let now = state_of(&sysfs, address).map_err(fail())?;
        Ok(Self { machine, sysfs, address, now })
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::Refused(format!("{}: {why}", self.address))
    }

    /// Changes the driver of the device, or prints the steps.
    fn carry_out(&self, goal: &State, dry_run: bool) -> Result<Done, Failure> {
        let steps = self.now.steps_to(goal);
        if steps.is_empty() {
            return Ok(if dry_run { Done::Planned } else { Done::Already });
        }
        // Held to the end of this function: no other blockring drives the device, or changes its
        // driver.
        let _claim = self.claim()?;
        let mut device = self.device(self.free_disks(goal)?);
        if dry_run {
            let lines: Vec<_> = steps.iter().map(|step| device.line(step)).collect();
            print(&lines.join("\n"), None)?;
            return Ok(Done::Planned);
        }
        change(&mut device, goal).map_err(|why| self.refused(&why))?;
        Ok(Done::Changed)
    }

    fn device(&self, disks: Vec<held::Free>) -> Device<'_> {
        Device { sysfs: &self.sysfs, address: self.address, disks }
    }

    fn claim(&self) -> Result<Claim, Failure> {
        if !self.machine.proc.join("self").exists() {
            let text = "without /proc it cannot be seen who uses it (mount -t proc proc /proc)";
            return Err(self.refused(text));
        }
        let fail = |source: io::Error| self.not_allowed(source);
        if let Some(why) = held::driven_by(&self.machine, self.address).map_err(fail)? {
            return Err(Failure::Refused(why));
        }
        let claim = self.sysfs.claim(self.address).map_err(fail)?;
        claim.ok_or_else(|| self.refused("another process drives or binds it (end that first)"))
    }

    /// Opens the disks that the kernel will lose.
    fn free_disks(&self, goal: &State) -> Result<Vec<held::Free>, Failure> {
        if self.now.driver.as_deref() != Some(VIRTIO) || goal.driver.as_deref() == Some(VIRTIO) {
            return Ok(Vec::new());
        }
        let fail = |source: io::Error| self.not_allowed(source);
        let disks = self.sysfs.disks(self.address).map_err(fail)?;
        let free = disks.iter().map(|disk| held::free(&self.machine, disk).map_err(fail));
        free.map(|disk| disk?.map_err(|why| self.refused(&why))).collect()
    }

    fn not_allowed(&self, source: io::Error) -> Failure {
        let about = statvfs(self.sysfs.root());
        let is_read_only = about.is_ok_and(|about| about.flags().contains(FsFlags::ST_RDONLY));
        match denial(source.kind(), is_read_only, Uid::effective().is_root()) {
            Some(why) => self.refused(&format!("{source}: {why}")),
            None => Failure::Io { what: self.address.to_string(), source },
        }
    }

    /// Waits for the node of the disk that the kernel has made of the device.
    fn disk_again(&self) -> Result<PathBuf, Failure> {
        let deadline = Instant::now() + NODE;
        loop {
            let disks = self.sysfs.disks(self.address);
            let disks = disks.map_err(Failure::io(self.address.to_string()))?;
            let node = disks.first().map(|disk| self.machine.node(disk));
            match node {
                Some(node) if node.exists() => return Ok(node),
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Some(node) => {
                    let node = node.display();
                    return Err(self.refused(&format!("the kernel has its disk, and no {node}")));
                }
                None => {
                    return Err(self.refused(
                        "the kernel has it, and has made no disk of it (modprobe virtio_blk; dmesg says more)",
                    ));
                }
            }
        }
    }
}
