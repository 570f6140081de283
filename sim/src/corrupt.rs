//! Damage to a ring. Reading the damaged ring yields items that were pushed, or a typed error.

use crate::Image;
use arbitrary::{Arbitrary, Unstructured};
use shared_block_ring::format::{
    EXTENSION, Geometry, HEADER_BYTES, Identity, PointerSector, Position, SectorSize, Side, Slot,
    Tally, encode_sector0, put_slot, slots_of,
};
use shared_block_ring::{Consumer, Error, MappedDevice, Producer, Repair, check};
use std::collections::HashSet;
use uuid::Uuid;

/// Size of the ring that is damaged: the smallest in which sectors, laps and straddling items are
/// all common.
const SECTORS: usize = 13;
const SECTOR: usize = 512;
const BYTES: usize = SECTORS * SECTOR;
const HEAD: usize = 3 * SECTOR;
const CAPACITY: usize = BYTES - HEAD;

/// The largest allocation that reading that ring may make, in bytes: the ring in whole aligned
/// pages.
pub const LARGEST: usize = 4 * 4096;

/// Largest number of edits, of at most 512 bytes each: 4 KiB in all.
const EDITS: usize = 8;

/// Seed of the ring: the same ring each time, so that damage can be repeated.
const RING: Uuid = Uuid::from_u128(0x5eed);

/// A sound ring, and every item that was ever pushed to it.
pub struct Ring {
    image: Vec<u8>,
    pushed: HashSet<Vec<u8>>,
    /// Byte offsets of the items' headers.
    headers: Vec<usize>,
}

/// Damage to a ring.
#[derive(Debug)]
pub struct Damage {
    edits: Vec<Edit>,
    /// Forged pointers whose checksums are valid, over whatever the data area holds.
    forged: Option<Forgery>,
}

#[derive(Debug, Arbitrary)]
enum Edit {
    Flip { at: Place, bit: u8 },
    Word { at: Place, word: Word },
    Bytes { at: Place, bytes: Vec<u8> },
    Blank { sector: u8 },
    Copy { from: u8, to: u8 },
}

/// An offset near the pointer sectors, which are few bytes and decide most.
#[derive(Debug, Arbitrary)]
enum Place {
    Head(u16),
    Anywhere(u16),
    Item(u8),
}

#[derive(Debug, Arbitrary)]
enum Word {
    /// A boundary value of arithmetic.
    Edge(u8),
    Any(u32),
}

#[derive(Debug, Arbitrary)]
struct Forgery {
    consumer: Start,
    /// Distance from consumer to producer, in words.
    ahead: u16,
    items: u8,
    /// Claimed start of the stream's checksum, in words before the consumer.
    base: u8,
    /// A false checksum, instead of the true one.
    crc: Option<u32>,
    /// The flag bytes, and whether slots are written.
    bits: u8,
}

#[derive(Debug, Arbitrary)]
enum Start {
    Low(u16),
    Lap(u32),
    /// Distance from the largest position, in words.
    High(u16),
}

impl<'a> Arbitrary<'a> for Damage {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let forged = if input.ratio(1, 4)? { Some(input.arbitrary()?) } else { None };
        // Damage is at least one edit.
        let least = usize::from(forged.is_none());
        let count = input.int_in_range(least..=EDITS)?;
        let edits = (0..count).map(|_| input.arbitrary()).collect::<Result<_, _>>()?;
        Ok(Self { edits, forged })
    }
}

fn geometry() -> Geometry {
    Geometry::new(SectorSize::DEFAULT, SECTORS as u64).expect("large enough for a ring")
}

fn device(image: &Image) -> MappedDevice<Image> {
    MappedDevice::over(image.clone(), "image", geometry())
}

fn head(image: &mut [u8], side: Side) -> &mut [u8] {
    let at = if side == Side::Producer { SECTOR } else { 2 * SECTOR };
    &mut image[at..at + SECTOR]
}

impl Ring {
    /// Makes a ring in its third lap with some items unconsumed.
    pub fn sound() -> Self {
        let mut image = vec![0; BYTES];
        let identity = Identity { geometry: geometry(), uuid: RING, created_ns: 0 };
        encode_sector0(&mut image[..SECTOR], Some(&identity));
        for side in [Side::Producer, Side::Consumer] {
            PointerSector::START.encode(side, None, head(&mut image, side));
        }
        let image = Image::of(&image);
        let mut producer = Producer::attach(device(&image), "q", "producer").expect("sound");
        let mut consumer = Consumer::attach(device(&image), "q", "consumer").expect("sound");
        let (mut pushed, mut headers) = (HashSet::new(), Vec::new());
        for number in 0..60_u8 {
            let item = vec![number; 40 + usize::from(number) * 3];
            headers.push(HEAD + offset(producer.position().get()));
            let end = producer.push(&item).expect("room");
            producer.advance(end).expect("it was pushed");
            pushed.insert(item);
            if number < 40 {
                let next = consumer.pop(consumer.position()).expect("published").next;
                consumer.advance(next).expect("it was popped");
            }
        }
        headers.drain(..40);
        let mut image = image.bytes();
        for side in [Side::Producer, Side::Consumer] {
            forget_time(head(&mut image, side));
        }
        Self { image, pushed, headers }
    }

    /// Returns a damaged copy of the ring.
    pub fn damaged(&self, damage: &Damage) -> Vec<u8> {
        let mut bytes = self.image.clone();
        for edit in &damage.edits {
            self.edit(&mut bytes, edit);
        }
        if let Some(forgery) = &damage.forged {
            forgery.write(&mut bytes);
        }
        bytes
    }

    fn edit(&self, image: &mut [u8], edit: &Edit) {
        let place = |place: &Place, len: usize| match place {
            Place::Head(at) => usize::from(*at) % (HEAD - len),
            Place::Anywhere(at) => usize::from(*at) % (BYTES - len),
            Place::Item(index) => {
                self.headers[usize::from(*index) % self.headers.len()].min(BYTES - len)
            }
        };
        let sector = |number: &u8| usize::from(*number) % SECTORS * SECTOR;
        match edit {
            Edit::Flip { at, bit } => image[place(at, 1)] ^= 1 << (bit % 8),
            Edit::Word { at, word } => {
                let at = place(at, 4);
                image[at..at + 4].copy_from_slice(&word.get().to_le_bytes());
            }
            Edit::Bytes { at, bytes } => {
                let len = bytes.len().min(SECTOR);
                let at = place(at, len);
                image[at..at + len].copy_from_slice(&bytes[..len]);
            }
            Edit::Blank { sector: number } => image[sector(number)..][..SECTOR].fill(0),
            Edit::Copy { from, to } => {
                let from = sector(from);
                image.copy_within(from..from + SECTOR, sector(to));
            }
        }
    }

    /// Has everything that reads a ring read one that may be damaged.
    ///
    /// # Panics
    /// Where an item comes out that was never pushed, or a reader panics or allocates too much.
    pub fn judge(&self, bytes: &[u8], damage: &Damage) {
        let verdict = check(device(&Image::of(bytes)));
        assert!(matches!(verdict, Ok(_) | Err(Error::Format(_))), "{verdict:?}");
        self.consume(&Image::of(bytes), damage.forged.is_some());
        let image = Image::of(bytes);
        if let Ok(mut producer) = Producer::attach(device(&image), "q", "producer") {
            let _ = producer.push("item").and_then(|end| producer.advance(end));
        }
        let image = Image::of(bytes);
        if let Ok(repair) = Repair::plan(&device(&image)) {
            repair.write(&device(&image)).expect("memory does not fail");
            // Repair does not change items: after it the ring is sound, whatever the items hold.
            let mut consumer =
                Consumer::attach(device(&image), "q", "consumer").expect("a ring again");
            let first = consumer.pop(consumer.position());
            assert!(matches!(first, Ok(_) | Err(Error::Retry | Error::Format(_))), "{first:?}");
            drop(consumer);
            Producer::attach(device(&image), "q", "producer").expect("a ring again");
        }
    }

    /// Checks that a consumer gets what was pushed, unless it says that the checksum cannot tell,
    /// or the checksum was forged.
    fn consume(&self, image: &Image, forged: bool) {
        let Ok(mut consumer) = Consumer::attach(device(image), "q", "consumer") else { return };
        let mut at = consumer.position();
        loop {
            let item = match consumer.pop(at) {
                Ok(item) => item,
                Err(Error::Retry | Error::Format(_)) => break,
                Err(e) => panic!("{e}"),
            };
            let (next, whole) = (item.next, self.pushed.contains(item.bytes));
            assert!(whole || forged || consumer.unchecked_bytes() > 0, "never pushed, at {at}");
            assert!(next > at);
            at = next;
        }
        consumer.advance(at).expect("it was popped");
    }
}

impl Word {
    fn get(&self) -> u32 {
        const EDGES: [u32; 8] = [0, 1, 4, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, 0xffff_ffff, 512];
        match self {
            Self::Edge(index) => EDGES[usize::from(*index) % EDGES.len()],
            Self::Any(word) => *word,
        }
    }
}

impl Forgery {
    fn write(&self, image: &mut [u8]) {
        const LAST: u64 = i64::MAX.cast_unsigned() & !3;
        let consumer = match self.consumer {
            Start::Low(words) => u64::from(words) * 4,
            Start::Lap(words) => u64::from(words) * 4 * CAPACITY as u64,
            Start::High(words) => LAST - u64::from(words) * 4,
        };
        let producer = consumer + u64::from(self.ahead) % (CAPACITY as u64 / 4 + 2) * 4;
        let base = consumer.saturating_sub(u64::from(self.base) * 4);
        let Some([consumer, producer, base]) = positions([consumer, producer, base]) else {
            return;
        };
        let freed = crc(image, base, consumer, 0);
        let published = self.crc.unwrap_or_else(|| crc(image, consumer, producer, freed));
        let tally = |items, crc| Tally { items, since_base: self.bits & 4 != 0, base, crc };
        let ends = [
            (Side::Consumer, consumer, tally(0, freed)),
            (Side::Producer, producer, tally(u64::from(self.items), published)),
        ];
        for (side, position, tally) in ends {
            let flag = self.bits & if side == Side::Producer { 1 } else { 2 } != 0;
            let sector = head(image, side);
            PointerSector { position, flag }.encode(side, None, sector);
            if self.bits & 8 == 0 {
                put_slot(RING, sector, position, &Slot { position, tally, time_ns: 0 });
            }
        }
    }
}

fn positions(bytes: [u64; 3]) -> Option<[Position; 3]> {
    let [a, b, c] = bytes.map(Position::new);
    Some([a?, b?, c?])
}

fn offset(position: u64) -> usize {
    usize::try_from(position % CAPACITY as u64).expect("within the ring")
}

/// Continues the stream's checksum between two positions.
fn crc(image: &[u8], from: Position, to: Position, mut crc: u32) -> u32 {
    let mut at = from.get();
    while at < to.get() {
        let word = HEAD + offset(at);
        crc = crc32c::crc32c_append(crc, &image[word..word + 4]);
        at += HEADER_BYTES;
    }
    crc
}

/// Sets the times in the slots to a constant, so that the ring is the same each time.
fn forget_time(sector: &mut [u8]) {
    let slots = slots_of(RING, sector);
    sector[EXTENSION].fill(0);
    let mut before = None;
    for slot in slots.into_iter().flatten() {
        // Behind the edit before it.
        let present = before.replace(slot.position).unwrap_or(slot.position);
        put_slot(RING, sector, present, &Slot { time_ns: 0, ..slot });
    }
}
