//! No two writes of one end of a ring are under way at the same time: a disk with several queues
//! keeps no order between them, so a write that rests on another is made when that one is done. The
//! two ends write to different sectors, and rest on what they have read.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::journal::{Done, entry, keeping, options};
use ring_test_support::process::PATIENCE;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::{BlockDevice, Journal, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Threads that push, and entries of each.
const THREADS: usize = 4;
const ENTRIES: usize = 100;

/// A device that panics if an end writes to it while an earlier write of that end is under way.
struct OneAtATime<D> {
    device: D,
    /// Whether the producer writes, and whether the consumer does.
    writing: [AtomicBool; 2],
    writes: Arc<AtomicU64>,
}

impl<D: BlockDevice> BlockDevice for OneAtATime<D> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.device.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let writing = &self.writing[usize::from(first == Side::Consumer.sector())];
        assert!(!writing.swap(true, Ordering::SeqCst), "two at a time");
        // Time for another one to come.
        std::thread::yield_now();
        let written = self.device.write(first, bufs);
        writing.store(false, Ordering::SeqCst);
        written
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }
}

impl<D: BlockDevice> RingDevice for OneAtATime<D> {}

#[test]
fn writes_of_a_journal_with_many_threads_do_not_overlap() {
    let (ring, done, writes) = (RingFile::new(65536, 512), Done::default(), Arc::default());
    let (device, writing) = (ring.open(), Default::default());
    let device = OneAtATime { device, writing, writes: Arc::clone(&writes) };
    let journal: Journal<String> = Journal::start(device, options(), keeping(&done)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let journal = &journal;
            scope.spawn(move || {
                for number in 0..ENTRIES {
                    journal.push(&entry(thread * ENTRIES + number)).unwrap();
                }
            });
        }
    });
    journal.ticket_for_all().sync(Some(PATIENCE)).unwrap();
    assert_eq!(done.lock().unwrap().len(), THREADS * ENTRIES);
    assert!(writes.load(Ordering::SeqCst) > 10, "nothing was tried");
}
