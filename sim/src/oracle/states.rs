//! States of a ring.

use super::slot::{Claim, encode};
use super::{Ring, UNIT, other, sector_of};
use rand::RngExt;
use rand::rngs::SmallRng;
use shared_block_ring::format::Side;

/// UUID of every ring here that has an identity.
pub const UUID: [u8; 16] = *b"a ring for tests";

/// A state but for its pointers.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The guest's role.
    pub guest: Side,
    /// Bytes of a sector.
    pub size: usize,
    /// Number of data sectors.
    pub data_sectors: u64,
    /// Whether the ring has an identity: without one there are no slots.
    pub identity: bool,
    /// Length of the first item that the guest may move over: an index into [`lengths`].
    pub framing: usize,
    /// Kind of the guest's slots, and of the host's: 0 to 3.
    pub slots: (usize, usize),
}

/// Returns lengths for an item with `room` bytes behind its header before its part of the ring
/// ends.
pub fn lengths(room: u64) -> [u32; 9] {
    let exact = u32::try_from(room).unwrap();
    [0, 1, 3, 4, exact, exact + 1, 0x7fff_ffff, 0xffff_ffff, 0xffff_fffc]
}

/// Makes the ring `number` of several at random: of all kinds, with positions that agree.
pub fn random_ring(random: &mut SmallRng, number: usize) -> (Shape, Ring) {
    let data_sectors = random.random_range(1..4);
    let size = if number % 16 < 14 { UNIT } else { 4096 };
    let capacity = data_sectors * size as u64;
    let shape = Shape {
        guest: if number.is_multiple_of(2) { Side::Producer } else { Side::Consumer },
        size,
        data_sectors,
        identity: random.random_range(0..5) > 0,
        framing: random.random_range(0..9),
        slots: (random.random_range(0..4), random.random_range(0..4)),
    };
    let consumer = random.random_range(0..capacity) * 4;
    let producer = consumer + random.random_range(0..=capacity / 4) * 4;
    (shape, ring(shape, consumer, producer))
}

/// Makes a ring at these positions, which may contradict each other.
pub fn ring(shape: Shape, consumer: u64, producer: u64) -> Ring {
    let size = shape.size;
    let capacity = shape.data_sectors * size as u64;
    let len = usize::try_from(capacity).unwrap() + 3 * size;
    let mut bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    bytes[..3 * size].fill(0);
    bytes[..30].copy_from_slice(b"mirage shared-block-device 1.0");
    let (from, limit) = match shape.guest {
        Side::Producer => (producer, consumer.saturating_add(capacity)),
        Side::Consumer => (consumer, producer),
    };
    frame(&mut bytes[3 * size..], from, limit, shape.framing);
    for (side, position) in [(Side::Producer, producer), (Side::Consumer, consumer)] {
        let start = sector_of(side) * size;
        bytes[start..start + 8].copy_from_slice(&position.to_le_bytes());
        bytes[start + 8] = 2;
        bytes[start + 128..start + 160].fill(b'x');
    }
    if shape.identity {
        identify(&mut bytes, size);
        let mine = if shape.guest == Side::Producer { producer } else { consumer };
        let theirs = consumer.wrapping_add(producer).wrapping_sub(mine);
        let mut slots = |side: Side, position, variant| {
            let start = sector_of(side) * size;
            say(&mut bytes[start..start + size], position, variant, mine);
        };
        slots(shape.guest, mine, shape.slots.0);
        slots(other(shape.guest), theirs, shape.slots.1);
    }
    Ring::new(shape.guest, shape.identity.then_some(UUID), size, bytes)
}

/// Writes the identity into sector 0.
fn identify(bytes: &mut [u8], size: usize) {
    let sectors = (bytes.len() / size) as u64;
    bytes[32..40].copy_from_slice(b"sbr-ext1");
    bytes[40..44].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
    bytes[48..56].copy_from_slice(&sectors.to_le_bytes());
    bytes[56..72].copy_from_slice(&UUID);
    let crc = crc32c::crc32c(&bytes[..80]);
    bytes[80..84].copy_from_slice(&crc.to_le_bytes());
}

/// Writes items to the data area from `from` on, the last one up to `limit` if the first is not too
/// long for that.
fn frame(data: &mut [u8], from: u64, limit: u64, framing: usize) {
    let capacity = data.len() as u64;
    let from = from & !3;
    let mut at = from;
    let limit = (limit & !3).min(from.saturating_add(capacity));
    let mut later = [5, 0, 12, 1, 40].into_iter().cycle();
    while at < limit {
        let room = limit - at - 4;
        let length = if at == from {
            lengths(room)[framing]
        } else {
            u32::try_from(room).unwrap().min(later.next().unwrap())
        };
        let place = usize::try_from(at % capacity).unwrap();
        data[place..place + 4].copy_from_slice(&length.to_le_bytes());
        at = at.saturating_add((u64::from(length) + 7) & !3);
    }
}

/// Writes the slots of a pointer sector for `position`: none, true ones since the creation, true
/// ones that begin in between, or a slot whose position was never stored.
pub fn say(sector: &mut [u8], position: u64, variant: usize, mine: u64) {
    let mut put = |at: usize, position: u64, claim: Claim| {
        sector[at..at + 48].copy_from_slice(&encode(UUID, position, claim));
    };
    let items = position / 20;
    let always = Claim { items, since_base: false, base: 0, crc: 9 };
    match variant {
        1 => put(16, position, always),
        2 => {
            let base = mine.min(position).saturating_sub(8);
            put(16, position.saturating_sub(4), always);
            put(64, position, Claim { items: 1, since_base: true, base, crc: 8 });
        }
        3 => put(64, position.saturating_add(4), always),
        4 => put(16, position.saturating_add(1), always),
        _ => {}
    }
}
