//! How many requests a queue has, and where everything that belongs to them lies in its memory.

use super::Layout;

/// Descriptors of a request: header, data, status.
pub(super) const CHAIN: u16 = 3;

/// The largest queue of direct chains: what a device is sure to offer (vhost-user backends have 256 or more).
const MAX_QUEUE: u16 = 256;

/// A slot's header and its status byte, in lines of their own: they are written by different sides.
pub(super) const SLOT_BYTES: u64 = 256;
pub(super) const STATUS_AT: u64 = 128;

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
    pub headers: u64,
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
        let layout = Layout::new(self.queue_size(), 0);
        let headers = layout.end.next_multiple_of(SLOT_BYTES);
        let tables = headers + depth * SLOT_BYTES;
        let tables_end = match self.chains {
            Chains::Direct => tables,
            Chains::Indirect => tables + depth * TABLE_BYTES,
        };
        let buffers = tables_end.next_multiple_of(PAGE);
        Plan { layout, headers, tables, buffers, end: buffers + depth * self.stride() }
    }

    /// From one buffer to the next.
    pub(super) fn stride(self) -> u64 {
        u64::from(self.buffer).next_multiple_of(PAGE)
    }
}
