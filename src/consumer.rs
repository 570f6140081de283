//! The end that pops.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{HEADER_BYTES, Header, PointerSector, Position, Side};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::item::Decode;
use crate::rules::plausible;
use std::io::IoSliceMut;

/// Stream bytes read at a time, unless an item is longer: large enough to make a read's fixed cost small, small enough to stay in cache.
const WINDOW_BYTES: u64 = 256 * 1024;

/// An item, lent until the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Popped<'a> {
    /// Where the next item starts: pop from there, or advance to there.
    pub next: Position,
    /// The payload.
    pub bytes: &'a [u8],
}

/// The only consumer of a ring.
///
/// [`pop`](Self::pop) looks at an item, [`advance`](Self::advance) gives its space back once it has been dealt with: after a
/// crash in between the item is delivered again, never lost. Nothing here waits; an empty ring answers [`Error::Retry`].
pub struct Consumer<D> {
    handle: Handle<D>,
    /// Everything before it is consumed.
    position: Position,
    /// Published, as far as we have looked.
    producer: Position,
    /// Published bytes cannot change before we advance: what was read once need not be read again.
    window: AlignedBuf,
    /// Stream offset of the window's first byte, and of the first one behind what is valid in it.
    window_at: u64,
    window_end: u64,
}

impl<D: BlockDevice> Consumer<D> {
    /// Becomes the consumer of the ring on `device`. `queue` and `client` go into the text of sector 2.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Handle::attach(device, Side::Consumer, queue, client)?;
        let producer = handle.read_pointer(Side::Producer)?.position;
        let position = handle.read_pointer(Side::Consumer)?.position;
        plausible(producer, position, handle.geometry)?;
        let window = AlignedBuf::zeroed(0);
        Ok(Self { handle, position, producer, window, window_at: 0, window_end: 0 })
    }

    /// Chooses what `advance` waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Gives the role back. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
        self.handle.detach();
    }

    /// Everything before it is consumed: where to start popping.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether the producer has acknowledged a suspend.
    pub fn state(&mut self) -> Result<State> {
        self.handle.acknowledged()
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Asks the producer to stop. [`Error::Retry`] while the previous change is not acknowledged.
    pub fn suspend(&mut self) -> Result<()> {
        self.set_suspend(true)
    }

    /// Lets the producer go on. [`Error::Retry`] while the previous change is not acknowledged.
    pub fn resume(&mut self) -> Result<()> {
        self.set_suspend(false)
    }

    fn set_suspend(&mut self, suspend: bool) -> Result<()> {
        if self.handle.change_wanted(suspend)? {
            self.edit(|pointer| pointer.flag = suspend)?;
        }
        Ok(())
    }

    /// The item at `from`. The same item every time, until it is advanced over.
    pub fn pop(&mut self, from: Position) -> Result<Popped<'_>> {
        let header = self.load(from)?;
        Ok(self.lend(header))
    }

    /// The item at `from` as a `T`. One that is not a `T` is [`Error::Undecodable`], and can be skipped deliberately.
    pub fn pop_as<'a, T: Decode<'a>>(&'a mut self, from: Position) -> Result<(Position, T)> {
        let header = self.load(from)?;
        let item = self.lend(header);
        match T::decode(item.bytes) {
            Ok(value) => Ok((item.next, value)),
            Err(e) => Err(Error::Undecodable { at: from, next: item.next, reason: e.to_string() }),
        }
    }

    /// Calls `f` on every item from `from` on, and returns the position behind the last one with the result.
    pub fn fold<T>(
        &mut self,
        from: Position,
        start: T,
        mut f: impl FnMut(T, Popped<'_>) -> T,
    ) -> Result<(Position, T)> {
        let (mut at, mut value) = (from, start);
        loop {
            match self.pop(at) {
                Ok(item) => {
                    at = item.next;
                    value = f(value, item);
                }
                Err(Error::Retry) => return Ok((at, value)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Frees everything before `to`: those items will not be delivered again.
    pub fn advance(&mut self, to: Position) -> Result<()> {
        self.handle.attached()?;
        if to < self.position || to > self.producer.max(self.position) {
            return Err(Error::Advance { to, from: self.position, limit: self.producer });
        }
        if to == self.position {
            return Ok(());
        }
        // Our pointer must not survive a power loss that the producer's, which it rests on, does not.
        self.handle.flush()?;
        self.edit(|pointer| pointer.position = to)?;
        self.position = to;
        Ok(())
    }

    fn edit(&self, change: impl Fn(&mut PointerSector)) -> Result<()> {
        self.handle.edit_consumer(|pointer, sector| {
            change(pointer);
            pointer.encode(Side::Consumer, Some(self.handle.owner()), sector);
        })
    }

    /// Makes sure that the item at `from` lies in the window.
    fn load(&mut self, from: Position) -> Result<Header> {
        self.handle.attached()?;
        if from >= self.producer {
            self.producer = self.handle.read_pointer(Side::Producer)?.position;
            plausible(self.producer, self.position, self.handle.geometry)?;
        }
        if from < self.position || (from > self.producer && from > self.position) {
            let (consumer, producer) = (self.position, self.producer);
            return Err(Error::From { from, consumer, producer });
        }
        if from >= self.producer {
            return Err(Error::Retry);
        }
        self.cover(from.get(), from.get() + HEADER_BYTES)?;
        let mut word = [0; 4];
        word.copy_from_slice(&self.window[self.in_window(from.get())..][..4]);
        let header = Header::decode(from, word, self.producer)?;
        self.cover(from.get(), header.next.get())?;
        Ok(header)
    }

    fn lend(&self, header: Header) -> Popped<'_> {
        let start = self.in_window(header.payload_start());
        let end = self.in_window(header.payload_start() + u64::from(header.length));
        Popped { next: header.next, bytes: &self.window[start..end] }
    }

    /// An offset that `cover` has brought into the window, hence into memory.
    fn in_window(&self, offset: u64) -> usize {
        usize::try_from(offset - self.window_at).unwrap_or(usize::MAX)
    }

    /// Reads sectors so that the window holds published stream bytes `from..to`.
    fn cover(&mut self, from: u64, to: u64) -> Result<()> {
        if self.window_at <= from && to <= self.window_end {
            return Ok(());
        }
        let geometry = self.handle.geometry;
        let size = u64::from(geometry.sector_size().get());
        let start = geometry.sector_floor(from);
        let end = geometry.sector_ceil(to.max(self.producer.get().min(start + WINDOW_BYTES)));
        self.window_end = start;
        self.window_at = start;
        self.window.resize(usize::try_from(end - start).unwrap_or(usize::MAX));
        let mut rest = &mut self.window[..];
        let mut at = start;
        while !rest.is_empty() {
            // Up to the wrap point at a time: a full ring's first and last sector can be the same one.
            let run = (geometry.capacity().get() - geometry.data_offset(at)).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(run).unwrap_or(usize::MAX));
            let sector = (geometry.data_start() + geometry.data_offset(at)) / size;
            self.handle.device.read(sector, &mut [IoSliceMut::new(now)])?;
            rest = later;
            at += run;
        }
        self.window_end = end.min(self.producer.get());
        Ok(())
    }
}
