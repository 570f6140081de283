//! Room for an item, lent to its writer.

use super::{Producer, length_of};
use crate::device::RingDevice;
use crate::error::Result;
use crate::format::{Position, framed_len};
use crate::rules::batch_len;
use std::ops::{Deref, DerefMut};

/// Room for one item behind those that were pushed, from [`Producer::reserve`]: the item is written
/// where it is sent from, instead of being copied there.
///
/// What the room holds at first is of no meaning: bytes of earlier items, or zeros. Without
/// [`commit`](Self::commit) nothing is pushed.
#[derive(Debug)]
#[must_use = "nothing is pushed without `commit`"]
pub struct Reservation<'p, D> {
    producer: &'p mut Producer<D>,
    len: u32,
}

impl<D: RingDevice> Producer<D> {
    /// Lends room for an item of `len` bytes, to be [committed](Reservation::commit) or dropped.
    /// Any number of items can be pushed and committed before one [`advance`](Self::advance).
    ///
    /// ```
    /// # use shared_block_ring::{OpenOptions, Producer, create, make_file};
    /// # use std::io::Read;
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("ring");
    /// # make_file(&path, 1 << 20)?;
    /// # create(&OpenOptions::default().open(&path)?, Default::default())?;
    /// # let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
    /// # let mut socket = &b"a datagram"[..];
    /// let mut room = producer.reserve(65536)?;
    /// let len = socket.read(&mut room)?;
    /// room.truncate(len);
    /// let end = room.commit()?;
    /// producer.advance(end)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_, D>> {
        let len = length_of(len, self.handle.geometry)?;
        self.admit(batch_len(&[len]))?;
        self.stage.make_room(len);
        Ok(Reservation { producer: self, len })
    }
}

impl<D: RingDevice> Reservation<'_, D> {
    /// Shortens the item to its first `len` bytes; it stays as it is where it is no longer.
    pub fn truncate(&mut self, len: usize) {
        self.len = u32::try_from(len).unwrap_or(u32::MAX).min(self.len);
    }

    /// Pushes the item, and returns the position to [`advance`](Producer::advance) to.
    ///
    /// # Errors
    /// [`FormatError::Exhausted`](crate::format::FormatError::Exhausted) at the end of the stream.
    pub fn commit(self) -> Result<Position> {
        let Self { producer, len } = self;
        let end = producer.end_of(framed_len(len))?;
        let from = producer.stage.end();
        producer.stage.put_lent(len);
        producer.staged(from, 1, end);
        Ok(end)
    }
}

impl<D> Deref for Reservation<'_, D> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.producer.stage.lent(self.len)
    }
}

impl<D> DerefMut for Reservation<'_, D> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.producer.stage.lent_mut(self.len)
    }
}
