//! The structures of the header.

use crate::border::Answer;
use crate::code::{BLOCKRING_UNKNOWN, Fault, put_text};
use ring_address::Options as AddressOptions;
use shared_block_ring::format::SectorSize;
use shared_block_ring::{DebugInfo, Durability, Encode, Role};
use std::borrow::Cow;
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// A name in the text of a pointer sector.
pub type Text<'a> = Cow<'a, str>;

/// A producer. Never a pointer to follow: a stale one is answered, by BLOCKRING_INVALID_ARGUMENT.
#[derive(Debug)]
pub struct ProducerHandle(());

/// A consumer; as for blockring_producer.
#[derive(Debug)]
pub struct ConsumerHandle(());

/// A handle beside producer and consumer; as for blockring_producer.
#[derive(Debug)]
pub struct ControlHandle(());

/// Bytes that the caller lends: an item to push. It is laid out as struct iovec is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// The first byte. It may be NULL if there are none.
    pub bytes: *const c_void,
    /// The number of bytes.
    pub length: usize,
}

impl Encode for Slice {
    #[inline]
    fn encode(&self) -> Cow<'_, [u8]> {
        if self.length == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: slices come from `Caller::items` alone, for the length of a call in which the
        // caller lends so many bytes at a pointer that is not NULL.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.bytes.cast(), self.length) })
    }
}

/// An item that a consumer lends, until the next call with that consumer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// The first byte; not NULL, and not a text: there is no zero behind the last byte.
    pub bytes: *const c_void,
    /// The number of bytes.
    pub length: usize,
    /// The position of the next item: to pop from, or to advance to.
    pub next: u64,
}

/// Has a consumer's items of a ring that a backend hands over (unix:PATH) lie where the backend has
/// them, without a copy. Whoever sets this flag vouches for three things, for as long as the handle
/// lives. Whoever answers at the socket is a backend that keeps its word: where it says that the
/// ring is guarded, nobody changes what is published and not consumed. No backend serves the ring
/// without its guard. Nobody but the backend and this consumer changes the ring's file, by name,
/// descriptor or mapping, or makes it shorter. If that does not hold, the behaviour is undefined.
/// vhost-device-blockring keeps its word with --guard on, its default; see docs/security.md,
/// "Reading in place".
pub const BLOCKRING_LEND_IN_PLACE: u32 = 1;

/// Allows addresses of PCI disks (pci:0000:00:04.0), which are refused without this flag. Such a
/// device goes by physical addresses. Whoever sets this flag vouches that the device keeps to the
/// standard, that no other program tells it where to write, and that the kernel leaves huge pages
/// where they are. If that does not hold, the behaviour is undefined. See docs/kernel-bypass.md.
pub const BLOCKRING_DRIVE_PCI: u32 = 2;

/// Opens the device for reading only. For blockring_control_open alone.
pub const BLOCKRING_READ_ONLY: u32 = 4;

/// Makes a ring without an identity, byte for byte as the OCaml library does. For blockring_create
/// alone.
pub const BLOCKRING_PLAIN: u32 = 8;

/// Items are flushed before the pointer that publishes them, and the pointer before advance
/// returns: no power loss takes anything back.
pub const BLOCKRING_FLUSH: i32 = 0;

/// The pointer is flushed by the next advance or flush: a power loss can take back the last
/// advance, and nothing else. Half of the flushes.
pub const BLOCKRING_ORDERED: i32 = 1;

/// Nothing is flushed: safe against the death of any process, not against that of the machine.
pub const BLOCKRING_PAGE_CACHE: i32 = 2;

/// How a ring is opened. All zero is the default: `blockring_options options = {0};`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Bytes in a sector of a ring in a file: a power of two from 512 to 65536; 0: 512. A device
    /// has its own, and one that differs is an error.
    pub sector_size: u32,
    /// BLOCKRING_LEND_IN_PLACE and the others, or'ed.
    pub flags: u32,
    /// BLOCKRING_FLUSH, BLOCKRING_ORDERED or BLOCKRING_PAGE_CACHE.
    pub durability: i32,
    /// Longest wait for the answer of a backend, in milliseconds; 0: 5000. Nothing else waits.
    pub patience_ms: u32,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Longest wait for a backend's answer by default, as in the command line. A backend answers within
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

impl Options {
    /// Returns the options for an address. `allowed` are the flags that the call takes.
    pub fn for_address(&self, role: Role, allowed: u32) -> Answer<AddressOptions> {
        if self.flags & !allowed != 0 {
            return Err(Fault::Argument("a flag that this call does not take"));
        }
        if self.reserved != [0; 4] {
            return Err(Fault::Argument("reserved options that are not 0"));
        }
        let mut options = AddressOptions::new(role).read_only(self.has(BLOCKRING_READ_ONLY));
        if self.sector_size != 0 {
            let size = SectorSize::new(self.sector_size);
            options = options.sector_size(size.map_err(shared_block_ring::Error::from)?);
        }
        if self.has(BLOCKRING_LEND_IN_PLACE) {
            // SAFETY: the caller who sets the flag vouches for the ring.
            options = unsafe { options.lend_in_place() };
        }
        if self.has(BLOCKRING_DRIVE_PCI) {
            // SAFETY: the caller who sets the flag vouches for the device.
            options = unsafe { options.drive_pci() };
        }
        Ok(options)
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub fn patience(&self) -> Duration {
        if self.patience_ms == 0 {
            return PATIENCE;
        }
        Duration::from_millis(self.patience_ms.into())
    }

    pub fn durability(&self) -> Answer<Durability> {
        durability(self.durability)
    }
}

pub fn durability(number: i32) -> Answer<Durability> {
    match number {
        BLOCKRING_FLUSH => Ok(Durability::Flush),
        BLOCKRING_ORDERED => Ok(Durability::Ordered),
        BLOCKRING_PAGE_CACHE => Ok(Durability::PageCache),
        _ => Err(Fault::Argument("no such durability")),
    }
}

/// Bytes of a pointer sector's text, with the zero at its end.
pub const BLOCKRING_SECTOR_TEXT_BYTES: usize = 256;

/// Bytes of a UUID as text, with the zero at its end.
pub const BLOCKRING_UUID_BYTES: usize = 40;

/// The state of a ring as its sectors have it.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    /// Bytes in a sector.
    pub sector_size: u32,
    /// The consumer's flag: whether the producer is to stop.
    pub suspend: bool,
    /// The producer's flag: whether it has stopped.
    pub suspend_ack: bool,
    /// Sectors on the device.
    pub total_sectors: u64,
    /// Bytes in the data area.
    pub capacity: u64,
    /// The producer's position: everything before it is published.
    pub producer: u64,
    /// The consumer's position: everything before it is consumed.
    pub consumer: u64,
    /// Bytes that are published and not consumed.
    pub used: u64,
    /// Items published since the ring was created, or BLOCKRING_UNKNOWN.
    pub producer_items: u64,
    /// Items consumed since the ring was created, or BLOCKRING_UNKNOWN.
    pub consumer_items: u64,
    /// Time of the producer's last advance, in nanoseconds since 1970, or BLOCKRING_UNKNOWN.
    pub producer_time_ns: u64,
    /// Time of the consumer's last advance, in nanoseconds since 1970, or BLOCKRING_UNKNOWN.
    pub consumer_time_ns: u64,
    /// Zero.
    pub reserved: [u64; 8],
    /// The ring's UUID; empty for a plain ring.
    pub uuid: [c_char; BLOCKRING_UUID_BYTES],
    /// The text of sector 1, made printable. The middle of a longer text is replaced by "...".
    pub producer_text: [c_char; BLOCKRING_SECTOR_TEXT_BYTES],
    /// The text of sector 2; as for sector 1.
    pub consumer_text: [c_char; BLOCKRING_SECTOR_TEXT_BYTES],
}

impl From<DebugInfo> for Info {
    fn from(ring: DebugInfo) -> Self {
        let known = |number: Option<u64>| number.unwrap_or(BLOCKRING_UNKNOWN);
        let mut info = Self {
            sector_size: ring.sector_size,
            suspend: ring.suspend,
            suspend_ack: ring.suspend_ack,
            total_sectors: ring.total_sectors,
            capacity: ring.capacity,
            producer: ring.producer.get(),
            consumer: ring.consumer.get(),
            used: ring.used,
            producer_items: known(ring.producer_items),
            consumer_items: known(ring.consumer_items),
            producer_time_ns: known(ring.producer_time_ns),
            consumer_time_ns: known(ring.consumer_time_ns),
            reserved: [0; 8],
            uuid: [0; BLOCKRING_UUID_BYTES],
            producer_text: [0; BLOCKRING_SECTOR_TEXT_BYTES],
            consumer_text: [0; BLOCKRING_SECTOR_TEXT_BYTES],
        };
        put_text(&mut info.uuid, ring.uuid.as_deref().unwrap_or_default());
        put_text(&mut info.producer_text, &ring.producer_text);
        put_text(&mut info.consumer_text, &ring.consumer_text);
        info
    }
}
