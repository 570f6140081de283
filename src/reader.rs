//! Reading published items: where they lie, or as copies.

use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::format::{FormatError, Geometry, Header, Lap, Position, Tally, crc32c_append};
use crate::window::{Popped, WINDOW_BYTES, Window};

/// A reader of published items that are not freed. Its callers say how far those reach.
#[derive(Debug)]
pub(crate) struct Reader {
    geometry: Geometry,
    lap: Lap,
    window: Window,
    /// A second window, for reads elsewhere that leave the first one as it is.
    aside: Window,
}

/// An item that was found, and can be lent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    header: Header,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// In the device's memory.
    Device,
    /// In the window; `fresh` if it was read just now.
    Window { fresh: bool },
}

impl Found {
    /// Returns whether the item was copied just now.
    pub fn is_fresh(self) -> bool {
        matches!(self.place, Place::Window { fresh: true })
    }
}

impl Reader {
    pub fn new(geometry: Geometry) -> Self {
        let lap = Lap::default();
        Self { geometry, lap, window: Window::empty(), aside: Window::empty() }
    }

    /// Forgets all copies.
    pub fn clear(&mut self) {
        *self = Self::new(self.geometry);
    }

    /// Finds the item at `from < to`.
    // Inlined: the small fields of the result, stored to memory on their way to the caller, would
    // be read back wider than they were stored, which stalls the processor.
    #[inline]
    pub fn find<D: RingDevice>(
        &mut self,
        device: &mut D,
        from: Position,
        to: Position,
    ) -> Result<Found> {
        // Only the item itself is copied if it straddles the wrap point.
        let mut copied_to = to;
        let end = self.lap.run(self.geometry, from, to);
        if let Some(run) = device.lend(from, end)
            && let Some(word) = run.first_chunk()
        {
            let header = Header::decode(from, *word, to)?;
            if header.next <= end {
                return Ok(Found { header, place: Place::Device });
            }
            copied_to = header.next;
        }
        let before = self.window.extent();
        let header = self.window.load(device, from, copied_to)?;
        let fresh = self.window.extent() != before;
        Ok(Found { header, place: Place::Window { fresh } })
    }

    /// Lends the item that [`find`](Self::find) has just found; `None` if the device does not lend
    /// it any more.
    #[inline]
    pub fn lend<'a, D: RingDevice>(
        &'a self,
        device: &'a mut D,
        found: Found,
    ) -> Option<Popped<'a>> {
        let header = found.header;
        match found.place {
            Place::Window { .. } => Some(self.window.lend(header)),
            Place::Device => {
                let (_, behind) = device.lend(header.at, header.next)?.split_first_chunk::<4>()?;
                Some(Popped { next: header.next, bytes: behind.get(..header.length as usize)? })
            }
        }
    }

    /// Returns the checksum of the stream before `to`, where `crc` is that before `from`.
    pub fn digest<D: RingDevice>(
        &mut self,
        device: &mut D,
        from: Position,
        to: Position,
        mut crc: u32,
    ) -> Result<u32> {
        let mut at = from;
        while at < to {
            let end = self.lap.run(self.geometry, at, to);
            let Some(run) = device.lend(at, end) else {
                // Bytes that fit stay in the window, for the items to be lent from there.
                let near = to.since(at).is_some_and(|len| len <= WINDOW_BYTES);
                let window = if near { &mut self.window } else { &mut self.aside };
                return window.digest(device, at, to, crc);
            };
            crc = crc32c_append(crc, run);
            at = end;
        }
        Ok(crc)
    }

    /// Returns the tally at `to`, where an item must end, from the `tally` at `from`.
    pub fn walk<D: RingDevice>(
        &mut self,
        device: &mut D,
        from: Position,
        to: Position,
        tally: Tally,
    ) -> Result<Tally> {
        let (mut at, mut items) = (from, 0);
        while at < to {
            let end = self.lap.run(self.geometry, at, to);
            let Some(run) = device.lend(at, end) else {
                let near = self.window.covers(from, to);
                let window = if near { &mut self.window } else { &mut self.aside };
                return window.walk(device, from, to, tally);
            };
            let mut rest = run;
            while let Some(word) = rest.first_chunk() {
                let Ok(header) = Header::decode(at, *word, to) else {
                    return Err(Error::InvalidAdvance { to, from, limit: at });
                };
                items += 1;
                rest = rest.get(distance(at, header.next)..).unwrap_or_default();
                at = header.next;
            }
        }
        let crc = self.digest(device, from, to, tally.crc)?;
        Ok(Tally { items: tally.items.saturating_add(items), crc, ..tally })
    }

    /// Calls `f` on the items of `from..to` that are lent where they lie or were copied before, up
    /// to the first that is neither. Returns the position of that one, the result, and the framing
    /// error that stopped the fold, if any.
    ///
    /// An item costs a load of its length and the call: nothing is copied, and the device is asked
    /// once for all of them.
    pub fn fold<D: RingDevice, T>(
        &mut self,
        device: &mut D,
        from: Position,
        to: Position,
        mut value: T,
        f: &mut impl FnMut(T, Popped<'_>) -> T,
    ) -> (Position, T, Option<FormatError>) {
        let mut at = from;
        let end = self.lap.run(self.geometry, from, to);
        let mut rest = match device.lend(from, end) {
            Some(run) => run,
            None => self.window.rest(from, to),
        };
        while let Some((word, behind)) = rest.split_first_chunk::<4>() {
            let header = match Header::decode(at, *word, to) {
                Ok(header) => header,
                Err(damage) => return (at, value, Some(damage)),
            };
            let Some(bytes) = behind.get(..header.length as usize) else { break };
            value = f(value, Popped { next: header.next, bytes });
            rest = rest.get(distance(at, header.next)..).unwrap_or_default();
            at = header.next;
        }
        (at, value, None)
    }
}

/// Returns the bytes from an item to the next one, which are bounded by what memory holds.
fn distance(at: Position, next: Position) -> usize {
    usize::try_from(next.get() - at.get()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
