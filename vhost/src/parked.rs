//! The one request of a queue that may be unfinished.

use crate::flusher::Ticket;
use crate::guard::Judgement;
use std::time::Instant;

/// A request between its descriptor and its completion.
pub struct Parked {
    /// The chain's first descriptor.
    pub head: u16,
    /// What it waits for.
    pub why: Why,
}

/// What a request waits for.
pub enum Why {
    /// Until everything stored is durable. `len` bytes were written to the guest.
    Flush {
        /// By which the flusher names it.
        ticket: Ticket,
        /// For the used ring.
        len: u32,
        /// Whether it is, once that is known.
        durable: Option<bool>,
    },
    /// Until the host's pointer moves, any request follows, or the time is up.
    Held {
        /// When that is.
        until: Instant,
    },
    /// Until all items under a new pointer are looked at.
    Walking(Box<Judgement>),
}
