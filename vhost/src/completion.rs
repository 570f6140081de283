//! The end of a request: what its status byte says, and the used ring.

use crate::executor::Outcome;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

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
