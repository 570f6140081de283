//! The choice of a driver. Pure: no I/O.

use super::steps::{NOBODY, State};

/// The driver of a device that processes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// For a device behind an IOMMU: it has interrupts, and the kernel resets it when its process
    /// ends
    #[value(name = "vfio-pci")]
    Vfio,
    /// The device has interrupts
    #[value(name = "uio_pci_generic")]
    Uio,
    /// No driver: the device has no interrupts, and a process that waits for it polls
    #[value(name = "none")]
    Nobody,
}

/// What the machine offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Whether the device is behind an IOMMU.
    pub iommu: bool,
    /// Whether the kernel has the driver vfio-pci.
    pub vfio: bool,
    pub uio: bool,
}

/// A driver, and advice where a better one could be loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    pub driver: Driver,
    pub advice: Option<&'static str>,
}

impl Driver {
    const ALL: [Self; 3] = [Self::Vfio, Self::Uio, Self::Nobody];

    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Vfio => Some("vfio-pci"),
            Self::Uio => Some("uio_pci_generic"),
            Self::Nobody => None,
        }
    }

    /// Returns the state of a device that is bound to this driver.
    pub fn goal(self) -> State {
        State::for_processes(self.name())
    }

    /// Returns the driver of a device in that state, if processes can use it.
    fn of(state: &State) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| {
            let nobody_s = state.driver.is_none() && state.only.as_deref() == Some(NOBODY);
            state.driver.as_deref() == driver.name() && (state.driver.is_some() || nobody_s)
        })
    }
}

/// Returns the driver that is asked for, else the one that has the device already, else the best
/// one that is loaded; or the reason why the one asked for cannot have it.
pub fn choose(asked: Option<Driver>, now: &State, offer: Offer) -> Result<Choice, &'static str> {
    let plain = |driver| Ok(Choice { driver, advice: None });
    match asked {
        Some(Driver::Vfio) if !offer.iommu => Err(
            "vfio-pci needs an IOMMU, and the device is behind none (start QEMU with -device intel-iommu and the guest's kernel with intel_iommu=on, or leave out --driver)",
        ),
        Some(Driver::Vfio) if !offer.vfio => {
            Err("the kernel has no driver vfio-pci yet (modprobe vfio-pci)")
        }
        Some(Driver::Uio) if !offer.uio => {
            Err("the kernel has no driver uio_pci_generic yet (modprobe uio_pci_generic)")
        }
        Some(driver) => plain(driver),
        None => Driver::of(now).map_or_else(|| Ok(best(offer)), plain),
    }
}

fn best(offer: Offer) -> Choice {
    let driver = match offer {
        Offer { iommu: true, vfio: true, .. } => Driver::Vfio,
        Offer { uio: true, .. } => Driver::Uio,
        _ => Driver::Nobody,
    };
    // bind loads no module: that is a decision about the kernel, and not about one disk.
    let advice = match (driver, offer) {
        (Driver::Uio | Driver::Nobody, Offer { iommu: true, .. }) => Some(
            "the device is behind an IOMMU that is not used without vfio-pci: modprobe vfio-pci, then bind it again with --driver vfio-pci",
        ),
        (Driver::Nobody, _) => Some(
            "without a driver there are no interrupts: modprobe uio_pci_generic, then bind it again with --driver uio_pci_generic",
        ),
        _ => None,
    };
    Choice { driver, advice }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ALL: Offer = Offer { iommu: true, vfio: true, uio: true };

    #[test]
    fn the_best_driver_that_there_is_and_a_word_where_a_module_is_missing() {
        let disk = State::of_the_kernel();
        for (offer, driver, advice) in [
            (ALL, Driver::Vfio, None),
            (Offer { iommu: false, ..ALL }, Driver::Uio, None),
            (Offer { vfio: false, ..ALL }, Driver::Uio, Some("modprobe vfio-pci")),
            (
                Offer { iommu: false, vfio: true, uio: false },
                Driver::Nobody,
                Some("modprobe uio_pci_generic"),
            ),
            (
                Offer { iommu: true, vfio: false, uio: false },
                Driver::Nobody,
                Some("modprobe vfio-pci"),
            ),
        ] {
            let choice = choose(None, &disk, offer).unwrap();
            assert_eq!(choice.driver, driver, "{offer:?}");
            match (choice.advice, advice) {
                (Some(text), Some(words)) => assert!(text.contains(words), "{text}"),
                (text, words) => assert_eq!(text, words, "{offer:?}"),
            }
        }
    }

    #[test]
    fn what_is_bound_stays_unless_another_driver_is_asked_for() {
        for driver in Driver::ALL {
            assert_eq!(choose(None, &driver.goal(), ALL).unwrap().driver, driver);
            assert_eq!(choose(Some(Driver::Uio), &driver.goal(), ALL).unwrap().driver, Driver::Uio);
        }
        let interrupted = State { driver: None, only: Some("uio_pci_generic".to_owned()) };
        assert_eq!(choose(None, &interrupted, ALL).unwrap().driver, Driver::Vfio);
    }

    #[test]
    fn a_driver_that_cannot_be_had_is_refused_with_what_to_do() {
        let refused = |driver, offer| {
            choose(Some(driver), &State::of_the_kernel(), offer).unwrap_err().to_owned()
        };
        assert!(refused(Driver::Vfio, Offer { iommu: false, ..ALL }).contains("intel_iommu=on"));
        assert!(refused(Driver::Vfio, Offer { vfio: false, ..ALL }).contains("modprobe vfio-pci"));
        assert!(refused(Driver::Uio, Offer { uio: false, ..ALL }).contains("modprobe uio_pci"));
    }
}
