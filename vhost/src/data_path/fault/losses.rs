//! What was lost of each ring's memory, and of its front end's: a table that the signal handler
//! writes to. The handler has no argument of ours, and so the table is a static.

use super::numbers::Numbers;
use shared_block_ring::device::bell::new_event;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// Rings at a time in one process. Each has an event, and more descriptors: their limit is met
/// first.
const MOST: usize = 8192;

/// Bit of [`Record::lost`]: memory of the ring. It stays set.
const RING: u8 = 1;

/// Bit of [`Record::lost`]: memory of the present front end.
const GUEST: u8 = 2;

/// The losses of one ring.
#[derive(Debug)]
pub(super) struct Record {
    /// Whose memory was lost, as bits; 0 while none was, which one load tells.
    lost: AtomicU8,
    /// Replacements in the present front end's memory.
    replaced: AtomicU32,
    /// The descriptor of the ring's event. 0, which is never one's, while no ring has the record.
    event: AtomicI32,
}

static RECORDS: [Record; MOST] = [const { Record::free() }; MOST];

/// The numbers of the records. The handler takes none, and so does not need this lock.
static NUMBERS: Mutex<Numbers<MOST>> = Mutex::new(Numbers::new());

impl Record {
    const fn free() -> Self {
        let (lost, replaced, event) = (AtomicU8::new(0), AtomicU32::new(0), AtomicI32::new(0));
        Self { lost, replaced, event }
    }

    /// Begins the record of a ring. What another ring has left in it is forgotten.
    fn begin(&self, event: &OwnedFd) {
        self.lost.store(0, SeqCst);
        self.replaced.store(0, SeqCst);
        self.event.store(event.as_raw_fd(), SeqCst);
    }

    /// Notes that memory of the ring was lost. Safe to call in a signal handler, as the others here
    /// are.
    pub fn lose_ring(&self) {
        self.lost.fetch_or(RING, SeqCst);
    }

    /// Notes that memory of the front end was lost. Returns how often that was noted before.
    pub fn lose_guest(&self) -> u32 {
        self.lost.fetch_or(GUEST, SeqCst);
        self.replaced.fetch_add(1, SeqCst)
    }

    /// Returns the descriptor of the ring's event.
    pub fn event(&self) -> libc::c_int {
        self.event.load(SeqCst)
    }
}

/// Returns the record of a number that a ring has taken.
pub(super) fn record(number: usize) -> &'static Record {
    &RECORDS[number]
}

/// A record that is taken, until this is dropped.
#[derive(Debug)]
struct Taken {
    number: usize,
    /// Written to by the handler.
    event: OwnedFd,
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Memory that the handler finds is watched, and who watches it has a clone: the handler
        // uses this record no more.
        record(self.number).event.store(0, SeqCst);
        NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.number);
    }
}

/// The losses of one ring: of its own memory, and of its present front end's. A clone is of the
/// same ring.
#[derive(Debug, Clone)]
pub struct Losses {
    /// Beside its number, so that the data path gets there by one load.
    record: &'static Record,
    taken: Arc<Taken>,
}

impl Losses {
    /// Makes the losses of a ring that has lost nothing.
    ///
    /// # Errors
    /// There is no event to be had, or the process serves as many rings as it can.
    pub fn new() -> io::Result<Self> {
        let event = new_event()?;
        let number = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).take();
        let number = number
            .ok_or_else(|| io::Error::other(format!("a process serves at most {MOST} rings")))?;
        let record = record(number);
        record.begin(&event);
        Ok(Self { record, taken: Arc::new(Taken { number, event }) })
    }

    /// Returns whether anything was lost. One load, for the data path.
    #[inline]
    pub fn anything_lost(&self) -> bool {
        self.record.lost.load(SeqCst) != 0
    }

    /// Returns whether memory of the region was lost: later reads may have returned zeros, and
    /// later writes are lost.
    pub fn region_lost(&self) -> bool {
        self.record.lost.load(SeqCst) & RING != 0
    }

    /// Returns whether memory of the present front end was lost. Its queue stops: it is about to be
    /// let go.
    pub fn guest_lost(&self) -> bool {
        self.record.lost.load(SeqCst) & GUEST != 0
    }

    /// Returns the event's descriptor, which is readable after memory was lost.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.taken.event.as_fd()
    }

    /// Resets the event, and then returns what [`guest_lost`](Self::guest_lost) does.
    pub fn take_guest_lost(&self) -> bool {
        // An event that is not readable says that nothing was lost since.
        let _ = nix::unistd::read(&self.taken.event, &mut [0; 8]);
        self.guest_lost()
    }

    /// Forgets the losses of a front end whose memory the worker does not use any more.
    pub fn forget_guest(&self) {
        self.record.replaced.store(0, SeqCst);
        self.record.lost.fetch_and(!GUEST, SeqCst);
    }

    /// The record's number in the table.
    pub(super) fn number(&self) -> usize {
        self.taken.number
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ring_that_takes_a_used_record_has_lost_nothing() {
        let record = Record::free();
        let event = new_event().unwrap();
        for _ in 0..2 {
            record.begin(&event);
            assert_eq!(record.lost.load(SeqCst), 0);
            record.lose_ring();
            assert_eq!([(); 2].map(|()| record.lose_guest()), [0, 1]);
        }
    }

    #[test]
    fn record_is_taken_as_long_as_there_is_a_clone() {
        let losses = Losses::new().unwrap();
        let number = losses.number();
        let clone = losses.clone();
        drop(losses);
        assert_eq!(record(number).event(), clone.fd().as_raw_fd());
        clone.record.lose_ring();
        assert!(clone.clone().region_lost());
    }

    #[test]
    fn losses_of_a_guest_are_forgotten_and_those_of_the_ring_are_not() {
        let losses = Losses::new().unwrap();
        losses.record.lose_ring();
        losses.record.lose_guest();
        assert!(losses.take_guest_lost() && losses.region_lost());
        losses.forget_guest();
        assert!(!losses.take_guest_lost() && losses.region_lost());
        assert_eq!(losses.record.lose_guest(), 0, "counted anew");
    }
}
