//! Writes of a guest.

use crate::oracle::states::lengths;
use crate::oracle::{Ring, UNIT, other, sector_of, writes};
use arbitrary::Arbitrary;

/// Number of changes to the bytes of one write at most.
const PATCHES: usize = 6;

/// The part of the device that a request covers.
#[derive(Debug, Arbitrary)]
pub(super) enum Span {
    /// The guest's own pointer sector.
    Pointer,
    /// This many sectors from the guest's position on.
    Mine(u8),
    Data,
    All,
    Sectors(u8, u8),
    /// Units of 512 bytes, which need not be whole sectors.
    Units(u8, u8),
    /// Bytes from such a unit on.
    Odd(u64, u16),
}

/// A well-formed new pointer sector of the guest.
#[derive(Debug, Arbitrary)]
pub(super) struct Pointer {
    to: To,
    extension: u8,
    flag: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum To {
    Usual(u8),
    Words(i16),
    Any(u64),
}

#[derive(Debug, Arbitrary)]
pub(super) struct Patch {
    place: Place,
    content: Content,
}

#[derive(Debug, Arbitrary)]
enum Place {
    Mine(i8),
    Theirs(i8),
    Any(u16),
}

#[derive(Debug, Arbitrary)]
enum Content {
    /// A length of an item that matters, with this many words behind it.
    Length(u8, u8),
    Word(u32),
    Flip(u8),
    Bytes(Vec<u8>),
}

/// Returns the position this many words away.
pub(super) fn position(from: u64, words: i16) -> u64 {
    from.wrapping_add_signed(i64::from(words) * 4)
}

/// Makes a write of the bytes that are there already, with changes: its start, and its bytes.
pub(super) fn written(
    ring: &Ring,
    unit: u64,
    len: usize,
    pointer: Option<&Pointer>,
    patches: &[Patch],
) -> Vec<u8> {
    let mut image = ring.bytes.clone();
    if let Some(pointer) = pointer {
        let start = sector_of(ring.guest) * ring.size;
        image[start..start + ring.size].copy_from_slice(&pointer.sector(ring));
    }
    for patch in patches.iter().take(PATCHES) {
        let (at, bytes) = patch.bytes(ring, &image);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let start = usize::try_from(unit).unwrap_or(usize::MAX).saturating_mul(UNIT);
    let mut bytes: Vec<u8> = image.into_iter().skip(start).take(len).collect();
    bytes.resize(len, 0);
    bytes
}

impl Span {
    /// Returns the start of the span, in units of 512 bytes, and its length in bytes.
    pub(super) fn of(&self, ring: &Ring) -> (u64, usize) {
        let sectors =
            |first: usize, count: usize| ((first * ring.size / UNIT) as u64, count * ring.size);
        let all = ring.bytes.len() / ring.size;
        match *self {
            Self::Pointer => sectors(sector_of(ring.guest), 1),
            Self::Mine(count) => {
                let first = ring.place(ring.known.position) / ring.size;
                sectors(first, 1 + usize::from(count) % (all - first))
            }
            Self::Data => sectors(3, all - 3),
            Self::All => sectors(0, all),
            Self::Sectors(first, count) => {
                sectors(usize::from(first) % (all + 1), usize::from(count) % (all + 1))
            }
            Self::Units(first, count) => (u64::from(first), usize::from(count % 64) * UNIT),
            Self::Odd(unit, len) => (unit, usize::from(len)),
        }
    }
}

impl Pointer {
    fn sector(&self, ring: &Ring) -> Vec<u8> {
        let targets = writes::targets(ring);
        let to = match self.to {
            To::Usual(index) => targets[usize::from(index) % targets.len()],
            To::Words(words) => position(ring.known.position, words),
            To::Any(to) => to,
        };
        let mut sectors = writes::extensions(ring, to, true);
        let mut sector = sectors.swap_remove(usize::from(self.extension) % sectors.len());
        if let Some(flag) = self.flag {
            sector[8] = flag;
        }
        sector
    }
}

impl Patch {
    /// Returns the place of the write on the device, and its bytes.
    pub(super) fn bytes(&self, ring: &Ring, image: &[u8]) -> (usize, Vec<u8>) {
        let near = |position: u64, bytes: i8| {
            ring.place(position).saturating_add_signed(isize::from(bytes))
        };
        let at = match self.place {
            Place::Mine(bytes) => near(ring.known.position, bytes),
            Place::Theirs(bytes) => near(ring.position(&ring.bytes, other(ring.guest)), bytes),
            Place::Any(at) => usize::from(at),
        };
        let at = at % image.len();
        let mut bytes = match &self.content {
            Content::Length(kind, words) => {
                let lengths = lengths(u64::from(*words) * 4);
                lengths[usize::from(*kind) % lengths.len()].to_le_bytes().to_vec()
            }
            Content::Word(word) => word.to_le_bytes().to_vec(),
            Content::Flip(bits) => vec![image[at] ^ bits],
            Content::Bytes(bytes) => bytes.clone(),
        };
        bytes.truncate(image.len() - at);
        (at, bytes)
    }
}
