//! False framing of the items that a pointer is to publish.

use shared_block_ring::Position;
use shared_block_ring::format::{HEADER_BYTES, Side, framed_len};
use vhost_device_blockring::data_path::guard::Reason;

use super::{Attack, Failure, Group, Raid, ensure, index};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Heads.attack("item_reaches_past_the_pointer", &[Reason::ItemFraming], past_the_pointer),
    Group::Heads.attack("item_of_negative_length", &[Reason::ItemFraming], negative),
    Group::Heads.attack("pointer_within_an_item", &[Reason::ItemFraming], within),
    Group::Heads.attack("item_across_the_wrap_point", &[Reason::ItemFraming], across_the_wrap),
];

impl Raid {
    /// Writes the length of an item into the free part.
    pub(super) fn write_header(&mut self, at: Position, length: u32) -> Result<(), Failure> {
        let (sector, byte) = self.place(at);
        let mut bytes = self.read(sector, 1)?;
        bytes[byte..byte + index(HEADER_BYTES)].copy_from_slice(&length.to_le_bytes());
        let outcome = self.write(sector, &bytes);
        self.passed(outcome)
    }

    fn refused_publication(&mut self, to: u64) -> Result<(), Failure> {
        let sector = self.bare(to);
        self.refused_write(Reason::ItemFraming, Side::Producer.sector(), &sector)
    }

    /// Writes `length` at the end of the stream, and a pointer `to` bytes behind it.
    fn lie(&mut self, length: u32, to: u64) -> Result<(), Failure> {
        let end = self.last()?.end;
        self.write_header(end, length)?;
        self.refused_publication(end.get() + to)
    }
}

fn past_the_pointer(raid: &mut Raid) -> Result<(), Failure> {
    let capacity = u32::try_from(raid.geometry().capacity().get()).unwrap_or(u32::MAX);
    for length in [1, 5, 4096, capacity - 4, capacity, 2 * capacity, 0x7fff_ffff] {
        raid.lie(length, 4)?;
    }
    for length in [5, 600, capacity, 0x7fff_ffff] {
        raid.lie(length, 8)?;
    }
    Ok(())
}

fn negative(raid: &mut Raid) -> Result<(), Failure> {
    // The last three wrap around to a few bytes where somebody adds to them in 32 bits.
    for length in [0x8000_0000, 0xffff_fff0, 0xffff_fffc, 0xffff_fffd, u32::MAX] {
        for to in [4, 8, 512, 8192] {
            raid.lie(length, to)?;
        }
    }
    Ok(())
}

/// Writes a sound item and another one behind it, and a pointer that is not at its end.
fn within(raid: &mut Raid) -> Result<(), Failure> {
    let end = raid.last()?.end;
    let second = position(end, framed_len(20))?;
    for (length, to) in [(8, 4), (8, 8), (100, 52), (2000, 1000)] {
        raid.write_header(end, 20)?;
        raid.write_header(second, length)?;
        raid.refused_publication(second.get() + to)?;
    }
    Ok(())
}

/// Writes an item over the wrap point, and a pointer that is four bytes off its end.
fn across_the_wrap(raid: &mut Raid) -> Result<(), Failure> {
    let capacity = raid.geometry().capacity().get();
    loop {
        let consumer = raid.settle()?;
        let end = raid.last()?.end;
        let left = capacity - raid.geometry().data_offset(end.get());
        let free = capacity - end.since(consumer).unwrap_or(capacity);
        if left + 2048 <= free {
            for beyond in [0, 4, 100, 1024] {
                let length = u32::try_from(left + beyond).unwrap_or(u32::MAX);
                raid.lie(length, framed_len(length) - 4)?;
                raid.lie(length + 8, framed_len(length))?;
            }
            return Ok(());
        }
        raid.publish(1)?;
    }
}

fn position(from: Position, bytes: u64) -> Result<Position, Failure> {
    let to = from.checked_add(bytes);
    ensure(to.is_some(), || "a stream that long".to_owned())?;
    Ok(to.unwrap_or(from))
}
