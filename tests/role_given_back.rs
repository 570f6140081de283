//! The role of a device whose backend is gone: it is given back, so that the next backend can hand it
//! over, and taken back for what is left to do.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Word};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Error, RingDevice, UnixDevice};
use std::time::Duration;

/// Returns a device that has given its consumer's role back.
fn device_without_its_backend(file: &RingFile) -> UnixDevice {
    let (device, client) = Backend::new(file, Word::Guarded).connect_and_stay(Role::Consumer);
    drop(client);
    let mut wait = Wait::new(Side::Producer, Some(Duration::from_millis(100)));
    while wait.pause(&device, &[]).unwrap() != Woken::TimedOut {}
    device
}

#[test]
fn role_is_taken_back_when_it_was_taken_for_a_moment() {
    let file = RingFile::new(64 << 10, 512);
    let device = device_without_its_backend(&file);
    // As a backend does for an attempt to connect that ends before its answer.
    let other = file.consumer().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            drop(other);
        });
        device.ensure_role().unwrap();
    });
    assert!(matches!(file.consumer(), Err(Error::RoleTaken { role: Side::Consumer, .. })));
}

#[test]
fn role_that_another_process_keeps_is_not_taken_back() {
    let file = RingFile::new(64 << 10, 512);
    let device = device_without_its_backend(&file);
    let _other = file.consumer().unwrap();
    let taken = device.ensure_role().unwrap_err();
    assert!(matches!(taken, Error::RoleTaken { role: Side::Consumer, holder: Some(_) }), "{taken}");
}
