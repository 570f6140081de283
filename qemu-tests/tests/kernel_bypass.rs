//! The guest's disk driven by its process, with and without an IOMMU in front of it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LONG, SOON, Scene, daemon_report, job_report};
use qemu_tests::{Guest, GuestBuilder, ImageSpec, Result};
use serde_json::Value;

/// Modules for interrupts of a device that no driver of the kernel's has, and for VFIO.
const MODULES: [&str; 8] = [
    "uio",
    "uio_pci_generic",
    "irqbypass",
    "vfio",
    "vfio_virqfd",
    "vfio_iommu_type1",
    "vfio_pci_core",
    "vfio_pci",
];

/// How the process gets at the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By its registers alone: nothing interrupts.
    Bare,
    /// The same, and the kernel tells of interrupts.
    Uio,
    /// Behind Intel's IOMMU.
    Vfio,
}

impl Way {
    fn driver(self) -> Option<&'static str> {
        match self {
            Self::Bare => None,
            Self::Uio => Some("uio_pci_generic"),
            Self::Vfio => Some("vfio-pci"),
        }
    }

    fn guest(self, scene: &Scene) -> Result<GuestBuilder> {
        let image = MODULES.into_iter().fold(ImageSpec::standard()?, ImageSpec::module);
        let guest = scene.guest().image(image);
        Ok(match self {
            Self::Bare | Self::Uio => guest,
            Self::Vfio => guest
                .arguments(["-machine", "kernel-irqchip=split"])
                .arguments(["-device", "intel-iommu,caching-mode=on,intremap=on"])
                .kernel_word("intel_iommu=on"),
        })
    }

    /// Takes the first disk from the kernel. How it is named then.
    fn take(self, guest: &Guest) -> Result<String> {
        let function = function_of(guest, "vda")?;
        guest.check("echo 4 > /proc/sys/vm/nr_hugepages")?;
        let unbind = format!("echo {function} > /sys/bus/pci/devices/{function}/driver/unbind");
        guest.check(&unbind)?;
        if let Some(driver) = self.driver() {
            guest.check(&format!(
                "echo {driver} > /sys/bus/pci/devices/{function}/driver_override &&
                 echo {function} > /sys/bus/pci/drivers_probe"
            ))?;
        }
        Ok(format!("pci:{function}"))
    }
}

/// Where a disk's device is.
fn function_of(guest: &Guest, disk: &str) -> Result<String> {
    let path = guest.check(&format!("dirname $(readlink -f /sys/block/{disk}/device)"))?;
    Ok(path.trim().rsplit('/').next().unwrap().to_owned())
}

const ITEMS: &str = "100000";

fn assert_same(sent: &Value, received: &Value) {
    println!("sent {sent}, received {received}");
    assert_eq!(sent["items"], 100_000);
    for fact in ["items", "bytes", "sha256"] {
        assert_eq!(sent[fact], received[fact]);
    }
}

fn leave_the_guest(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "8M"]);
    let _backend = scene.backend()?;
    let guest = way.guest(&scene)?.boot()?;
    let address = way.take(&guest)?;
    let sending = guest
        .spawn(&format!("ringload produce {address} --items {ITEMS} --max 2000 --batch 16"))?;
    let arguments = ["consume", &scene.address(), "--items", ITEMS];
    let mut consumer = scene.spawn("consumer", "ringload", &arguments)?;
    let received = daemon_report(&mut consumer, LONG)?;
    assert_same(&job_report(&sending, SOON)?, &received);
    assert_eq!(scene.diagnostics()["backend"]["refused"], serde_json::json!({}));
    guest.power_off()
}

fn enter_the_guest(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "8M", "--guest", "consumer"]);
    let _backend = scene.backend()?;
    let guest = way.guest(&scene)?.boot()?;
    let address = way.take(&guest)?;
    let receiving =
        guest.spawn(&format!("ringload consume {address} --items {ITEMS} --batch 16"))?;
    let host = scene.address();
    let arguments = ["produce", &host, "--items", ITEMS, "--max", "2000", "--batch", "16"];
    let mut producer = scene.spawn("producer", "ringload", &arguments)?;
    let sent = daemon_report(&mut producer, LONG)?;
    assert_same(&sent, &job_report(&receiving, LONG)?);
    assert_eq!(scene.diagnostics()["backend"]["refused"], serde_json::json!({}));
    guest.power_off()
}

#[test]
fn a_hundred_thousand_items_leave_the_guest_by_registers_alone() -> Result<()> {
    leave_the_guest(Way::Bare)
}

#[test]
fn a_hundred_thousand_items_enter_the_guest_by_registers_alone() -> Result<()> {
    enter_the_guest(Way::Bare)
}

#[test]
fn a_hundred_thousand_items_leave_the_guest_with_a_line_that_interrupts() -> Result<()> {
    leave_the_guest(Way::Uio)
}

#[test]
fn a_hundred_thousand_items_enter_the_guest_with_a_line_that_interrupts() -> Result<()> {
    enter_the_guest(Way::Uio)
}

#[test]
fn a_hundred_thousand_items_leave_the_guest_behind_an_iommu() -> Result<()> {
    leave_the_guest(Way::Vfio)
}

#[test]
fn a_hundred_thousand_items_enter_the_guest_behind_an_iommu() -> Result<()> {
    enter_the_guest(Way::Vfio)
}
