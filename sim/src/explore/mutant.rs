//! Ways to be wrong, each of which an exploration must find out.

/// A side that leaves a step of the protocol out, or takes it at the wrong time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The `nth` flush (from 0) of an operation is not made.
    NoFlush {
        /// As [`Step`](crate::Step) names it.
        operation: &'static str,
        /// Which of its flushes.
        nth: u32,
    },
    /// A flush of a producer that pushes or advances is not made: the one behind this.
    NoFlushBehind(Last),
    /// The pointer is written before the items that it exposes.
    PointerBeforeData,
    /// What a batch's last sector holds behind it is not kept.
    TailNotKept,
    /// In a mapping, the position is stored before the slot that speaks for it.
    SlotAfterPosition,
}

/// What an operation of a producer wrote last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Nothing yet.
    Nothing,
    /// Items.
    Data,
    /// Its pointer.
    Pointer,
}
