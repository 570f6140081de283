//! The way to a device: how it gets to know of the queue, and how driver and device wake each
//! other.

use crate::memory::DmaMemory;
use crate::queue::Layout;
use crate::{Disk, Error, ResumeError};
use ring_os::Limits;
use std::os::fd::BorrowedFd;

/// The way to a virtio block device, for [`BlockDriver::new`](super::BlockDriver::new).
///
/// The trait is sealed: what a transport does with memory is for this package alone.
///
/// ```compile_fail,E0046
/// use virtio_blk_driver::{Disk, Transport};
/// struct Mine;
/// impl Transport for Mine {
///     fn disk(&self) -> Disk {
///         panic!("it has no disk")
///     }
/// }
/// ```
///
/// ```compile_fail,E0599
/// use virtio_blk_driver::Transport;
/// fn memory(transport: impl Transport) {
///     transport.allocate(4096);
/// }
/// ```
pub trait Transport {
    /// Returns what the device says of itself.
    fn disk(&self) -> Disk;

    /// Returns what the driver asks everything else of. Only this package has the seal.
    #[doc(hidden)]
    fn into_link(self, seal: Seal) -> Box<dyn Link>;
}

/// The right to use a transport, which code outside this package cannot name.
#[derive(Debug)]
pub struct Seal(());

impl Seal {
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// What a driver asks of the way to its device, which is not driven yet, or whose queue runs.
pub trait Link: Send {
    /// Allocates at least `bytes` of memory that the device can be given.
    fn allocate(&self, bytes: u64) -> Result<DmaMemory, Error>;

    /// Gives the memory to the device, and starts the queue that lies in it. `limits` are for a
    /// device that is another process.
    ///
    /// # Safety
    /// The memory stays mapped until [`stop`](Self::stop) has returned `Ok`, also after an error of
    /// this. Until then it is looked at by atomics and raw copies alone, and its descriptors name
    /// no other memory.
    unsafe fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        limits: &Limits<'_>,
    ) -> Result<(), Error>;

    /// Stops the queue. The device does not touch the memory any more when this returns `Ok`; after
    /// an error it may.
    fn stop(&mut self) -> Result<(), Error>;

    /// Tells the device that there is something in the queue.
    fn notify(&self) -> Result<(), Error>;

    /// Returns a descriptor that is readable after an interrupt of the device; `None` where none
    /// can be had, and waiting means looking again.
    fn interrupt(&self) -> Option<BorrowedFd<'_>>;

    /// Forgets interrupts that came.
    fn acknowledge(&self);

    /// Makes [`interrupt`](Self::interrupt), if there is one, readable, for another thread that
    /// waits for what was found here.
    fn pass_on(&self);

    /// Returns a descriptor that is readable when the device is gone; `None` where nothing tells.
    fn gone(&self) -> Option<BorrowedFd<'_>>;

    /// Checks that the device is still there, as far as that can be asked.
    fn present(&self) -> Result<(), Error>;

    /// Looks once for a device that has gone, and has it go on with the queue in `memory` from the
    /// index `base` on. [`interrupt`](Self::interrupt) and [`gone`](Self::gone) stay the same
    /// descriptors.
    ///
    /// # Safety
    /// The same as for [`start`](Self::start), with the same memory.
    unsafe fn resume(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        limits: &Limits<'_>,
    ) -> Result<(), ResumeError> {
        let _ = (memory, layout, base, limits);
        Err(ResumeError::Never(Error::Gone))
    }
}
