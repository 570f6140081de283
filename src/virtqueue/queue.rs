//! A split virtqueue as its driver has it (virtio 1.3, 2.7).
//!
//! In the steady state a request costs the driver four stores (descriptors stay as they are) and no system call while
//! the device polls. Of the shared lines it reads one: the used ring's, and that only when it has taken all it knew of.

use super::DmaMemory;
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

/// Where the parts of a queue lie in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Offset of the descriptor table.
    pub descriptors: u64,
    /// Offset of the available ring.
    pub available: u64,
    /// Where the driver can go on behind the available ring, in the same line if it ends early.
    pub behind_available: u64,
    /// Offset of the used ring.
    pub used: u64,
    /// Where the device can go on behind the used ring.
    pub behind_used: u64,
    /// Offset of the first byte behind.
    pub end: u64,
}

impl Layout {
    /// For `size` descriptors, from the first suitable offset at or behind `at`, with room behind each ring for so many bytes that
    /// the same side writes.
    ///
    /// # Panics
    /// If `size` is no power of two.
    pub fn new(size: u16, at: u64, driver_bytes: u64, device_bytes: u64) -> Self {
        assert!(size.is_power_of_two(), "2.7: the queue size is a power of two");
        let count = u64::from(size);
        let descriptors = at.next_multiple_of(APART);
        let available = (descriptors + 16 * count).next_multiple_of(APART);
        let behind_available = (available + 6 + 2 * count).next_multiple_of(16);
        let used = (behind_available + driver_bytes).next_multiple_of(APART);
        let behind_used = used + 6 + 8 * count;
        let end = (behind_used + device_bytes).next_multiple_of(APART);
        Self { size, descriptors, available, behind_available, used, behind_used, end }
    }
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// As the device knows it.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// The one that follows, if the flags say so.
    pub next: u16,
}

/// What the device has done with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that the device says it has written.
    pub len: u32,
}

/// The device does not keep to the rules; nothing that it says is to be believed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More chains used than there are.
    #[error("the device's used index jumps from {from} to {to}")]
    Index {
        /// What was taken so far.
        from: u16,
        /// As the device has it.
        to: u16,
    },
    /// No chain that is the device's.
    #[error("the device gives back {0}, which it was not given")]
    Head(u32),
}

/// The ring.
#[derive(Debug)]
pub struct Queue {
    memory: DmaMemory,
    layout: Layout,
    event_idx: bool,
    /// Chains put into the available ring.
    offered: u16,
    /// Those of them that the device may see.
    published: u16,
    /// Entries of the used ring that were there at the last look.
    seen: u16,
    /// Those of them that were taken.
    taken: u16,
}

impl Queue {
    /// An empty ring in `memory`, which is all zero there; without interrupts.
    pub fn new(memory: DmaMemory, layout: Layout, event_idx: bool) -> Self {
        let queue = Self { memory, layout, event_idx, offered: 0, published: 0, seen: 0, taken: 0 };
        queue.refuse_interrupts();
        queue
    }

    /// Where its parts lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The memory that it lies in.
    pub fn memory(&self) -> &DmaMemory {
        &self.memory
    }

    /// Writes a descriptor into the table at `table`: the queue's own, or an indirect one.
    pub fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let words: &[AtomicU64] = self.memory.words(table + 16 * u64::from(index), 2);
        let rest = u64::from(descriptor.len)
            | u64::from(descriptor.flags) << 32
            | u64::from(descriptor.next) << 48;
        words[0].store(descriptor.address.to_le(), Ordering::Relaxed);
        words[1].store(rest.to_le(), Ordering::Relaxed);
    }

    /// Puts a chain into the available ring, where the device does not see it yet. There are never more than descriptors.
    pub fn offer(&mut self, head: u16) {
        let place = ENTRIES + usize::from(self.offered & (self.layout.size - 1));
        self.available()[place].store(head.to_le(), Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device all that was offered. Whether it wants to be notified of that.
    #[must_use = "a device that sleeps has to be notified"]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        if self.offered == old {
            return false;
        }
        self.published = self.offered;
        // The device stores whether it wants a notification and then looks at the index; we store the index and then look at
        // that. All four in one order: at least one of us sees the other (2.7.13.3.1).
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

    /// The next chain that the device has given back.
    pub fn take_used(&mut self) -> Result<Option<Used>, Broken> {
        if self.taken == self.seen {
            // What the device wrote before it stored the index is seen after this.
            self.seen = u16::from_le(self.used()[INDEX].load(Ordering::Acquire));
            if self.seen == self.taken {
                // The device writes the entry, then the index: we wait for both at once.
                let place = u64::from(self.taken & (self.layout.size - 1));
                self.memory.prefetch(self.layout.used + 4 + 8 * place);
                return Ok(None);
            }
            let outstanding = self.published.wrapping_sub(self.taken);
            if self.seen.wrapping_sub(self.taken) > outstanding {
                return Err(Broken::Index { from: self.taken, to: self.seen });
            }
        }
        let place = u64::from(self.taken & (self.layout.size - 1));
        let entry: &[AtomicU32] = self.memory.words(self.layout.used + 4 + 8 * place, 2);
        let id = u32::from_le(entry[0].load(Ordering::Relaxed));
        let len = u32::from_le(entry[1].load(Ordering::Relaxed));
        let head = u16::try_from(id).ok().filter(|head| *head < self.layout.size);
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Used { head: head.ok_or(Broken::Head(id))?, len }))
    }

    /// For a device that does not know where the one before it has stopped: `heads` take the places of all chains that were not given
    /// back, in this order. Where the first of them is, and the device is to begin.
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

    /// Asks for an interrupt when the next chain is given back. `false` if one has been already: whoever sleeps then may sleep
    /// for ever.
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

    /// Asks for none. With event indices that is a request for one every 65,536 chains, which is as good.
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

/// Whether an index that went from `old` to `new` has passed `event` (2.7.13.3.1).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
