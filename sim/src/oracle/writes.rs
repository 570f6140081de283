//! Writes that a guest might make to a ring in a given state.

use super::slot::{Claim, Found, decode, encode, find};
use super::states::UUID;
use super::{Ring, UNIT, number, other, sector_of};
use shared_block_ring::format::Side;

/// Calls `try_write` with every write of interest: its start, in units of 512 bytes, and its bytes.
pub fn all(ring: &Ring, try_write: &mut dyn FnMut(usize, &[u8])) {
    let units = ring.size / UNIT;
    let try_write = &mut |first: usize, bytes: &[u8]| try_write(first * units, bytes);
    data(ring, try_write);
    let targets = targets(ring);
    for (index, &to) in targets.iter().enumerate() {
        // All slots where they matter most: at the end of an item, and at the guest's position.
        for sector in &extensions(ring, to, index < 3) {
            try_write(sector_of(ring.guest), sector);
        }
    }
    for to in [targets[0], targets[1]] {
        let absent = extensions(ring, to, false).swap_remove(0);
        for flag in [0, 1, 3, 255] {
            let mut sector = absent.clone();
            sector[8] = flag;
            try_write(sector_of(ring.guest), &sector);
        }
        several(ring, &absent, try_write);
    }
}

/// Returns places in the data area around which a rule begins or ends.
fn edges(ring: &Ring) -> Vec<usize> {
    let capacity = ring.capacity();
    let (producer, consumer) = ring.pair(&ring.bytes, ring.known.position);
    let mut edges = Vec::new();
    for position in [consumer, producer] {
        for place in [position.wrapping_sub(1), position, position.wrapping_add(3)] {
            edges.push(usize::try_from(place % capacity).unwrap());
        }
    }
    for place in (0..usize::try_from(capacity).unwrap()).step_by(ring.size) {
        edges.extend([place, place + ring.size - 1]);
    }
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// Tries writes of single data sectors.
fn data(ring: &Ring, try_write: &mut dyn FnMut(usize, &[u8])) {
    let edges = edges(ring);
    for index in 3..ring.bytes.len() / ring.size {
        let mut bytes = ring.sector(&ring.bytes, index).to_vec();
        try_write(index, &bytes);
        let first = (index - 3) * ring.size;
        for &edge in edges.iter().filter(|&&edge| edge / ring.size == index - 3) {
            bytes[edge - first] ^= 0x10;
            try_write(index, &bytes);
            bytes[edge - first] ^= 0x10;
        }
        for byte in &mut bytes {
            *byte ^= 0xff;
        }
        try_write(index, &bytes);
    }
}

/// Returns positions that the guest might write: the end of the first item, then its own, then the
/// end of the second item.
pub fn targets(ring: &Ring) -> Vec<u64> {
    let from = ring.known.position;
    let (producer, consumer) = ring.pair(&ring.bytes, from);
    let limit = match ring.guest {
        Side::Producer => consumer.wrapping_add(ring.capacity()),
        Side::Consumer => producer,
    };
    let after = |at: u64| {
        let place = ring.place(at) & !3;
        at.wrapping_add((number(&ring.bytes[place..place + 4]) + 7) & !3)
    };
    let mut targets = vec![after(from), from, after(after(from)), limit, from.wrapping_add(4)];
    targets.extend([1, 2, 3, 8].map(|more| from.wrapping_add(more)));
    targets.extend([4, 1].map(|less| from.wrapping_sub(less)));
    targets.extend([limit.wrapping_sub(4), limit.wrapping_add(4), limit.wrapping_add(1)]);
    targets.extend([0, from.wrapping_add(ring.capacity()), 1 << 63, u64::MAX, u64::MAX - 3]);
    targets
}

/// Returns pointer sectors for `to`: without slots, with the right one, with those that are there,
/// and with all kinds of others.
pub fn extensions(ring: &Ring, to: u64, others: bool) -> Vec<Vec<u8>> {
    let mut old = ring.sector(&ring.bytes, sector_of(ring.guest)).to_vec();
    let present = number(&old[..8]);
    old[..8].copy_from_slice(&to.to_le_bytes());
    old[130..140].copy_from_slice(b"wrote this");
    let mut absent = old.clone();
    absent[9..128].fill(0);
    if ring.uuid.is_none() {
        let mut dirty = absent.clone();
        dirty[100] = 1;
        return vec![absent, dirty];
    }
    let speaks = |at: usize| decode(UUID, &old[at..at + 48]).is_some_and(|(of, _)| of == present);
    let (free, kept) = if speaks(16) { (64, 16) } else { (16, 64) };
    let with = |at: usize, position: u64, claim: Claim| {
        let mut sector = old.clone();
        sector[at..at + 48].copy_from_slice(&encode(UUID, position, claim));
        sector
    };
    let from = ring.known.position;
    let count = |from, to| count(ring, from, to);
    let mine = ring.known.claim;
    let right = Claim { items: mine.items + count(from, to), crc: 77, ..mine };
    let mut sectors = vec![absent, with(free, to, right), old.clone()];
    if !others {
        return sectors;
    }
    let here = Claim { items: 0, since_base: true, base: to, crc: 0 };
    let between = Claim { items: count(from, to), since_base: true, base: from, crc: 0 };
    let mut claims = vec![
        Claim { items: right.items + 1, ..right },
        Claim { items: right.items.wrapping_sub(1), ..right },
        Claim { since_base: !right.since_base, ..right },
        Claim { base: right.base.wrapping_add(4), ..right },
        here,
        Claim { since_base: false, ..here },
        Claim { items: 1, ..here },
        Claim { base: to.wrapping_add(4), ..here },
        between,
        Claim { items: between.items + 1, ..between },
        Claim { base: from.wrapping_sub(4), ..between },
        Claim { base: from.wrapping_add(4), ..between },
        Claim { items: u64::MAX, ..right },
    ];
    claims.extend(taken_over(ring, to));
    sectors.extend(claims.into_iter().map(|claim| with(free, to, claim)));
    sectors.extend([
        with(free, to.wrapping_add(4), right),
        with(free, present, right),
        with(kept, to, right),
    ]);
    let changed = |at: usize, byte: u8| {
        let mut sector = with(free, to, right);
        sector[at] ^= byte;
        sector
    };
    let places = [9, 15, 112, 127, free, free + 4, free + 32, free + 36, free + 47, kept, kept + 9];
    sectors.extend(places.map(|at| changed(at, 2)));
    sectors
}

/// Returns the number of items between two positions that are at most a ring apart.
fn count(ring: &Ring, from: u64, to: u64) -> u64 {
    let aligned = from.is_multiple_of(4) && to.is_multiple_of(4);
    if !aligned || to.wrapping_sub(from) > ring.capacity() {
        return 0;
    }
    ring.items(&ring.bytes, from, to, to).map_or(0, |items| items.len() as u64)
}

/// Returns the host's claim about its present position as if it were about `to`, and claims that
/// are a little off.
fn taken_over(ring: &Ring, to: u64) -> Vec<Claim> {
    let host = ring.position(&ring.bytes, other(ring.guest));
    match find(UUID, ring.sector(&ring.bytes, sector_of(other(ring.guest))), host) {
        Found::Slot(told) => {
            let items = told.items.wrapping_sub(count(ring, to, host));
            [0, 1, u64::MAX].map(|more| Claim { items: items.wrapping_add(more), ..told }).into()
        }
        Found::Nothing | Found::Broken => {
            let most = to / 4;
            [most, most + 1].map(|items| Claim { items, since_base: false, base: 0, crc: 1 }).into()
        }
    }
}

/// Tries writes over several sectors.
fn several(ring: &Ring, pointer: &[u8], try_write: &mut dyn FnMut(usize, &[u8])) {
    let size = ring.size;
    let sectors = ring.bytes.len() / size;
    let mine = sector_of(ring.guest) * size;
    try_write(0, &ring.bytes);
    try_write(3, &ring.bytes[3 * size..]);
    try_write(sectors - 1, &ring.bytes[..2 * size]);
    let mut bytes = ring.bytes.clone();
    bytes[mine..mine + size].copy_from_slice(pointer);
    for (first, end) in [(0, 3), (1, 3), (1, 4), (2, 4), (0, sectors)] {
        try_write(first, &bytes[first * size..end * size]);
    }
    for host in [sector_of(other(ring.guest)), 0] {
        bytes[host * size + 200] ^= 1;
        try_write(host.min(1), &bytes[host.min(1) * size..3 * size]);
        bytes[host * size + 200] ^= 1;
    }
    for edge in edges(ring) {
        let at = edge + 3 * size;
        bytes[at] ^= 1;
        // With the new pointer in front, and with data alone.
        try_write(1, &bytes[size..]);
        try_write(3, &bytes[3 * size..]);
        bytes[at] ^= 1;
    }
}
