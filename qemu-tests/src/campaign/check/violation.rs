//! Violations of a stream's promises.

use std::fmt;

use crate::load::item::Stamp;

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A log that no load writes.
    #[error("a log says {line:?} where that cannot be")]
    Log {
        /// The line, or what is missing.
        line: String,
    },
    /// A load met an error, or could not attach.
    #[error("{0}")]
    Failed(String),
    /// An item, by its stamp, that no producer was about to push.
    #[error("{0} was delivered, and never pushed")]
    NeverPushed(Place),
    /// An item that is not what its stamp says.
    #[error("{0} was delivered, and its bytes are not what was pushed")]
    Torn(Place),
    /// Bytes that are too short for an item.
    #[error("{0} bytes were delivered that are no item")]
    Scrap(usize),
    /// A batch of which not all was visible.
    #[error("{next} was delivered behind {last}: a batch is visible in part")]
    Partial {
        /// The item before.
        last: Place,
        /// The item delivered.
        next: Place,
    },
    /// A batch that was acknowledged, or that a later one of the same run shows to have been
    /// published.
    #[error("batch {batch} of run {run} was published, and is not delivered")]
    Lost {
        /// The producer's run.
        run: u32,
        /// The batch.
        batch: u32,
    },
    /// An item out of order.
    #[error("{next} was delivered where {expected} was due")]
    Order {
        /// Delivered in this place before.
        expected: Place,
        /// The item delivered.
        next: Place,
    },
    /// Delivered after it was freed.
    #[error("{0} was delivered again after it was freed")]
    Again(Place),
    /// The last consumer has left something.
    #[error("of {delivered} items delivered {freed} are freed at the end")]
    Left {
        /// Items in all.
        delivered: usize,
        /// Items that were freed.
        freed: usize,
    },
}

/// A stamp in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub Stamp);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp { run, batch, index, size, number } = self.0;
        write!(
            f,
            "item {number} of run {run} ({} of {size} in batch {batch})",
            u64::from(index) + 1
        )
    }
}
