//! The device's side of a split virtqueue (virtio 1.3, 2.7), walked by hand.
//!
//! Its three parts are looked up in guest memory once, when a turn begins. Nothing that the driver
//! writes there is trusted: an index is checked against the queue's size, and every access against
//! the part that it is in.

mod chain;
mod index;

pub use chain::Chain;
use index::Index;

use crate::data_path::dirty::GuestMemory;
use crate::data_path::lookup::{Lookup, Part};
use crate::data_path::plain::PlainChain;
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
    /// A file behind guest memory was cut short.
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
    /// The used index when the driver's wish for an interrupt was last looked at.
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
            self.look()?;
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

    /// Returns how many chains the driver has offered that were not taken; looks for more than are
    /// known if those are fewer than `enough`.
    #[inline]
    pub fn offered(&mut self, enough: u16) -> Result<u16, Broken> {
        let known = self.offered.since(self.next_available);
        if known >= enough {
            return Ok(known);
        }
        self.look()?;
        Ok(self.offered.since(self.next_available))
    }

    #[inline]
    fn look(&mut self) -> Result<(), Broken> {
        self.offered = Index::new(load(&self.available, INDEX, Ordering::Acquire)?);
        let count = self.offered.since(self.next_available);
        if count > self.size { Err(Broken::Index) } else { Ok(()) }
    }

    /// Returns the first descriptor of an offered chain, so many behind the next one; `None` for
    /// one that is no descriptor's number.
    #[inline]
    pub fn head_behind(&self, count: u16) -> Option<u16> {
        let slot = self.slot(self.next_available.after(count));
        let head = load(&self.available, ENTRIES + HEAD_BYTES * slot, Ordering::Relaxed).ok()?;
        (head < self.size).then_some(head)
    }

    /// Asks for the descriptors of an offered chain, so many behind the next one.
    #[inline]
    pub fn prefetch_chain(&self, count: u16) {
        let Some(head) = self.head_behind(count) else { return };
        let table = self.descriptors.ptr_guard();
        let first = table.as_ptr().wrapping_add(chain::DESCRIPTOR_BYTES * usize::from(head));
        prefetch(first);
        prefetch(first.wrapping_add(3 * chain::DESCRIPTOR_BYTES - 1));
    }

    /// Asks for the used ring's next entries.
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

    /// Returns the chain that begins at a head, if it has the usual shape.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the chain then comes to be where it stays")]
    pub fn plain_chain(&mut self, head: u16) -> Option<PlainChain> {
        PlainChain::new(chain::three(&self.descriptors, self.size, head, &mut self.memory)?)
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

    /// Decides whether the driver is interrupted for what was answered since the last decision
    /// (2.7.7). To be called before the queue is left.
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if self.signalled == Some(self.next_used) {
            return Ok(false);
        }
        // The driver writes that it wants an interrupt, then reads the used index once more: with a
        // fence on both sides one of us sees the other's store.
        fence(Ordering::SeqCst);
        let wanted = self.has_passed_event()?;
        self.signalled = Some(self.next_used);
        Ok(wanted)
    }

    /// Returns whether the driver is interrupted although there is more to do, so that it can go on
    /// meanwhile.
    ///
    /// The fence of [`wants_interrupt`](Self::wants_interrupt) waits until the driver's processor
    /// has given up every cache line that was stored to, which takes longer than a request. Without
    /// it the driver's wish may be missed here: that call finds it.
    pub fn wants_early_interrupt(&mut self) -> Result<bool, Broken> {
        self.looked = self.next_used;
        let wanted = self.has_passed_event()?;
        if wanted {
            self.signalled = Some(self.next_used);
        }
        Ok(wanted)
    }

    fn has_passed_event(&self) -> Result<bool, Broken> {
        let wanted = if self.event_idx {
            let at = ENTRIES + HEAD_BYTES * usize::from(self.size);
            let event = load(&self.available, at, Ordering::Relaxed)?;
            let behind = self.next_used.since(Index::new(event)).wrapping_sub(1);
            self.signalled.is_none_or(|signalled| behind < self.next_used.since(signalled))
        } else {
            // VRING_AVAIL_F_NO_INTERRUPT is bit 0.
            load(&self.available, 0, Ordering::Relaxed)? & 1 == 0
        };
        Ok(wanted)
    }

    /// Answers since the driver's wish was last looked at.
    #[inline]
    pub fn unlooked(&self) -> u16 {
        self.next_used.since(self.looked)
    }

    /// Answers since the last interrupt decision: fewer than can be told apart.
    #[inline]
    pub fn undecided(&self) -> u16 {
        self.signalled.map_or(u16::MAX, |signalled| self.next_used.since(signalled))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

    const TABLE: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const INDIRECT: u64 = 0x4000;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap()
    }

    fn queue(event_idx: bool) -> Queue {
        let mut queue = Queue::new(8).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_event_idx(event_idx);
        queue
    }

    fn next_chain<'m>(split: &mut SplitQueue<'m>) -> Chain<'m> {
        let head = split.next_head().unwrap().unwrap();
        split.take();
        split.chain(head)
    }

    fn put(mem: &GuestMemory, at: u64, value: u16) {
        mem.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn describe(mem: &GuestMemory, table: u64, index: u16, address: u64, len: u32, rest: [u32; 2]) {
        let at = table + 16 * u64::from(index);
        mem.write_obj(address, GuestAddress(at)).unwrap();
        mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        mem.write_obj(rest[0] | rest[1] << 16, GuestAddress(at + 12)).unwrap();
    }

    /// Sets the available index to `index`; every entry of the ring is descriptor 0.
    fn offer(mem: &GuestMemory, index: u16) {
        put(mem, AVAILABLE + 2, index);
    }

    #[test]
    fn interrupt_is_wanted_when_the_used_index_passes_the_drivers_event() {
        let mem = memory();
        let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
        assert_eq!(split.wants_interrupt(), Ok(false), "nothing was answered");
        for (event, wanted) in [(0, true), (1, true), (5, false), (3, true), (u16::MAX, false)] {
            put(&mem, AVAILABLE + 4 + 2 * 8, event);
            split.add_used(0, 1).unwrap();
            assert_eq!(split.wants_interrupt(), Ok(wanted), "event {event}");
        }
        let mut new = SplitQueue::open(&queue(true), &mem, None).unwrap();
        assert_eq!(new.wants_interrupt(), Ok(true), "what was signalled before is unknown");
        let mut plain = SplitQueue::open(&queue(false), &mem, Some(0)).unwrap();
        put(&mem, AVAILABLE, 1);
        plain.add_used(0, 1).unwrap();
        assert_eq!(plain.wants_interrupt(), Ok(false));
        put(&mem, AVAILABLE, 0);
        plain.add_used(0, 1).unwrap();
        assert_eq!(plain.wants_interrupt(), Ok(true));
    }

    #[test]
    fn wish_that_an_early_look_has_missed_is_found_by_the_decision() {
        let mem = memory();
        let mut split = SplitQueue::open(&queue(true), &mem, Some(0)).unwrap();
        let event = |index: u16| put(&mem, AVAILABLE + 4 + 2 * 8, index);
        event(100);
        (0..3).for_each(|head| split.add_used(head, 1).unwrap());
        assert_eq!((split.unlooked(), split.undecided()), (3, 3));
        assert_eq!(split.wants_early_interrupt(), Ok(false));
        assert_eq!((split.unlooked(), split.undecided()), (0, 3));
        // As the driver has stored it before that look.
        event(1);
        assert_eq!(split.wants_interrupt(), Ok(true));
        assert_eq!(split.undecided(), 0);
        event(3);
        split.add_used(3, 1).unwrap();
        assert_eq!(split.wants_early_interrupt(), Ok(true));
        assert_eq!(split.wants_interrupt(), Ok(false), "it was interrupted for that");
    }

    #[test]
    fn chain_offered_while_a_kick_is_asked_for_is_seen() {
        for event_idx in [true, false] {
            let mem = memory();
            let mut split = SplitQueue::open(&queue(event_idx), &mem, None).unwrap();
            split.suppress_kicks().unwrap();
            assert_eq!(split.ask_for_kick(), Ok(false));
            offer(&mem, 1);
            assert_eq!(split.ask_for_kick(), Ok(true));
            assert_eq!(next_chain(&mut split).head(), 0);
            assert_eq!(split.ask_for_kick(), Ok(false));
            let event: u16 = mem.read_obj(GuestAddress(USED + 4 + 8 * 8)).unwrap();
            assert_eq!(event, u16::from(event_idx));
        }
    }

    #[test]
    fn parts_are_found_in_any_order_and_in_separate_regions() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x10_0000), 0x1000)];
        let mem = GuestMemory::from_ranges(&ranges).unwrap();
        for (table, available, used) in
            [(0, 0x800, 0x900), (0x900, 0x800, 0), (0, 0x10_0000, 0x800), (0, 0x800, 0x10_0000)]
        {
            let mut queue = queue(true);
            queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(available)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
            describe(&mem, table, 3, 0, 5, [0, 0]);
            put(&mem, available + 2, 1);
            put(&mem, available + 4, 3);
            let mut split = SplitQueue::open(&queue, &mem, None).unwrap();
            let mut chain = next_chain(&mut split);
            assert_eq!(chain.next().map(|descriptor| descriptor.len()), Some(5));
            split.add_used(3, 7).unwrap();
            assert_eq!(mem.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 1);
            assert_eq!(mem.read_obj::<[u32; 2]>(GuestAddress(used + 4)).unwrap(), [3, 7]);
            put(&mem, available + 2, 0);
            put(&mem, used + 2, 0);
        }
    }

    #[test]
    fn queue_breaks_at_an_index_or_a_head_out_of_bounds() {
        let mem = memory();
        offer(&mem, 9);
        let mut split = SplitQueue::open(&queue(true), &mem, None).unwrap();
        assert_eq!(split.next_head().err(), Some(Broken::Index));
        offer(&mem, 1);
        put(&mem, AVAILABLE + 4, 8);
        let mut split = SplitQueue::open(&queue(true), &mem, None).unwrap();
        assert_eq!(split.next_head().err(), Some(Broken::Head));
        let mut outside = queue(true);
        outside.try_set_used_ring_address(GuestAddress(0x8000 - 8)).unwrap();
        assert_eq!(SplitQueue::open(&outside, &mem, None).err(), Some(Broken::Rings));
    }

    #[test]
    fn chain_ends_where_it_leaves_its_table_or_memory() {
        let lens = |mem: &GuestMemory| {
            let mut split = SplitQueue::open(&queue(true), mem, None).unwrap();
            let chain = next_chain(&mut split);
            chain.map(|descriptor| descriptor.len()).collect::<Vec<_>>()
        };
        let mem = memory();
        offer(&mem, 1);
        describe(&mem, TABLE, 0, 0, 5, [VRING_DESC_F_NEXT, 1]);
        describe(&mem, TABLE, 1, 0, 6, [0, 0]);
        assert_eq!(lens(&mem), [5, 6]);
        describe(&mem, TABLE, 1, 0, 6, [VRING_DESC_F_NEXT, 0]);
        assert_eq!(lens(&mem).len(), 8, "a circle");
        describe(&mem, TABLE, 1, 0, 6, [VRING_DESC_F_NEXT, 8]);
        assert_eq!(lens(&mem), [5, 6], "out of the table");
        describe(&mem, TABLE, 0, INDIRECT, 32, [VRING_DESC_F_INDIRECT, 0]);
        describe(&mem, INDIRECT, 0, 0, 7, [VRING_DESC_F_NEXT, 1]);
        describe(&mem, INDIRECT, 1, 0, 8, [VRING_DESC_F_NEXT, 2]);
        assert_eq!(lens(&mem), [7, 8], "out of an indirect one");
        describe(&mem, INDIRECT, 1, TABLE, 16, [VRING_DESC_F_INDIRECT, 0]);
        assert_eq!(lens(&mem), [7], "a table in a table");
        for (address, len) in [(0x8000, 16), (0x8000 - 16, 40), (INDIRECT, 24), (u64::MAX, 16)] {
            describe(&mem, TABLE, 0, address, len, [VRING_DESC_F_INDIRECT, 0]);
            assert!(lens(&mem).is_empty(), "{len} bytes at {address:#x}");
        }
    }
}
