//! Changing the driver of a device: completely, or not at all.

use super::held::Free;
use super::steps::{State, Step};
use std::fs::File;
use std::io::{self, Write};
use virtio_blk_driver::pci::{PciAddress, Sysfs};

/// A device whose driver can be changed.
pub trait Target {
    fn state(&self) -> io::Result<State>;
    fn apply(&mut self, step: &Step) -> io::Result<()>;
    /// Returns the step as a line of shell, for errors.
    fn line(&self, step: &Step) -> String;
}

/// Brings the device to the state `goal`; on an error leaves it as it was, and returns the reason.
pub fn change(target: &mut impl Target, goal: &State) -> Result<(), String> {
    let before = target.state().map_err(|e| e.to_string())?;
    let Err(why) = reach(target, goal) else { return Ok(()) };
    let unchanged = target.state().is_ok_and(|now| now == before);
    match if unchanged { Ok(()) } else { reach(target, &before.consistent()) } {
        Ok(()) => Err(format!("{why}; it is as it was")),
        Err(more) => Err(format!("{why}; and it could not be made as it was: {more}")),
    }
}

fn reach(target: &mut impl Target, goal: &State) -> Result<(), String> {
    let state = |target: &_| Target::state(target).map_err(|e: io::Error| e.to_string());
    for step in state(target)?.steps_to(goal) {
        target.apply(&step).map_err(|e| format!("{}: {e}", target.line(&step)))?;
    }
    // The kernel may accept a write and not carry it out.
    let now = state(target)?;
    if now == *goal {
        return Ok(());
    }
    let name = |driver: Option<&str>| driver.unwrap_or("no driver").to_owned();
    let (now, wanted) = (name(now.driver.as_deref()), name(goal.driver.as_deref()));
    Err(format!("{now} has it where {wanted} should (dmesg may say why)"))
}

/// A device of this machine.
pub struct Device<'a> {
    pub sysfs: &'a Sysfs,
    pub address: PciAddress,
    /// The kernel's disks on the device, held exclusively until the kernel has given them up.
    pub disks: Vec<Free>,
}

pub fn state_of(sysfs: &Sysfs, address: PciAddress) -> io::Result<State> {
    Ok(State { driver: sysfs.driver(address)?, only: sysfs.driver_override(address)? })
}

impl Target for Device<'_> {
    fn state(&self) -> io::Result<State> {
        state_of(self.sysfs, self.address)
    }

    fn apply(&mut self, step: &Step) -> io::Result<()> {
        let (path, text) = step.write(self.sysfs, self.address);
        // In one write: the kernel takes each write as a whole command.
        File::options().write(true).open(path)?.write_all(format!("{text}\n").as_bytes())?;
        if let Step::Unbind(_) = step {
            // A disk that is held open keeps its name, and the kernel would give the device another
            // name when it gets it back.
            self.disks.clear();
        }
        Ok(())
    }

    fn line(&self, step: &Step) -> String {
        step.shell(self.sysfs, self.address)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::steps::VIRTIO;
    use super::*;

    /// A model of the kernel's rules for one device.
    #[derive(Clone)]
    struct Kernel {
        state: State,
        refuses: Option<Step>,
    }

    impl Target for Kernel {
        fn state(&self) -> io::Result<State> {
            Ok(self.state.clone())
        }

        fn apply(&mut self, step: &Step) -> io::Result<()> {
            if self.refuses.as_ref() == Some(step) {
                return Err(io::ErrorKind::Other.into());
            }
            let State { driver, only } = &mut self.state;
            match step {
                Step::Only(name) => only.clone_from(name),
                Step::Unbind(name) if driver.as_ref() == Some(name) => *driver = None,
                Step::Bind(name)
                    if driver.is_none() && only.as_ref().is_none_or(|only| only == name) =>
                {
                    *driver = Some(name.clone());
                }
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
            Ok(())
        }

        fn line(&self, step: &Step) -> String {
            format!("{step:?}")
        }
    }

    const DRIVERS: [&str; 3] = [VIRTIO, "vfio-pci", "uio_pci_generic"];

    fn goals() -> Vec<State> {
        let mut goals = vec![State::of_the_kernel(), State::for_processes(None)];
        goals.extend(DRIVERS[1..].iter().map(|&driver| State::for_processes(Some(driver))));
        goals
    }

    /// All states, also those that no command makes.
    fn states() -> Vec<State> {
        let any = || DRIVERS.into_iter().map(Some).chain([None]);
        let overrides = || any().chain([Some("none"), Some("another")]);
        let own = |name: Option<&str>| name.map(str::to_owned);
        any()
            .flat_map(|driver| {
                overrides().map(move |only| State { driver: own(driver), only: own(only) })
            })
            .collect()
    }

    #[test]
    fn every_goal_is_reached_from_every_state() {
        for goal in goals() {
            for state in states() {
                let mut kernel = Kernel { state, refuses: None };
                change(&mut kernel, &goal).unwrap();
                assert_eq!(kernel.state, goal);
            }
        }
    }

    #[test]
    fn whoever_is_killed_between_two_steps_leaves_what_can_be_undone() {
        for goal in goals() {
            for state in states() {
                let mut kernel = Kernel { state: state.clone(), refuses: None };
                for step in state.steps_to(&goal) {
                    kernel.apply(&step).unwrap();
                    let mut later = kernel.clone();
                    change(&mut later, &State::of_the_kernel()).unwrap();
                    assert_eq!(later.state, State::of_the_kernel());
                }
            }
        }
    }

    #[test]
    fn a_step_that_fails_leaves_the_device_as_it_was() {
        for goal in goals() {
            for before in states() {
                for step in before.steps_to(&goal) {
                    let mut kernel = Kernel { state: before.clone(), refuses: Some(step.clone()) };
                    let why = change(&mut kernel, &goal).unwrap_err();
                    assert!(why.contains(&format!("{step:?}")), "{why}");
                    assert!(why.ends_with("it is as it was"), "{why}");
                    assert_eq!(kernel.state.consistent(), before.clone().consistent(), "{step:?}");
                }
            }
        }
    }
}
