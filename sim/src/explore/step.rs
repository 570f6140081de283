//! Operations of the two sides, and the trouble that they have.

use crate::explore::control::Trouble;

/// Size of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Size {
    /// Several fit into a sector.
    Small,
    /// Not a whole number of sectors with its framing: the item ends in another sector than it
    /// starts in.
    Large,
}

/// An operation of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Create the ring.
    Create,
    /// Attach the producer.
    AttachProducer,
    /// Push one item.
    Push(Size),
    /// Push a small and a large item as one batch.
    Batch,
    /// Publish the item that was pushed first.
    AdvanceFirst,
    /// Publish all items.
    AdvanceAll,
    /// The producer's process dies, between two operations.
    KillProducer,
    /// Attach the consumer.
    AttachConsumer,
    /// Pop all items, free none.
    Peek,
    /// Pop one item and free it.
    ConsumeOne,
    /// Pop all items and free them together.
    ConsumeAll,
    /// Suspend the ring.
    Suspend,
    /// Resume the ring.
    Resume,
    /// The consumer's process dies, between two operations.
    KillConsumer,
}

/// Side of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Producer,
    Consumer,
}

impl Op {
    /// Name of the operation, for mutations.
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

/// Operations of one side in the middle of an operation of the other.
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
    /// The operation without trouble.
    Plain(Op),
    /// The operation with trouble at one of its accesses.
    Troubled(Op, usize, Trouble),
    /// The operation, with one of the other side's in front of one of its accesses.
    Between(Op, usize, Op),
}
