//! Waiting for the host through our own virtqueue, with one read that the daemon holds.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use ring_test_support::executor_disk::{Disk, IDLE, open};
use ring_test_support::process::{PATIENCE, eventually};
use ring_test_support::worker_disk::{Payload, Running};
use shared_block_ring::format::{FLAG_AT, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Consumer, Error, Position, Producer};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::polling::Polling;
use virtio_blk_driver::VirtioDevice;

const HOLD: [&str; 2] = ["--hold-ms", "3600000"];

fn full(scene: &Scene) -> Producer<VirtioDevice> {
    let device = VirtioDevice::connect(scene.path("s"), None).unwrap();
    let mut producer = Producer::attach(device, "q", "p").unwrap();
    while let Ok(end) = producer.push(&[7; 1000]) {
        producer.advance(end).unwrap();
    }
    producer
}

/// Waits once: the first idle-class read is answered at once, since there was none before.
fn told(producer: &Producer<VirtioDevice>) {
    let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
    assert_eq!(wait.pause(producer.device(), &[]).unwrap(), Woken::Elapsed);
}

fn free_one(consumer: &mut Consumer<shared_block_ring::UnixDevice>) {
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
}

#[test]
fn producer_without_space_is_woken_by_the_answer_to_its_held_read() {
    let scene = Scene::new();
    let _daemon = scene.start(&HOLD);
    let mut producer = full(&scene);
    told(&producer);
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    for round in 1..=20 {
        assert!(matches!(producer.push(&[7; 1000]), Err(Error::Retry)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
                wait.pause(producer.device(), &[]).unwrap()
            });
            eventually("the read is held", || scene.counter("held") >= round);
            free_one(&mut consumer);
            assert_eq!(waiting.join().unwrap(), Woken::Elapsed);
        });
        let end = producer.push(&[7; 1000]).unwrap();
        producer.advance(end).unwrap();
    }
}

#[test]
fn wait_ends_by_its_deadline_and_by_a_descriptor_and_its_read_stays_held() {
    let scene = Scene::new();
    let _daemon = scene.start(&HOLD);
    let mut producer = full(&scene);
    told(&producer);
    let (reader, writer) = UnixStream::pair().unwrap();
    let pause = |producer: &Producer<VirtioDevice>, timeout| {
        Wait::new(Side::Consumer, Some(timeout)).pause(producer.device(), &[reader.as_fd()])
    };
    let start = Instant::now();
    let short = Duration::from_millis(50);
    for _ in 0..3 {
        assert_eq!(pause(&producer, short).unwrap(), Woken::TimedOut);
    }
    assert!(start.elapsed() >= 3 * short);
    assert_eq!(scene.counter("held"), 1, "there is never more than one");
    nix::unistd::write(&writer, b"x").unwrap();
    assert_eq!(pause(&producer, PATIENCE).unwrap(), Woken::Readable(0));
    // The next request on the queue has the held read answered, and is served as usual.
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    free_one(&mut consumer);
    let end = producer.push(&[8; 1000]).unwrap();
    producer.advance(end).unwrap();
    let published = producer.debug_info().unwrap().producer;
    assert_eq!(published, end);
    assert!(end > Position::ZERO);
}

#[test]
fn worker_that_polls_answers_a_held_read_whatever_changes_in_the_sector() {
    let changes: [fn(&mut [u8]); 3] = [
        |sector| sector[0] += 4,
        |sector| sector[FLAG_AT] ^= 1,
        // The text names the process that has the role.
        |sector| sector[511] ^= 1,
    ];
    for change in changes {
        let disk = Disk::new(Side::Producer);
        let host = disk.outside()();
        let flusher =
            Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                .unwrap();
        let counters = Arc::clone(&disk.counters);
        let running = Running::start(disk, 1, flusher, Polling::Always);
        let read = || running.put(0, IDLE, 2, Payload::Read(512));
        let told = read();
        nix::unistd::write(running.kick(0), &1u64.to_ne_bytes()).unwrap();
        eventually("the first read is answered", || running.status(told) == Some(0));
        let place = read();
        eventually("the second read is held", || counters.held.get() == 1);
        // The worker looks at it many times.
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(running.status(place), None);
        let mut sector = [0; 512];
        host.read(2, &mut [IoSliceMut::new(&mut sector)]).unwrap();
        change(&mut sector);
        host.write(2, &[IoSlice::new(&sector)]).unwrap();
        eventually("it is answered", || running.status(place) == Some(0));
    }
}
