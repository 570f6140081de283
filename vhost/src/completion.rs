//! The end of a request: its status byte, and its place in the used ring.

use crate::dirty::GuestMemory;
use crate::executor::Outcome;
use crate::vring::Memory;
use vhost_user_backend::VringState;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// A completion.
pub struct Finished {
    /// The chain's first descriptor.
    pub head: u16,
    /// For the status byte.
    pub status: u8,
    /// Bytes written to the guest in front of that.
    pub len: u32,
}

impl Finished {
    /// Carried out.
    pub fn ok(head: u16, len: u32) -> Self {
        Self { head, status: status(VIRTIO_BLK_S_OK), len }
    }

    /// Not carried out.
    pub fn failed(head: u16) -> Self {
        Self { head, status: status(VIRTIO_BLK_S_IOERR), len: 0 }
    }

    /// By its outcome, where that is one.
    pub fn from(head: u16, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done(len) => Self::ok(head, *len),
            Outcome::Unsupported => Self { head, status: status(VIRTIO_BLK_S_UNSUPP), len: 0 },
            Outcome::Failed | Outcome::Flush | Outcome::Hold | Outcome::Walking(_) => {
                Self::failed(head)
            }
        }
    }
}

/// The constants are small, and generated as 32 bits wide.
fn status(constant: u32) -> u8 {
    u8::try_from(constant).unwrap_or(u8::MAX)
}

/// Completion is in order, so everything behind the used index is unanswered: it is found again when the queue starts.
pub fn give_back(state: &mut VringState<Memory>) {
    let queue = state.get_queue_mut();
    queue.set_next_avail(queue.next_used());
}

/// Whether all three parts of a queue lie in guest memory, to their last byte (virtio 1.3, 2.7): whatever is looked up in them then is there.
pub fn in_memory(queue: &Queue, mem: &GuestMemory) -> bool {
    let size = usize::from(queue.size());
    let there = |start, len| mem.check_range(GuestAddress(start), len);
    there(queue.desc_table(), 16 * size)
        && there(queue.avail_ring(), 6 + 2 * size)
        && there(queue.used_ring(), 6 + 8 * size)
}
