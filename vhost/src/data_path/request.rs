//! Parsing a virtio-blk request from a descriptor chain (virtio 1.3, 5.2.6).
//!
//! The chain is the guest's: every descriptor is read once into a private copy, the number of
//! descriptors and of bytes is bounded before anything is kept, and the header need not be in a
//! descriptor of its own (2.7.4.3).

use crate::data_path::guard::Reason;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// The most data segments in a request, as the configuration space tells the driver.
pub const MAX_SEGMENTS: u32 = 126;

/// The most descriptors in a chain: header and status may be split over a few each.
const MAX_DESCRIPTORS: usize = MAX_SEGMENTS as usize + 34;

/// The most bytes of data in a request: more than a kernel sends (1,280 KiB unless its
/// administrator raises that).
pub const MAX_BYTES: u64 = 16 << 20;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;

/// A request's header (virtio 1.3, 5.2.6).
pub struct Header {
    kind: u32,
    priority: u32,
    /// The first sector, in units of 512 bytes.
    pub sector: u64,
}

impl Header {
    /// Takes the fields, each little-endian, from the header as it lies in memory: a load of one
    /// value is two instructions, one of sixteen bytes is sixteen.
    #[inline]
    pub fn from(raw: u128) -> Self {
        let bytes = u128::from_le(raw);
        // Each cast takes the lower bits.
        #[allow(clippy::cast_possible_truncation)]
        Self { kind: bytes as u32, priority: (bytes >> 32) as u32, sector: (bytes >> 64) as u64 }
    }

    /// The type of the request.
    #[inline]
    pub fn kind(&self) -> Kind {
        match self.kind {
            VIRTIO_BLK_T_IN => Kind::Read,
            VIRTIO_BLK_T_OUT => Kind::Write,
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_GET_ID => Kind::GetId,
            _ => Kind::Unsupported,
        }
    }
}

/// `IOPRIO_CLASS_IDLE`, which Linux guests store in bits 13 to 15 of the priority.
const IDLE_CLASS: u32 = 3;

/// The type of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sectors to the guest.
    Read,
    /// Sectors from the guest.
    Write,
    /// Make everything written before durable.
    Flush,
    /// The serial number.
    GetId,
    /// Any other type: answered with `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Bytes.
    pub len: usize,
}

/// A parsed request. It is reused, so that parsing allocates nothing in the steady state.
#[derive(Debug, Default)]
pub struct Request {
    kind: Option<Kind>,
    /// The first sector, in units of 512 bytes whatever the block size (5.2.6).
    pub sector: u64,
    /// Whether the request's I/O priority class is idle.
    pub idle: bool,
    /// The buffers that data comes from (a write) or goes to.
    pub data: Vec<Segment>,
    /// Bytes in `data`.
    pub data_len: u64,
    status: Option<GuestAddress>,
    /// The header, where it is a descriptor of its own.
    header: Option<GuestAddress>,
    readable: Vec<Segment>,
}

impl Request {
    /// The type; [`Kind::Unsupported`] before the first successful parse.
    pub fn kind(&self) -> Kind {
        self.kind.unwrap_or(Kind::Unsupported)
    }

    /// The address of the status byte, which is known even for most chains that are no request.
    pub fn status(&self) -> Option<GuestAddress> {
        self.status
    }

    /// Parses a chain. After an error only [`status`](Self::status) means anything.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] and [`Reason::TooLarge`].
    pub fn parse<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<(), Reason> {
        (self.kind, self.status, self.header) = (None, None, None);
        (self.idle, self.data_len) = (false, 0);
        self.data.clear();
        self.readable.clear();
        let mut ends = false;
        let mut shape = Ok(());
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(Reason::TooLarge);
            }
            ends = !descriptor.has_next();
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() as usize };
            if descriptor.is_write_only() {
                self.data.push(segment);
            } else if count == 0 && segment.len == HEADER_BYTES {
                self.header = Some(segment.address);
            } else if self.data.is_empty() {
                self.readable.push(segment);
            } else {
                // Readable behind writable, which 2.7.4.2 forbids.
                shape = Err(Reason::Malformed);
            }
        }
        self.take_status();
        shape?;
        if !ends || self.status.is_none() {
            // The iterator ends early at a loop, an address outside memory, or a bad indirect
            // table.
            return Err(Reason::Malformed);
        }
        let header = self.take_header(mem)?;
        let kind = header.kind();
        let Header { priority, sector, .. } = header;
        self.kind = Some(kind);
        self.idle = (priority >> 13) & 7 == IDLE_CLASS;
        self.sector = sector;
        if kind == Kind::Write {
            if !self.data.is_empty() {
                return Err(Reason::Malformed);
            }
            std::mem::swap(&mut self.data, &mut self.readable);
        } else if kind == Kind::Read && !self.readable.is_empty() {
            return Err(Reason::Malformed);
        }
        self.data_len = self.data.iter().map(|segment| segment.len as u64).sum();
        if self.data_len > MAX_BYTES { Err(Reason::TooLarge) } else { Ok(()) }
    }

    /// Takes the status byte, the last writable one, off the data.
    fn take_status(&mut self) {
        while let Some(last) = self.data.last_mut() {
            if let Some(rest) = last.len.checked_sub(1) {
                self.status = last.address.checked_add(rest as u64);
                last.len = rest;
                if rest == 0 {
                    self.data.pop();
                }
                return;
            }
            self.data.pop();
        }
    }

    /// Copies the header, the first 16 readable bytes, however the driver has split them.
    fn take_header<M: GuestMemoryBackend>(&mut self, mem: &M) -> Result<Header, Reason> {
        // Nearly every driver has the header in a descriptor of its own.
        if let Some(address) = self.header {
            if let Ok(place) = mem.get_slice(address, HEADER_BYTES)
                && let Ok(header) = place.get_ref(0)
            {
                return Ok(Header::from(header.load()));
            }
            // It may lie across two pieces of guest memory.
            return mem.read_obj(address).map(Header::from).map_err(|_| Reason::Malformed);
        }
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        for segment in &mut self.readable {
            let take = segment.len.min(HEADER_BYTES - filled);
            mem.read_slice(&mut header[filled..filled + take], segment.address)
                .map_err(|_| Reason::Malformed)?;
            filled += take;
            segment.address = segment.address.checked_add(take as u64).ok_or(Reason::Malformed)?;
            segment.len -= take;
        }
        self.readable.retain(|segment| segment.len > 0);
        if filled < HEADER_BYTES {
            return Err(Reason::Malformed);
        }
        Ok(Header::from(u128::from_ne_bytes(header)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use vm_memory::GuestMemoryMmap;

    /// Parses a chain of (address, length, writable), with the header at address 0.
    fn parse(
        kind: u32,
        priority: u32,
        sector: u64,
        chain: &[(u64, u32, bool)],
    ) -> (Request, Result<(), Reason>) {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        mem.write_obj(kind, GuestAddress(0)).unwrap();
        mem.write_obj(priority, GuestAddress(4)).unwrap();
        mem.write_obj(sector, GuestAddress(8)).unwrap();
        let last = chain.len().saturating_sub(1);
        let descriptors = chain.iter().enumerate().map(|(i, &(address, len, writable))| {
            let flags = if writable { VRING_DESC_F_WRITE } else { 0 }
                | if i < last { VRING_DESC_F_NEXT } else { 0 };
            Descriptor::new(address, len, u16::try_from(flags).unwrap(), 0)
        });
        let mut request = Request::default();
        let outcome = request.parse(&mem, descriptors);
        (request, outcome)
    }

    #[test]
    fn write_is_parsed_with_its_header_in_one_or_two_descriptors() {
        for chain in [
            &[(0, 16, false), (4096, 512, false), (8192, 1, true)][..],
            &[(0, 7, false), (7, 9, false), (4096, 512, false), (8192, 1, true)],
        ] {
            let (request, outcome) = parse(1, 0x6000, 5, chain);
            assert_eq!(outcome, Ok(()));
            assert_eq!((request.kind(), request.sector, request.idle), (Kind::Write, 5, true));
            assert_eq!(request.data, [Segment { address: GuestAddress(4096), len: 512 }]);
            assert_eq!(request.status(), Some(GuestAddress(8192)));
        }
    }

    #[test]
    fn read_is_parsed_with_data_and_status_in_one_descriptor() {
        let (request, outcome) = parse(0, 0x4004, 1, &[(0, 16, false), (4096, 513, true)]);
        assert_eq!(outcome, Ok(()));
        assert_eq!((request.kind(), request.idle), (Kind::Read, false));
        assert_eq!(request.data, [Segment { address: GuestAddress(4096), len: 512 }]);
        assert_eq!(request.status(), Some(GuestAddress(4096 + 512)));
    }

    #[test]
    fn chain_that_is_no_request_is_refused() {
        let refused = |kind, chain: &[(u64, u32, bool)]| parse(kind, 0, 0, chain).1.unwrap_err();
        assert_eq!(refused(1, &[]), Reason::Malformed);
        assert_eq!(
            refused(1, &[(0, 16, false), (4096, 512, false)]),
            Reason::Malformed,
            "no status"
        );
        assert_eq!(
            refused(1, &[(0, 15, false), (8192, 1, true)]),
            Reason::Malformed,
            "short header"
        );
        assert_eq!(
            refused(1, &[(0, 16, false), (8192, 1, true), (4096, 512, false)]),
            Reason::Malformed
        );
        assert_eq!(
            refused(0, &[(0, 16, false), (4096, 512, false), (8192, 1, true)]),
            Reason::Malformed
        );
        assert_eq!(refused(1, &[(1 << 40, 16, false), (8192, 1, true)]), Reason::Malformed);
        assert_eq!(
            refused(1, &[(0, 16, false), (0, u32::MAX, false), (8192, 1, true)]),
            Reason::TooLarge
        );
        let many: Vec<_> = (0..300).map(|_| (0, 16, false)).collect();
        assert_eq!(refused(1, &many), Reason::TooLarge);
    }

    #[test]
    fn request_of_another_type_is_unsupported() {
        let (request, outcome) =
            parse(11, 0, 0, &[(0, 16, false), (4096, 16, false), (8192, 1, true)]);
        assert_eq!((outcome, request.kind()), (Ok(()), Kind::Unsupported));
    }
}
