//! Random operations on kernel block devices against a queue of vectors.
#![allow(clippy::unwrap_used)]

use std::fs;

use qemu_tests::{Disk, GuestBuilder, Result};

/// Number of random sequences of operations on each disk; each takes some ten milliseconds.
const CASES: u32 = 30;

#[test]
fn ring_on_a_kernel_block_device_is_a_queue() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = GuestBuilder::new();
    let disks = [(512, 4), (512, 7), (4096, 4), (4096, 7)];
    for (index, (sector_size, sectors)) in disks.into_iter().enumerate() {
        let path = folder.path().join(format!("disk{index}"));
        fs::write(&path, vec![0; sector_size * sectors]).unwrap();
        let blocks = format!("logical_block_size={sector_size},physical_block_size={sector_size}");
        guest = guest.disk(Disk::file(path, format!("disk{index}")).options(&blocks));
    }
    let guest = guest.boot()?;
    assert_eq!(
        guest.check("cat /sys/block/vd[a-d]/queue/logical_block_size")?,
        "512\n512\n4096\n4096\n"
    );
    let report =
        guest.check(&format!("ringmodel --cases {CASES} /dev/vda /dev/vdb /dev/vdc /dev/vdd"))?;
    assert_eq!(report.lines().count(), disks.len(), "{report}");
    guest.power_off()
}
