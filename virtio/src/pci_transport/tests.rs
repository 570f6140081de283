//! The way to a device whose registers are a file: it does nothing by itself, and what it was told
//! stays to be looked at.
#![allow(clippy::unwrap_used)]

use super::caps::tests::honest;
use super::*;
use crate::memory::Pages;
use ring_os::Limits;
use std::fs;

/// Offsets of the common structure, which lies at the start of the region, and of the disk's
/// configuration.
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
    /// `features` are the lower and the upper half of what the device offers: it does not look at
    /// which one is asked for.
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

    fn take(&self) -> Result<Pci, Error> {
        // SAFETY: the device's registers are a file: it writes to no memory.
        unsafe { Pci::take(self.sysfs.clone(), self.address) }
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

/// A queue of so many descriptors, and memory for it that has a device address of its own.
fn queue(size: u16) -> (DmaMemory, Layout) {
    let layout = Layout::new(size, 0, 0);
    let memory = DmaMemory::new(layout.end, Pages::Small).unwrap();
    // SAFETY: the device's registers are a file: it writes to no memory.
    (unsafe { memory.at(0x1_2345_6000) }, layout)
}

fn start(pci: &mut Pci, (memory, layout): &(DmaMemory, Layout)) -> Result<(), Error> {
    // SAFETY: as above.
    unsafe { pci.start(memory, *layout, &Limits::default()) }
}

#[test]
fn a_device_is_told_where_its_queue_lies_and_is_reset_when_it_is_let_go() {
    let scene = Scene::new(1);
    let mut pci = scene.take().unwrap();
    assert_eq!(pci.disk().bytes, 1 << 20);
    assert_eq!(scene.command() & 6, 2, "its registers, and no memory yet");
    let queue = queue(16);
    start(&mut pci, &queue).unwrap();
    assert_eq!(scene.command() & 6, 6);
    let region = scene.region();
    assert_eq!((region[STATUS], region[QUEUE_SIZE]), (15, 16));
    let (memory, layout) = &queue;
    for (offset, part) in (0..).step_by(8).zip(layout.ranges(memory)) {
        assert_eq!(region[QUEUE_DESC + offset..][..8], part.address().to_le_bytes());
    }
    pci.present().unwrap();
    pci.notify().unwrap();
    assert_eq!(scene.region()[NOTIFY..][..2], [0, 0], "of queue 0");
    assert!(pci.interrupt().is_none() && pci.gone().is_none());
    drop(pci);
    assert_eq!((scene.region()[STATUS], scene.command() & 4), (0, 0));
}

#[test]
fn a_device_that_was_stopped_is_reset_and_kept_from_memory() {
    let scene = Scene::new(1);
    let mut pci = scene.take().unwrap();
    start(&mut pci, &queue(16)).unwrap();
    pci.stop().unwrap();
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
    let said = start(&mut pci, &queue(256)).unwrap_err().to_string();
    assert!(said.contains("queue-size=256"), "{said}");
    drop(pci);
    assert_eq!((scene.region()[STATUS], scene.command() & 4), (0, 0), "it may not be touched");
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
    start(&mut pci, &queue(16)).unwrap();
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
