//! The driver's side of a virtio block device (virtio 1.3, 2.7 and 5.2), in a process.
//!
//! A [`Transport`] is the way to a device: [`VhostUser`] to one in another process, [`Pci`] to one
//! of this machine. A [`BlockDriver`] is made over it, and owns all that belongs together: the
//! virtqueue, the memory that device and driver share, and the transport. [`Reconnect`] looks for a
//! device that has gone.
//!
//! A device writes to the memory that its driver was made with, and to no other: descriptors are
//! made within the package alone, of ranges of that memory. It is given back after the device has
//! stopped, or not at all.
//!
//! ```no_run
//! use virtio_blk_driver::{BlockDriver, Limits, Request, Shape, VhostUser};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = VhostUser::connect("/run/disk.sock")?;
//! let mut driver = BlockDriver::new(backend, Shape::new(1, 512), &Limits::default())?;
//! let slot = driver.slot().expect("no request is in flight");
//! slot.submit(Request::read(0, 512)); // unit 0, of 512 bytes
//! driver.publish()?;
//! let mut sector = [0; 512];
//! loop {
//!     if let Some(done) = driver.reap()? {
//!         done.result()?;
//!         done.read(&mut sector);
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`BlockDriver`] shows how to wait without looking all the time.
//!
//! With the feature `ring`, `VirtioDevice` is a device of the crate `shared-block-ring` over such a
//! driver.
#![deny(missing_docs, missing_debug_implementations)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod block;
mod bytes;
mod disk;
mod driver;
mod error;
mod memory;
pub mod pci;
mod pci_transport;
mod queue;
mod reconnect;
mod request;
#[cfg(feature = "ring")]
mod ring;
mod shape;
#[cfg(test)]
mod tests;
mod transport;
mod vhost_user;

pub use disk::{Difference, Disk};
pub use driver::BlockDriver;
pub use error::{Error, Refusal, ResumeError, Step};
pub use pci_transport::{CapabilityError, Pci};
pub use queue::Broken;
pub use reconnect::Reconnect;
pub use request::{Completion, IDLE, Request, RequestId, Slot};
#[cfg(feature = "ring")]
pub use ring::VirtioDevice;
#[doc(inline)]
pub use ring_os::{Limits, wait_readable};
pub use shape::{Chains, Shape};
pub use transport::Transport;
pub use vhost_user::VhostUser;
