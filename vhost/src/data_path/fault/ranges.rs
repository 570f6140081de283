//! The memory that a fault is repaired in: a table that a signal handler reads while others change
//! it.

use crate::data_path::dirty::{GuestMemory, MAX_REGIONS};
use shared_block_ring::MappedDevice;
use shared_block_ring::device::bell::Bell;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryBackend;

/// Whose memory it is, and so who is affected by its loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The ring's: its region, and the pages by which backend and host wake each other.
    Ring,
    /// The front end's: guest memory, and the log of dirty pages.
    FrontEnd,
}

/// Ranges at a time. Of a front end those that it shares now and those that it has shared before,
/// which are replaced by them, each with its part of the log; and more than enough for rings.
const MOST: usize = 4 * MAX_REGIONS + 1024;

/// Bytes of the smallest page.
const PAGE: usize = 4096;

/// One range of addresses. It is in use while `end` is not 0.
struct Slot {
    /// How often the slot was filled: a reader that finds the same count before and after has read
    /// one range, and not parts of two.
    fills: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    is_ring: AtomicBool,
}

static SLOTS: [Slot; MOST] = [const {
    let (fills, start, end) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    Slot { fills, start, end, is_ring: AtomicBool::new(false) }
}; MOST];

/// Slots that have ever been in use: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Held while the table is changed. The handler, which cannot wait, does not take it.
static CHANGING: Mutex<()> = Mutex::new(());

impl Slot {
    /// Returns the range that the slot holds. If the slot is changed meanwhile, that is the range
    /// before, the one after, or none.
    fn get(&self) -> Option<(Range<usize>, Owner)> {
        let fills = self.fills.load(SeqCst);
        let end = self.end.load(SeqCst);
        let owner = if self.is_ring.load(SeqCst) { Owner::Ring } else { Owner::FrontEnd };
        let start = self.start.load(SeqCst);
        (end != 0 && self.fills.load(SeqCst) == fills).then_some((start..end, owner))
    }

    /// Fills an empty slot. Its end is stored last: until then a reader finds the slot empty.
    fn fill(&self, range: &Range<usize>, owner: Owner) {
        self.fills.fetch_add(1, SeqCst);
        self.start.store(range.start, SeqCst);
        self.is_ring.store(owner == Owner::Ring, SeqCst);
        self.end.store(range.end, SeqCst);
    }
}

/// Returns the watched range that holds an address. Safe to call in a signal handler.
pub(super) fn find(address: usize) -> Option<(Range<usize>, Owner)> {
    let used = SLOTS.iter().take(USED.load(SeqCst));
    used.filter_map(Slot::get).find(|(range, _)| range.contains(&address))
}

/// A range in the table, until this is dropped.
#[derive(Debug)]
struct Entry(usize);

/// Enters a range. `None` where nothing is in it, or the table is full.
fn enter(addresses: &Range<usize>, owner: Owner) -> Option<Entry> {
    if addresses.is_empty() {
        return None;
    }
    let pages = addresses.start & !(PAGE - 1)..addresses.end.next_multiple_of(PAGE);
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(index) = SLOTS.iter().position(|slot| slot.end.load(SeqCst) == 0) else {
        log::error!("too many pieces of shared memory: if one more is lost, this process ends");
        return None;
    };
    SLOTS[index].fill(&pages, owner);
    USED.fetch_max(index + 1, SeqCst);
    Some(Entry(index))
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        SLOTS[self.0].end.store(0, SeqCst);
    }
}

/// Memory that is shared with others, who can take it away.
///
/// # Safety
/// The addresses are those of mappings that stay mapped as long as the value lives, and that are
/// only ever accessed as memory which others change at any time: a page of zeros in the place of
/// one of theirs breaks nothing that Rust relies on.
pub unsafe trait Shared {
    /// Where the mappings lie.
    fn addresses(&self) -> impl Iterator<Item = Range<usize>>;
}

/// Shared memory, in which a fault is repaired for as long as this lives.
#[derive(Debug)]
pub struct Watched<T> {
    /// Dropped before the memory is unmapped: its addresses may be anything's then.
    _entries: Vec<Entry>,
    memory: T,
}

impl<T: Shared> Watched<T> {
    /// Watches all of `memory`.
    pub fn new(memory: T, owner: Owner) -> Self {
        let entries = memory.addresses().filter_map(|range| enter(&range, owner)).collect();
        Self { _entries: entries, memory }
    }
}

impl<T> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.memory
    }
}

// SAFETY: the one mapping of the device, which copies out of it and into it. It lends nothing: that
// is for a consumer to ask for.
unsafe impl Shared for MappedDevice {
    fn addresses(&self) -> impl Iterator<Item = Range<usize>> {
        std::iter::once(self.memory().addresses())
    }
}

// SAFETY: the bell's page, whose words are atomic.
unsafe impl Shared for Bell {
    fn addresses(&self) -> impl Iterator<Item = Range<usize>> {
        std::iter::once(self.addresses())
    }
}

// SAFETY: each region is a mapping of its own, and is accessed by volatile slices alone.
unsafe impl Shared for Arc<GuestMemory> {
    fn addresses(&self) -> impl Iterator<Item = Range<usize>> {
        self.iter().map(|region| {
            let start = region.as_ptr().addr();
            start..start + region.size()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use vm_memory::GuestAddress;

    /// Addresses that no mapping of this machine's has.
    const FAR: usize = 0xffff << 48;

    #[test]
    fn address_is_found_while_its_range_is_watched() {
        let ring = enter(&(FAR..FAR + 100), Owner::Ring);
        let guest = enter(&(FAR + 2 * PAGE..FAR + 3 * PAGE), Owner::FrontEnd);
        assert_eq!(find(FAR), Some((FAR..FAR + PAGE, Owner::Ring)));
        assert_eq!(find(FAR + PAGE - 1), Some((FAR..FAR + PAGE, Owner::Ring)), "all of its page");
        assert_eq!(find(FAR + PAGE), None);
        assert_eq!(find(FAR + 2 * PAGE).map(|(_, owner)| owner), Some(Owner::FrontEnd));
        drop(ring);
        assert_eq!(find(FAR), None);
        let again = enter(&(FAR..FAR + PAGE), Owner::FrontEnd);
        assert_eq!(find(FAR).map(|(_, owner)| owner), Some(Owner::FrontEnd));
        drop((guest, again));
        assert_eq!(find(FAR + 2 * PAGE), None);
    }

    #[test]
    fn all_of_guest_memory_is_watched_while_it_is_shared() {
        let ranges = [(GuestAddress(0), 2 * PAGE), (GuestAddress(1 << 20), PAGE)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let all: Vec<_> = memory.addresses().collect();
        assert_eq!(all.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), [2 * PAGE, PAGE]);
        let watched = Watched::new(memory, Owner::FrontEnd);
        for range in &all {
            assert_eq!(find(range.start + 1), Some((range.clone(), Owner::FrontEnd)));
        }
        drop(watched);
        assert!(all.iter().all(|range| find(range.start).is_none()));
    }
}
