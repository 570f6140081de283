//! Mutations of the protocol, each of which an exploration must find.

/// A mutation of one side: a step of the protocol is left out, or taken at the wrong time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The `nth` flush (from 0) of an operation is left out.
    NoFlush {
        /// The operation, as [`Step`](crate::Step) names it.
        operation: &'static str,
        /// The number of the flush, from 0.
        nth: u32,
    },
    /// A producer's flush in a push or an advance is left out: the one after this write.
    NoFlushBehind(Last),
    /// The pointer is written before the items that it publishes.
    PointerBeforeData,
    /// Bytes behind a batch in its last sector are overwritten.
    TailNotKept,
    /// In a mapping, the position is stored before its slot.
    SlotAfterPosition,
}

/// The last write of a producer's operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// No write yet.
    Nothing,
    /// Items.
    Data,
    /// Its pointer.
    Pointer,
}
