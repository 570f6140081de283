//! The writes to sysfs that change the driver of a device. Pure: no I/O.

use std::path::PathBuf;
use virtio_blk_driver::pci::{PciAddress, Sysfs};

/// The kernel's driver for virtio devices on PCI.
pub const VIRTIO: &str = "virtio-pci";

/// A name that no driver has: the kernel gives a device with this override to no driver.
pub const NOBODY: &str = "none";

/// The driver of a device. The kernel keeps all of this state, so that a process that is killed
/// between two steps leaves nothing else behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The driver that has the device.
    pub driver: Option<String>,
    /// The only driver that the kernel gives the device to (`driver_override`).
    pub only: Option<String>,
}

/// One write to sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sets the only driver that may have the device; `None`: any driver that supports it.
    Only(Option<String>),
    /// Takes the device from this driver.
    Unbind(String),
    /// Gives the device to this driver.
    Bind(String),
}

impl State {
    /// The state of a disk that the kernel drives.
    pub fn of_the_kernel() -> Self {
        Self { driver: Some(VIRTIO.to_owned()), only: None }
    }

    /// The state of a device that processes use: bound to `driver`, or to no driver.
    pub fn for_processes(driver: Option<&str>) -> Self {
        let driver = driver.map(str::to_owned);
        Self { only: Some(driver.clone().unwrap_or_else(|| NOBODY.to_owned())), driver }
    }

    /// Returns the steps from this state to `goal`. The override comes first, so that the kernel
    /// offers the device to no third driver between two steps.
    pub fn steps_to(&self, goal: &Self) -> Vec<Step> {
        let only = (self.only != goal.only).then(|| Step::Only(goal.only.clone()));
        let moved = self.driver != goal.driver;
        let unbind = self.driver.clone().filter(|_| moved).map(Step::Unbind);
        let bind = goal.driver.clone().filter(|_| moved).map(Step::Bind);
        [only, unbind, bind].into_iter().flatten().collect()
    }

    /// Removes an override that contradicts the driver. Only an interrupted change leaves that
    /// state, and the driver could not get the device back in it.
    pub fn consistent(mut self) -> Self {
        if self.driver.is_some() {
            self.only = self.only.filter(|only| Some(only) == self.driver.as_ref());
        }
        self
    }
}

impl Step {
    /// Returns the file of the step, and the text to write to it.
    pub fn write(&self, sysfs: &Sysfs, address: PciAddress) -> (PathBuf, String) {
        let driver = |name: &str, file| sysfs.root().join("bus/pci/drivers").join(name).join(file);
        match self {
            Self::Only(only) => {
                (sysfs.device(address).join("driver_override"), only.clone().unwrap_or_default())
            }
            Self::Unbind(name) => (driver(name, "unbind"), address.to_string()),
            Self::Bind(name) => (driver(name, "bind"), address.to_string()),
        }
    }

    /// Returns the step as a line of shell.
    pub fn shell(&self, sysfs: &Sysfs, address: PciAddress) -> String {
        let (path, text) = self.write(sysfs, address);
        let space = if text.is_empty() { "" } else { " " };
        format!("echo{space}{text} > {}", path.display())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_bound_and_given_back_by_these_lines() {
        let lines = |from: &State, to: &State| -> Vec<String> {
            let address = "00:04.0".parse().unwrap();
            let steps = from.steps_to(to);
            steps.iter().map(|step| step.shell(&Sysfs::default(), address)).collect()
        };
        let (disk, bound) = (State::of_the_kernel(), State::for_processes(Some("vfio-pci")));
        assert_eq!(
            lines(&disk, &bound),
            [
                "echo vfio-pci > /sys/bus/pci/devices/0000:00:04.0/driver_override",
                "echo 0000:00:04.0 > /sys/bus/pci/drivers/virtio-pci/unbind",
                "echo 0000:00:04.0 > /sys/bus/pci/drivers/vfio-pci/bind",
            ]
        );
        assert_eq!(
            lines(&bound, &disk),
            [
                "echo > /sys/bus/pci/devices/0000:00:04.0/driver_override",
                "echo 0000:00:04.0 > /sys/bus/pci/drivers/vfio-pci/unbind",
                "echo 0000:00:04.0 > /sys/bus/pci/drivers/virtio-pci/bind",
            ]
        );
        assert_eq!(
            lines(&disk, &State::for_processes(None)),
            [
                "echo none > /sys/bus/pci/devices/0000:00:04.0/driver_override",
                "echo 0000:00:04.0 > /sys/bus/pci/drivers/virtio-pci/unbind",
            ]
        );
        for state in [disk, bound, State::for_processes(None)] {
            assert!(state.steps_to(&state).is_empty(), "what is so already needs no step");
        }
    }
}
