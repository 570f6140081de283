//! A ring through the library's own front end and driver, without a virtual machine.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use shared_block_ring::handover::Role;
use shared_block_ring::{
    BlockDevice, Consumer, Control, CreateOptions, Error, Producer, State, create,
};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use virtio_blk_driver::VirtioDevice;

fn connect(scene: &Scene) -> VirtioDevice {
    VirtioDevice::connect(scene.path("s"), None).unwrap()
}

/// Returns item `number`, whose length and bytes depend on its number.
fn item(number: usize) -> Vec<u8> {
    let length = number * 7919 % 3000;
    (0..length).map(|at| u8::try_from((number + at) % 251).unwrap()).collect()
}

#[test]
fn items_pushed_through_the_queue_reach_the_host() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--size", "256K"]);
    let mut producer = Producer::attach(connect(&scene), "q", "p").unwrap();
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    let (mut pushed, mut popped) = (0, 0);
    while popped < 2000 {
        // As many items as fit: the ring is full again and again, and its wrap point meets every
        // offset in an item.
        loop {
            match producer.push(&item(pushed)) {
                Ok(_) => pushed += 1,
                Err(Error::Retry) => break,
                Err(e) => panic!("{e}"),
            }
        }
        producer.advance(producer.position()).unwrap();
        let mut at = consumer.position();
        loop {
            match consumer.pop(at) {
                Ok(found) => {
                    assert_eq!(found.bytes, item(popped), "item {popped}");
                    (at, popped) = (found.next, popped + 1);
                }
                Err(Error::Retry) => break,
                Err(e) => panic!("{e}"),
            }
        }
        consumer.advance(at).unwrap();
    }
    assert_eq!((popped, scene.refused()), (pushed, 0));
}

#[test]
fn items_pushed_on_the_host_are_popped_through_the_queue() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guest", "consumer", "--sector-size", "4096"]);
    let mut producer = Producer::attach(scene.connect(Role::Producer).unwrap(), "q", "p").unwrap();
    let device = connect(&scene);
    assert_eq!(device.geometry().sector_size().get(), 4096);
    let mut consumer = Consumer::attach(device, "q", "c").unwrap();
    for number in 0..300 {
        let end = producer.push(&item(number)).unwrap();
        producer.advance(end).unwrap();
        let found = consumer.pop(consumer.position()).unwrap();
        assert_eq!((found.bytes, found.next), (&item(number)[..], end));
        consumer.advance(end).unwrap();
    }
}

#[test]
fn transfer_larger_than_all_requests_in_flight_arrives_whole() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--size", "4M"]);
    let device = connect(&scene);
    let written: Vec<u8> = (0..3 << 20).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
    // Split at bytes where neither a request nor a buffer of the driver's ends.
    let (first, second) = written.split_at(70 * 512);
    device.write(8, &[IoSlice::new(first), IoSlice::new(second)]).unwrap();
    let mut read = vec![0; written.len()];
    let (one, two) = read.split_at_mut(2 << 20);
    device.read(8, &mut [IoSliceMut::new(one), IoSliceMut::new(two)]).unwrap();
    assert!(read == written);
    device.flush().unwrap();
    let end = device.geometry().sectors();
    let beyond = device.read(end - 1, &mut [IoSliceMut::new(&mut read[..1024])]).unwrap_err();
    assert_eq!(beyond.source.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn refused_write_is_an_error_and_the_device_goes_on() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let device = connect(&scene);
    let mut sector = vec![0; 512];
    for _ in 0..20 {
        let refused = device.write(0, &[IoSlice::new(&vec![1; 512])]).unwrap_err();
        assert_eq!(refused.source.raw_os_error(), Some(libc::EIO));
        device.read(0, &mut [IoSliceMut::new(&mut sector)]).unwrap();
    }
    assert!(create(&device, CreateOptions::default()).is_ok(), "there is a ring already");
    assert_eq!(Control::open(device).unwrap().state().unwrap(), State::Running);
}

#[test]
fn write_to_a_read_only_disk_is_a_read_only_error() {
    let scene = Scene::new();
    drop(scene.start(&[]));
    let _daemon = scene.start(&["--read-only"]);
    let refused = connect(&scene).write(8, &[IoSlice::new(&[0; 512])]).unwrap_err();
    assert_eq!(refused.source.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn connect_to_a_busy_backend_gives_up() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let first = connect(&scene);
    let words = VirtioDevice::connect(scene.path("s"), None).unwrap_err().to_string();
    assert!(words.contains("another front end"), "{words}");
    drop(first);
    connect(&scene).flush().unwrap();
}
