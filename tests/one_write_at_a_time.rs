//! No two writes of a ring's user are under way at the same time: a disk with several queues keeps
//! no order between them, so a write that rests on another is made when that one is done.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::journal::{Done, entry, keeping, options};
use ring_test_support::process::PATIENCE;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, Journal, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Threads that push, and entries of each.
const THREADS: usize = 4;
const ENTRIES: usize = 100;

/// A device that panics if it is written to or flushed while it is still at that.
struct OneAtATime<D> {
    device: D,
    busy: AtomicBool,
    writes: Arc<AtomicU64>,
}

impl<D> OneAtATime<D> {
    fn alone<T>(&self, call: impl FnOnce(&D) -> T) -> T {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two at a time");
        // Time for another one to come.
        std::thread::yield_now();
        let value = call(&self.device);
        self.busy.store(false, Ordering::SeqCst);
        value
    }
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
        self.alone(|device| device.write(first, bufs))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.alone(BlockDevice::flush)
    }
}

impl<D: BlockDevice> RingDevice for OneAtATime<D> {}

#[test]
fn writes_of_a_journal_with_many_threads_do_not_overlap() {
    let (ring, done, writes) = (RingFile::new(65536, 512), Done::default(), Arc::default());
    let device = OneAtATime {
        device: ring.open(),
        busy: AtomicBool::new(false),
        writes: Arc::clone(&writes),
    };
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
