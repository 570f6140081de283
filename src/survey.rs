//! Survey of everything that lies in a ring, beside its producer and consumer.
//!
//! A survey takes no role and no lock, and writes nothing. The consumer frees items meanwhile, and
//! the producer writes over what was freed. So the consumer's pointer is read after each piece of
//! the data area: what lies behind it then was published and not freed while it was read. What
//! lies before it is reported as freed, and the survey goes on behind it.

use crate::device::{AlignedBuf, RingDevice};
use crate::error::{Error, Result};
use crate::format::{
    FormatError, Geometry, Header, PointerSector, Position, Side, Signed, Slot, crc32c_append,
    slots_of,
};
use crate::handle::{DebugInfo, Handle, read_slot};
use crate::rules::{Mark, plausible, verifiable};
use crate::window::Window;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

/// Bytes of each payload that a survey keeps, for a preview.
pub const PREVIEW_BYTES: usize = 64;

/// Bound on the readings of the two pointers until both are of one moment.
const MAX_READINGS: u32 = 100;

/// A pointer sector as a survey found it.
#[derive(Debug, Clone, Copy)]
pub struct Pointer {
    /// Position and flag.
    pub sector: PointerSector,
    /// The slot for the position.
    pub slot: Option<Slot>,
    /// The slot for an earlier position, if it is whole.
    pub earlier: Option<Slot>,
    /// The position of a slot that is ahead of the pointer: its writer is about to store that
    /// position, or died before it did.
    pub ahead: Option<Position>,
    /// Whether the sector's reserved bytes are zero. Others are damage to [`check`](crate::check);
    /// producers and consumers do not read them.
    pub reserved_is_zero: bool,
}

/// A step of a survey.
#[derive(Debug)]
pub enum Step<'a> {
    /// A published item, with the first bytes of its payload.
    Item(Header, &'a [u8]),
    /// The consumer has freed the bytes up to this position during the survey.
    Freed(Position),
    /// The bytes from this position to the end are no items.
    Damaged(Position, FormatError),
    /// The end of what was published when the survey began.
    End,
}

/// The verdict of the stream's checksum over what a survey has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// It covers nothing: there are no items, or a peer published them that computes none.
    None,
    /// The last bytes, this many, are what the producer wrote.
    Good(u64),
    /// Bytes are not what the producer wrote.
    Bad(FormatError),
}

/// A survey of one ring.
pub struct Survey<D> {
    handle: Handle<D>,
    pointers: [Found; 2],
    window: Window,
    preview: Vec<u8>,
    /// The start of the survey, which moves when the consumer does.
    from: Position,
    at: Position,
    to: Mark,
    /// The position from which the checksum is known, and that checksum, continued up to `at`.
    verified_from: Position,
    crc: u32,
    /// Whether no more items can be found.
    ended: bool,
}

impl<D> fmt::Debug for Survey<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, at, to, .. } = self;
        write!(f, "Survey({handle:?}, at {at} of {})", to.position)
    }
}

impl<D: RingDevice> Survey<D> {
    /// Begins a survey of the ring on `device`. Damaged pointers are found by
    /// [`pointer`](Self::pointer); there are no items then.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for a device without a ring, or with the ring of another
    /// device.
    pub fn open(device: D) -> Result<Self> {
        let handle = Handle::open(device, "", "")?;
        let pointers = read_pointers(&handle)?;
        let mut survey = Self {
            handle,
            pointers,
            window: Window::empty(),
            preview: Vec::new(),
            from: Position::ZERO,
            at: Position::ZERO,
            to: Mark::new(Position::ZERO, None),
            verified_from: Position::ZERO,
            crc: 0,
            ended: true,
        };
        if let Some((consumer, producer)) = survey.span() {
            survey.to = mark(&producer);
            survey.ended = false;
            survey.start(mark(&consumer));
        }
        Ok(survey)
    }

    /// Returns the shape of the device.
    pub fn geometry(&self) -> Geometry {
        self.handle.geometry
    }

    /// Returns the ring's UUID; `None` for a plain ring.
    pub fn uuid(&self) -> Option<String> {
        self.handle.signed().uuid().map(|uuid| uuid.to_string())
    }

    /// Returns the time of the ring's creation, in nanoseconds since 1970; `None` for a plain ring.
    pub fn created_ns(&self) -> Option<u64> {
        match self.handle.signed() {
            Signed::Identified(identity) => Some(identity.created_ns),
            Signed::Plain => None,
        }
    }

    /// Returns the device.
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// Returns the ring's state at present, if its pointers are sound.
    ///
    /// # Errors
    /// As [`Control::debug_info`](crate::Control::debug_info).
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Returns one side's pointer at the start of the survey.
    ///
    /// # Errors
    /// The damage of its sector.
    pub fn pointer(&self, side: Side) -> Found {
        self.pointers[usize::from(side == Side::Consumer)].clone()
    }

    /// Returns the damage of two pointers that contradict each other, each sound by itself.
    pub fn contradiction(&self) -> Option<FormatError> {
        let [Ok(producer), Ok(consumer)] = &self.pointers else { return None };
        plausible(producer.sector.position, consumer.sector.position, self.geometry()).err()
    }

    /// Returns both pointers, if they are sound.
    fn span(&self) -> Option<(Pointer, Pointer)> {
        match &self.pointers {
            [Ok(producer), Ok(consumer)] if self.contradiction().is_none() => {
                Some((*consumer, *producer))
            }
            _ => None,
        }
    }

    /// Begins at a pointer of the consumer, or goes on there.
    fn start(&mut self, consumer: Mark) {
        (self.from, self.at) = (consumer.position, consumer.position);
        (self.verified_from, self.crc) = verifiable(consumer, self.to);
    }

    /// Returns the next item, or another finding.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for a pointer of the consumer that was damaged
    /// meanwhile.
    pub fn step(&mut self) -> Result<Step<'_>> {
        if self.ended || self.at >= self.to.position {
            self.ended = true;
            return Ok(Step::End);
        }
        let Some(word) = self.look(self.at)?.and_then(<[u8]>::first_chunk).copied() else {
            return Ok(Step::Freed(self.at));
        };
        let header = match Header::decode(self.at, word, self.to.position) {
            Ok(header) => header,
            Err(damage) => {
                self.ended = true;
                return Ok(Step::Damaged(self.at, damage));
            }
        };
        // The header's word lies in front of the payload.
        let most = (header.length as usize).min(PREVIEW_BYTES) + word.len();
        self.preview.clear();
        let mut at = header.at;
        let mut crc = self.crc;
        while at < header.next {
            let Some(bytes) = self.look(at)? else { return Ok(Step::Freed(self.at)) };
            let left = header.next.since(at).unwrap_or(0);
            let run = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            // Checksums of a piece are continued by the next: pieces are whole words.
            crc = crc32c_append(crc, &bytes[..run]);
            let wanted = (most - self.preview.len()).min(run);
            let some = self.window.rest(at, header.next);
            self.preview.extend_from_slice(&some[..wanted]);
            at = at.checked_add(run as u64).unwrap_or(header.next);
        }
        if header.at >= self.verified_from {
            self.crc = crc;
        }
        self.at = header.next;
        Ok(Step::Item(header, &self.preview[word.len()..]))
    }

    /// Returns published bytes from `at` on, at least a word. `None` if the consumer has freed the
    /// item at hand: the survey is then at the consumer's position.
    fn look(&mut self, at: Position) -> Result<Option<&[u8]>> {
        let to = self.to.position;
        if self.window.rest(at, to).is_empty() {
            self.window.cover_some(&self.handle.device, at, to)?;
            // The pointer is read after the bytes, and not before.
            fence(Ordering::Acquire);
            let (pointer, tally) = self.handle.read_mark(Side::Consumer)?;
            if pointer.position > self.at {
                // Every position of a consumer is the start of an item.
                let reached = pointer.position.min(to);
                self.start(Mark::new(reached, tally.filter(|_| pointer.position <= to)));
                return Ok(None);
            }
        }
        Ok(Some(self.window.rest(at, to)))
    }

    /// Returns where the survey began: behind what was freed during it.
    pub fn from(&self) -> Position {
        self.from
    }

    /// Returns the end of what was published when the survey began.
    pub fn to(&self) -> Position {
        self.to.position
    }

    /// Returns the verdict of the checksum after the last step.
    pub fn checksum(&self) -> Checksum {
        let to = self.to.position;
        let covered = to.since(self.verified_from).unwrap_or(0);
        if covered == 0 || self.at != to || !self.handle.has_slots() {
            return Checksum::None;
        }
        let (found, computed) = (self.to.tally.crc, self.crc);
        if found == computed {
            Checksum::Good(covered)
        } else {
            let from = self.verified_from;
            Checksum::Bad(FormatError::Span { from, to, found, computed })
        }
    }
}

fn mark(pointer: &Pointer) -> Mark {
    Mark::new(pointer.sector.position, pointer.slot.map(|slot| slot.tally))
}

/// A pointer, or the damage of its sector.
type Found = std::result::Result<Pointer, FormatError>;

/// Reads the producer's and the consumer's pointer while both may move.
fn read_pointers<D: RingDevice>(handle: &Handle<D>) -> Result<[Found; 2]> {
    let capacity = handle.geometry.capacity().get();
    let mut producer = read_pointer(handle, Side::Producer)?;
    for _ in 0..MAX_READINGS {
        let consumer = read_pointer(handle, Side::Consumer)?;
        let (Ok(published), Ok(freed)) = (&producer, &consumer) else {
            return Ok([producer, consumer]);
        };
        let (before, freed) = (published.sector.position, freed.sector.position);
        if before.since(freed).is_some_and(|used| used <= capacity) {
            return Ok([producer, consumer]);
        }
        // The consumer has passed the producer's old position between the two readings. A producer
        // that has not moved is really behind it.
        let again = read_pointer(handle, Side::Producer)?;
        if again.as_ref().is_ok_and(|again| again.sector.position == before) {
            return Ok([again, consumer]);
        }
        producer = again;
    }
    Ok([producer, read_pointer(handle, Side::Consumer)?])
}

/// Reads one side's pointer sector; the inner error is damage.
fn read_pointer<D: RingDevice>(handle: &Handle<D>, side: Side) -> Result<Found> {
    let mut bytes = AlignedBuf::zeroed(handle.geometry.sector_size().bytes());
    let (sector, slot) = match read_slot(&handle.device, handle.signed(), side, &mut bytes) {
        Ok(found) => found,
        Err(Error::Format(damage)) => return Ok(Err(damage)),
        Err(e) => return Err(e),
    };
    let slots = handle.signed().uuid().map(|uuid| slots_of(uuid, &bytes)).unwrap_or_default();
    let other = |wanted: fn(&Position, &Position) -> bool| {
        slots.iter().flatten().find(|slot| wanted(&slot.position, &sector.position)).copied()
    };
    let (earlier, ahead) = (other(Position::lt), other(Position::gt));
    let zero = |range: Range<usize>| bytes[range].iter().all(|&byte| byte == 0);
    let reserved_is_zero = handle.reserved().into_iter().all(zero);
    let ahead = ahead.map(|slot| slot.position);
    Ok(Ok(Pointer { sector, slot, earlier, ahead, reserved_is_zero }))
}

#[cfg(test)]
mod tests;
