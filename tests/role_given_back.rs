//! The role of a device whose backend is gone: it is given back, so that the next backend can hand
//! it over, and taken back for what is left to do.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Client, Word};
use shared_block_ring::device::{Cause, DeviceError, Peer, SharedSleep};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Error, RingDevice, UnixDevice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn connected(file: &RingFile) -> (UnixDevice, Client) {
    Backend::new(file, Word::Guarded).connect_and_stay(Role::Consumer)
}

/// Waits until the time is up, or the wait fails.
fn wait_for(time: Duration, device: &UnixDevice) -> Result<(), DeviceError> {
    let mut wait = Wait::new(Side::Producer, Some(time));
    while wait.pause(device, &[])? != Woken::TimedOut {}
    Ok(())
}

/// Returns a device that has given its consumer's role back.
fn device_without_its_backend(file: &RingFile) -> UnixDevice {
    let (device, client) = connected(file);
    drop(client);
    wait_for(Duration::from_millis(100), &device).unwrap();
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
            // Nothing tells that the device has met the lock.
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

#[test]
fn role_comes_with_the_answer_to_an_attempt_that_is_under_way() {
    let file = RingFile::new(64 << 10, 512);
    let (device, client) = connected(&file);
    drop(client);
    std::fs::remove_file(file.path.with_extension("socket")).unwrap();
    let backend = Backend::new(&file, Word::Guarded);
    let search: &dyn SharedSleep = device.sleeper().unwrap().shared().unwrap();
    assert!(matches!(search.step(Cause::Readable(1)).unwrap(), Peer::Away(_)));
    // The backend has taken the role for this attempt.
    let _taken_for_it = file.consumer().unwrap();
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| backend.accept());
        device.ensure_role().unwrap();
        let client = answering.join().unwrap();
        assert!(!client.is_gone());
    });
}

#[test]
fn role_that_backends_refuse_for_long_ends_the_wait() {
    let file = RingFile::new(64 << 10, 512);
    let (device, client) = connected(&file);
    drop(client);
    std::fs::remove_file(file.path.with_extension("socket")).unwrap();
    let backend = Backend::new(&file, Word::Guarded);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let refusing = scope.spawn(|| {
            let mut refused = 0;
            while !over.load(Ordering::Relaxed) {
                refused += u32::from(backend.refuse(Duration::from_millis(100)));
            }
            refused
        });
        // Each wait is shorter than what an attempt of the device's own may take.
        let mut waits = (0..100).map(|_| wait_for(Duration::from_millis(200), &device));
        let error = waits.find_map(Result::err);
        over.store(true, Ordering::Relaxed);
        let error = error.expect("no wait failed").to_string();
        assert!(error.contains("already has a consumer"), "{error}");
        assert!(refusing.join().unwrap() > 1, "one refusal may be due to the device itself");
    });
}
