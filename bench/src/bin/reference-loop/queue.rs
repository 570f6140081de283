//! The queue: chains, used ring and interrupts (virtio 1.3, 2.7).

use std::sync::atomic::{Ordering, fence};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileMemory,
    VolatileSlice,
};

/// The front end's memory.
pub type Memory = GuestMemoryMmap<()>;

/// A range of memory that is shared with the front end.
pub type Piece<'m> = VolatileSlice<'m, ()>;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// Chains whose first lines are prefetched.
const AHEAD: u16 = 8;

/// Most chains in a batch.
const BATCH: u16 = 64;

/// A descriptor: address, bytes, flags and the next one.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u32,
    next: u16,
}

/// The region of memory that was found last.
struct Found<'m> {
    memory: &'m Memory,
    start: u64,
    region: Piece<'m>,
}

impl<'m> Found<'m> {
    #[inline(always)]
    fn find(&mut self, address: u64, bytes: u32) -> Option<Piece<'m>> {
        let offset = address.wrapping_sub(self.start) as usize;
        match self.region.subslice(offset, bytes as usize) {
            Ok(piece) => Some(piece),
            Err(_) => self.search(address, bytes),
        }
    }

    #[cold]
    fn search(&mut self, address: u64, bytes: u32) -> Option<Piece<'m>> {
        let region = self.memory.find_region(GuestAddress(address))?;
        self.start = region.start_addr().0;
        self.region = region.as_volatile_slice().ok()?;
        self.region.subslice((address - self.start) as usize, bytes as usize).ok()
    }

    #[inline(always)]
    fn prefetch(&self, address: u64) {
        let offset = address.wrapping_sub(self.start) as usize;
        ring_os::prefetch(self.region.ptr_guard().as_ptr().wrapping_add(offset));
    }
}

/// The parts of a queue, and how far it is.
pub struct Rings<'m> {
    table: Piece<'m>,
    available: Piece<'m>,
    used: Piece<'m>,
    found: Found<'m>,
    size: u16,
    next: u16,
    next_used: u16,
    signalled: u16,
    event_idx: bool,
}

impl<'m> Rings<'m> {
    /// Opens a queue; `None` where it is not in memory.
    pub fn open(queue: &Queue, memory: &'m Memory) -> Option<Self> {
        let size = queue.size();
        let region = memory.iter().next()?;
        let mut found = Found {
            memory,
            start: region.start_addr().0,
            region: region.as_volatile_slice().ok()?,
        };
        let entries = u32::from(size);
        Some(Self {
            table: found.find(queue.desc_table(), 16 * entries)?,
            available: found.find(queue.avail_ring(), 6 + 2 * entries)?,
            used: found.find(queue.used_ring(), 6 + 8 * entries)?,
            found,
            size,
            next: queue.next_avail(),
            next_used: queue.next_used(),
            signalled: queue.next_used(),
            event_idx: queue.event_idx_enabled(),
        })
    }

    /// How far the queue is: the next available and used entries.
    pub fn indices(&self) -> (u16, u16) {
        (self.next, self.next_used)
    }

    /// Carries out what is available. Returns the number of requests.
    #[inline(always)]
    pub fn serve(&mut self, disk: &Piece<'_>) -> Option<u16> {
        let available: u16 = self.available.load(2, Ordering::Acquire).ok()?;
        let count = available.wrapping_sub(self.next).min(BATCH);
        if count > 1 {
            self.prefetch(count)?;
        }
        for number in 0..count {
            if number + AHEAD < count {
                self.prefetch_header(self.next.wrapping_add(AHEAD))?;
            }
            let head = self.head(self.next)?;
            let written = self.request(head, disk)?;
            let at = 4 + 8 * usize::from(self.next_used % self.size);
            let entry = u64::from(head) | u64::from(written) << 32;
            self.used.get_ref(at).ok()?.store(entry);
            self.next = self.next.wrapping_add(1);
            self.next_used = self.next_used.wrapping_add(1);
            self.used.store(self.next_used, 2, Ordering::Release).ok()?;
        }
        Some(count)
    }

    /// Whether the driver wants an interrupt for what was done since the last decision.
    pub fn wants_interrupt(&mut self) -> Option<bool> {
        fence(Ordering::SeqCst);
        let since = self.next_used.wrapping_sub(self.signalled);
        self.signalled = self.next_used;
        if !self.event_idx {
            return Some(self.available.load::<u16>(0, Ordering::Relaxed).ok()? & 1 == 0);
        }
        let at = 4 + 2 * usize::from(self.size);
        let event: u16 = self.available.load(at, Ordering::Relaxed).ok()?;
        Some(self.next_used.wrapping_sub(event).wrapping_sub(1) < since)
    }

    /// Asks the driver for a kick. Returns whether nothing has become available meanwhile.
    pub fn ask_for_kick(&mut self) -> Option<bool> {
        let at = 4 + 8 * usize::from(self.size);
        if self.event_idx {
            self.used.store(self.next, at, Ordering::Relaxed).ok()?;
        }
        fence(Ordering::SeqCst);
        Some(self.available.load::<u16>(2, Ordering::Acquire).ok()? == self.next)
    }

    #[inline(always)]
    fn head(&self, index: u16) -> Option<u16> {
        self.available.load(4 + 2 * usize::from(index % self.size), Ordering::Relaxed).ok()
    }

    #[inline(always)]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let at = DESCRIPTOR * usize::from(index);
        let address = self.table.get_ref::<u64>(at).ok()?.load();
        let rest = self.table.get_ref::<u64>(at + 8).ok()?.load();
        Some(Descriptor {
            address,
            bytes: rest as u32,
            flags: (rest >> 32) as u32 & 0xffff,
            next: (rest >> 48) as u16,
        })
    }

    /// Prefetches descriptors of a batch, and headers of its beginning.
    fn prefetch(&self, count: u16) -> Option<()> {
        for number in 0..count {
            let head = self.head(self.next.wrapping_add(number))?;
            let at = DESCRIPTOR * usize::from(head);
            let table = self.table.ptr_guard();
            ring_os::prefetch(table.as_ptr().wrapping_add(at));
            ring_os::prefetch(table.as_ptr().wrapping_add(at + 3 * DESCRIPTOR - 1));
        }
        (0..count.min(AHEAD))
            .try_for_each(|number| self.prefetch_header(self.next.wrapping_add(number)))
    }

    #[inline(always)]
    fn prefetch_header(&self, index: u16) -> Option<()> {
        let head = self.head(index)?;
        self.found.prefetch(self.descriptor(head)?.address);
        Some(())
    }

    /// Carries out one request. Returns the bytes that were written to the driver's memory.
    #[inline(always)]
    fn request(&mut self, head: u16, disk: &Piece<'_>) -> Option<u32> {
        let header = self.descriptor(head)?;
        let piece = self.found.find(header.address, header.bytes)?;
        let kind = piece.get_ref::<u32>(0).ok()?.load();
        let sector = piece.get_ref::<u64>(8).ok()?.load();
        let mut at = usize::try_from(sector.checked_mul(512)?).ok()?;
        let (mut status, mut written) = (VIRTIO_BLK_S_OK, 0);
        let mut next = self.descriptor(header.next)?;
        while next.flags & VRING_DESC_F_NEXT != 0 {
            let data = self.found.find(next.address, next.bytes)?;
            let is_in = next.flags & VRING_DESC_F_WRITE != 0;
            match (disk.subslice(at, next.bytes as usize), kind, is_in) {
                (Ok(place), VIRTIO_BLK_T_OUT, false) => data.copy_to_volatile_slice(place),
                (Ok(place), VIRTIO_BLK_T_IN, true) => {
                    place.copy_to_volatile_slice(data);
                    written += next.bytes;
                }
                _ => status = VIRTIO_BLK_S_IOERR,
            }
            at += next.bytes as usize;
            next = self.descriptor(next.next)?;
        }
        if !matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH) {
            status = VIRTIO_BLK_S_IOERR;
        }
        self.found.find(next.address, 1)?.get_ref::<u8>(0).ok()?.store(status as u8);
        Some(written + 1)
    }
}
