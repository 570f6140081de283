//! What the library answers when it does not do what was asked.

use crate::device::DeviceError;
use crate::format::{FormatError, Position};

/// The library's errors. [`Retry`](Self::Retry) and [`Suspended`](Self::Suspended) pass with time; see [`Error::is_transient`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to pop, no room to push, or a suspend or resume still waits for its acknowledgement: ask again later.
    #[error("not now: the other side has to move first")]
    Retry,
    /// The consumer has suspended the ring.
    #[error("the ring is suspended by its consumer")]
    Suspended,
    /// The handle was detached.
    #[error("detached: this handle is no longer attached to a ring")]
    Detached,
    /// A flush or the write of a pointer has failed through this handle, and nothing is accepted any more. After a flush, what was
    /// written before may be lost though it can still be read, and a second one could succeed without it. After a pointer,
    /// it may be there all the same, and must not go back.
    #[error(
        "a flush or a pointer's write has failed, what was done last is in doubt: nothing more is accepted (see to the device, then attach again)"
    )]
    Failed,
    /// The ring's pointer of this side is not where this handle has left it: another life of the same process moves it, as when a
    /// virtual machine is restored from an older snapshot, or cloned. Nothing that is published was touched. The handle
    /// has attached again, at the ring's position, and can be used; positions from before are no longer its own.
    #[error(
        "superseded: the ring's {side} is at {ring} and was not moved there by this process, as after the restore of an older snapshot; {} between {from} and {to} cannot be accounted for; what comes now starts at {ring}",
        items.map_or_else(|| "items".to_owned(), |items| format!("{items} items"))
    )]
    Superseded {
        /// This side.
        side: crate::format::Side,
        /// Where the ring stands, and the handle now too.
        ring: Position,
        /// Everything before it is accounted for.
        from: Position,
        /// The end of what is not. A producer's: what it has pushed from `from` on; any of it may be in the ring, or not.
        /// A consumer's: what another life has freed, and will not be delivered here.
        to: Position,
        /// How many items that is, as far as it can be known.
        items: Option<u64>,
    },
    /// Larger than an empty ring.
    #[error("{needed} bytes with framing can never fit: the ring holds {capacity}")]
    TooLarge {
        /// Bytes with framing.
        needed: u64,
        /// Bytes in the data area.
        capacity: u64,
    },
    /// A position that does not lie between this side's own and the limit it may move to.
    #[error("cannot advance to {to}: it must lie between {from} and {limit}")]
    Advance {
        /// As asked.
        to: Position,
        /// This side's position.
        from: Position,
        /// Pushed so far (producer) or published (consumer).
        limit: Position,
    },
    /// `pop` or `fold` from a place that is consumed already, or not published yet.
    #[error("cannot read at {from}: items lie between {consumer} and {producer}")]
    From {
        /// As asked.
        from: Position,
        /// The consumer's position.
        consumer: Position,
        /// The producer's position.
        producer: Position,
    },
    /// An item's bytes are not what the caller's type expects. `advance(next)` skips it.
    #[error("item at position {at} does not decode: {reason} (advance to {next} to skip it)")]
    Undecodable {
        /// Where the item starts.
        at: Position,
        /// Where the next one starts.
        next: Position,
        /// In the decoder's words.
        reason: String,
    },
    /// Another handle has this side of the ring.
    #[error("the ring already has a {role}{}", holder.map(|pid| format!(": process {pid}")).unwrap_or_default())]
    Held {
        /// `producer` or `consumer`.
        role: crate::format::Side,
        /// Who, where `/proc` can tell.
        holder: Option<i32>,
    },
    /// Not a ring, or a corrupt one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Error {
    /// Whether the same call can succeed later without anybody repairing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Retry | Self::Suspended)
    }

    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Whether a write has failed, which can be a guard's word on it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Device(error) if error.operation == "write")
    }
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;
