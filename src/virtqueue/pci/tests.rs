//! The way to a device whose registers are a file: it does nothing by itself, and what it was told stays to be looked at.
#![allow(clippy::unwrap_used)]

use super::caps::tests::honest;
use super::*;
use crate::virtqueue::{Pages, Shape};
use std::fs;

/// Offsets of the common structure, which lies at the start of the region, and of the disk's configuration.
const DEVICE_FEATURE: usize = 4;
const STATUS: usize = 20;
const QUEUE_SIZE: usize = 24;
const QUEUE_DESC: usize = 32;
const DISK: usize = 0x2000;
const NOTIFY: usize = 0x3000;

/// The command register in the configuration space.
const COMMAND: usize = 4;

struct Scene {
    _root: tempfile::TempDir,
    sysfs: Sysfs,
    address: PciAddress,
}

impl Scene {
    /// `features` are the lower and the upper half of what the device offers: it does not look at which one is asked for.
    fn new(features: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (sysfs, address) = (Sysfs::at(root.path()), "00:04.0".parse().unwrap());
        let scene = Self { _root: root, sysfs, address };
        let folder = scene.sysfs.device(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("vendor"), "0x1af4\n").unwrap();
        fs::write(folder.join("device"), "0x1042\n").unwrap();
        fs::write(scene.sysfs.config(address), honest()).unwrap();
        let mut region = vec![0; 0x4000];
        region[DEVICE_FEATURE..][..4].copy_from_slice(&features.to_le_bytes());
        region[QUEUE_SIZE] = 128;
        // Left by somebody who was killed.
        region[STATUS] = 15;
        region[DISK..][..8].copy_from_slice(&2048_u64.to_le_bytes());
        region[NOTIFY..][..2].fill(0xff);
        fs::write(scene.sysfs.resource(address, 4), region).unwrap();
        scene
    }

    fn take(&self) -> io::Result<Pci> {
        Pci::take(self.sysfs.clone(), self.address)
    }

    fn region(&self) -> Vec<u8> {
        fs::read(self.sysfs.resource(self.address, 4)).unwrap()
    }

    fn command(&self) -> u8 {
        fs::read(self.sysfs.config(self.address)).unwrap()[COMMAND]
    }

    fn refused(&self) -> String {
        self.take().err().unwrap().to_string()
    }
}

/// A queue of 16 descriptors, and memory for it that has a device address of its own.
fn queue() -> (DmaMemory, Layout) {
    let shape = Shape::new(4, 4096);
    let memory = DmaMemory::new(shape.memory(), Pages::Small).unwrap().at(0x1_2345_6000);
    (memory, Layout::new(shape.queue_size(), 0, 0, 0))
}

#[test]
fn a_device_is_told_where_its_queue_lies_and_is_reset_when_it_is_let_go() {
    let scene = Scene::new(1);
    let mut pci = scene.take().unwrap();
    assert_eq!(pci.disk().bytes, 1 << 20);
    assert_eq!(scene.command() & 6, 2, "its registers, and no memory yet");
    let (memory, layout) = queue();
    pci.start(&memory, layout).unwrap();
    assert_eq!(scene.command() & 6, 6);
    let region = scene.region();
    assert_eq!((region[STATUS], region[QUEUE_SIZE]), (15, 16));
    let at = memory.device_address(layout.descriptors);
    assert_eq!(region[QUEUE_DESC..][..8], at.to_le_bytes());
    pci.present().unwrap();
    pci.notify().unwrap();
    assert_eq!(scene.region()[NOTIFY..][..2], [0, 0], "of queue 0");
    assert!(pci.interrupt().is_none() && pci.gone().is_none());
    drop(pci);
    assert_eq!((scene.region()[STATUS], scene.command() & 4), (0, 0));
}

#[test]
fn a_device_that_cannot_be_driven_is_left_reset_and_says_why() {
    for (features, words) in [(0, "no virtio 1"), (3, "iommu_platform=on")] {
        let scene = Scene::new(features);
        let said = scene.refused();
        assert!(said.contains(words), "{said}");
        assert_eq!((scene.region()[STATUS], scene.command() & 4), (0, 0));
    }
    let scene = Scene::new(1);
    let mut pci = scene.take().unwrap();
    let (memory, layout) = queue();
    let said = pci.start(&memory, Layout::new(256, 0, 0, 0)).unwrap_err().to_string();
    assert!(said.contains("queue-size=256"), "{said}");
    assert_eq!((scene.region()[STATUS], scene.command() & 4), (0, 0), "it may not be touched");
    drop((pci, memory, layout));
}

#[test]
fn a_device_has_one_driver_and_goes_to_the_next_when_that_ends() {
    let scene = Scene::new(1);
    let first = scene.take().unwrap();
    assert_eq!(scene.refused(), "another process drives the device");
    drop(first);
    scene.take().unwrap();
}

#[test]
fn a_device_that_is_gone_is_noticed() {
    let scene = Scene::new(1);
    let mut pci = scene.take().unwrap();
    let (memory, layout) = queue();
    pci.start(&memory, layout).unwrap();
    let mut region = scene.region();
    for (status, words) in [(0xff, "gone"), (15 | 64, "only a reset"), (0, "gone")] {
        region[STATUS] = status;
        fs::write(scene.sysfs.resource(scene.address, 4), &region).unwrap();
        let said = pci.present().unwrap_err().to_string();
        assert!(said.contains(words), "{status}: {said}");
    }
}

#[test]
fn registers_beyond_their_region_are_refused() {
    let scene = Scene::new(1);
    fs::write(scene.sysfs.resource(scene.address, 4), vec![0; 0x3fff]).unwrap();
    let said = scene.refused();
    assert!(said.contains("region 4, which has 16383"), "{said}");
}
