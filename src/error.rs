//! Errors of the library.

use crate::device::{DeviceError, Operation};
use crate::format::{FormatError, Position, Side};

/// The library's errors, in two classes.
///
/// A *transient* error ([`Retry`](Self::Retry), [`Suspended`](Self::Suspended)) says that the other
/// side has to move first: nothing has failed, and the same call succeeds later. See
/// [`is_transient`](Self::is_transient), and [`Wait`](crate::wait::Wait) for the time in between.
///
/// Every other error is *lasting*: the same call fails again until something has changed: the
/// argument, the handle, the ring or the device. The handle stays usable unless the error is
/// [`Failed`](Self::Failed) or [`Detached`](Self::Detached).
///
/// ```
/// use shared_block_ring::{Error, Position, Producer, RingDevice};
///
/// /// Publishes an item; `None` if there is no room yet.
/// fn publish<D: RingDevice>(
///     producer: &mut Producer<D>,
///     item: &str,
/// ) -> Result<Option<Position>, Error> {
///     match producer.push(item) {
///         Ok(position) => producer.advance(position).map(|()| Some(position)),
///         Err(e) if e.is_transient() => Ok(None),
///         Err(e) => Err(e),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No item to pop, no room to push, or a suspend or resume that still waits for its
    /// acknowledgement: ask again later.
    #[error("not now: the other side has to move first")]
    Retry,
    /// The consumer has suspended the ring.
    #[error("the ring is suspended by its consumer")]
    Suspended,
    /// The handle was detached.
    #[error("detached: this handle is no longer attached to a ring")]
    Detached,
    /// A flush or the write of a pointer has failed through this handle, and it accepts nothing
    /// more. After a flush, what was written before may be lost though it can still be read, and a
    /// second flush could succeed without it. After a pointer, the pointer may be there all the
    /// same, and must not go back: [`Producer::in_doubt`](crate::Producer::in_doubt) tells.
    #[error(
        "a flush or a pointer's write has failed, what was done last is in doubt: nothing more is accepted (see to the device, then attach again)"
    )]
    Failed,
    /// The ring's pointer of this side is not where this handle has left it: another instance of
    /// the same state moved it, as when a virtual machine is restored from an older snapshot, or
    /// cloned. Nothing that is published was touched. The handle has attached again, at the ring's
    /// position, and can be used; positions from before are no longer its own.
    #[error(
        "superseded: the ring's {side} is at {ring} and was not moved there by this process, as after the restore of an older snapshot; {} between {from} and {to} cannot be accounted for; what comes now starts at {ring}",
        items.map_or_else(|| "items".to_owned(), |items| format!("{items} item{}", if items == 1 { "" } else { "s" }))
    )]
    Superseded {
        /// The side whose pointer was moved.
        side: Side,
        /// The position of the ring, and of this handle now.
        ring: Position,
        /// The position up to which everything is accounted for.
        from: Position,
        /// The end of what is not. For a producer: the end of what it has pushed from `from` on,
        /// any of which may be in the ring. For a consumer: the end of what another instance has
        /// freed, which is not delivered here.
        to: Position,
        /// The number of items between the two, as far as it is known.
        items: Option<u64>,
    },
    /// An item, or a batch, that is larger than an empty ring.
    #[error("{needed} bytes with framing can never fit: the ring holds {capacity}")]
    TooLarge {
        /// Bytes with framing.
        needed: u64,
        /// Bytes of the data area.
        capacity: u64,
    },
    /// A position to advance to that does not lie between this side's own and the limit of its
    /// move.
    #[error("cannot advance to {to}: it must lie between {from} and {limit}")]
    InvalidAdvance {
        /// The position as asked for.
        to: Position,
        /// This side's position.
        from: Position,
        /// The end of what was pushed (producer), or published as far as this handle has looked
        /// (consumer).
        limit: Position,
    },
    /// A position to pop or fold from that is consumed already, or not published yet.
    #[error("cannot read at {from}: items lie between {consumer} and {producer}")]
    InvalidStart {
        /// The position as asked for.
        from: Position,
        /// The consumer's position.
        consumer: Position,
        /// The producer's position.
        producer: Position,
    },
    /// An item whose bytes are not what the caller's type expects. `advance(next)` skips it.
    #[error("item at position {at} does not decode: {reason} (advance to {next} to skip it)")]
    Undecodable {
        /// The position of the item.
        at: Position,
        /// The position of the next item.
        next: Position,
        /// The decoder's error, as text.
        reason: String,
    },
    /// Another handle has the role.
    #[error("the ring already has a {role}{}", holder.map(|pid| format!(": process {pid}")).unwrap_or_default())]
    RoleTaken {
        /// The role.
        role: Side,
        /// The process that has it, where `/proc` can tell.
        holder: Option<i32>,
    },
    /// The device holds no ring, or a damaged one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An operation of the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Error {
    /// Returns whether the same call can succeed later without any repair.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Retry | Self::Suspended)
    }

    /// Returns the error's name, which is the same in every language that has the library: its words
    /// can change, and its name does not.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Suspended => "suspended",
            Self::Detached => "detached",
            Self::Failed => "failed",
            Self::Superseded { .. } => "superseded",
            Self::TooLarge { .. } => "too_large",
            Self::InvalidAdvance { .. } => "invalid_advance",
            Self::InvalidStart { .. } => "invalid_start",
            Self::Undecodable { .. } => "undecodable",
            Self::RoleTaken { .. } => "role_taken",
            Self::Format(_) => "format",
            Self::Device(_) => "device",
        }
    }

    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self, Self::Superseded { .. })
    }

    /// Returns whether a write has failed, as the write of another instance's stale pointer does
    /// that a backend's guard refuses.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Device(DeviceError { operation: Operation::Write, .. }))
    }
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;
