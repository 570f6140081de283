//! A guest consumer and its host both change the flag of sector 2: neither undoes the other's
//! change by accident.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use ring_simulation::hooked;
use ring_test_support::executor_disk::{Disk, Driver, is_ok};
use shared_block_ring::format::{FLAG_AT, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::{
    Consumer, Control, MappedDevice, Position, Producer, RingDevice, State, UnixDevice,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vhost_device_blockring::data_path::executor::Replay;
use virtio_blk_driver::VirtioDevice;

/// Runs `work` in front of each write of sector 2: between its reading and its writing.
fn interrupted<D: RingDevice>(device: D, work: impl FnMut() + Send) -> impl RingDevice {
    let work = Mutex::new(work);
    hooked(device, move |device, access| {
        if access.writes(Side::Consumer.sector()) {
            (work.lock().unwrap())();
        }
        access.carry_out(device)
    })
}

fn publish<D: RingDevice>(producer: &mut Producer<D>, items: usize) {
    for _ in 0..items {
        let end = producer.push("item").unwrap();
        producer.advance(end).unwrap();
    }
}

/// Pops one item and advances.
fn consume<D: RingDevice>(consumer: &mut Consumer<D>) -> Position {
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    next
}

#[test]
fn host_suspend_survives_an_advance_of_a_guest_that_had_read_before() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guest", "consumer"]);
    let mut producer =
        Producer::attach(scene.connect(Role::Producer).unwrap(), "queue", "host").unwrap();
    publish(&mut producer, 4);
    let control = || Control::open(scene.connect(Role::Control).unwrap()).unwrap();
    let wanted = Mutex::new(None);
    let guest = VirtioDevice::connect(scene.path("s"), None).unwrap();
    let guest = interrupted(guest, || {
        let mut host: Control<UnixDevice> = control();
        match wanted.lock().unwrap().take() {
            Some(true) => host.suspend().unwrap(),
            Some(false) => host.resume().unwrap(),
            None => {}
        }
    });
    let mut consumer = Consumer::attach(guest, "queue", "guest").unwrap();
    consume(&mut consumer);
    *wanted.lock().unwrap() = Some(true);
    let next = consume(&mut consumer);
    let facts = control().debug_info().unwrap();
    assert_eq!((facts.suspend, facts.consumer), (true, next));
    assert_eq!(producer.state().unwrap(), State::Suspended);
    // A resume by the host survives an advance of a guest that had read the suspend.
    *wanted.lock().unwrap() = Some(false);
    let next = consume(&mut consumer);
    let facts = control().debug_info().unwrap();
    assert_eq!((facts.suspend, facts.consumer), (false, next));
    assert_eq!(producer.state().unwrap(), State::Running);
    // The guest's own suspend and resume take effect.
    consumer.suspend().unwrap();
    assert_eq!(producer.state().unwrap(), State::Suspended);
    consume(&mut consumer);
    consumer.resume().unwrap();
    assert_eq!(producer.state().unwrap(), State::Running);
    assert_eq!(scene.refused(), 0);
}

fn host(disk: &Disk) -> Control<MappedDevice> {
    Control::open(disk.outside()()).unwrap()
}

/// Returns the guest's pointer sector of a disk.
fn sector(disk: &Disk) -> Vec<u8> {
    disk.bytes()[1024..1536].to_vec()
}

/// Returns a guest consumer's disk, with two items that the host has published.
fn guest_consumer() -> Disk {
    let disk = Disk::new(Side::Consumer);
    publish(&mut Producer::attach(disk.outside()(), "queue", "host").unwrap(), 2);
    disk
}

/// Returns a disk of the same bytes: the backend was killed, and another one serves them.
fn next_backend(disk: &Disk) -> Disk {
    let bytes = disk.bytes();
    Disk::with(Side::Consumer, false, bytes.len() / 512, |path| {
        std::fs::write(path, &bytes).unwrap();
    })
}

#[test]
fn host_suspend_survives_an_advance_that_is_repeated_after_a_kill() {
    for suspended in [true, false] {
        let mut disk = guest_consumer();
        let mut acknowledging = Producer::attach(disk.outside()(), "queue", "host").unwrap();
        if !suspended {
            host(&disk).suspend().unwrap();
            acknowledging.state().unwrap();
        }
        let driver = Driver::new(&mut disk, || ());
        let mut consumer = Consumer::attach(&driver, "queue", "guest").unwrap();
        consume(&mut consumer);
        drop(consumer);
        drop(driver);
        // The write was carried out, and not answered.
        let written = sector(&disk);
        if suspended { host(&disk).suspend() } else { host(&disk).resume() }.unwrap();
        let mut disk = next_backend(&disk);
        disk.replay = Replay::at_start(true);
        let before = disk.bytes();
        assert_ne!(written[FLAG_AT], sector(&disk)[FLAG_AT]);
        assert!(is_ok(&disk.write(2, &written)));
        assert!(disk.bytes() == before);
    }
}

#[test]
fn guest_suspend_takes_effect_though_the_backend_was_just_replaced() {
    let mut disk = guest_consumer();
    let mut producer = Producer::attach(disk.outside()(), "queue", "host").unwrap();
    let fresh = AtomicBool::new(true);
    // Each request is once the first one of a queue, the write of the flag included.
    let driver = Driver::new(&mut disk, || ());
    let guest = interrupted(&driver, || {
        if fresh.swap(false, Ordering::Relaxed) {
            driver.restarted();
        }
    });
    let mut consumer = Consumer::attach(guest, "queue", "guest").unwrap();
    consumer.suspend().unwrap();
    assert!(!fresh.load(Ordering::Relaxed));
    assert_eq!(producer.state().unwrap(), State::Suspended);
    fresh.store(true, Ordering::Relaxed);
    consumer.resume().unwrap();
    assert_eq!(producer.state().unwrap(), State::Running);
}

#[test]
fn advance_of_the_guest_does_not_change_the_flag() {
    let mut disk = guest_consumer();
    // The guest has read the sector.
    let old = disk.read(2, 512);
    let mut new = old.clone();
    new[..8].copy_from_slice(&8_u64.to_le_bytes());
    new[9..128].fill(0);
    new[FLAG_AT] = 1;
    assert!(is_ok(&disk.write(2, &new)));
    assert_eq!((sector(&disk)[0], sector(&disk)[FLAG_AT]), (8, 2));
    // At the same position the change of the flag is deliberate.
    disk.accepted(2, &new);
    assert_eq!(sector(&disk)[FLAG_AT], 1);
}
