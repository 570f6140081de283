//! What must become of a guest's write, by the words of `docs/format.md` and nothing else: a byte at a time, over a plain copy of
//! the ring, with none of the guard's code.
#![allow(clippy::unwrap_used, reason = "an oracle that stumbles is a test that fails")]

pub mod slot;
pub mod states;
pub mod writes;

use shared_block_ring::format::Side;
use slot::{Claim, Found, find};

/// The unit in which a request says where it begins (virtio 1.3, 5.2.6), and the usual size of a sector.
pub const UNIT: usize = 512;

/// What a guest's page cache writes at a time.
const PAGE: usize = 4096;

/// Why a write is refused, as `diagnostics` names it.
pub type Refusal = &'static str;

/// A ring, and a guest.
#[derive(Debug, Clone)]
pub struct Ring {
    /// The guest's role.
    pub guest: Side,
    /// The ring's identity.
    pub uuid: Option<[u8; 16]>,
    /// Bytes of a sector.
    pub size: usize,
    /// All sectors.
    pub bytes: Vec<u8>,
    /// What the backend knows of the guest's side.
    pub known: Known,
    /// Which bytes of the data area are published and not consumed.
    frozen: Vec<bool>,
}

/// What the backend knows of the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Where it is.
    pub position: u64,
    /// Byte 8 of its pointer sector.
    pub flag: u8,
    /// What it has counted.
    pub claim: Claim,
}

/// A little-endian number.
pub fn number(bytes: &[u8]) -> u64 {
    let mut value = 0;
    for &byte in bytes.iter().rev() {
        value = value << 8 | u64::from(byte);
    }
    value
}

/// The index of a side's pointer sector.
pub fn sector_of(side: Side) -> usize {
    if side == Side::Producer { 1 } else { 2 }
}

/// The other role.
pub fn other(side: Side) -> Side {
    if side == Side::Producer { Side::Consumer } else { Side::Producer }
}

impl Ring {
    /// As a backend finds it that starts.
    pub fn new(guest: Side, uuid: Option<[u8; 16]>, size: usize, bytes: Vec<u8>) -> Self {
        let nobody = Known { position: 0, flag: 0, claim: Claim::from_here(0) };
        let mut ring = Self { guest, uuid, size, bytes, known: nobody, frozen: Vec::new() };
        let stands = |side: Side| {
            let position = ring.position(&ring.bytes, side);
            let sector = ring.sector(&ring.bytes, sector_of(side));
            let found = uuid.map_or(Found::Nothing, |uuid| find(uuid, sector, position));
            let claim = match found {
                Found::Slot(claim) => claim,
                Found::Nothing | Found::Broken => Claim::from_here(position),
            };
            Known { position, flag: sector[8], claim }
        };
        let mut known = stands(guest);
        let consumer = stands(Side::Consumer);
        if guest == Side::Producer && consumer.position > known.position {
            // Power failed between the two: what was consumed had been published.
            known = Known { flag: known.flag, ..consumer };
        }
        ring.known = known;
        ring.freeze();
        ring
    }

    /// The host has stored these bytes.
    pub fn host_stores(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.freeze();
    }

    /// A write of the guest was carried out.
    pub fn becomes(&mut self, (bytes, known): (Vec<u8>, Known)) {
        (self.bytes, self.known) = (bytes, known);
        self.freeze();
    }

    fn freeze(&mut self) {
        self.frozen = self.frozen_by(&self.bytes, self.known.position).unwrap_or_default();
    }

    /// Bytes of the data area.
    pub fn capacity(&self) -> u64 {
        (self.bytes.len() - self.data_start()) as u64
    }

    /// Where that begins.
    pub fn data_start(&self) -> usize {
        3 * self.size
    }

    /// Where the byte of a position is.
    pub fn place(&self, position: u64) -> usize {
        self.data_start() + usize::try_from(position % self.capacity()).unwrap()
    }

    /// The sector `index` of `bytes`.
    pub fn sector<'a>(&self, bytes: &'a [u8], index: usize) -> &'a [u8] {
        &bytes[index * self.size..(index + 1) * self.size]
    }

    /// What a side's pointer sector says in `bytes`.
    pub fn position(&self, bytes: &[u8], side: Side) -> u64 {
        number(&self.sector(bytes, sector_of(side))[..8])
    }

    /// Producer and consumer, if the guest is at `mine`.
    pub fn pair(&self, bytes: &[u8], mine: u64) -> (u64, u64) {
        let host = self.position(bytes, other(self.guest));
        if self.guest == Side::Producer { (mine, host) } else { (host, mine) }
    }

    /// None if the positions contradict each other.
    pub fn frozen_by(&self, bytes: &[u8], mine: u64) -> Option<Vec<bool>> {
        let (producer, consumer) = self.pair(bytes, mine);
        let sound = consumer % 4 == 0 && producer % 4 == 0 && consumer <= producer;
        if !sound || producer - consumer > self.capacity() {
            return None;
        }
        let mut frozen = vec![false; bytes.len() - self.data_start()];
        for position in consumer..producer {
            frozen[usize::try_from(position % self.capacity()).unwrap()] = true;
        }
        Some(frozen)
    }

    /// The ring after a write that begins `first` units of 512 bytes from the start, and what is known then.
    pub fn judge(&self, first: usize, write: &[u8]) -> Result<(Vec<u8>, Known), Refusal> {
        let (start, end) = (first * UNIT, first * UNIT + write.len());
        if end > self.bytes.len() || start % self.size != 0 || end % self.size != 0 {
            return Err("out_of_range");
        }
        // Somebody writes the first page through a cache of such pages.
        let page = start == 0 && end >= PAGE && self.size < PAGE;
        self.judge_sectors(start / self.size, write).map_err(|refusal| {
            if page && refusal != "host_corrupt" { "buffered_page" } else { refusal }
        })
    }

    fn judge_sectors(&self, first: usize, write: &[u8]) -> Result<(Vec<u8>, Known), Refusal> {
        let mut after = self.bytes.clone();
        let mut known = self.known;
        let mut moved = None;
        for (index, new) in (first..).zip(write.chunks(self.size)) {
            let start = index * self.size;
            let same = after[start..start + self.size] == *new;
            if index == 0 && !same {
                return Err("signature");
            } else if index == sector_of(other(self.guest)) && !same {
                return Err("host_pointer");
            } else if index == sector_of(self.guest) && !same {
                known = self.pointer(&after, new)?;
                after[start..start + self.size].copy_from_slice(new);
                moved = Some(self.frozen_by(&after, known.position).unwrap());
            } else if index >= 3 {
                let frozen = moved.as_ref().unwrap_or(&self.frozen);
                self.data(&mut after, frozen, start, new)?;
            }
        }
        Ok((after, known))
    }

    fn data(
        &self,
        after: &mut [u8],
        frozen: &[bool],
        start: usize,
        new: &[u8],
    ) -> Result<(), Refusal> {
        if !self.position(after, other(self.guest)).is_multiple_of(4) {
            return Err("host_corrupt");
        }
        if self.guest == Side::Consumer {
            let same = after[start..start + self.size] == *new;
            return if same { Ok(()) } else { Err("foreign_data") };
        }
        if frozen.is_empty() {
            return Err("host_corrupt");
        }
        let frozen = &frozen[start - self.data_start()..];
        for ((held, &byte), &frozen) in after[start..].iter_mut().zip(new).zip(frozen) {
            if !frozen {
                *held = byte;
            } else if *held != byte {
                return Err("published_data");
            }
        }
        Ok(())
    }

    fn pointer(&self, bytes: &[u8], new: &[u8]) -> Result<Known, Refusal> {
        let host = self.position(bytes, other(self.guest));
        if !host.is_multiple_of(4) {
            return Err("host_corrupt");
        }
        if new[8] != 1 && new[8] != 2 {
            return Err("pointer_flag");
        }
        let to = number(&new[..8]);
        if !to.is_multiple_of(4) {
            return Err("pointer_misaligned");
        }
        let from = self.known.position;
        let (producer, consumer) = self.pair(bytes, from);
        if consumer > producer || producer - consumer > self.capacity() {
            return Err("host_corrupt");
        }
        if to < from {
            return Err("pointer_backwards");
        }
        let limit = if self.guest == Side::Producer {
            u128::from(consumer) + u128::from(self.capacity())
        } else {
            u128::from(producer)
        };
        if u128::from(to) > limit {
            return Err("pointer_beyond");
        }
        let claim = self.slots(bytes, new, to)?;
        let published = if self.guest == Side::Producer { to } else { producer };
        let starts = |from, to| self.items(bytes, from, to, published);
        let Some(claim) = claim else {
            starts(from, to)?;
            return Ok(Known { position: to, flag: new[8], claim: Claim::from_here(to) });
        };
        let mine = self.known.claim;
        let true_count = if (claim.base, claim.since_base) == (mine.base, mine.since_base) {
            Some(mine.items + starts(from, to)?.len() as u64)
        } else if claim.since_base && (from..=to).contains(&claim.base) {
            let mut places = starts(from, to)?;
            places.push(to);
            let base = places.iter().position(|&place| place == claim.base);
            Some((places.len() - 1 - base.ok_or("item_count")?) as u64)
        } else if self.guest == Side::Producer || !claim.possible(to) {
            return Err("item_count");
        } else {
            // From the host, at whatever time.
            match find(self.uuid.unwrap(), self.sector(bytes, 1), host) {
                Found::Broken => return Err("host_corrupt"),
                Found::Slot(told) if told.base == claim.base || told.base_free(claim) => {
                    if told.since_base != claim.since_base {
                        return Err("item_count");
                    }
                    starts(from, to)?;
                    let behind = starts(to, host)?.len() as u64;
                    Some(told.items.checked_sub(behind).ok_or("item_count")?)
                }
                Found::Slot(_) | Found::Nothing => {
                    starts(from, to)?;
                    None
                }
            }
        };
        if true_count.is_some_and(|count| count != claim.items) {
            return Err("item_count");
        }
        Ok(Known { position: to, flag: new[8], claim })
    }

    /// What the slot for the new position says.
    fn slots(&self, bytes: &[u8], new: &[u8], to: u64) -> Result<Option<Claim>, Refusal> {
        if new[9..128].iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let Some(uuid) = self.uuid else { return Err("pointer_extension") };
        if new[9..16].iter().chain(&new[112..128]).any(|&byte| byte != 0) {
            return Err("pointer_extension");
        }
        let old = self.sector(bytes, sector_of(self.guest));
        let present = number(&old[..8]);
        let changed: Vec<usize> =
            [16, 64].into_iter().filter(|&at| old[at..at + 48] != new[at..at + 48]).collect();
        let speaks = |sector: &[u8], at: usize, position: u64| {
            slot::decode(uuid, &sector[at..at + 48]).is_some_and(|(of, _)| of == position)
        };
        let kept = match changed[..] {
            [] => to == present,
            [at] => speaks(new, at, to) && !speaks(old, at, present),
            _ => false,
        };
        if !kept {
            return Err("pointer_extension");
        }
        match find(uuid, new, to) {
            Found::Slot(claim) => Ok(Some(claim)),
            Found::Nothing => Ok(None),
            Found::Broken => Err("pointer_extension"),
        }
    }

    /// Where the items between two positions start, if one ends exactly at the second.
    pub fn items(
        &self,
        bytes: &[u8],
        from: u64,
        to: u64,
        published: u64,
    ) -> Result<Vec<u64>, Refusal> {
        let mut starts = Vec::new();
        let mut at = u128::from(from);
        while at < u128::from(to) {
            let place = self.place(u64::try_from(at).unwrap());
            let length = u128::from(number(&bytes[place..place + 4]));
            starts.push(u64::try_from(at).unwrap());
            at += 4 + length;
            while at % 4 != 0 {
                at += 1;
            }
            if at > u128::from(published) {
                return Err("item_framing");
            }
        }
        if at == u128::from(to) { Ok(starts) } else { Err("item_framing") }
    }
}
