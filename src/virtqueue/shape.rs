//! How many requests a queue has, and where everything that belongs to them lies in its memory.

use super::Layout;

/// Descriptors of a request: header, data, status.
pub(super) const CHAIN: u16 = 3;

/// The largest queue of direct chains: what a device is sure to offer (vhost-user backends have 256 or more).
const MAX_QUEUE: u16 = 256;

/// A slot's header. Headers lie right behind the available ring, and status bytes right behind the used ring: each side then writes
/// few lines, and with one request at a time the other side finds it all in the line that it looks at (a fifth faster).
pub(super) const HEADER_BYTES: u32 = 16;

/// Room for an indirect table.
pub(super) const TABLE_BYTES: u64 = 64;

const PAGE: u64 = 4096;

/// How a chain's descriptors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chains {
    /// In the queue's table: fewer lines for the device to read.
    Direct,
    /// In a table of their own, so that a queue holds three times as many.
    Indirect,
}

/// How many requests, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Requests at once.
    pub depth: u16,
    /// Bytes of a request's buffer.
    pub buffer: u32,
    /// How descriptors lie.
    pub chains: Chains,
}

/// Where everything lies.
pub(super) struct Plan {
    pub layout: Layout,
    pub tables: u64,
    pub buffers: u64,
    pub end: u64,
}

impl Shape {
    /// This many requests of this many bytes; with indirect descriptors where direct ones would not fit.
    pub fn new(depth: u16, buffer: u32) -> Self {
        let chains = if depth <= MAX_QUEUE / CHAIN { Chains::Direct } else { Chains::Indirect };
        Self { depth, buffer, chains }
    }

    /// Bytes of memory that this takes.
    pub fn memory(self) -> u64 {
        self.plan().end
    }

    /// Descriptors in the queue.
    pub fn queue_size(self) -> u16 {
        let descriptors = match self.chains {
            Chains::Direct => self.depth * CHAIN,
            Chains::Indirect => self.depth,
        };
        descriptors.next_power_of_two()
    }

    pub(super) fn plan(self) -> Plan {
        let depth = u64::from(self.depth);
        let header = u64::from(HEADER_BYTES);
        let layout = Layout::new(self.queue_size(), 0, depth * header, depth);
        let tables = layout.end;
        let tables_end = match self.chains {
            Chains::Direct => tables,
            Chains::Indirect => tables + depth * TABLE_BYTES,
        };
        let buffers = tables_end.next_multiple_of(PAGE);
        Plan { layout, tables, buffers, end: buffers + depth * self.stride() }
    }

    /// From one buffer to the next.
    pub(super) fn stride(self) -> u64 {
        u64::from(self.buffer).next_multiple_of(PAGE)
    }
}
