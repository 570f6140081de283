//! Looking at a ring, and stopping its producer, without being either end.

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::FLAG_AT;
use crate::handle::{DebugInfo, Handle, State};
use std::fmt;

/// A handle beside the ring's producer and consumer, in this or another process.
pub struct Control<D> {
    handle: Handle<D>,
}

impl<D> fmt::Debug for Control<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.handle).finish()
    }
}

impl<D: BlockDevice> Control<D> {
    /// Verifies the ring on `device`. Neither end is disturbed.
    pub fn open(device: D) -> Result<Self> {
        Ok(Self { handle: Handle::open(device, "", "")? })
    }

    /// The device below, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Whether the producer has acknowledged a suspend.
    pub fn state(&mut self) -> Result<State> {
        self.handle.acknowledged()
    }

    /// Asks the producer to stop. [`Error::Retry`](crate::Error::Retry) while the previous change is not acknowledged.
    pub fn suspend(&mut self) -> Result<()> {
        self.set_suspend(true)
    }

    /// Lets the producer go on. [`Error::Retry`](crate::Error::Retry) while the previous change is not acknowledged.
    pub fn resume(&mut self) -> Result<()> {
        self.set_suspend(false)
    }

    fn set_suspend(&mut self, suspend: bool) -> Result<()> {
        if self.handle.change_wanted(suspend)? {
            // The text is the consumer's to write; the flag alone is what counts.
            self.handle.edit_consumer(|_, sector| sector[FLAG_AT] = if suspend { 1 } else { 2 })?;
            self.handle.flush()?;
        }
        Ok(())
    }
}
