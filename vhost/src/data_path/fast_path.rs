//! Requests that the fast path takes: reads and writes of one buffer, with header, buffer and
//! status byte each in a descriptor of its own (virtio 1.3, 5.2.6), as drivers nearly always send
//! them.
//!
//! All other requests are left to [`Request`](super::request::Request), which parses every shape.

use crate::data_path::lookup::{Lookup, Part};
use crate::data_path::request::{HEADER_BYTES, Header, Kind, MAX_BYTES};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, VolatileMemory};

/// A chain of such a request. The memory that it names has not been read.
///
/// It is used by reference, and never copied: compilers copy by vector registers. A vector load
/// waits until the words that it covers, just stored one by one, have left the processor's store
/// buffer, and the data of all earlier requests has to leave that first.
#[derive(Debug, PartialEq, Eq)]
pub struct FastChain {
    header: GuestAddress,
    data: GuestAddress,
    status: GuestAddress,
    len: u32,
    /// The buffer is one that the device writes to.
    returns: bool,
}

/// The flags of the descriptors: the header's, that of a buffer which the device reads or writes,
/// and the status byte's.
const HEADER: u32 = VRING_DESC_F_NEXT;
const TAKEN: u32 = VRING_DESC_F_NEXT;
const RETURNED: u32 = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
const STATUS: u32 = VRING_DESC_F_WRITE;

impl FastChain {
    /// Returns the chain of three descriptors, or `None` if they do not have this shape.
    #[inline]
    pub fn new(chain: [Descriptor; 3]) -> Option<Self> {
        let [header, data, status] = chain;
        let flags = chain.map(|descriptor| u32::from(descriptor.flags()));
        let is_fast = flags[0] == HEADER
            && header.len() as usize == HEADER_BYTES
            && matches!(flags[1], TAKEN | RETURNED)
            && u64::from(data.len()) <= MAX_BYTES
            && flags[2] == STATUS
            && status.len() == 1;
        is_fast.then(|| Self {
            header: header.addr(),
            data: data.addr(),
            status: status.addr(),
            len: data.len(),
            returns: flags[1] == RETURNED,
        })
    }

    /// Prefetches the first cache lines that are read and written. Drivers keep header and status
    /// in one structure, which nearly always lies in one cache line.
    #[inline]
    pub fn prefetch(&self, memory: &Lookup<'_>) {
        memory.prefetch_to_write(self.header);
        if self.returns {
            memory.prefetch_to_write(self.data);
        } else {
            memory.prefetch(self.data);
        }
    }

    /// Parses the header. Returns the type, and the first sector in units of 512 bytes; `None` if
    /// this is neither a read nor a write.
    #[inline]
    pub fn parse(&self, memory: &mut Lookup<'_>) -> Option<(Kind, u64)> {
        let header = memory.find(self.header, HEADER_BYTES)?;
        let header = Header::from(header.get_ref(0).ok()?.load());
        match (header.kind(), self.returns) {
            (kind @ Kind::Read, true) | (kind @ Kind::Write, false) => Some((kind, header.sector)),
            _ => None,
        }
    }

    /// The buffer, if all of it lies in one region of guest memory.
    #[inline]
    pub fn data<'m>(&self, memory: &mut Lookup<'m>) -> Option<Part<'m>> {
        memory.find(self.data, self.len as usize)
    }

    /// The status byte.
    #[inline]
    pub fn status<'m>(&self, memory: &mut Lookup<'m>) -> Option<Part<'m>> {
        memory.find(self.status, 1)
    }

    /// Bytes of the buffer.
    pub fn data_len(&self) -> u64 {
        self.len.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data_path::dirty::GuestMemory;
    use virtio_bindings::bindings::virtio_blk::{
        VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    };
    use vm_memory::Bytes;

    const NEXT: u32 = VRING_DESC_F_NEXT;
    const WRITE: u32 = VRING_DESC_F_WRITE;

    fn chain(parts: [(u64, u32, u32); 3]) -> Option<FastChain> {
        FastChain::new(parts.map(|(address, len, flags)| {
            Descriptor::new(address, len, u16::try_from(flags).unwrap(), 0)
        }))
    }

    fn usual(flags: u32) -> [(u64, u32, u32); 3] {
        [(0x1000, 16, NEXT), (0x2000, 512, flags), (0x3000, 1, WRITE)]
    }

    #[test]
    fn fast_chain_is_a_read_or_a_write_by_header_and_flags() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let parse = |kind: u32, flags| {
            mem.write_obj(kind, GuestAddress(0x1000)).unwrap();
            mem.write_obj(7u64, GuestAddress(0x1008)).unwrap();
            chain(usual(flags)).unwrap().parse(&mut Lookup::new(&mem))
        };
        assert_eq!(parse(VIRTIO_BLK_T_OUT, NEXT), Some((Kind::Write, 7)));
        assert_eq!(parse(VIRTIO_BLK_T_IN, NEXT | WRITE), Some((Kind::Read, 7)));
        assert_eq!(parse(VIRTIO_BLK_T_IN, NEXT), None);
        assert_eq!(parse(VIRTIO_BLK_T_OUT, NEXT | WRITE), None);
        assert_eq!(parse(VIRTIO_BLK_T_FLUSH, NEXT), None);
        assert_eq!(parse(99, NEXT), None);
    }

    #[test]
    fn chain_in_another_shape_is_left_to_the_full_parser() {
        assert!(chain(usual(NEXT)).is_some());
        let but = |place: usize, change: fn(&mut (u64, u32, u32))| {
            let mut parts = usual(NEXT);
            change(&mut parts[place]);
            chain(parts)
        };
        assert_eq!(but(0, |header| header.1 = 15), None);
        assert_eq!(but(0, |header| header.1 = 17), None);
        assert_eq!(but(0, |header| header.2 = NEXT | WRITE), None);
        assert_eq!(but(1, |data| data.2 = 0), None);
        assert_eq!(but(1, |data| data.2 |= 4), None);
        assert_eq!(but(1, |data| data.1 = u32::MAX), None);
        assert_eq!(but(2, |status| status.1 = 2), None);
        assert_eq!(but(2, |status| status.1 = 0), None);
        assert_eq!(but(2, |status| status.2 = 0), None);
        assert_eq!(but(2, |status| status.2 |= NEXT), None);
    }

    #[test]
    fn buffers_outside_one_region_are_left_to_the_full_parser() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x2100)]).unwrap();
        let mut memory = Lookup::new(&mem);
        let chain = chain(usual(NEXT)).unwrap();
        assert!(chain.data(&mut memory).is_none() && chain.status(&mut memory).is_none());
        chain.prefetch(&memory);
    }
}
