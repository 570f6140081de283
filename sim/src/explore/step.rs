//! What the two sides do, and what befalls them.

use crate::explore::control::Trouble;

/// How large an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Size {
    /// Several fit into a sector.
    Small,
    /// With its framing not a whole number of sectors: it ends in another than it starts in.
    Large,
}

/// An operation of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Make the ring.
    Create,
    /// Become the producer.
    AttachProducer,
    /// Push one item.
    Push(Size),
    /// A small item and a large one in one go.
    Batch,
    /// Make what was pushed first visible.
    AdvanceFirst,
    /// Make all that was pushed visible.
    AdvanceAll,
    /// The producer's process dies, between two operations.
    KillProducer,
    /// Become the consumer.
    AttachConsumer,
    /// Look at all items, free none.
    Peek,
    /// Take one item and free it.
    ConsumeOne,
    /// Take all items and free them together.
    ConsumeAll,
    /// Ask the producer to stop.
    Suspend,
    /// Let it go on.
    Resume,
    /// The consumer's process dies, between two operations.
    KillConsumer,
}

/// Whose an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Producer,
    Consumer,
}

impl Op {
    /// For mutants.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::AttachProducer => "attach producer",
            Self::Push(_) | Self::Batch => "push",
            Self::AdvanceFirst | Self::AdvanceAll => "advance",
            Self::AttachConsumer => "attach consumer",
            Self::Peek => "peek",
            Self::ConsumeOne | Self::ConsumeAll => "consume",
            Self::Suspend | Self::Resume => "suspend",
            Self::KillProducer | Self::KillConsumer => "kill",
        }
    }

    pub(crate) const fn party(self) -> Party {
        match self {
            Self::Create
            | Self::AttachProducer
            | Self::Push(_)
            | Self::Batch
            | Self::AdvanceFirst
            | Self::AdvanceAll
            | Self::KillProducer => Party::Producer,
            Self::AttachConsumer
            | Self::Peek
            | Self::ConsumeOne
            | Self::ConsumeAll
            | Self::Suspend
            | Self::Resume
            | Self::KillConsumer => Party::Consumer,
        }
    }
}

/// All operations.
pub const OPS: [Op; 15] = [
    Op::Create,
    Op::AttachProducer,
    Op::Push(Size::Small),
    Op::Push(Size::Large),
    Op::Batch,
    Op::AdvanceFirst,
    Op::AdvanceAll,
    Op::KillProducer,
    Op::AttachConsumer,
    Op::Peek,
    Op::ConsumeOne,
    Op::ConsumeAll,
    Op::Suspend,
    Op::Resume,
    Op::KillConsumer,
];

/// What one side does while the other is in the middle of something.
pub const BETWEEN: [Op; 6] = [
    Op::Push(Size::Large),
    Op::AdvanceAll,
    Op::AttachProducer,
    Op::ConsumeAll,
    Op::Suspend,
    Op::AttachConsumer,
];

/// A step of a program. Accesses are numbered from 0 within the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// It goes well.
    Plain(Op),
    /// Something befalls one of its accesses.
    Troubled(Op, usize, Trouble),
    /// In front of one of its accesses the other side carries out an operation of its own.
    Between(Op, usize, Op),
}
