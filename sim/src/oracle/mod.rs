//! The right outcome of a guest's write, by the words of `docs/format.md` and nothing else: a byte
//! at a time, over a plain copy of the ring, with none of the guard's code.
#![allow(clippy::unwrap_used, reason = "an oracle that stumbles is a test that fails")]

mod pointer;
pub mod slot;
pub mod states;
pub mod writes;

use shared_block_ring::format::Side;
use slot::{Claim, Found, find};

/// Unit of a request's start, in bytes (virtio 1.3, 5.2.6), and the usual size of a sector.
pub const UNIT: usize = 512;

/// Bytes that a guest's page cache writes at a time.
const PAGE: usize = 4096;

/// Reason of a refusal, as `diagnostics` names it.
pub type Refusal = &'static str;

/// A ring and its guest.
#[derive(Debug, Clone)]
pub struct Ring {
    /// The guest's role.
    pub guest: Side,
    /// The ring's identity.
    pub uuid: Option<[u8; 16]>,
    /// Sector size in bytes.
    pub size: usize,
    /// Bytes of all sectors.
    pub bytes: Vec<u8>,
    /// The guest's state as the backend knows it.
    pub known: Known,
    /// Whether the guest's next request may be a repeated one: it was waiting when its queue
    /// started.
    pub may_repeat: bool,
    /// For each byte of the data area, whether it is published and not consumed.
    frozen: Vec<bool>,
}

/// The guest's state as the backend knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The guest's position.
    pub position: u64,
    /// Byte 8 of its pointer sector.
    pub flag: u8,
    /// The guest's tally.
    pub claim: Claim,
}

/// Reads a little-endian number.
pub fn number(bytes: &[u8]) -> u64 {
    let mut value = 0;
    for &byte in bytes.iter().rev() {
        value = value << 8 | u64::from(byte);
    }
    value
}

/// Returns the index of a side's pointer sector.
pub fn sector_of(side: Side) -> usize {
    if side == Side::Producer { 1 } else { 2 }
}

/// Returns the other role.
pub fn other(side: Side) -> Side {
    if side == Side::Producer { Side::Consumer } else { Side::Producer }
}

impl Ring {
    /// Makes the state that a starting backend finds.
    pub fn new(guest: Side, uuid: Option<[u8; 16]>, size: usize, bytes: Vec<u8>) -> Self {
        let nobody = Known { position: 0, flag: 0, claim: Claim::from_here(0) };
        let frozen = Vec::new();
        let mut ring = Self { guest, uuid, size, bytes, known: nobody, may_repeat: false, frozen };
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
            // The power failed between the two writes: consumed items had been published.
            known = Known { flag: known.flag, ..consumer };
        }
        ring.known = known;
        ring.freeze();
        ring
    }

    /// Records bytes that the host has stored.
    pub fn host_stores(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.freeze();
    }

    /// Records a write of the guest that was carried out.
    pub fn becomes(&mut self, (bytes, known): (Vec<u8>, Known)) {
        (self.bytes, self.known) = (bytes, known);
        self.freeze();
    }

    fn freeze(&mut self) {
        self.frozen = self.frozen_by(&self.bytes, self.known.position).unwrap_or_default();
    }

    /// Returns the size of the data area in bytes.
    pub fn capacity(&self) -> u64 {
        (self.bytes.len() - self.data_start()) as u64
    }

    /// Returns the offset of the data area.
    pub fn data_start(&self) -> usize {
        3 * self.size
    }

    /// Returns the offset of a position's byte.
    pub fn place(&self, position: u64) -> usize {
        self.data_start() + usize::try_from(position % self.capacity()).unwrap()
    }

    /// Returns sector `index` of `bytes`.
    pub fn sector<'a>(&self, bytes: &'a [u8], index: usize) -> &'a [u8] {
        &bytes[index * self.size..(index + 1) * self.size]
    }

    /// Returns the position in a side's pointer sector of `bytes`.
    pub fn position(&self, bytes: &[u8], side: Side) -> u64 {
        number(&self.sector(bytes, sector_of(side))[..8])
    }

    /// Returns the positions of producer and consumer, if the guest is at `mine`.
    pub fn pair(&self, bytes: &[u8], mine: u64) -> (u64, u64) {
        let host = self.position(bytes, other(self.guest));
        if self.guest == Side::Producer { (mine, host) } else { (host, mine) }
    }

    /// Returns none if the positions contradict each other.
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

    /// Returns the ring after a write that begins `first` units of 512 bytes from the start, and
    /// the guest's state then.
    pub fn judge(&self, first: usize, write: &[u8]) -> Result<(Vec<u8>, Known), Refusal> {
        let (start, end) = (first * UNIT, first * UNIT + write.len());
        if end > self.bytes.len() || start % self.size != 0 || end % self.size != 0 {
            return Err("out_of_range");
        }
        // A program writes the first page through the page cache.
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
                let new = self.with_flag(&after[start..start + self.size], new);
                if after[start..start + self.size] == new {
                    continue;
                }
                known = self.pointer(&after, &new)?;
                after[start..start + self.size].copy_from_slice(&new);
                moved = Some(self.frozen_by(&after, known.position).unwrap());
            } else if index >= 3 {
                let frozen = moved.as_ref().unwrap_or(&self.frozen);
                self.data(&mut after, frozen, start, new)?;
            }
        }
        Ok((after, known))
    }

    /// Returns a consumer's new sector as it is stored: its flag is the host's, too, and stays
    /// unless the guest can only have meant to change it.
    fn with_flag(&self, old: &[u8], new: &[u8]) -> Vec<u8> {
        let mut sector = new.to_vec();
        let flags = [1, 2].contains(&old[8]) && [1, 2].contains(&new[8]);
        let moves = number(&old[..8]) != number(&new[..8]);
        if self.guest == Side::Consumer && flags && (moves || self.may_repeat) {
            sector[8] = old[8];
        }
        sector
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
}
