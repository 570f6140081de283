//! Waiting for the host through our own virtqueue, with one read that the daemon holds.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::Scene;
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Error, Position, Producer};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
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
