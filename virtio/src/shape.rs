//! How many requests a queue has, and where everything that belongs to them lies in its memory.

use crate::queue::Layout;

/// Descriptors of a request: header, data, status.
pub const CHAIN: u16 = 3;

/// The largest queue of direct chains: what a device is sure to offer (vhost-user backends have 256
/// or more).
const MAX_DIRECT: u16 = 256;

/// The largest queue there is (virtio 1.3, 2.7).
const MAX_QUEUE: u16 = 1 << 15;

/// Bytes of a slot's header. Headers lie right behind the available ring, and status bytes right
/// behind the used ring: each side then writes few lines, and with one request at a time the other
/// side finds it all in the line that it looks at (a fifth faster).
pub const HEADER_BYTES: u32 = 16;

/// Bytes from one indirect table to the next.
pub const TABLE_BYTES: u64 = 64;

const PAGE: u64 = 4096;

/// How a chain's descriptors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Chains {
    /// In the queue's table: fewer cache lines for the device to read.
    Direct,
    /// In a table of their own, so that a queue holds three times as many chains.
    Indirect,
}

/// How many requests a queue has at once, and how large they are.
///
/// ```
/// use virtio_blk_driver::{Chains, Shape};
///
/// let few = Shape::new(32, 4096);
/// assert_eq!((few.chains(), few.queue_size()), (Chains::Direct, 128));
/// let many = Shape::new(256, 4096);
/// assert_eq!((many.chains(), many.queue_size()), (Chains::Indirect, 256));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    depth: u16,
    buffer: u32,
    chains: Chains,
}

/// Offsets of everything in the memory.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The queue's parts.
    pub layout: Layout,
    /// The first indirect table.
    pub tables: u64,
    /// The first buffer.
    pub buffers: u64,
    /// The first byte behind.
    pub end: u64,
}

impl Shape {
    /// Describes a queue of `depth` requests at once, each with a buffer of `buffer` bytes, and
    /// with indirect descriptors where direct ones would not fit.
    ///
    /// # Panics
    /// If the depth is 0 or more than 32,768, the most that a virtqueue can have.
    pub fn new(depth: u16, buffer: u32) -> Self {
        assert!((1..=MAX_QUEUE).contains(&depth), "a depth from 1 to 32768");
        let chains = if depth <= MAX_DIRECT / CHAIN { Chains::Direct } else { Chains::Indirect };
        Self { depth, buffer, chains }
    }

    /// Describes the same queue with indirect descriptors, which a device has to offer.
    #[must_use]
    pub fn indirect(self) -> Self {
        Self { chains: Chains::Indirect, ..self }
    }

    /// Returns the number of requests at once.
    pub fn depth(self) -> u16 {
        self.depth
    }

    /// Returns the bytes of a request's buffer.
    pub fn buffer_bytes(self) -> u32 {
        self.buffer
    }

    /// Returns how descriptors lie.
    pub fn chains(self) -> Chains {
        self.chains
    }

    /// Returns the bytes of memory that this takes.
    pub fn memory_bytes(self) -> u64 {
        self.plan().end
    }

    /// Returns the number of descriptors in the queue.
    pub fn queue_size(self) -> u16 {
        let descriptors = match self.chains {
            Chains::Direct => self.depth * CHAIN,
            Chains::Indirect => self.depth,
        };
        descriptors.next_power_of_two()
    }

    /// Lays everything out.
    pub(crate) fn plan(self) -> Plan {
        let depth = u64::from(self.depth);
        let header = u64::from(HEADER_BYTES);
        let layout = Layout::new(self.queue_size(), depth * header, depth);
        let tables = layout.end;
        let tables_end = match self.chains {
            Chains::Direct => tables,
            Chains::Indirect => tables + depth * TABLE_BYTES,
        };
        let buffers = tables_end.next_multiple_of(PAGE);
        Plan { layout, tables, buffers, end: buffers + depth * self.stride() }
    }

    /// Returns the bytes from one buffer to the next.
    pub(crate) fn stride(self) -> u64 {
        u64::from(self.buffer).next_multiple_of(PAGE)
    }
}
