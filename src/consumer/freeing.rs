//! Freeing space: the consumer's pointer, and its slot.

use super::Consumer;
use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::format::{EXTENSION, PointerSector, Position, Side, Tally, put_slot};
use crate::rules::Mark;
use std::cell::Cell;

/// Bytes of a pointer sector's extension area.
const EXTENSION_BYTES: usize = EXTENSION.end - EXTENSION.start;

impl<D: RingDevice> Consumer<D> {
    /// Frees everything before `to`: those items are not delivered again. `to` may come from a
    /// handle before this one, such as a position that a receiver has noted with its results.
    ///
    /// # Errors
    /// [`Error::InvalidAdvance`] for a position that is no end of an item between this consumer's
    /// position and the producer's; [`Error::Format`] for items before `to` that are damaged,
    /// unless `to` is the end of all that is published; [`Error::Superseded`];
    /// [`Error::RoleTaken`] if the role was lost and another handle has it; the device's.
    pub fn advance(&mut self, to: Position) -> Result<()> {
        self.handle.attached()?;
        if to > self.verified.position && to != self.producer {
            // This handle has not looked that far: the position was noted before a restart.
            self.look()?;
        }
        let (from, limit) = (self.done, self.verified.position);
        if to < from || (to > limit && to != self.producer) {
            return Err(Error::InvalidAdvance { to, from, limit });
        }
        let lag = self.lag.min(self.handle.geometry.capacity().get() / 2);
        if to <= limit && to.since(self.mark.position).is_some_and(|ahead| ahead < lag) {
            self.done = to;
            if to == limit {
                self.known = self.verified;
            }
            return Ok(());
        }
        self.free(to)
    }

    /// Writes the pointer that [`advance_every`](Self::advance_every) has kept back.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn flush(&mut self) -> Result<()> {
        if self.done == self.mark.position {
            return Ok(());
        }
        self.handle.attached()?;
        self.free(self.done)
    }

    /// Moves the pointer to `to`.
    fn free(&mut self, to: Position) -> Result<()> {
        let from = self.mark.position;
        if to == from {
            return Ok(());
        }
        self.handle.device.ensure_role()?;
        let tally = match self.tally_at(to) {
            Err(e @ (Error::InvalidAdvance { .. } | Error::Format(_))) => {
                return Err(self.explain(e));
            }
            tally => tally?,
        };
        let mark = Mark { position: to, tally };
        // The pointer must not survive a power loss that the producer's, on which it rests, does
        // not.
        self.handle.flush()?;
        let slot = self.handle.slot(mark);
        let (elsewhere, written) = (Cell::new(false), Cell::new([0; EXTENSION_BYTES]));
        let edited = self.edit(|pointer, sector| {
            if pointer.position != from {
                // Another instance has moved it: it stays as it is.
                elsewhere.set(true);
                return;
            }
            if let Some((uuid, slot)) = &slot {
                put_slot(*uuid, sector, pointer.position, slot);
            }
            pointer.position = to;
            let mut slots = [0; EXTENSION_BYTES];
            slots.copy_from_slice(&sector[EXTENSION]);
            written.set(slots);
        });
        match edited {
            Err(e) if e.is_refusal() => self.contested(to, &written.get(), e)?,
            edited => {
                edited?;
                self.handle.flush_pointer()?;
            }
        }
        if elsewhere.get() {
            self.check_pointer()?;
        }
        (self.mark, self.done) = (mark, to);
        if to > self.verified.position {
            self.verified = mark;
        }
        Ok(())
    }

    /// Finds out why the write of the pointer to `to`, with the slots `written`, failed with
    /// `error`: because of the device, which is an error, or because another instance has moved the
    /// pointer.
    fn contested(&mut self, to: Position, written: &[u8], error: Error) -> Result<()> {
        let Ok(now) = self.handle.read_pointer(Side::Consumer) else { return Err(error) };
        if now.position == self.mark.position || self.handle.last_read()[EXTENSION] == *written {
            return Err(error);
        }
        self.handle.revive();
        if now.position == to { self.handle.flush() } else { Err(self.explain(error)) }
    }

    /// Returns the tally for the slot at `to`.
    fn tally_at(&mut self, to: Position) -> Result<Tally> {
        if to == self.verified.position {
            return Ok(self.verified.tally);
        }
        let known = self.known.position > self.mark.position && self.known.position <= to;
        let from = if known { self.known } else { self.mark };
        if to > self.verified.position {
            // Skipped unseen: only the tally that the producer claims is known.
            return Ok(Mark::new(to, self.claim).tally);
        }
        if !self.handle.has_slots() {
            return Ok(Tally::from_here(to));
        }
        self.reader.walk(&mut self.handle.device, from.position, to, from.tally)
    }

    /// Changes sector 2 by `change`, and writes its text.
    pub(super) fn edit(&self, change: impl Fn(&mut PointerSector, &mut [u8])) -> Result<()> {
        self.handle.edit_consumer(|pointer, sector| {
            change(pointer, sector);
            pointer.encode(Side::Consumer, Some(self.handle.owner()), sector);
        })
    }
}
