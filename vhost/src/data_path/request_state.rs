//! How a request stands, from its descriptor chain to its entry in the used ring.

use crate::data_path::flusher::Ticket;
use crate::data_path::guard::Judgement;
use std::time::Instant;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

/// The state of a request. Of one queue at most one request is unfinished: everything but
/// [`Done`](Self::Done), and [`Stored`](Self::Stored), of which several may wait.
#[derive(Debug)]
pub enum RequestState {
    /// Carried out, or refused: only its answer is left.
    Done(Answer),
    /// Parsed, and nothing was done for it yet. A write stays so while the items under a new
    /// position are being walked for a write of another queue: what that walk has seen must not
    /// change.
    Parsed,
    /// A write of the guest's pointer whose new items the guard has not all looked at.
    Walking(Box<Judgement>),
    /// A write of data, carried out. It is answered with those that are waiting behind it, by one
    /// flush.
    Stored(Answer),
    /// Carried out, and answered once everything stored so far is durable.
    Flushing {
        /// The flush that is waited for.
        ticket: Ticket,
        /// The answer if that flush succeeds.
        answer: Answer,
    },
    /// A read of the host's pointer sector that would show what the guest knows already. Carried
    /// out when that sector changes, when another request follows, or at the latest at `until`.
    Held {
        /// The end of the wait.
        until: Instant,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status byte (virtio 1.3, 5.2.6).
    pub status: u8,
    /// Bytes written to the guest in front of the status byte.
    pub written: u32,
}

impl Answer {
    /// Not carried out.
    pub const FAILED: Self = Self { status: status(VIRTIO_BLK_S_IOERR), written: 0 };

    /// Of a type that this device does not offer.
    pub const UNSUPPORTED: Self = Self { status: status(VIRTIO_BLK_S_UNSUPP), written: 0 };

    /// Carried out; `written` bytes were written to the guest.
    pub const fn ok(written: u32) -> Self {
        Self { status: status(VIRTIO_BLK_S_OK), written }
    }

    /// Whether the request was carried out.
    pub fn is_ok(self) -> bool {
        self.status == status(VIRTIO_BLK_S_OK)
    }
}

/// The constants are generated as 32 bits wide; a status is one byte.
const fn status(constant: u32) -> u8 {
    assert!(constant <= u8::MAX as u32);
    constant.to_le_bytes()[0]
}
