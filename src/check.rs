//! Verification of a whole ring.

use crate::device::RingDevice;
use crate::error::Result;
use crate::format::{FormatError, HEADER_BYTES, Position, Side, Tally};
use crate::handle::{DebugInfo, Handle};
use crate::rules::{Mark, plausible, verifiable};
use crate::window::Window;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The contents of a ring that [`check`] found sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Items that are published and not consumed.
    pub items: u64,
    /// Bytes of their payload.
    pub payload_bytes: u64,
    /// Bytes of the stream that no checksum covers: a peer published them that writes none.
    pub unchecked_bytes: u64,
}

/// An unusual state of a sound ring. Its text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Notice {
    /// The consumer's position is ahead of the producer's by this number of bytes.
    ConsumerAhead(u64),
    /// The producer has acknowledged a suspend.
    Suspended,
    /// No producer has acknowledged a suspend yet.
    SuspendPending,
    /// No producer has acknowledged a resume yet.
    ResumePending,
    /// This number of bytes is left of the stream, less than one lap of the ring.
    NearEnd(u64),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsumerAhead(bytes) => write!(
                f,
                "the consumer is {bytes} bytes ahead of the producer, as after a power loss that kept only the consumer's pointer: \
                 the items between were consumed, and the next producer starts behind them (nothing to do)"
            ),
            Self::Suspended => f.write_str(
                "suspended, and the producer has acknowledged it: nothing is published until the ring is resumed (blockring resume)",
            ),
            Self::SuspendPending => f.write_str(
                "suspended, and no producer has acknowledged it: none is running, or it has not looked at the ring since (one that starts acknowledges it)",
            ),
            Self::ResumePending => f.write_str(
                "resumed, and no producer has acknowledged it: none is running, or it has not looked at the ring since (one that starts acknowledges it)",
            ),
            Self::NearEnd(bytes) => write!(
                f,
                "the stream ends at position {}, and {bytes} bytes are left (consume its items, then create a new ring)",
                Position::END
            ),
        }
    }
}

impl DebugInfo {
    /// Returns the unusual states of the ring that are not damage.
    ///
    /// ```
    /// use shared_block_ring::{Control, Notice, OpenOptions};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("ring");
    /// # shared_block_ring::make_file(&path, 1 << 20)?;
    /// # shared_block_ring::create(&OpenOptions::default().open(&path)?, Default::default())?;
    ///
    /// let mut control = Control::open(OpenOptions::default().open(&path)?)?;
    /// assert!(control.debug_info()?.notices().is_empty());
    /// control.suspend()?;
    /// assert_eq!(control.debug_info()?.notices(), [Notice::SuspendPending]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn notices(&self) -> Vec<Notice> {
        let end = self.producer.max(self.consumer);
        let left = Position::END.since(end).unwrap_or(0);
        let ahead = self.consumer.since(self.producer).filter(|&bytes| bytes > 0);
        let suspend = match (self.suspend, self.suspend_ack) {
            (true, true) => Some(Notice::Suspended),
            (true, false) => Some(Notice::SuspendPending),
            (false, true) => Some(Notice::ResumePending),
            (false, false) => None,
        };
        let near_end = (left < self.capacity).then_some(Notice::NearEnd(left));
        ahead.map(Notice::ConsumerAhead).into_iter().chain(suspend).chain(near_end).collect()
    }
}

/// Verifies identity, pointers, the framing of every unconsumed item, and the stream's checksum and
/// item count, without writing. Unusual states of a sound ring are reported by
/// [`DebugInfo::notices`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
/// use shared_block_ring::{OpenOptions, check, create};
///
/// let device = OpenOptions::default().open(&path)?;
/// create(&device, Default::default())?;
/// assert_eq!(check(device)?.items, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Format`](crate::Error::Format) names what is wrong with a damaged ring.
pub fn check<D: RingDevice>(device: D) -> Result<CheckReport> {
    let mut handle = Handle::open(device, "", "")?;
    let (consumer, freed) = read_pointer(&mut handle, Side::Consumer)?;
    let (end, published) = read_pointer(&mut handle, Side::Producer)?;
    plausible(end, consumer, handle.geometry)?;
    if end.max(consumer).checked_add(HEADER_BYTES).is_none() {
        return Err(FormatError::Exhausted { position: end, needed: HEADER_BYTES }.into());
    }
    let mut window = Window::empty();
    let mut report = CheckReport::default();
    let mut at = consumer;
    let from = Mark::new(at, freed);
    let to = Mark::new(end, published);
    while at < end {
        let header = window.load(&handle.device, at, end)?;
        report.items += 1;
        report.payload_bytes += u64::from(header.length);
        at = header.next;
    }
    if consumer < end && handle.has_slots() {
        let (start, seed) = verifiable(from, to);
        let computed = window.digest(&handle.device, start, end, seed)?;
        let found = to.tally.crc;
        if computed != found {
            return Err(FormatError::Span { from: from.position, to: end, found, computed }.into());
        }
        report.unchecked_bytes = start.since(from.position).unwrap_or(0);
    }
    // Where the consumer is ahead, the producer's count is of an earlier position.
    if published.is_some() && from.tally.base == to.tally.base && from.position <= end {
        let (counted, found) = (from.tally.items.saturating_add(report.items), to.tally.items);
        if counted != found {
            return Err(FormatError::Count { position: end, found, counted }.into());
        }
    }
    streams_agree(from, to, freed.and(published).is_some())?;
    Ok(report)
}

/// Refuses slots for the same position that are of different streams: the next items could not be
/// verified.
fn streams_agree(consumer: Mark, producer: Mark, both: bool) -> Result<()> {
    let (freed, published) = (consumer.tally, producer.tally);
    let same = consumer.position == producer.position && freed.base == published.base;
    if both && same && freed.crc != published.crc {
        let position = consumer.position;
        let (producer, consumer) = (published.crc, freed.crc);
        return Err(FormatError::Streams { position, producer, consumer }.into());
    }
    Ok(())
}

/// Reads one side's position and tally, and refuses reserved bytes that are not zero.
fn read_pointer<D: RingDevice>(
    handle: &mut Handle<D>,
    side: Side,
) -> Result<(Position, Option<Tally>)> {
    let (pointer, tally) = handle.read_mark(side)?;
    let sector = handle.last_read();
    let zero = |range: Range<usize>| sector[range].iter().all(|&byte| byte == 0);
    if !handle.reserved().into_iter().all(zero) {
        return Err(FormatError::Reserved { side }.into());
    }
    Ok((pointer.position, tally))
}
