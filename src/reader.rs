//! Published items: lent where they lie, or else as copies.

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::{FormatError, Geometry, Header, Lap, Position, Tally, crc32c_append};
use crate::window::{Popped, WINDOW_BYTES, Window};

/// Reads what is published and not freed. Its callers say how far that goes.
#[derive(Debug)]
pub(crate) struct Reader {
    geometry: Geometry,
    lap: Lap,
    window: Window,
    /// For looking elsewhere without losing what is in the window.
    aside: Window,
}

/// An item that can be lent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    header: Header,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// Where it lies.
    Device,
    /// In the window; since this look, or an earlier one.
    Window { fresh: bool },
}

impl Found {
    /// Whether it was copied just now.
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
    // In memory on its way to the caller, its small fields would be read back wider than they were stored, which stalls.
    #[inline]
    pub fn find<D: BlockDevice>(
        &mut self,
        device: &mut D,
        from: Position,
        to: Position,
    ) -> Result<Found> {
        // Of an item that straddles the wrap point no more than itself is copied.
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

    /// Lends what [`find`](Self::find) has just found; `None` if the device does not any more.
    #[inline]
    pub fn lend<'a, D: BlockDevice>(
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

    /// The checksum `crc` of the stream before `from`, continued to `to`.
    pub fn digest<D: BlockDevice>(
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
                // What fits stays in the window, for the items to be lent from there.
                let near = to.since(at).is_some_and(|len| len <= WINDOW_BYTES);
                let window = if near { &mut self.window } else { &mut self.aside };
                return window.digest(device, at, to, crc);
            };
            crc = crc32c_append(crc, run);
            at = end;
        }
        Ok(crc)
    }

    /// What is known of the stream before `from`, continued over the items up to `to`, where one must end.
    pub fn walk<D: BlockDevice>(
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
                    return Err(Error::Advance { to, from, limit: at });
                };
                items += 1;
                rest = rest.get(distance(at, header.next)..).unwrap_or_default();
                at = header.next;
            }
        }
        let crc = self.digest(device, from, to, tally.crc)?;
        Ok(Tally { items: tally.items.saturating_add(items), crc, ..tally })
    }

    /// Calls `f` on the items of `from..to` that are lent where they lie or were copied before, up to the first that is neither. Where that starts, the result, and what is
    /// wrong there, if anything is.
    ///
    /// An item costs a load of its length and the call: nothing is copied here, and the device is asked once for all of them.
    pub fn fold<D: BlockDevice, T>(
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

/// From an item to the one behind it: at most what memory holds.
fn distance(at: Position, next: Position) -> usize {
    usize::try_from(next.get() - at.get()).unwrap_or(usize::MAX)
}
