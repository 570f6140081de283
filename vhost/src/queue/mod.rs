//! The device's side of a split virtqueue (virtio 1.3, 2.7), walked by hand.
//!
//! Its three parts are looked up in guest memory once, when a turn begins. What the driver writes there is believed in nothing: an
//! index is held against the queue's size, and every access against the part that it is in.

mod chain;

pub use chain::Chain;

use crate::dirty::GuestMemory;
use crate::prefetch;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::MS;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// One part of a queue: all of its bytes, side by side in our address space.
type Part<'m> = VolatileSlice<'m, MS<'m, GuestMemory>>;

/// Where both rings have their index, behind 16 bits of flags.
const INDEX: usize = 2;

/// Where the entries of both rings begin.
const ENTRIES: usize = 4;

/// Bytes of an entry of the available ring: a head.
const HEAD_BYTES: usize = 2;

/// Bytes of an entry of the used ring: head and length, 32 bits each.
const USED_BYTES: usize = 8;

/// What no driver of good faith does: the queue is of no use until it is set up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// 2.7: a power of two.
    #[error("its size is no power of two")]
    Size,
    /// Some byte of it.
    #[error("its rings do not lie in guest memory")]
    Place,
    /// More is offered than the queue has room for.
    #[error("the available index is out of bounds")]
    Index,
    /// An entry of the available ring.
    #[error("a head is no descriptor of the queue")]
    Head,
}

/// A running queue, for one turn.
pub struct Split<'m> {
    mem: &'m GuestMemory,
    descriptors: Part<'m>,
    available: Part<'m>,
    used: Part<'m>,
    size: u16,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// The available index, as it was last read.
    offered: u16,
    /// The used index that the driver was last interrupted for, or need not be; unknown in a queue that has just started.
    told: Option<u16>,
}

impl<'m> Split<'m> {
    /// Takes up `queue` where it was left. `told` is what [`Split::told`] said then.
    pub fn open(queue: &Queue, mem: &'m GuestMemory, told: Option<u16>) -> Result<Self, Broken> {
        let size = queue.size();
        if !size.is_power_of_two() {
            return Err(Broken::Size);
        }
        let entries = usize::from(size);
        let part = |start, len| mem.get_slice(GuestAddress(start), len).map_err(|_| Broken::Place);
        Ok(Self {
            mem,
            descriptors: part(queue.desc_table(), chain::DESCRIPTOR_BYTES * entries)?,
            // Each ring ends with an event index.
            available: part(queue.avail_ring(), ENTRIES + HEAD_BYTES * entries + 2)?,
            used: part(queue.used_ring(), ENTRIES + USED_BYTES * entries + 2)?,
            size,
            event_idx: queue.event_idx_enabled(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
            offered: queue.next_avail(),
            told,
        })
    }

    /// Leaves the queue as it is now.
    pub fn close(&self, queue: &mut Queue) {
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
    }

    /// For the turn after this one.
    pub fn told(&self) -> Option<u16> {
        self.told
    }

    /// Whether the driver has offered a chain that was not taken.
    pub fn has_next(&mut self) -> Result<bool, Broken> {
        if self.offered == self.next_available {
            // The driver writes the entry, then the index: we wait for both at once.
            let entry = ENTRIES + HEAD_BYTES * usize::from(self.next_available & (self.size - 1));
            if let Ok(entry) = self.available.subslice(entry, HEAD_BYTES) {
                prefetch::to_read(&entry);
            }
            self.offered = load(&self.available, INDEX, Ordering::Acquire)?;
            if self.offered.wrapping_sub(self.next_available) > self.size {
                return Err(Broken::Index);
            }
        }
        Ok(self.offered != self.next_available)
    }

    /// Takes the next chain.
    pub fn take(&mut self) -> Result<Option<Chain<'m>>, Broken> {
        if !self.has_next()? {
            return Ok(None);
        }
        let slot = usize::from(self.next_available & (self.size - 1));
        let head = load(&self.available, ENTRIES + HEAD_BYTES * slot, Ordering::Relaxed)?;
        if head >= self.size {
            return Err(Broken::Head);
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Chain::new(self.mem, self.descriptors, self.size, head)))
    }

    /// Hands a chain back, after which the driver may do with it as it likes; `len` bytes were written to it.
    pub fn answer(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        let slot = usize::from(self.next_used & (self.size - 1));
        let mut entry = [0; USED_BYTES];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&len.to_le_bytes());
        let at = ENTRIES + USED_BYTES * slot;
        self.used.write_slice(&entry, at).map_err(|_| Broken::Place)?;
        self.next_used = self.next_used.wrapping_add(1);
        store(&self.used, INDEX, self.next_used, Ordering::Release)
    }

    /// Whether the driver wants an interrupt for what was answered since the last call (2.7.7).
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if self.told == Some(self.next_used) {
            return Ok(false);
        }
        // The driver says that it wants one, then looks at the used index once more: one of us sees the other's store.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let at = ENTRIES + HEAD_BYTES * usize::from(self.size);
            let event = load(&self.available, at, Ordering::Relaxed)?;
            let behind = self.next_used.wrapping_sub(event).wrapping_sub(1);
            self.told.is_none_or(|told| behind < self.next_used.wrapping_sub(told))
        } else {
            // VRING_AVAIL_F_NO_INTERRUPT is bit 0.
            load(&self.available, 0, Ordering::Relaxed)? & 1 == 0
        };
        self.told = Some(self.next_used);
        Ok(wanted)
    }

    /// Answered, and not yet looked at whether the driver is to be interrupted.
    pub fn untold(&self) -> u16 {
        self.told.map_or(self.size, |told| self.next_used.wrapping_sub(told))
    }

    /// Spares the driver its kicks: we look by ourselves (2.7.10). An event index needs nothing done, it is just not moved on.
    pub fn stop_listening(&self) -> Result<(), Broken> {
        if self.event_idx {
            return Ok(());
        }
        let no_notify = u16::try_from(VRING_USED_F_NO_NOTIFY).unwrap_or(1);
        store(&self.used, 0, no_notify, Ordering::Relaxed)
    }

    /// Asks for a kick from the next chain on. Whether there is one already, which may have come without.
    pub fn listen(&mut self) -> Result<bool, Broken> {
        if self.event_idx {
            let at = ENTRIES + USED_BYTES * usize::from(self.size);
            store(&self.used, at, self.next_available, Ordering::Relaxed)?;
        } else {
            store(&self.used, 0, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        self.has_next()
    }
}

fn load(part: &Part<'_>, at: usize, order: Ordering) -> Result<u16, Broken> {
    part.load(at, order).map(u16::from_le).map_err(|_| Broken::Place)
}

fn store(part: &Part<'_>, at: usize, value: u16, order: Ordering) -> Result<(), Broken> {
    part.store(value.to_le(), at, order).map_err(|_| Broken::Place)
}
