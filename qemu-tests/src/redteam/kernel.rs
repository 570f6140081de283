//! Attacks by the kernel's page cache, and by requests through `ioctl`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use vhost_device_blockring::data_path::guard::Reason;

use super::{Attack, Failure, Group, Raid, ensure};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Kernel.attack("written_through_the_page_cache", &[Reason::BufferedPage], buffered),
    Group::Kernel.attack("discarded", &[], discard),
    Group::Kernel.attack("zeroed", &[Reason::BufferedPage, Reason::PublishedData], zeroed),
    Group::Kernel.attack("holes_punched", &[], holes),
    Group::Kernel.attack("odd_requests_of_a_disk", &[], odd),
];

/// Numbers of `linux/fs.h`, `linux/hdreg.h`, `scsi/sg.h` and `linux/cdrom.h`.
mod request {
    nix::ioctl_write_ptr_bad!(discard, 0x1277, [u64; 2]);
    nix::ioctl_write_ptr_bad!(secure_discard, 0x127d, [u64; 2]);
    nix::ioctl_write_ptr_bad!(zero_out, 0x127f, [u64; 2]);
    nix::ioctl_none_bad!(flush_buffers, 0x1261);
    nix::ioctl_none_bad!(reread_partitions, 0x125f);
    nix::ioctl_read_bad!(physical_block_size, 0x127b, [u32; 16]);
    nix::ioctl_read_bad!(geometry, 0x0301, [u32; 16]);
    nix::ioctl_read_bad!(scsi_version, 0x2282, [u32; 16]);
    nix::ioctl_read_bad!(scsi, 0x2285, [u32; 32]);
    nix::ioctl_none_bad!(eject, 0x5309);
}

/// Drops the kernel's cache of the disk.
fn flush_buffers(disk: &File) -> nix::Result<i32> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { request::flush_buffers(disk.as_raw_fd()) }
}

fn buffered(raid: &mut Raid) -> Result<(), Failure> {
    let before = raid.read(0, 8)?;
    raid.report.at_least = true;
    // The kernel tells of a failed write-back to everybody who has the disk open: the honest
    // producer's next flush would fail.
    raid.detach();
    for (sector, len) in [(0, 512), (1, 512), (2, 512), (0, 4096), (1, 9)] {
        let disk = raid.file(0)?;
        disk.write_all_at(&vec![0x66; len], sector * 512)?;
        raid.refused(Reason::BufferedPage, disk.sync_all())?;
        flush_buffers(&disk)?;
    }
    ensure(raid.read(0, 8)?[..] == before[..], || "a refused page was stored".to_owned())?;
    raid.attach()
}

fn discard(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let end = raid.geometry().total_bytes();
    for range in [[0, 4096], [512, 512], [0, end]] {
        // SAFETY: BLKDISCARD and BLKSECDISCARD read two integers of 64 bits, which are there.
        let outcome = unsafe { request::discard(disk.as_raw_fd(), &raw const range) };
        raid.barred(&[Errno::EOPNOTSUPP], outcome.map_err(io::Error::from))?;
        // SAFETY: as above.
        let outcome = unsafe { request::secure_discard(disk.as_raw_fd(), &raw const range) };
        raid.barred(&[Errno::EOPNOTSUPP], outcome.map_err(io::Error::from))?;
    }
    Ok(())
}

/// Without the device's help the kernel writes pages of zeros.
fn zeroed(raid: &mut Raid) -> Result<(), Failure> {
    let consumer = raid.settle()?;
    let end = raid.last()?.end;
    let before = (raid.read(0, 3)?, raid.stream(consumer, end)?);
    raid.report.at_least = true;
    let disk = raid.file(libc::O_DIRECT)?;
    let (published, _) = raid.place(consumer);
    for (reason, range) in [
        (Reason::BufferedPage, [0, 4096]),
        (Reason::BufferedPage, [0, raid.geometry().total_bytes()]),
        (Reason::PublishedData, [published * 512, 512]),
    ] {
        // SAFETY: BLKZEROOUT reads two integers of 64 bits, which are there.
        let outcome = unsafe { request::zero_out(disk.as_raw_fd(), &raw const range) };
        raid.refused(reason, outcome.map(drop).map_err(io::Error::from))?;
    }
    let after = (raid.read(0, 3)?, raid.stream(consumer, end)?);
    ensure(before.0[..] == after.0[..] && before.1 == after.1, || "zeros are there".to_owned())
}

fn holes(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for flags in [
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep,
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
        keep,
    ] {
        let outcome = fallocate(&disk, flags, 0, 4096);
        raid.barred(&[Errno::EOPNOTSUPP], outcome.map_err(io::Error::from))?;
    }
    Ok(())
}

/// Whatever the kernel answers: no request may be refused, and nothing may break.
fn odd(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(0)?;
    let fd = disk.as_raw_fd();
    let (mut words, mut packet) = ([0; 16], [0; 32]);
    let outcomes = [
        flush_buffers(&disk),
        // SAFETY: BLKRRPART takes no argument.
        unsafe { request::reread_partitions(fd) },
        // SAFETY: BLKPBSZGET fills one integer; there are sixteen.
        unsafe { request::physical_block_size(fd, &raw mut words) },
        // SAFETY: HDIO_GETGEO fills a structure of 16 bytes; there are 64.
        unsafe { request::geometry(fd, &raw mut words) },
        // SAFETY: SG_GET_VERSION_NUM fills one integer; there are sixteen.
        unsafe { request::scsi_version(fd, &raw mut words) },
        // SAFETY: SG_IO takes a structure of 88 bytes, which is all zero here (and so is no
        // request); there are 128.
        unsafe { request::scsi(fd, &raw mut packet) },
        // SAFETY: CDROMEJECT takes no argument.
        unsafe { request::eject(fd) },
    ];
    raid.report.barred += outcomes.iter().filter(|outcome| outcome.is_err()).count() as u64;
    raid.report.passed += outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
    Ok(())
}
