//! A queue's memory lives for as long as its device may use it.

use super::scripted::Scripted;
use crate::{BlockDriver, Error, Refusal, Request, Shape};
use ring_os::Limits;

fn driver(script: &Scripted) -> Result<BlockDriver, Error> {
    BlockDriver::new(script.device(), Shape::new(4, 4096), &Limits::default())
}

#[cfg(not(miri))]
#[test]
fn device_is_stopped_before_its_memory_is_unmapped() {
    let script = Scripted::default();
    let mut driver = driver(&script).unwrap();
    driver.slot().unwrap().submit(Request::write(0, 512));
    driver.publish().unwrap();
    let memory = listed(&driver);
    assert!(is_listed(&memory));
    drop(driver);
    assert_eq!(script.stopped(), 1);
    assert!(script.reached_its_memory(), "it was unmapped before the device was stopped");
    assert!(!is_listed(&memory), "it is given back");
}

#[cfg(not(miri))]
#[test]
fn memory_of_a_device_that_does_not_stop_stays_mapped() {
    let script = Scripted::default();
    script.never_stop();
    let driver = driver(&script).unwrap();
    let memory = listed(&driver);
    drop(driver);
    assert_eq!(script.stopped(), 1);
    assert!(script.reached_its_memory() && is_listed(&memory));
}

#[test]
fn device_reaches_its_memory_until_it_is_stopped() {
    let script = Scripted::default();
    drop(driver(&script).unwrap());
    assert!(script.reached_its_memory());
}

#[test]
fn device_that_fails_to_start_is_stopped_before_its_memory_is_unmapped() {
    let script = Scripted::default();
    script.refuse_to_start();
    assert!(matches!(driver(&script), Err(Error::NeedsReset)));
    assert_eq!(script.stopped(), 1);
    assert!(script.reached_its_memory());
}

#[test]
fn device_without_indirect_descriptors_is_given_no_queue_of_them() {
    let script = Scripted::default();
    let large = |script: &Scripted| {
        BlockDriver::new(script.device(), Shape::new(86, 512), &Limits::default())
    };
    assert!(matches!(large(&script), Err(Error::Refused(Refusal::NoIndirect))));
    assert_eq!(script.stopped(), 0, "it was not started");
    script.offer_indirect();
    assert_eq!(large(&script).unwrap().shape().queue_size(), 128);
}

#[test]
fn requests_larger_than_a_buffer_are_refused() {
    let script = Scripted::default();
    let mut driver = driver(&script).unwrap();
    let mut panics = |act: fn(&mut BlockDriver)| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut driver))).is_err()
    };
    assert!(panics(|driver| {
        driver.slot().unwrap().submit(Request::write(0, 4097));
    }));
    assert!(panics(|driver| driver.slot().unwrap().fill(&[0; 4097])), "into the next buffer");
    // None of that has taken a slot.
    assert_eq!(driver.in_flight(), 0);
    for _ in 0..4 {
        driver.slot().unwrap().submit(Request::write(0, 4096));
    }
    assert!(driver.slot().is_none());
}

/// Returns the line by which the kernel lists the driver's memory: its addresses, and a number that
/// no other memory has. An interpreter has no such list; it finds out by itself what is used after
/// it was unmapped.
#[cfg(not(miri))]
fn listed(driver: &BlockDriver) -> String {
    let start = format!("{:x}-", driver.memory().host_address(0));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find(|line| line.starts_with(&start)).unwrap().to_owned()
}

#[cfg(not(miri))]
fn is_listed(memory: &str) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| line == memory)
}
