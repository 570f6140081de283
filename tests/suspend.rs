//! Suspends by a handle beside producer and consumer, while those are at work on the same ring by
//! other devices: file, mapping, disk.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use shared_block_ring::device::{LockRange, RangeLock};
use shared_block_ring::format::{FLAG_AT, Side};
use shared_block_ring::{Consumer, Control, Error, RingDevice, State};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A ring with two items.
fn ring() -> RingFile {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    let end = producer.push_batch(&["one", "two"]).unwrap();
    producer.advance(end).unwrap();
    ring
}

/// Facts of the ring: suspended, and the consumer's position.
fn facts(ring: &RingFile) -> (bool, u64) {
    let facts = Control::open(ring.open()).unwrap().debug_info().unwrap();
    (facts.suspend, facts.consumer.get())
}

#[test]
fn suspend_on_the_file_undoes_no_advance_in_a_mapping() {
    let ring = ring();
    let mut consumer = Consumer::attach(ring.open_mapped(), "queue", "consumer").unwrap();
    let next = consumer.pop(consumer.position()).unwrap().next;
    let mut advanced = false;
    ring.open()
        .edit_pointer(Side::Consumer, &mut |sector| {
            if !std::mem::replace(&mut advanced, true) {
                consumer.advance(next).unwrap();
            }
            sector[FLAG_AT] = 1;
        })
        .unwrap();
    assert_eq!(facts(&ring), (true, next.get()));
    shared_block_ring::check(ring.open()).unwrap();
}

#[test]
fn advance_on_the_file_undoes_no_suspend_in_a_mapping() {
    let ring = ring();
    let ring = &ring;
    let next = {
        let mut consumer = ring.consumer().unwrap();
        consumer.pop(consumer.position()).unwrap().next
    };
    // As `advance` does it, with somebody in between.
    std::thread::scope(|scope| {
        let mut suspending = None;
        let advance = &mut |sector: &mut [u8]| {
            suspending = Some(scope.spawn(|| {
                let suspend = &mut |sector: &mut [u8]| sector[FLAG_AT] = 1;
                ring.open_mapped().edit_pointer(Side::Consumer, suspend)
            }));
            // It waits for its turn; if it did not, it would be done before long.
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(200) && !facts(ring).0 {
                std::thread::yield_now();
            }
            sector[..8].copy_from_slice(&next.get().to_le_bytes());
        };
        ring.open().edit_pointer(Side::Consumer, advance).unwrap();
        suspending.unwrap().join().unwrap().unwrap();
    });
    assert_eq!(facts(ring), (true, next.get()));
}

/// A process that may only read the file can keep the lock for edits as long as it likes.
#[test]
fn advance_on_the_file_waits_for_no_lock() {
    let ring = ring();
    let reader = ring.open();
    let _lock = RangeLock::acquire(&reader, LockRange::Edit(Side::Consumer)).unwrap();
    let mut consumer = ring.consumer().unwrap();
    for _ in 0..2 {
        let next = consumer.pop(consumer.position()).unwrap().next;
        consumer.advance(next).unwrap();
        assert_eq!(facts(&ring), (false, next.get()));
    }
    shared_block_ring::check(ring.open()).unwrap();
}

#[test]
fn suspend_that_has_no_lock_leaves_the_handle_as_it_was() {
    let ring = ring();
    let device = ring.options().read_only(true).open(&ring.path).unwrap();
    let mut control = Control::open(device).unwrap();
    let refused = control.suspend().unwrap_err();
    assert!(refused.to_string().contains("open for reading only"), "{refused}");
    assert!(!control.debug_info().unwrap().suspend);
    assert_eq!(control.state().unwrap(), State::Running);
}

/// As another instance of the consumer does, which was restored from a snapshot.
#[test]
fn advance_on_the_file_leaves_a_pointer_that_another_instance_has_moved() {
    let ring = ring();
    let mut consumer = ring.consumer().unwrap();
    let next = consumer.pop(consumer.position()).unwrap().next;
    let end = consumer.pop(next).unwrap().next;
    // Longer than what was read for `pop` may be used.
    std::thread::sleep(Duration::from_millis(50));
    let elsewhere = &mut |sector: &mut [u8]| sector[..8].copy_from_slice(&end.get().to_le_bytes());
    ring.open().edit_pointer(Side::Consumer, elsewhere).unwrap();
    let _ = consumer.advance(next);
    assert_eq!(facts(&ring), (false, end.get()));
}

#[test]
fn suspend_from_beside_survives_each_advance_of_a_consumer_at_work() {
    let ring = ring();
    let mut producer = ring.producer().unwrap();
    let mut consumer = ring.consumer().unwrap();
    let mut control = Control::open(ring.open()).unwrap();
    control.suspend().unwrap();
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    assert_eq!(facts(&ring), (true, next.get()));
    assert_eq!(producer.state().unwrap(), State::Suspended);
    assert!(matches!(producer.push("three"), Err(Error::Suspended)));
    control.resume().unwrap();
    let next = consumer.pop(next).unwrap().next;
    consumer.advance(next).unwrap();
    assert_eq!(facts(&ring), (false, next.get()));
    assert_eq!(producer.state().unwrap(), State::Running);
}

#[test]
fn second_handle_on_an_open_device_is_refused_the_role() {
    let ring = ring();
    let device = Arc::new(ring.open());
    let first = Consumer::attach(Arc::clone(&device), "queue", "first").unwrap();
    let second = || Consumer::attach(Arc::clone(&device), "queue", "second");
    let held = second().unwrap_err();
    assert!(matches!(held, Error::RoleTaken { role: Side::Consumer, .. }), "{held}");
    // That attempt took nothing away from the first.
    assert!(matches!(ring.consumer(), Err(Error::RoleTaken { .. })));
    drop(first);
    drop(second().unwrap());
    ring.consumer().unwrap();
}
