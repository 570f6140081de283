//! Attacks on published bytes, and writes to free ones.

use nix::errno::Errno;
use std::os::unix::fs::FileExt as _;
use vhost_device_blockring::data_path::guard::Reason;

use super::raid::Published;
use super::{Attack, Failure, Group, Raid, ensure, index};
use crate::load::Random;

pub(super) const ATTACKS: &[Attack] = &[
    Group::Data.attack("published_bits_flipped", &[Reason::PublishedData], flipped),
    Group::Data.attack(
        "published_across_the_wrap_point",
        &[Reason::PublishedData],
        flipped_at_the_wrap,
    ),
    Group::Data.attack("free_and_published_in_one_write", &[Reason::PublishedData], together),
    Group::Data.attack("free_part_filled_with_junk", &[], junk),
    Group::Data.attack(
        "whole_disk_overwritten",
        &[Reason::BufferedPage, Reason::PublishedData],
        whole_disk,
    ),
    Group::Data.attack("past_the_end", &[], past_the_end),
];

/// Bytes of a chunk in which a disk is overwritten.
const CHUNK: u64 = 16 << 10;

impl Raid {
    /// Flips one bit of the published byte `at`, counted from the item's start.
    fn flip(&mut self, item: Published, at: u64, bit: u32) -> Result<(), Failure> {
        let start = item.start.get() + at;
        // Positions are words; the byte lies in one.
        let word = shared_block_ring::Position::new(start & !3).unwrap_or(item.start);
        let (sector, byte) = self.place(word);
        let mut bytes = self.read(sector, 1)?;
        bytes[byte + index(start & 3)] ^= 1 << bit;
        self.refused_write(Reason::PublishedData, sector, &bytes)
    }

    fn flip_all_borders(&mut self, item: Published) -> Result<(), Failure> {
        let len = item.end.get() - item.start.get();
        let size = u64::from(self.geometry().sector_size().get());
        let mut places = vec![0, 3, len - 1];
        if len > 4 {
            places.push(4);
        }
        // The last byte of each sector, and the first one of the next.
        let mut border = size - item.start.get() % size;
        while border < len {
            places.extend([border - 1, border]);
            border += size;
        }
        for (bit, at) in (0..).zip(places) {
            self.flip(item, at, bit % 8)?;
        }
        Ok(())
    }
}

fn flipped(raid: &mut Raid) -> Result<(), Failure> {
    raid.settle()?;
    let (first, last) = (raid.held()[0].start, raid.last()?.end);
    let before = raid.stream(first, last)?;
    for item in raid.held() {
        raid.flip_all_borders(item)?;
    }
    ensure(raid.stream(first, last)? == before, || "published bytes have changed".to_owned())
}

fn flipped_at_the_wrap(raid: &mut Raid) -> Result<(), Failure> {
    let capacity = raid.geometry().capacity().get();
    loop {
        let last = raid.last()?;
        if last.start.get() / capacity != (last.end.get() - 1) / capacity {
            break;
        }
        raid.publish(1)?;
    }
    let last = raid.last()?;
    let wrap = capacity - last.start.get() % capacity;
    for (bit, at) in (0..).zip([0, wrap - 1, wrap, last.end.get() - last.start.get() - 1]) {
        raid.flip(last, at, bit)?;
    }
    Ok(())
}

/// Free sectors in front of what is published, and behind it: with one published bit flipped, none
/// of them may change.
fn together(raid: &mut Raid) -> Result<(), Failure> {
    let geometry = raid.geometry();
    let mut both = (false, false);
    while both != (true, true) {
        raid.publish(1)?;
        raid.settle()?;
        let (first, last) = (raid.held()[0], raid.last()?);
        let (begins, _) = raid.place(first.start);
        let (ends, _) = raid.place(last.start);
        // Where the wrap point is not near.
        if begins > 3 + 4 && ends > begins {
            raid.spoil(begins - 4, 5, first.start)?;
            both.0 = true;
        }
        let (free, _) = raid.place(last.end);
        if free + 5 < geometry.sectors() && free >= ends && ends >= begins {
            raid.spoil(ends, index(free - ends) + 5, last.start)?;
            both.1 = true;
        }
    }
    Ok(())
}

impl Raid {
    /// Writes junk to all bytes of `count` sectors that are free, and flips a bit of the word at
    /// `at`.
    fn spoil(
        &mut self,
        sector: u64,
        count: usize,
        at: shared_block_ring::Position,
    ) -> Result<(), Failure> {
        let size = self.geometry().sector_size().bytes();
        let mut bytes = self.read(sector, count)?;
        let (published, byte) = self.place(at);
        let published = index(published - sector);
        for (number, chunk) in bytes.chunks_mut(size).enumerate() {
            // Sectors that are certainly free: in front of the first one published, or at the end.
            if number < published || (number > published && number + 4 >= count) {
                chunk.fill(0xdb);
            }
        }
        bytes[published * size + byte] ^= 0x10;
        self.refused_write(Reason::PublishedData, sector, &bytes)
    }
}

fn junk(raid: &mut Raid) -> Result<(), Failure> {
    let consumer = raid.settle()?;
    let end = raid.last()?.end;
    let geometry = raid.geometry();
    let size = u64::from(geometry.sector_size().get());
    let mut random = Random::new(end.get());
    // Whole sectors of the free part, up to the wrap point and from there on.
    let start = geometry.sector_ceil(end.get());
    let len = geometry.sector_floor(consumer.get() + geometry.capacity().get()) - start;
    for extent in geometry.extents(start, len) {
        let mut bytes = vec![0; index(extent.len)];
        random.fill(&mut bytes);
        if !bytes.is_empty() {
            let outcome = raid.write(extent.offset / size, &bytes);
            raid.passed(outcome)?;
        }
    }
    Ok(())
}

/// Writes as a program does that makes a file system on the disk.
fn whole_disk(raid: &mut Raid) -> Result<(), Failure> {
    let consumer = raid.settle()?;
    let end = raid.last()?.end;
    let geometry = raid.geometry();
    let size = u64::from(geometry.sector_size().get());
    let published = geometry.extents(consumer.get(), end.since(consumer).unwrap_or(0));
    let before = raid.stream(consumer, end)?;
    let chunk = vec![0x55; index(CHUNK)];
    for start in (0..geometry.total_bytes()).step_by(index(CHUNK)) {
        let hit = published.iter().any(|extent| {
            extent.len > 0 && extent.offset < start + CHUNK && start < extent.offset + extent.len
        });
        let outcome = raid.write(start / size, &chunk);
        match (start, hit) {
            (0, _) => raid.refused(Reason::BufferedPage, outcome)?,
            (_, true) => raid.refused(Reason::PublishedData, outcome)?,
            (_, false) => raid.passed(outcome)?,
        }
    }
    let outcome = raid.write(0, &vec![0; index(geometry.total_bytes())]);
    raid.refused(Reason::BufferedPage, outcome)?;
    ensure(raid.stream(consumer, end)? == before, || "published bytes have changed".to_owned())
}

/// Tries transfers beyond the end and of parts of sectors, which the kernel itself refuses.
fn past_the_end(raid: &mut Raid) -> Result<(), Failure> {
    let disk = raid.file(libc::O_DIRECT)?;
    let end = raid.geometry().total_bytes();
    let page = raid.read(3, 8)?;
    for at in [end, end + 4096, 1 << 40, i64::MAX.cast_unsigned() & !4095] {
        raid.barred(&[Errno::ENOSPC, Errno::EFBIG, Errno::EINVAL], disk.write_at(&page, at))?;
    }
    for (at, len) in [(512, 511), (513, 512), (end - 256, 512)] {
        raid.barred(&[Errno::EINVAL], disk.write_at(&page[..len], at))?;
    }
    Ok(())
}
