//! The objects behind the handles, so that a handle that is stale, of another kind or in use is
//! answered: it is a number that is looked up, never an address that is followed.
//!
//! A handle is `kind (16 bits) | generation (28 bits) | index (20 bits)`. The kind's bits make it
//! an address that no processor accepts, so that a program which follows one stops there. A slot's
//! generation grows when its object is freed. A slot whose generations are used up is not used
//! again.
//!
//! A call costs one compare-and-swap and one store on the slot's own cache line.

use crate::code::Fault;
use crate::fork::Process;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

const INDEX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 28;
const MOST_GENERATIONS: u64 = (1 << GENERATION_BITS) - 1;

/// Slots of the first chunk; each further chunk has twice as many.
const FIRST: usize = 64;
/// Enough chunks for all indices.
const CHUNKS: usize = (INDEX_BITS - FIRST.ilog2()) as usize;

/// What a slot's two lowest bits say; the others are its generation.
const VACANT: u64 = 0;
const IDLE: u64 = 1;
const IN_USE: u64 = 2;
/// A call has panicked: only freeing is left.
const BROKEN: u64 = 3;
const STATE_BITS: u32 = 2;

// A handle is as large as a pointer.
const _: () = assert!(usize::BITS == 64, "handles take 64 bits");

/// Alone on its cache line: handles are used by different threads.
#[repr(align(64))]
struct Slot<T> {
    state: AtomicU64,
    /// The process whose object it is.
    process: AtomicU64,
    value: UnsafeCell<Option<Box<T>>>,
}

/// The objects of one kind of handle. `H` is the type that C has a pointer to.
pub struct Table<H, T> {
    kind: u16,
    chunks: [OnceLock<Box<[Slot<T>]>>; CHUNKS],
    free: Mutex<Free>,
    handle: PhantomData<fn(H)>,
}

/// Slots that no object is in.
struct Free {
    /// Those that had one.
    returned: Vec<usize>,
    /// The first that never had one.
    next: usize,
}

// SAFETY: the value of a slot is only touched by the thread that has set the slot's state to
// `IN_USE`, or by `insert`, which has the index from the list of free slots to itself; so values
// move between threads, which `T: Send` allows, and are never shared.
unsafe impl<H, T: Send> Sync for Table<H, T> {}

/// A handle's parts.
#[derive(Clone, Copy)]
struct Parts {
    generation: u64,
    index: usize,
}

impl<H, T: Send> Table<H, T> {
    /// Makes an empty table. `kind` is different for each table, and is neither 0 nor 0xffff.
    pub const fn new(kind: u16) -> Self {
        let free = Mutex::new(Free { returned: Vec::new(), next: 0 });
        Self { kind, chunks: [const { OnceLock::new() }; CHUNKS], free, handle: PhantomData }
    }

    /// Keeps an object, and returns its handle.
    pub fn insert(&self, value: T) -> Result<*mut H, Fault> {
        Process::count_forks();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.returned.pop().unwrap_or_else(|| {
            free.next += 1;
            free.next - 1
        });
        drop(free);
        let slot = self.slot_or_new(index).ok_or(Fault::Argument("there are a million handles"))?;
        let generation = slot.state.load(Ordering::Relaxed) >> STATE_BITS;
        // SAFETY: the index was in nobody else's hands, and the slot is vacant: no handle leads to
        // it before the store below.
        unsafe { *slot.value.get() = Some(Box::new(value)) };
        slot.process.store(Process::this().number(), Ordering::Relaxed);
        slot.state.store(generation << STATE_BITS | IDLE, Ordering::Release);
        let number = u64::from(self.kind) << (INDEX_BITS + GENERATION_BITS)
            | generation << INDEX_BITS
            | index as u64;
        Ok(std::ptr::without_provenance_mut(usize::try_from(number).unwrap_or_default()))
    }

    /// Calls `f` on the object of a handle, which nobody else uses meanwhile. If `f` panics, the
    /// object is not used again.
    #[inline]
    pub fn with<R>(
        &self,
        handle: *const H,
        f: impl FnOnce(&mut T) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let (parts, slot) = self.find(handle)?;
        let mut hold = take(slot, parts)?;
        // SAFETY: the slot's state is `IN_USE`, by this call's compare-and-swap.
        let value = unsafe { &mut *slot.value.get() }.as_deref_mut();
        hold.state = BROKEN;
        let answer = value.map_or(Err(Fault::Stale), f);
        hold.state = IDLE;
        drop(hold);
        answer
    }

    /// Takes the object of a handle out. The handle is stale from then on. A forked child leaves
    /// its parent's object as it is: to drop it would be to give up the parent's role.
    pub fn remove(&self, handle: *const H) -> Result<Option<Box<T>>, Fault> {
        let (parts, slot) = self.find(handle)?;
        let mut hold = match take_in(slot, parts, IDLE) {
            Err(Fault::Broken) => take_in(slot, parts, BROKEN)?,
            other => other?,
        };
        hold.parts.generation += 1;
        hold.state = VACANT;
        if !is_own(slot) {
            // The slot keeps it, and is not used again: the list of free slots may have been locked
            // by a thread that the child has not got.
            return Ok(None);
        }
        // SAFETY: as in `with`.
        let value = unsafe { &mut *slot.value.get() }.take();
        drop(hold);
        if parts.generation < MOST_GENERATIONS {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.returned.push(parts.index);
        }
        Ok(value)
    }

    fn find(&self, handle: *const H) -> Result<(Parts, &Slot<T>), Fault> {
        let number = handle.addr() as u64;
        if number == 0 {
            return Err(Fault::Argument("the handle is NULL"));
        }
        if number >> (INDEX_BITS + GENERATION_BITS) != u64::from(self.kind) {
            return Err(Fault::Stale);
        }
        let generation = number >> INDEX_BITS & MOST_GENERATIONS;
        let index = usize::try_from(number & ((1 << INDEX_BITS) - 1)).unwrap_or_default();
        let (chunk, offset) = place(index).ok_or(Fault::Stale)?;
        let slot = self.chunks[chunk].get().and_then(|chunk| chunk.get(offset));
        Ok((Parts { generation, index }, slot.ok_or(Fault::Stale)?))
    }

    fn slot_or_new(&self, index: usize) -> Option<&Slot<T>> {
        let (chunk, offset) = place(index)?;
        let vacant = |_| Slot {
            state: AtomicU64::new(VACANT),
            process: AtomicU64::new(0),
            value: UnsafeCell::new(None),
        };
        let slots = self.chunks[chunk].get_or_init(|| (0..FIRST << chunk).map(vacant).collect());
        slots.get(offset)
    }
}

/// Returns the chunk of a slot, and the slot's place in it.
fn place(index: usize) -> Option<(usize, usize)> {
    let shifted = index + FIRST;
    let chunk = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (chunk < CHUNKS).then_some((chunk, shifted - (FIRST << chunk)))
}

/// A slot that this thread has to itself. Dropping it sets the slot's state.
struct Hold<'a, T> {
    slot: &'a Slot<T>,
    parts: Parts,
    state: u64,
}

/// Takes a slot for a call.
#[inline]
fn take<T>(slot: &Slot<T>, parts: Parts) -> Result<Hold<'_, T>, Fault> {
    let hold = take_in(slot, parts, IDLE)?;
    if is_own(slot) { Ok(hold) } else { Err(Fault::Foreign) }
}

/// Returns whether the object of a slot is one of this process.
#[inline]
fn is_own<T>(slot: &Slot<T>) -> bool {
    slot.process.load(Ordering::Relaxed) == Process::this().number()
}

/// Takes a slot that is in a state.
#[inline]
fn take_in<T>(slot: &Slot<T>, parts: Parts, state: u64) -> Result<Hold<'_, T>, Fault> {
    let generation = parts.generation << STATE_BITS;
    let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
    match slot.state.compare_exchange(generation | state, generation | IN_USE, success, failure) {
        Ok(_) => Ok(Hold { slot, parts, state }),
        Err(found) if found == generation | IN_USE => Err(Fault::InUse),
        Err(found) if found == generation | BROKEN => Err(Fault::Broken),
        Err(_) => Err(Fault::Stale),
    }
}

impl<T> Drop for Hold<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let state = self.parts.generation << STATE_BITS | self.state;
        self.slot.state.store(state, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    struct Handle;

    fn stale<T>(answer: &Result<T, Fault>) -> bool {
        matches!(answer, Err(Fault::Stale))
    }

    #[test]
    fn handle_that_was_freed_is_stale_though_its_slot_is_used_again() {
        let table = Table::<Handle, u32>::new(7);
        let first = table.insert(1).unwrap();
        assert_eq!(table.remove(first).unwrap().as_deref(), Some(&1));
        let second = table.insert(2).unwrap();
        assert_eq!(second.addr() & 0xfffff, first.addr() & 0xfffff);
        assert!(stale(&table.remove(first)));
        assert!(stale(&table.with(first, |_| Ok(()))));
        assert_eq!(table.with(second, |value| Ok(*value)).unwrap(), 2);
    }

    #[test]
    fn any_number_that_is_no_handle_is_answered() {
        let table = Table::<Handle, u32>::new(7);
        let handle = table.insert(1).unwrap();
        for number in [1, 4096, usize::MAX, handle.addr() ^ 1 << 60, handle.addr() + 1] {
            assert!(stale(&table.with(std::ptr::without_provenance_mut(number), |_| Ok(()))));
        }
        assert!(matches!(table.with(std::ptr::null(), |_| Ok(())), Err(Fault::Argument(_))));
    }

    #[test]
    fn object_in_use_is_refused_and_stays_with_its_first_user() {
        let table = Table::<Handle, u32>::new(7);
        let handle = table.insert(1).unwrap();
        let inner = table.with(handle, |_| Ok(table.with(handle, |_| Ok(())))).unwrap();
        assert!(matches!(inner, Err(Fault::InUse)));
        let inner = table.with(handle, |_| Ok(table.remove(handle).is_err())).unwrap();
        assert!(inner);
        table.with(handle, |_| Ok(())).unwrap();
    }

    #[test]
    fn object_whose_call_panicked_can_only_be_freed() {
        let table = Table::<Handle, u32>::new(7);
        let handle = table.insert(1).unwrap();
        let call = || table.with(handle, |_| -> Result<(), Fault> { unreachable!("as planned") });
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        assert!(matches!(table.with(handle, |_| Ok(())), Err(Fault::Broken)));
        assert!(table.remove(handle).unwrap().is_some());
        assert!(stale(&table.remove(handle)));
    }

    #[test]
    fn table_grows_and_uses_its_slots_again() {
        let table = Table::<Handle, usize>::new(7);
        for _ in 0..3 {
            let handles: Vec<_> = (0..1000).map(|n| table.insert(n).unwrap()).collect();
            for (n, &handle) in handles.iter().enumerate() {
                assert_eq!(table.with(handle, |value| Ok(*value)).unwrap(), n);
            }
            for handle in handles {
                table.remove(handle).unwrap();
            }
        }
        assert_eq!(table.free.lock().unwrap().next, 1000);
    }

    #[test]
    fn slot_without_generations_left_is_not_used_again() {
        let table = Table::<Handle, u32>::new(7);
        let first = table.insert(1).unwrap();
        let (_, slot) = table.find(first).unwrap();
        slot.state.store(MOST_GENERATIONS << STATE_BITS | IDLE, Ordering::Release);
        let generation = usize::try_from(MOST_GENERATIONS).unwrap() << INDEX_BITS;
        let last = first.map_addr(|number| number | generation);
        assert_eq!(table.remove(last).unwrap().as_deref(), Some(&1));
        let next = table.insert(2).unwrap();
        assert_eq!(next.addr() & 0xfffff, 1);
    }
}
