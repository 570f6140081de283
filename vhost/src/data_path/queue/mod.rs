//! The device's side of a split virtqueue (virtio 1.3, 2.7), walked by hand.
//!
//! Its three parts are looked up in guest memory once, when a turn begins. Nothing that the driver
//! writes there is trusted: an index is checked against the queue's size, and every access against
//! the part that it is in.

mod chain;
mod index;
mod interrupts;
#[cfg(test)]
mod tests;

pub use chain::Chain;
use index::Index;

use crate::data_path::dirty::GuestMemory;
use crate::data_path::fast_path::FastChain;
use crate::data_path::lookup::{Lookup, Part};
use ring_os::{prefetch, prefetch_to_write};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// Byte of the index in both rings, behind 16 bits of flags.
const INDEX: usize = 2;

/// First byte of the entries in both rings.
const ENTRIES: usize = 4;

/// Bytes of an entry of the available ring: the number of a chain's first descriptor (its head).
const HEAD_BYTES: usize = 2;

/// Bytes of an entry of the used ring: head and length, 32 bits each.
const USED_BYTES: usize = 8;

/// Bytes of the legacy layout of the largest queue, and of a page behind each part.
const LONGEST_LAYOUT: u64 = 1 << 20;

/// Why a queue cannot be served: something that no correct driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The size is no power of two (2.7).
    #[error("its size is no power of two")]
    Size,
    /// Some byte of the rings is not in guest memory.
    #[error("its rings do not lie in guest memory")]
    Rings,
    /// More chains are offered than the queue has entries.
    #[error("the available index is out of bounds")]
    Index,
    /// An entry of the available ring is no descriptor's number.
    #[error("a head is no descriptor of the queue")]
    Head,
    /// A file behind guest memory was truncated.
    #[error("the front end has taken back memory that its requests use")]
    Memory,
}

/// A running split virtqueue, for one turn.
pub struct SplitQueue<'m> {
    memory: Lookup<'m>,
    descriptors: Part<'m>,
    available: Part<'m>,
    used: Part<'m>,
    size: u16,
    event_idx: bool,
    next_available: Index,
    next_used: Index,
    /// The available index, as it was last read.
    offered: Index,
    /// See [`signalled`](Self::signalled).
    signalled: Option<Index>,
    /// The used index when it was last looked whether the driver wants an interrupt.
    looked: Index,
}

impl<'m> SplitQueue<'m> {
    /// Opens `queue` at its indices. `signalled` is what [`SplitQueue::signalled`] returned at the
    /// end of the last turn.
    ///
    /// # Errors
    ///
    /// [`Broken::Size`] and [`Broken::Rings`].
    #[inline]
    pub fn open(
        queue: &Queue,
        mem: &'m GuestMemory,
        signalled: Option<u16>,
    ) -> Result<Self, Broken> {
        let size = queue.size();
        if !size.is_power_of_two() {
            return Err(Broken::Size);
        }
        let [descriptors, available, used] = parts(mem, queue, size.into())?;
        Ok(Self {
            memory: Lookup::new(mem),
            descriptors,
            available,
            used,
            size,
            event_idx: queue.event_idx_enabled(),
            next_available: Index::new(queue.next_avail()),
            next_used: Index::new(queue.next_used()),
            offered: Index::new(queue.next_avail()),
            signalled: signalled.map(Index::new),
            looked: Index::new(queue.next_used()),
        })
    }

    /// Stores the indices in `queue` at the end of a turn.
    pub fn close(&self, queue: &mut Queue) {
        queue.set_next_avail(self.next_available.get());
        queue.set_next_used(self.next_used.get());
    }

    /// The used index at the last interrupt decision; `None` in a queue that has just started,
    /// where nobody knows what its driver was interrupted for.
    pub fn signalled(&self) -> Option<u16> {
        self.signalled.map(Index::get)
    }

    /// Whether the driver has offered a chain that was not taken.
    pub fn has_next(&mut self) -> Result<bool, Broken> {
        if self.offered == self.next_available {
            self.read_available_index()?;
        }
        Ok(self.offered != self.next_available)
    }

    /// Returns the next chain's first descriptor, by which the chain can be read before it is
    /// [taken](Self::take).
    #[inline]
    pub fn next_head(&mut self) -> Result<Option<u16>, Broken> {
        if !self.has_next()? {
            return Ok(None);
        }
        self.head_behind(0).map(Some).ok_or(Broken::Head)
    }

    /// Returns how many chains the driver has offered that were not taken. Reads the available index
    /// again if fewer than `enough` are known.
    #[inline]
    pub fn offered(&mut self, enough: u16) -> Result<u16, Broken> {
        let known = self.offered.since(self.next_available);
        if known >= enough {
            return Ok(known);
        }
        self.read_available_index()?;
        Ok(self.offered.since(self.next_available))
    }

    #[inline]
    fn read_available_index(&mut self) -> Result<(), Broken> {
        self.offered = Index::new(load(&self.available, INDEX, Ordering::Acquire)?);
        let count = self.offered.since(self.next_available);
        if count > self.size { Err(Broken::Index) } else { Ok(()) }
    }

    /// Returns the head of an offered chain, `count` behind the next one; `None` if it is no
    /// descriptor's number.
    #[inline]
    pub fn head_behind(&self, count: u16) -> Option<u16> {
        let slot = self.slot(self.next_available.after(count));
        let head = load(&self.available, ENTRIES + HEAD_BYTES * slot, Ordering::Relaxed).ok()?;
        (head < self.size).then_some(head)
    }

    /// Prefetches the descriptors of an offered chain, `count` behind the next one.
    #[inline]
    pub fn prefetch_chain(&self, count: u16) {
        let Some(head) = self.head_behind(count) else { return };
        let table = self.descriptors.ptr_guard();
        let first = table.as_ptr().wrapping_add(chain::DESCRIPTOR_BYTES * usize::from(head));
        prefetch(first);
        prefetch(first.wrapping_add(3 * chain::DESCRIPTOR_BYTES - 1));
    }

    /// Prefetches the used ring's next `count` entries.
    #[inline]
    pub fn prefetch_used(&self, count: u16) {
        let used = self.used.ptr_guard_mut();
        for index in [self.next_used, self.next_used.after(count)] {
            let slot = self.slot(index);
            prefetch_to_write(used.as_ptr().wrapping_add(ENTRIES + USED_BYTES * slot));
        }
    }

    /// The entry of a ring that an index stands for.
    #[inline]
    fn slot(&self, index: Index) -> usize {
        usize::from(index.get() & (self.size - 1))
    }

    /// Takes the chain that [`next_head`](Self::next_head) has returned from the available ring.
    #[inline]
    pub fn take(&mut self) {
        self.next_available = self.next_available.after(1);
    }

    /// Returns the chain that begins at a head.
    pub fn chain(&self, head: u16) -> Chain<'m> {
        Chain::new(self.memory.whole(), self.descriptors, self.size, head)
    }

    /// Returns the chain that begins at a head, if the fast path takes it.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "the chain is then stored in place, and not copied there"
    )]
    pub fn fast_chain(&mut self, head: u16) -> Option<FastChain> {
        FastChain::new(chain::three(&self.descriptors, self.size, head, &mut self.memory)?)
    }

    /// The way to the memory that descriptors name.
    pub fn memory(&mut self) -> &mut Lookup<'m> {
        &mut self.memory
    }

    /// Returns a chain to the driver by the used ring, and publishes the used index: the driver may
    /// reuse its memory from then on. `len` bytes were written to it.
    #[inline]
    pub fn add_used(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        let slot = self.slot(self.next_used);
        let entry = u64::from(head) | u64::from(len) << 32;
        let at = ENTRIES + USED_BYTES * slot;
        self.used.get_ref(at).map_err(|_| Broken::Rings)?.store(entry.to_le());
        self.next_used = self.next_used.after(1);
        store(&self.used, INDEX, self.next_used.get(), Ordering::Release)
    }

    /// Spares the driver its kicks while we poll (2.7.10). With an event index nothing has to be
    /// stored: it stays where it is.
    pub fn suppress_kicks(&self) -> Result<(), Broken> {
        if self.event_idx {
            return Ok(());
        }
        let no_notify = u16::try_from(VRING_USED_F_NO_NOTIFY).unwrap_or(1);
        store(&self.used, 0, no_notify, Ordering::Relaxed)
    }

    /// Asks for a kick at the next chain. Returns whether there is one already, which may have come
    /// without a kick.
    #[inline]
    pub fn ask_for_kick(&mut self) -> Result<bool, Broken> {
        if self.event_idx {
            let at = ENTRIES + USED_BYTES * usize::from(self.size);
            store(&self.used, at, self.next_available.get(), Ordering::Relaxed)?;
        } else {
            store(&self.used, 0, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        self.has_next()
    }
}

/// Finds the three parts of a queue with so many entries in guest memory.
#[inline]
fn parts<'m>(mem: &'m GuestMemory, queue: &Queue, entries: usize) -> Result<[Part<'m>; 3], Broken> {
    let (table, available, used) = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
    let places = [
        (table, chain::DESCRIPTOR_BYTES * entries),
        // Each ring ends with an event index.
        (available, ENTRIES + HEAD_BYTES * entries + 2),
        (used, ENTRIES + USED_BYTES * entries + 2),
    ];
    let part = |(start, len)| mem.get_slice(GuestAddress(start), len).map_err(|_| Broken::Rings);
    // Linux has them one behind the other, in the order of the legacy layout (virtio 1.3, 2.7.2):
    // one look at guest memory instead of three.
    let whole = used.wrapping_sub(table).wrapping_add(places[2].1 as u64);
    if whole <= LONGEST_LAYOUT
        && let Ok(whole) = part((table, usize::try_from(whole).unwrap_or(usize::MAX)))
    {
        let within = |(start, len): (u64, usize)| {
            whole.subslice(usize::try_from(start.wrapping_sub(table)).ok()?, len).ok()
        };
        if let [Some(table), Some(available), Some(used)] = places.map(within) {
            return Ok([table, available, used]);
        }
    }
    let [table, available, used] = places;
    Ok([part(table)?, part(available)?, part(used)?])
}

fn load(part: &Part<'_>, at: usize, order: Ordering) -> Result<u16, Broken> {
    part.load(at, order).map(u16::from_le).map_err(|_| Broken::Rings)
}

fn store(part: &Part<'_>, at: usize, value: u16, order: Ordering) -> Result<(), Broken> {
    part.store(value.to_le(), at, order).map_err(|_| Broken::Rings)
}
