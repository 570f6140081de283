//! What must become of a guest's write, by the words of `docs/format.md` and nothing else: a byte at a time, over a plain copy of
//! the ring, with none of the guard's code.

pub mod slot;
pub mod states;
pub mod writes;

use shared_block_ring::format::Side;
use slot::{Claim, Found, find};
use vhost_device_blockring::guard::Reason;

pub const SECTOR: usize = 512;

/// A ring of 512-byte sectors, and a guest.
#[derive(Clone)]
pub struct Ring {
    pub guest: Side,
    pub uuid: Option<[u8; 16]>,
    pub bytes: Vec<u8>,
    pub known: Known,
    /// Which bytes of the data area are published and not consumed.
    frozen: Vec<bool>,
}

/// What the backend knows of the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub position: u64,
    pub flag: u8,
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

pub fn position_at(bytes: &[u8], side: Side) -> u64 {
    let start = sector_of(side) * SECTOR;
    number(&bytes[start..start + 8])
}

pub fn sector_of(side: Side) -> usize {
    if side == Side::Producer { 1 } else { 2 }
}

pub fn other(side: Side) -> Side {
    if side == Side::Producer { Side::Consumer } else { Side::Producer }
}

pub fn sector(bytes: &[u8], index: usize) -> &[u8] {
    &bytes[index * SECTOR..(index + 1) * SECTOR]
}

impl Ring {
    /// As a backend finds it that starts.
    pub fn new(guest: Side, uuid: Option<[u8; 16]>, bytes: Vec<u8>) -> Self {
        let side = |side: Side| {
            let position = position_at(&bytes, side);
            let sector = sector(&bytes, sector_of(side));
            let found = uuid.map_or(Found::Nothing, |uuid| find(uuid, sector, position));
            let claim = match found {
                Found::Slot(claim) => claim,
                Found::Nothing | Found::Broken => Claim::from_here(position),
            };
            Known { position, flag: sector[8], claim }
        };
        let mut known = side(guest);
        let consumer = side(Side::Consumer);
        if guest == Side::Producer && consumer.position > known.position {
            // Power failed between the two: what was consumed had been published.
            known = Known { flag: known.flag, ..consumer };
        }
        let mut ring = Self { guest, uuid, bytes, known, frozen: Vec::new() };
        ring.frozen = ring.frozen_by(&ring.bytes, ring.known.position).unwrap_or_default();
        ring
    }

    pub fn capacity(&self) -> u64 {
        (self.bytes.len() - 3 * SECTOR) as u64
    }

    /// Producer and consumer, if the guest is at `mine`.
    pub fn pair(&self, bytes: &[u8], mine: u64) -> (u64, u64) {
        let host = position_at(bytes, other(self.guest));
        if self.guest == Side::Producer { (mine, host) } else { (host, mine) }
    }

    /// None if the positions contradict each other.
    pub fn frozen_by(&self, bytes: &[u8], mine: u64) -> Option<Vec<bool>> {
        let (producer, consumer) = self.pair(bytes, mine);
        let sound = consumer % 4 == 0 && producer % 4 == 0 && consumer <= producer;
        if !sound || producer - consumer > self.capacity() {
            return None;
        }
        let mut frozen = vec![false; bytes.len() - 3 * SECTOR];
        for position in consumer..producer {
            frozen[usize::try_from(position % self.capacity()).unwrap()] = true;
        }
        Some(frozen)
    }

    /// The ring after a write of whole sectors from sector `first` on, and what is known then.
    pub fn judge(&self, first: usize, write: &[u8]) -> Result<(Vec<u8>, Known), Reason> {
        if first * SECTOR + write.len() > self.bytes.len() {
            return Err(Reason::OutOfRange);
        }
        let mut after = self.bytes.clone();
        let mut known = self.known;
        let mut moved = None;
        for (index, new) in (first..).zip(write.chunks(SECTOR)) {
            let start = index * SECTOR;
            let same = after[start..start + SECTOR] == *new;
            if index == 0 && !same {
                return Err(Reason::Signature);
            } else if index == sector_of(other(self.guest)) && !same {
                return Err(Reason::HostPointer);
            } else if index == sector_of(self.guest) && !same {
                known = self.pointer(&after, new)?;
                after[start..start + SECTOR].copy_from_slice(new);
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
    ) -> Result<(), Reason> {
        if !position_at(after, other(self.guest)).is_multiple_of(4) {
            return Err(Reason::HostCorrupt);
        }
        if self.guest == Side::Consumer {
            let same = after[start..start + SECTOR] == *new;
            return if same { Ok(()) } else { Err(Reason::ForeignData) };
        }
        if frozen.is_empty() {
            return Err(Reason::HostCorrupt);
        }
        let frozen = &frozen[start - 3 * SECTOR..];
        for ((held, &byte), &frozen) in after[start..].iter_mut().zip(new).zip(frozen) {
            if !frozen {
                *held = byte;
            } else if *held != byte {
                return Err(Reason::PublishedData);
            }
        }
        Ok(())
    }

    fn pointer(&self, bytes: &[u8], new: &[u8]) -> Result<Known, Reason> {
        let host = position_at(bytes, other(self.guest));
        if !host.is_multiple_of(4) {
            return Err(Reason::HostCorrupt);
        }
        if new[8] != 1 && new[8] != 2 {
            return Err(Reason::PointerFlag);
        }
        let to = number(&new[..8]);
        if !to.is_multiple_of(4) {
            return Err(Reason::PointerMisaligned);
        }
        let from = self.known.position;
        let (producer, consumer) = self.pair(bytes, from);
        if consumer > producer || producer - consumer > self.capacity() {
            return Err(Reason::HostCorrupt);
        }
        if to < from {
            return Err(Reason::PointerBackwards);
        }
        let limit = if self.guest == Side::Producer {
            u128::from(consumer) + u128::from(self.capacity())
        } else {
            u128::from(producer)
        };
        if u128::from(to) > limit {
            return Err(Reason::PointerBeyond);
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
            Some((places.len() - 1 - base.ok_or(Reason::ItemCount)?) as u64)
        } else if self.guest == Side::Producer || !claim.possible(to) {
            return Err(Reason::ItemCount);
        } else {
            // From the host, at whatever time.
            match find(self.uuid.unwrap(), sector(bytes, 1), host) {
                Found::Broken => return Err(Reason::HostCorrupt),
                Found::Slot(told) if told.base == claim.base || told.base_free(claim) => {
                    if told.since_base != claim.since_base {
                        return Err(Reason::ItemCount);
                    }
                    starts(from, to)?;
                    let behind = starts(to, host)?.len() as u64;
                    Some(told.items.checked_sub(behind).ok_or(Reason::ItemCount)?)
                }
                Found::Slot(_) | Found::Nothing => {
                    starts(from, to)?;
                    None
                }
            }
        };
        if true_count.is_some_and(|count| count != claim.items) {
            return Err(Reason::ItemCount);
        }
        Ok(Known { position: to, flag: new[8], claim })
    }

    /// What the slot for the new position says.
    fn slots(&self, bytes: &[u8], new: &[u8], to: u64) -> Result<Option<Claim>, Reason> {
        if new[9..128].iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let Some(uuid) = self.uuid else { return Err(Reason::PointerExtension) };
        if new[9..16].iter().chain(&new[112..128]).any(|&byte| byte != 0) {
            return Err(Reason::PointerExtension);
        }
        let old = sector(bytes, sector_of(self.guest));
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
            return Err(Reason::PointerExtension);
        }
        match find(uuid, new, to) {
            Found::Slot(claim) => Ok(Some(claim)),
            Found::Nothing => Ok(None),
            Found::Broken => Err(Reason::PointerExtension),
        }
    }

    /// Where the items between two positions start, if one ends exactly at the second.
    pub fn items(
        &self,
        bytes: &[u8],
        from: u64,
        to: u64,
        published: u64,
    ) -> Result<Vec<u64>, Reason> {
        let mut starts = Vec::new();
        let mut at = u128::from(from);
        while at < u128::from(to) {
            let place = usize::try_from(at % u128::from(self.capacity())).unwrap() + 3 * SECTOR;
            let length = u128::from(number(&bytes[place..place + 4]));
            starts.push(u64::try_from(at).unwrap());
            at += 4 + length;
            while at % 4 != 0 {
                at += 1;
            }
            if at > u128::from(published) {
                return Err(Reason::ItemFraming);
            }
        }
        if at == u128::from(to) { Ok(starts) } else { Err(Reason::ItemFraming) }
    }
}
