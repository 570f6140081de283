//! The driver's side of a split virtqueue (virtio 1.3, 2.7).
//!
//! In the steady state a request costs the driver four stores (descriptors stay as they are) and no
//! system call while the device polls. Of the shared lines it reads one: the used ring's, and that
//! only when it has taken all it knew of.

use crate::memory::{DeviceRange, DmaMemory};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

/// Parts that different sides write, apart by two lines: processors fetch them in pairs.
const APART: u64 = 128;

const NO_INTERRUPT: u16 = flag(VRING_AVAIL_F_NO_INTERRUPT);
const NO_NOTIFY: u16 = flag(VRING_USED_F_NO_NOTIFY);

/// A flag as the ring has it.
#[expect(clippy::cast_possible_truncation, reason = "flags of rings and descriptors have 16 bits")]
pub(super) const fn flag(bit: u32) -> u16 {
    bit as u16
}

/// Words of the available and the used ring in front of their entries: flags and index.
const FLAGS: usize = 0;
const INDEX: usize = 1;
const ENTRIES: usize = 2;

/// Offsets of a queue's parts in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors in the table, a power of two.
    pub size: u16,
    /// Offset of the descriptor table.
    pub descriptors: u64,
    /// Offset of the available ring.
    pub available: u64,
    /// Offset of bytes that the driver writes too, in the same cache line if the available ring
    /// ends early.
    pub behind_available: u64,
    /// Offset of the used ring.
    pub used: u64,
    /// Offset of bytes that the device writes too.
    pub behind_used: u64,
    /// Offset of the first byte behind the queue.
    pub end: u64,
}

impl Layout {
    /// Lays out a queue of `size` descriptors, from the start of its memory, with room behind the
    /// available ring for `driver_bytes`, and behind the used ring for `device_bytes`.
    ///
    /// # Panics
    /// If `size` is no power of two.
    pub fn new(size: u16, driver_bytes: u64, device_bytes: u64) -> Self {
        assert!(size.is_power_of_two(), "2.7: the queue size is a power of two");
        let count = u64::from(size);
        let descriptors = 0;
        let available = (descriptors + 16 * count).next_multiple_of(APART);
        let behind_available = (available + 6 + 2 * count).next_multiple_of(16);
        let used = (behind_available + driver_bytes).next_multiple_of(APART);
        let behind_used = used + 6 + 8 * count;
        let end = (behind_used + device_bytes).next_multiple_of(APART);
        Self { size, descriptors, available, behind_available, used, behind_used, end }
    }

    /// Returns descriptor table, available ring and used ring as the device addresses them in
    /// `memory`.
    pub fn ranges(&self, memory: &DmaMemory) -> [DeviceRange; 3] {
        let count = u32::from(self.size);
        [
            memory.range(self.descriptors, 16 * count),
            memory.range(self.available, 6 + 2 * count),
            memory.range(self.used, 6 + 8 * count),
        ]
    }
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The bytes that it describes.
    pub range: DeviceRange,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor of the chain, if the flags say that there is one.
    pub next: u16,
}

/// A violation of the queue's rules by the device. Nothing that the device writes is believed any
/// more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// A used index beyond the chains that the device was given.
    #[error("the device's used index jumps from {from} to {to}")]
    Index {
        /// The used index up to which the driver has taken chains.
        from: u16,
        /// The used index that the device has stored.
        to: u16,
    },
    /// An entry of the used ring that names no chain which the device has.
    #[error("the device gives back {0}, which it was not given")]
    Head(u32),
}

/// The queue, with its memory.
#[derive(Debug)]
pub struct Queue {
    memory: DmaMemory,
    layout: Layout,
    event_idx: bool,
    /// Chains put into the available ring.
    offered: u16,
    /// Chains that the device may see: what the available index was last set to.
    published: u16,
    /// The used index at the last look.
    seen: u16,
    /// Entries of the used ring that were taken.
    taken: u16,
    /// The first violation of the rules by the device.
    broken: Option<Broken>,
}

impl Queue {
    /// Makes an empty queue in `memory`, which is all zero; it asks for no interrupts.
    ///
    /// # Panics
    /// If the memory is smaller than the layout.
    pub fn new(memory: DmaMemory, layout: Layout, event_idx: bool) -> Self {
        assert!(layout.end <= memory.bytes(), "memory for the queue");
        let (offered, published, seen, taken) = (0, 0, 0, 0);
        let broken = None;
        let queue = Self { memory, layout, event_idx, offered, published, seen, taken, broken };
        queue.refuse_interrupts();
        queue
    }

    /// Returns where its parts lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the memory that it lies in.
    pub fn memory(&self) -> &DmaMemory {
        &self.memory
    }

    /// Writes a descriptor into the table at `table`: the queue's own, or an indirect one.
    pub fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let words: &[AtomicU64] = self.memory.words(table + 16 * u64::from(index), 2);
        let Descriptor { range, flags, next } = descriptor;
        let rest = u64::from(range.len()) | u64::from(flags) << 32 | u64::from(next) << 48;
        words[0].store(range.address().to_le(), Ordering::Relaxed);
        words[1].store(rest.to_le(), Ordering::Relaxed);
    }

    /// Puts a chain into the available ring, where the device does not see it yet. The caller has
    /// no more chains under way than the table has descriptors.
    pub fn offer(&mut self, head: u16) {
        let place = ENTRIES + usize::from(self.offered & (self.layout.size - 1));
        self.available()[place].store(head.to_le(), Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device all chains that were offered. Returns whether it wants to be notified of
    /// them.
    #[must_use = "a device that sleeps has to be notified"]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        if self.offered == old {
            return false;
        }
        self.published = self.offered;
        // The device stores whether it wants a notification, then loads the index; the driver
        // stores the index, then loads that wish. All four are in one order, so that at least one
        // side sees the other's store (2.7.13.3.1).
        self.available()[INDEX].store(self.published.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
            let event: &[AtomicU16] = self.memory.words(at, 1);
            passed(u16::from_le(event[0].load(Ordering::SeqCst)), old, self.published)
        } else {
            u16::from_le(self.used()[FLAGS].load(Ordering::SeqCst)) & NO_NOTIFY == 0
        }
    }

    /// Returns the head of the next chain that the device has given back. How much the device says
    /// it has written is not read: nothing depends on it.
    pub fn take_used(&mut self) -> Result<Option<u16>, Broken> {
        if self.taken == self.seen {
            if let Some(broken) = self.broken {
                return Err(broken);
            }
            // What the device wrote before it stored the index is seen after this.
            let seen = u16::from_le(self.used()[INDEX].load(Ordering::Acquire));
            if seen == self.taken {
                // The device writes the entry, then the index: both are waited for at once.
                let place = u64::from(self.taken & (self.layout.size - 1));
                self.memory.prefetch(self.layout.used + 4 + 8 * place);
                return Ok(None);
            }
            let outstanding = self.published.wrapping_sub(self.taken);
            if seen.wrapping_sub(self.taken) > outstanding {
                return Err(self.give_up(Broken::Index { from: self.taken, to: seen }));
            }
            self.seen = seen;
        }
        let place = u64::from(self.taken & (self.layout.size - 1));
        let entry: &[AtomicU32] = self.memory.words(self.layout.used + 4 + 8 * place, 1);
        let id = u32::from_le(entry[0].load(Ordering::Relaxed));
        let Some(head) = u16::try_from(id).ok().filter(|head| *head < self.layout.size) else {
            return Err(self.give_up(Broken::Head(id)));
        };
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(head))
    }

    /// Believes nothing of the device from now on, and returns why.
    #[cold]
    pub fn give_up(&mut self, broken: Broken) -> Broken {
        // With nothing left to take, every later call comes past the note.
        self.seen = self.taken;
        *self.broken.get_or_insert(broken)
    }

    /// Prepares the queue for a device that does not know where the one before it has stopped:
    /// `heads` take the places of all chains that were not given back, in this order. Returns the
    /// available index of the first of them, where the device begins.
    pub fn offer_again(&self, heads: impl Iterator<Item = u16>) -> u16 {
        let mut end = self.taken;
        for head in heads {
            let place = ENTRIES + usize::from(end & (self.layout.size - 1));
            self.available()[place].store(head.to_le(), Ordering::Relaxed);
            end = end.wrapping_add(1);
        }
        debug_assert_eq!(end, self.offered, "all of them, and no others");
        self.taken
    }

    /// Asks for an interrupt when the next chain is given back. Returns false if there is one
    /// already: a sleep could then last for ever.
    #[must_use = "what is there already does not interrupt"]
    pub fn ask_for_interrupt(&self) -> bool {
        if self.event_idx {
            self.used_event().store(self.taken.to_le(), Ordering::Relaxed);
        } else {
            self.available()[FLAGS].store(0, Ordering::Relaxed);
        }
        // As in `publish`, with the sides exchanged (2.7.10).
        fence(Ordering::SeqCst);
        u16::from_le(self.used()[INDEX].load(Ordering::Acquire)) == self.taken
    }

    /// Asks for no interrupts. With event indices that is a request for one every 65,536 chains,
    /// which is as good.
    pub fn refuse_interrupts(&self) {
        if self.event_idx {
            self.used_event().store(self.taken.wrapping_sub(1).to_le(), Ordering::Relaxed);
        } else {
            self.available()[FLAGS].store(NO_INTERRUPT.to_le(), Ordering::Relaxed);
        }
    }

    /// Flags, index, entries, and the index that an interrupt is wanted at.
    fn available(&self) -> &[AtomicU16] {
        self.memory.words(self.layout.available, ENTRIES + usize::from(self.layout.size) + 1)
    }

    /// Flags and index.
    fn used(&self) -> &[AtomicU16] {
        self.memory.words(self.layout.used, ENTRIES)
    }

    fn used_event(&self) -> &AtomicU16 {
        &self.available()[ENTRIES + usize::from(self.layout.size)]
    }
}

/// Returns whether an index that went from `old` to `new` has passed `event` (2.7.13.3.1).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
