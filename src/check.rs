//! Verifying a ring offline.

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::{FormatError, Side};
use crate::handle::Handle;
use crate::rules::{Mark, plausible, verifiable};
use crate::window::Window;

/// What a sound ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sound {
    /// Items published and not consumed.
    pub items: u64,
    /// Bytes of their payload.
    pub bytes: u64,
    /// Bytes of the stream that no checksum covers: a peer published them that writes none.
    pub unchecked: u64,
}

/// Verifies identity, pointers, the framing of every unconsumed item, and the stream's checksum and item count, without writing. An unsound
/// ring is an [`Error::Format`](crate::Error::Format) that names what is wrong with it.
pub fn check<D: BlockDevice>(device: D) -> Result<Sound> {
    let mut handle = Handle::open(device, "", "")?;
    let (consumer, freed) = handle.read_mark(Side::Consumer)?;
    let (producer, published) = handle.read_mark(Side::Producer)?;
    let end = producer.position;
    plausible(end, consumer.position, handle.geometry)?;
    let mut window = Window::empty();
    let mut sound = Sound::default();
    let mut at = consumer.position;
    let from = Mark::new(at, freed);
    let to = Mark::new(end, published);
    while at < end {
        let header = window.load(&handle.device, at, end)?;
        sound.items += 1;
        sound.bytes += u64::from(header.length);
        at = header.next;
    }
    if consumer.position < end && handle.has_slots() {
        let (start, seed) = verifiable(from, to);
        let computed = window.digest(&handle.device, start, end, seed)?;
        let found = to.tally.crc;
        if computed != found {
            return Err(FormatError::Span { from: from.position, to: end, found, computed }.into());
        }
        sound.unchecked = start.since(from.position).unwrap_or(0);
    }
    // Behind a consumer that is ahead the producer's count is an old one.
    if published.is_some() && from.tally.base == to.tally.base && from.position <= end {
        let (counted, found) = (from.tally.items.saturating_add(sound.items), to.tally.items);
        if counted != found {
            return Err(FormatError::Count { position: end, found, counted }.into());
        }
    }
    Ok(sound)
}
