//! What has to be written to sysfs to give a device to another driver. Pure.

use shared_block_ring::pci::{PciAddress, Sysfs};
use std::path::PathBuf;

/// The kernel's driver of virtio devices.
pub const VIRTIO: &str = "virtio-pci";

/// A name that is no driver's: a device with this override is given to nobody.
pub const NOBODY: &str = "none";

/// Who has a device. All of it is kept by the kernel, so that a process that is killed between two steps leaves nothing else behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Who drives it.
    pub driver: Option<String>,
    /// The only driver that the kernel would give it to.
    pub only: Option<String>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Says which driver alone may have the device; `None`: any that knows it.
    Only(Option<String>),
    /// Takes it from a driver.
    Unbind(String),
    /// Gives it to one.
    Bind(String),
}

impl State {
    /// The kernel's own disk.
    pub fn of_the_kernel() -> Self {
        Self { driver: Some(VIRTIO.to_owned()), only: None }
    }

    /// For processes; where there is no driver, nobody's.
    pub fn for_processes(driver: Option<&str>) -> Self {
        let driver = driver.map(str::to_owned);
        Self { only: Some(driver.clone().unwrap_or_else(|| NOBODY.to_owned())), driver }
    }

    /// What leads from here to `goal`. The override is first: between two drivers the device is offered to no third one.
    pub fn steps_to(&self, goal: &Self) -> Vec<Step> {
        let only = (self.only != goal.only).then(|| Step::Only(goal.only.clone()));
        let moved = self.driver != goal.driver;
        let unbind = self.driver.clone().filter(|_| moved).map(Step::Unbind);
        let bind = goal.driver.clone().filter(|_| moved).map(Step::Bind);
        [only, unbind, bind].into_iter().flatten().collect()
    }

    /// The same without an override that contradicts the driver, which only an interrupted change leaves: the driver would not get
    /// the device back under it.
    pub fn consistent(mut self) -> Self {
        if self.driver.is_some() {
            self.only = self.only.filter(|only| Some(only) == self.driver.as_ref());
        }
        self
    }
}

impl Step {
    /// The file to write to, and what.
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

    /// The same as a line for a shell.
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
