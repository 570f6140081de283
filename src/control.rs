//! Access to a ring beside its producer and consumer: to look at it, suspend and resume it.

use crate::device::RingDevice;
use crate::error::Result;
use crate::format::encode_suspend;
use crate::handle::{DebugInfo, Handle, State};
use std::fmt;

/// A handle on a ring beside its producer and consumer, in this or another process.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
/// use shared_block_ring::{Control, Error, OpenOptions, Producer, State, create};
/// # create(&OpenOptions::default().open(&path)?, Default::default())?;
///
/// let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
/// let mut control = Control::open(OpenOptions::default().open(&path)?)?;
/// control.suspend()?;
/// assert_eq!(control.state()?, State::Running); // the producer has not looked yet
/// assert_eq!(producer.state()?, State::Suspended); // it has now, and acknowledged
/// assert_eq!(control.state()?, State::Suspended);
/// assert!(matches!(producer.push("hello"), Err(Error::Suspended)));
/// control.resume()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Control<D> {
    handle: Handle<D>,
}

impl<D> fmt::Debug for Control<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.handle).finish()
    }
}

impl<D: RingDevice> Control<D> {
    /// Opens the ring on `device`, and takes no role.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`](crate::Error::Format) for a device without a ring.
    pub fn open(device: D) -> Result<Self> {
        Ok(Self { handle: Handle::open(device, "", "")? })
    }

    /// Returns the device, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// Reads the ring's state from its sectors.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`](crate::Error::Format) for damaged pointers.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Returns whether the producer has acknowledged a suspend.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`](crate::Error::Format) for a damaged pointer.
    pub fn state(&mut self) -> Result<State> {
        self.handle.acknowledged()
    }

    /// Asks the producer to stop.
    ///
    /// # Errors
    /// [`Error::Retry`](crate::Error::Retry) while the producer has not acknowledged the previous
    /// change; the device's.
    pub fn suspend(&mut self) -> Result<()> {
        self.set_suspend(true)
    }

    /// Lets the producer go on.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub fn resume(&mut self) -> Result<()> {
        self.set_suspend(false)
    }

    fn set_suspend(&mut self, suspend: bool) -> Result<()> {
        // The text is for the consumer to write; only the flag has a meaning.
        self.handle.set_suspend(suspend, |_, _, sector| encode_suspend(sector, suspend))
    }
}
