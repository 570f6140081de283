//! The driver's side of a virtio block device: a split virtqueue (virtio 1.3, 2.7) and the requests on it (5.2.6).
//!
//! [`DmaMemory`] is what driver and device share, [`Queue`] the ring in it, [`BlockQueue`] requests with their buffers, and
//! a [`Transport`] the way to the device: [`VhostUser`] to one in another process, [`Pci`] to one of this machine. The ring knows nothing of who is at its other end: whoever calls
//! [`Queue::publish`] has the device told if the answer is yes.

mod block;
mod disk;
mod memory;
mod pci;
mod queue;
mod request;
mod shape;
#[cfg(test)]
mod tests;
mod transport;
mod vhost_user;

pub use block::BlockQueue;
pub use disk::Disk;
pub use memory::{DmaMemory, Pages};
pub use pci::Pci;
pub use queue::{Broken, Descriptor, Layout, Queue, Used};
pub use request::{Completion, IDLE, Operation, Request, Slot};
pub use shape::{Chains, Shape};
pub use transport::{Away, Transport};
pub use vhost_user::VhostUser;
