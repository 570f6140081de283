//! `blockring bind` and `blockring unbind`: a virtio disk for processes, and back for the kernel.

mod change;
mod choice;
mod held;
mod steps;
#[cfg(test)]
mod tests;

use super::failure::{Failure, Outcome};
use change::{Device, Target, change, state_of};
use choice::{Driver, Offer, choose};
use shared_block_ring::pci::{Claim, NotAnAddress, PciAddress, Sysfs};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use steps::{State, VIRTIO};

/// How long a disk that the kernel has again may take to have its node.
const NODE: Duration = Duration::from_secs(5);

/// Take a virtio disk from the kernel, for processes that drive it themselves
#[derive(clap::Args)]
#[command(after_help = "\
It is refused while the disk is mounted, a swap, under a volume or open in a process. Nothing on the
disk is changed. No module is loaded; which one would be of use is said. A step that fails leaves the
device as it was, and `blockring unbind` gives it back from any state. After a reboot it is the
kernel's again.

Whoever drives a device can have it write to all memory of the machine: that is as good as root.

Examples:
  basename \"$(realpath /sys/block/vdb/device/..)\"   the ADDRESS of /dev/vdb
  blockring bind --dry-run 0000:00:04.0             what would be done, as lines for a shell
  blockring bind 0000:00:04.0                       to the best driver there is
  blockring bind --driver uio_pci_generic 00:04.0   to this one")]
pub struct Bind {
    /// Where the disk is on the PCI bus
    #[arg(value_parser = address)]
    address: PciAddress,
    /// Who has it then [default: the first of these that is loaded and of use]
    #[arg(long)]
    driver: Option<Driver>,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Give a virtio disk back to the kernel
#[derive(clap::Args)]
#[command(after_help = "\
From whatever state `bind`, somebody else or a process that was killed has left it in; refused while
a process drives it.

Examples:
  blockring unbind 0000:00:04.0             and /dev/vdb is there again
  blockring unbind --dry-run 0000:00:04.0   what would be done, as lines for a shell")]
pub struct Unbind {
    /// Where the disk is on the PCI bus
    #[arg(value_parser = address)]
    address: PciAddress,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// As other commands name it, too.
fn address(text: &str) -> Result<PciAddress, NotAnAddress> {
    text.strip_prefix("pci:").unwrap_or(text).parse()
}

/// Where the kernel shows what there is.
struct Machine {
    sysfs: Sysfs,
    proc: PathBuf,
    dev: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self { sysfs: Sysfs::default(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

impl Machine {
    fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name)
    }
}

impl Bind {
    pub fn run(self) -> Outcome {
        let change = Change::of(Machine::default(), self.address)?;
        let (sysfs, now) = (&change.machine.sysfs, &change.now);
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
        done.say(|already| format!("{} is bound to {driver}{already}", self.address));
        if let Some(advice) = choice.advice {
            eprintln!("blockring: {}: {advice}", self.address);
        }
        Ok(())
    }
}

impl Unbind {
    pub fn run(self) -> Outcome {
        let change = Change::of(Machine::default(), self.address)?;
        if !change.machine.sysfs.has_driver(VIRTIO) {
            return Err(change.refused("the kernel has no driver virtio-pci (modprobe virtio-pci)"));
        }
        let done = change.carry_out(&State::of_the_kernel(), self.dry_run)?;
        if done == Done::Planned {
            return Ok(());
        }
        let disk = change.disk_again()?;
        done.say(|already| format!("{} is {}{already}", self.address, disk.display()));
        Ok(())
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Changed,
    Already,
    Planned,
}

impl Done {
    fn say(self, words: impl FnOnce(&'static str) -> String) {
        match self {
            Self::Changed => println!("{}", words("")),
            Self::Already => println!("{}", words(" already")),
            Self::Planned => {}
        }
    }
}

/// A virtio disk, and who has it now.
struct Change {
    machine: Machine,
    address: PciAddress,
    now: State,
}

impl Change {
    fn of(machine: Machine, address: PciAddress) -> Result<Self, Failure> {
        let fail = || Failure::io(address.to_string());
        let sysfs = &machine.sysfs;
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
        let now = state_of(sysfs, address).map_err(fail())?;
        Ok(Self { machine, address, now })
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::Refused(format!("{}: {why}", self.address))
    }

    /// Gives the device to somebody else, or says how.
    fn carry_out(&self, goal: &State, dry_run: bool) -> Result<Done, Failure> {
        let steps = self.now.steps_to(goal);
        if steps.is_empty() {
            return Ok(if dry_run { Done::Planned } else { Done::Already });
        }
        // Until the end of this function nobody else changes who drives it, or drives it.
        let _claim = self.claim()?;
        let mut device = self.device(self.free_disks(goal)?);
        if dry_run {
            for step in &steps {
                println!("{}", device.line(step));
            }
            return Ok(Done::Planned);
        }
        change(&mut device, goal).map_err(|why| self.refused(&why))?;
        Ok(Done::Changed)
    }

    fn device(&self, disks: Vec<held::Free>) -> Device<'_> {
        Device { sysfs: &self.machine.sysfs, address: self.address, disks }
    }

    fn claim(&self) -> Result<Claim, Failure> {
        let fail = |source: io::Error| self.not_allowed(source);
        if let Some(why) = held::driven_by(&self.machine, self.address).map_err(fail)? {
            return Err(Failure::Refused(why));
        }
        let claim = self.machine.sysfs.claim(self.address).map_err(fail)?;
        claim.ok_or_else(|| self.refused("another process drives or binds it (end that first)"))
    }

    /// The disks that the kernel is going to lose.
    fn free_disks(&self, goal: &State) -> Result<Vec<held::Free>, Failure> {
        if self.now.driver.as_deref() != Some(VIRTIO) || goal.driver.as_deref() == Some(VIRTIO) {
            return Ok(Vec::new());
        }
        let fail = |source: io::Error| self.not_allowed(source);
        let disks = self.machine.sysfs.disks(self.address).map_err(fail)?;
        let free = disks.iter().map(|disk| held::free(&self.machine, disk).map_err(fail));
        free.map(|disk| disk?.map_err(|why| self.refused(&why))).collect()
    }

    fn not_allowed(&self, source: io::Error) -> Failure {
        if source.kind() == io::ErrorKind::PermissionDenied {
            return self.refused("who has a device is root's to change (sudo)");
        }
        Failure::Io { what: self.address.to_string(), source }
    }

    /// The node of the disk that the kernel has made of the device.
    fn disk_again(&self) -> Result<PathBuf, Failure> {
        let deadline = Instant::now() + NODE;
        loop {
            let disks = self.machine.sysfs.disks(self.address);
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
