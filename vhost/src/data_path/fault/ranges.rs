//! The memory that a fault is repaired in: a table that a signal handler reads while others change
//! it.

use super::losses::Losses;
use super::numbers::Numbers;
use crate::data_path::dirty::GuestMemory;
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

/// Ranges at a time, of all rings. A region of guest memory is in four at most: in what its front
/// end shares now and in what that is about to replace, each with its part of the log. A process
/// has 65,530 mappings (`vm.max_map_count`), and so no more regions. Pages of the table that are
/// never used take no memory.
const MOST: usize = 4 << 16;

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
    /// The number of the ring's losses.
    losses: AtomicUsize,
}

static SLOTS: [Slot; MOST] = [const {
    let (fills, start, end) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    Slot { fills, start, end, is_ring: AtomicBool::new(false), losses: AtomicUsize::new(0) }
}; MOST];

/// Slots that have ever been in use: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// The numbers of the slots. Held while the table is changed; the handler, which cannot wait, does
/// not take it.
static NUMBERS: Mutex<Numbers<MOST>> = Mutex::new(Numbers::new());

/// A range of the table, and whom its loss affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub range: Range<usize>,
    pub owner: Owner,
    /// The number of the ring's losses.
    pub losses: usize,
}

impl Slot {
    /// Returns the range that the slot holds. If the slot is changed meanwhile, that is the range
    /// before, the one after, or none.
    fn get(&self) -> Option<Found> {
        let fills = self.fills.load(SeqCst);
        let end = self.end.load(SeqCst);
        let owner = if self.is_ring.load(SeqCst) { Owner::Ring } else { Owner::FrontEnd };
        let losses = self.losses.load(SeqCst);
        let range = self.start.load(SeqCst)..end;
        let is_whole = end != 0 && self.fills.load(SeqCst) == fills;
        is_whole.then_some(Found { range, owner, losses })
    }

    /// Fills an empty slot. Its end is stored last: until then a reader finds the slot empty.
    fn fill(&self, Found { range, owner, losses }: &Found) {
        self.fills.fetch_add(1, SeqCst);
        self.start.store(range.start, SeqCst);
        self.is_ring.store(*owner == Owner::Ring, SeqCst);
        self.losses.store(*losses, SeqCst);
        self.end.store(range.end, SeqCst);
    }
}

/// Returns the watched range that holds an address. Safe to call in a signal handler.
pub(super) fn find(address: usize) -> Option<Found> {
    let used = SLOTS.iter().take(USED.load(SeqCst));
    used.filter_map(Slot::get).find(|found| found.range.contains(&address))
}

/// A range in the table, until this is dropped.
#[derive(Debug)]
struct Entry(usize);

/// Enters a range. `None` where nothing is in it, or the table is full.
fn enter(addresses: &Range<usize>, owner: Owner, losses: &Losses) -> Option<Entry> {
    if addresses.is_empty() {
        return None;
    }
    let range = addresses.start & !(PAGE - 1)..addresses.end.next_multiple_of(PAGE);
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(number) = numbers.take() else {
        log::error!("too many pieces of shared memory: if one more is lost, this process ends");
        return None;
    };
    SLOTS[number].fill(&Found { range, owner, losses: losses.number() });
    USED.fetch_max(number + 1, SeqCst);
    Some(Entry(number))
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        SLOTS[self.0].end.store(0, SeqCst);
        numbers.give_back(self.0);
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

/// Shared memory of a ring, in which a fault is repaired for as long as this lives.
#[derive(Debug)]
pub struct Watched<T> {
    /// Dropped before the memory is unmapped: its addresses may be anything's then.
    _entries: Vec<Entry>,
    memory: T,
    /// Dropped after the entries, which name its record: no other ring has that meanwhile.
    losses: Losses,
}

impl<T: Shared> Watched<T> {
    /// Watches all of `memory`. What is lost of it is noted in `losses`, which are its ring's.
    pub fn new(memory: T, owner: Owner, losses: &Losses) -> Self {
        let entries = memory.addresses().filter_map(|range| enter(&range, owner, losses)).collect();
        Self { _entries: entries, memory, losses: losses.clone() }
    }
}

impl<T> Watched<T> {
    /// Returns the losses of the memory's ring.
    pub fn losses(&self) -> &Losses {
        &self.losses
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

    /// Addresses that no mapping of this machine's has. Each test has some of its own.
    const FAR: usize = 0xffff << 48;
    const FARTHER: usize = FAR + (1 << 40);

    fn owner(address: usize) -> Option<Owner> {
        find(address).map(|found| found.owner)
    }

    #[test]
    fn address_is_found_while_its_range_is_watched() {
        let (one, other) = (Losses::new().unwrap(), Losses::new().unwrap());
        let ring = enter(&(FAR..FAR + 100), Owner::Ring, &one);
        let guest = enter(&(FAR + 2 * PAGE..FAR + 3 * PAGE), Owner::FrontEnd, &other);
        let first = Found { range: FAR..FAR + PAGE, owner: Owner::Ring, losses: one.number() };
        assert_eq!(find(FAR).as_ref(), Some(&first));
        assert_eq!(find(FAR + PAGE - 1), Some(first), "all of its page");
        assert_eq!(find(FAR + PAGE), None);
        let range = FAR + 2 * PAGE..FAR + 3 * PAGE;
        let second = Found { range, owner: Owner::FrontEnd, losses: other.number() };
        assert_eq!(find(FAR + 2 * PAGE), Some(second));
        drop(ring);
        assert_eq!(find(FAR), None);
        let again = enter(&(FAR..FAR + PAGE), Owner::FrontEnd, &other);
        assert_eq!(owner(FAR), Some(Owner::FrontEnd));
        drop((guest, again));
        assert_eq!(find(FAR + 2 * PAGE), None);
    }

    #[test]
    fn all_of_guest_memory_is_watched_while_it_is_shared() {
        let losses = Losses::new().unwrap();
        let ranges = [(GuestAddress(0), 2 * PAGE), (GuestAddress(1 << 20), PAGE)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        let all: Vec<_> = memory.addresses().collect();
        assert_eq!(all.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), [2 * PAGE, PAGE]);
        let watched = Watched::new(memory, Owner::FrontEnd, &losses);
        for range in &all {
            let (owner, losses) = (Owner::FrontEnd, losses.number());
            let found = Found { range: range.clone(), owner, losses };
            assert_eq!(find(range.start + 1), Some(found));
        }
        drop(watched);
        assert!(all.iter().all(|range| find(range.start).is_none()));
    }

    #[test]
    fn losses_last_as_long_as_memory_is_watched() {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), PAGE)]).unwrap());
        let losses = Losses::new().unwrap();
        let number = losses.number();
        let watched = Watched::new(memory, Owner::FrontEnd, &losses);
        drop(losses);
        assert_eq!(watched.losses().number(), number);
        assert_ne!(Losses::new().unwrap().number(), number);
    }

    #[test]
    fn thousands_of_ranges_come_and_go_and_are_found() {
        const RANGES: usize = 3000;
        let losses = [(); 3].map(|()| Losses::new().unwrap());
        let start = |number: usize| FARTHER + 2 * number * PAGE;
        let enter = |number: usize| {
            let owner = if number.is_multiple_of(2) { Owner::Ring } else { Owner::FrontEnd };
            let range = start(number)..start(number) + PAGE;
            enter(&range, owner, &losses[number % 3])
        };
        let mut entries: Vec<_> = (0..RANGES).map(enter).collect();
        for round in 0..20 {
            for number in (round..RANGES).step_by(1 + round) {
                entries[number] = None;
            }
            for number in (round..RANGES).step_by(1 + round) {
                entries[number] = enter(number);
            }
        }
        // Slots that were left are used again; other tests need a few.
        assert!(USED.load(SeqCst) < RANGES + 100);
        for number in (0..RANGES).step_by(7) {
            let found = find(start(number) + PAGE - 1).unwrap();
            assert_eq!(found.range, start(number)..start(number) + PAGE);
            assert_eq!(found.owner == Owner::Ring, number.is_multiple_of(2));
            assert_eq!(found.losses, losses[number % 3].number());
            assert_eq!(find(start(number) + PAGE), None);
        }
        entries.clear();
        assert!((0..RANGES).step_by(7).all(|number| find(start(number)).is_none()));
    }
}
