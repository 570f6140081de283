//! A driver: a queue, the memory that it lies in, and the way to the device that uses both.
//!
//! This is where memory and device meet, and where the memory's life is decided. The driver owns
//! both. The device gets to know of the memory only when the driver already exists, and is stopped
//! first when the driver is dropped: memory that the device might still use is never unmapped. That
//! holds on every way out: an error of the start, a panic, a device that is gone.

use crate::block::BlockQueue;
use crate::reconnect::Progress;
use crate::transport::{Link, Seal};
use crate::{
    Broken, Chains, Completion, Disk, Error, Refusal, ResumeError, Shape, Slot, Transport,
};
use ring_os::Limits;
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;

/// A virtio block device whose queue this process drives.
///
/// Requests are made in four steps: a free [`Slot`] is filled and [submitted](Slot::submit),
/// [`publish`](Self::publish) shows all submitted requests to the device, [`reap`](Self::reap)
/// returns those that the device is done with. None of them waits, and none is a system call while
/// both sides are awake.
///
/// ```no_run
/// use virtio_blk_driver::{BlockDriver, Limits, Request, Shape, VhostUser, wait_readable};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = VhostUser::connect("/run/disk.sock")?;
/// let mut driver = BlockDriver::new(backend, Shape::new(32, 4096), &Limits::default())?;
///
/// let mut slot = driver.slot().expect("none of 32 requests is in flight");
/// slot.fill(&[7; 4096]);
/// slot.submit(Request::write(0, 4096));
/// driver.publish()?;
///
/// loop {
///     if let Some(done) = driver.reap()? {
///         done.result()?;
///         break;
///     }
///     // Asking comes before the last look: no interrupt is missed.
///     if driver.ask_for_interrupt() {
///         wait_readable(driver.interrupt_fd().as_slice(), None)?;
///         driver.acknowledge_interrupt();
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// The memory of the queue and its buffers is the driver's own. No address of it can be had or made
/// up, and so no descriptor can lead the device to other memory:
///
/// ```compile_fail,E0603
/// use virtio_blk_driver::memory::DmaMemory;
/// ```
///
/// ```compile_fail,E0603
/// use virtio_blk_driver::queue::{Descriptor, Queue};
/// ```
///
/// Nothing that is borrowed from a driver outlives it:
///
/// ```compile_fail,E0505
/// # use virtio_blk_driver::{BlockDriver, Request};
/// # fn f(mut driver: BlockDriver) {
/// let done = driver.reap().unwrap().unwrap();
/// drop(driver);
/// done.read(&mut [0; 512]);
/// # }
/// ```
pub struct BlockDriver {
    /// The queue with its memory. [`Drop`] alone drops it, and only after the device has stopped.
    queue: ManuallyDrop<BlockQueue>,
    transport: Box<dyn Link>,
    disk: Disk,
}

impl BlockDriver {
    /// Starts the device's queue, with nothing in it. `limits` are for a device that is another
    /// process.
    ///
    /// # Errors
    /// A [`Refusal`] where the device cannot serve a queue of this shape, or no memory can be had
    /// for it; the operating system's error where the device cannot be told.
    pub fn new(
        transport: impl Transport,
        shape: Shape,
        limits: &Limits<'_>,
    ) -> Result<Self, Error> {
        let disk = transport.disk();
        if shape.chains() == Chains::Indirect && !disk.indirect {
            return Err(Refusal::NoIndirect.into());
        }
        let transport = transport.into_link(Seal::new());
        let memory = transport.allocate(shape.memory_bytes())?;
        let queue = ManuallyDrop::new(BlockQueue::new(memory, shape, disk.event_idx));
        let mut driver = Self { queue, transport, disk };
        let (memory, layout) = (driver.queue.memory(), driver.queue.layout());
        // SAFETY: the driver owns the memory, and its `drop` alone unmaps it, after `stop` has
        // returned `Ok`. An error here drops the driver too. The queue looks at its memory by
        // atomics and copies, and describes nothing but ranges of it.
        unsafe { driver.transport.start(memory, layout, limits) }?;
        Ok(driver)
    }

    /// Returns what the device says of itself.
    pub fn disk(&self) -> Disk {
        self.disk
    }

    /// Returns how many requests there are at once, and how large they are.
    pub fn shape(&self) -> Shape {
        self.queue.shape()
    }

    /// Returns the memory that device and driver share.
    #[cfg(all(test, not(miri)))]
    pub(super) fn memory(&self) -> &super::memory::DmaMemory {
        self.queue.memory()
    }

    /// Returns the number of requests that were submitted and not reaped.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Returns a free slot, to be filled and submitted; `None` while all are in flight.
    pub fn slot(&mut self) -> Option<Slot<'_>> {
        self.queue.slot()
    }

    /// Shows the device all requests that were submitted, and notifies it if it wants that. Returns
    /// whether it did.
    ///
    /// # Errors
    /// The operating system's, if the notification fails.
    pub fn publish(&mut self) -> Result<bool, Error> {
        let wanted = self.queue.publish();
        if wanted {
            self.transport.notify()?;
        }
        Ok(wanted)
    }

    /// Returns the oldest request, if the device is done with it: requests are reaped in the order
    /// in which they were submitted.
    ///
    /// # Errors
    /// [`Broken`] when the device violates the rules of the queue, from then on for good.
    pub fn reap(&mut self) -> Result<Option<Completion<'_>>, Broken> {
        self.queue.reap()
    }

    /// Returns a request that the device is done with, in the order in which the device gives them
    /// back.
    ///
    /// # Errors
    /// As [`reap`](Self::reap).
    pub fn reap_any(&mut self) -> Result<Option<Completion<'_>>, Broken> {
        self.queue.reap_any()
    }

    /// Asks for an interrupt when the next request is done. Returns false if one is done already: a
    /// sleep could then last for ever.
    #[must_use = "what is done already does not interrupt"]
    pub fn ask_for_interrupt(&self) -> bool {
        self.queue.ask_for_interrupt()
    }

    /// Asks for no interrupts.
    pub fn refuse_interrupts(&self) {
        self.queue.refuse_interrupts();
    }

    /// Returns a descriptor that is readable after an interrupt of the device; `None` where none
    /// can be had, and waiting means looking again after a pause.
    pub fn interrupt_fd(&self) -> Option<BorrowedFd<'_>> {
        self.transport.interrupt()
    }

    /// Forgets interrupts that came.
    pub fn acknowledge_interrupt(&self) {
        self.transport.acknowledge();
    }

    /// Makes [`interrupt_fd`](Self::interrupt_fd), if there is one, readable, for another thread
    /// that waits for what was found here.
    pub fn pass_on_interrupt(&self) {
        self.transport.pass_on();
    }

    /// Returns a descriptor that is readable when the device is gone; `None` where nothing tells.
    pub fn gone_fd(&self) -> Option<BorrowedFd<'_>> {
        self.transport.gone()
    }

    /// Checks that the device is still there, as far as that can be asked. It counts as there while
    /// it does not answer for long.
    ///
    /// # Errors
    /// [`Error::Gone`], or [`Error::NeedsReset`].
    pub fn check_presence(&self) -> Result<(), Error> {
        self.transport.present()
    }

    /// Takes what a device that is gone has given back. Returns how far it has come.
    ///
    /// # Errors
    /// As [`reap`](Self::reap).
    pub(super) fn progress(&mut self) -> Result<Progress, Broken> {
        self.queue.replay().map(Progress)
    }

    /// Looks once for a device that has gone, and has it go on with this queue: what the last one
    /// has given back counts, and everything else is carried out, again perhaps, in the order in
    /// which it was submitted. [`Reconnect`](super::Reconnect) does this again and again.
    ///
    /// # Errors
    /// [`ResumeError::Later`] while the device is not there; [`ResumeError::Never`] when another
    /// attempt cannot succeed.
    pub fn resume(&mut self, limits: &Limits<'_>) -> Result<(), ResumeError> {
        let base = self.queue.replay().map_err(|broken| ResumeError::Never(broken.into()))?;
        let (memory, layout) = (self.queue.memory(), self.queue.layout());
        // SAFETY: as in `new`.
        unsafe { self.transport.resume(memory, layout, base, limits) }
    }
}

impl Drop for BlockDriver {
    fn drop(&mut self) {
        match self.transport.stop() {
            // SAFETY: the device does not touch the memory any more. Nothing uses the queue after
            // this.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.queue) },
            // Unmapped, the memory could be anyone's by the time the device writes to it.
            Err(e) => log::warn!(
                "{e}: {} bytes that it was given stay allocated until this process ends",
                self.queue.memory().bytes()
            ),
        }
        // The transport goes after this, with its descriptors and mappings: in any order, as
        // nothing uses them.
    }
}

impl fmt::Debug for BlockDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disk, shape) = (self.disk, self.shape());
        f.debug_struct("BlockDriver")
            .field("disk", &disk)
            .field("shape", &shape)
            .finish_non_exhaustive()
    }
}
