//! The end that pops.

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::{Header, PointerSector, Position, Side};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::item::Decode;
use crate::rules::plausible;
use crate::window::{Popped, Window};

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
    window: Window,
}

impl<D: BlockDevice> Consumer<D> {
    /// Becomes the consumer of the ring on `device`. `queue` and `client` go into the text of sector 2.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Handle::attach(device, Side::Consumer, queue, client)?;
        let producer = handle.read_pointer(Side::Producer)?.position;
        let position = handle.read_pointer(Side::Consumer)?.position;
        plausible(producer, position, handle.geometry)?;
        Ok(Self { handle, position, producer, window: Window::empty() })
    }

    /// Chooses what `advance` waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Gives the role back. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
        self.handle.detach();
    }

    /// The device below, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
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
        Ok(self.window.lend(header))
    }

    /// The item at `from` as a `T`. One that is not a `T` is [`Error::Undecodable`], and can be skipped deliberately.
    pub fn pop_as<'a, T: Decode<'a>>(&'a mut self, from: Position) -> Result<(Position, T)> {
        let header = self.load(from)?;
        let item = self.window.lend(header);
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

    /// Brings the item at `from` into the window.
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
        self.window.load(&self.handle.device, from, self.producer)
    }
}
