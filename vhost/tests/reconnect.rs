//! A backend that goes away under our own front end: whoever uses the disk sees nothing but a delay.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{PATIENCE, Scene, eventually};
use nix::sys::signal::Signal;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    BlockDevice, Consumer, Durability, Error, Position, Producer, VirtioDevice,
};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Backends that are killed under each load.
const KILLS: u64 = 50;

/// Items that arrive between two of them: each has worked.
const BETWEEN: u64 = 20;

/// Items that are pushed at once, by turns: in one request, and in several at once.
const BATCHES: [u64; 3] = [1, 8, 400];

/// Behind the last item.
const END: &[u8] = b"end";

fn connect(scene: &Scene) -> VirtioDevice {
    VirtioDevice::connect(&scene.path("s"), None).unwrap().patience(PATIENCE)
}

/// An item begins with its number.
fn item(number: u64) -> Vec<u8> {
    let mut item = vec![7; usize::try_from(8 + number * 7919 % 600).unwrap()];
    item[..8].copy_from_slice(&number.to_le_bytes());
    item
}

/// Pushes these, all or none, when there is room, and publishes them.
fn put<D: BlockDevice>(producer: &mut Producer<D>, items: &[Vec<u8>]) {
    let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
    loop {
        match producer.push_batch(items) {
            Ok(end) => return producer.advance(end).unwrap(),
            Err(Error::Retry) => {
                assert_eq!(wait.pause(producer.device(), &[]).unwrap(), Woken::Elapsed);
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Items one after the other until it is enough.
fn produce<D: BlockDevice>(mut producer: Producer<D>, enough: &AtomicBool) {
    let mut number = 0;
    for count in BATCHES.into_iter().cycle() {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        put(&mut producer, &(number..number + count).map(item).collect::<Vec<_>>());
        number += count;
    }
    put(&mut producer, &[END.to_vec()]);
}

/// Each item once, each behind the one before it.
fn consume<D: BlockDevice>(mut consumer: Consumer<D>, popped: &AtomicU64) {
    let (mut number, mut position) = (0, Position::ZERO);
    let mut wait = None;
    loop {
        assert_eq!(consumer.position(), position);
        match consumer.pop(position) {
            Ok(found) if found.bytes == END => return,
            Ok(found) => {
                assert!(found.bytes == item(number), "item {number}: {:?}", found.bytes);
                position = found.next;
            }
            Err(Error::Retry) => {
                let wait = wait.get_or_insert_with(|| Wait::new(Side::Producer, Some(PATIENCE)));
                assert_eq!(wait.pause(consumer.device(), &[]).unwrap(), Woken::Elapsed);
                continue;
            }
            Err(e) => panic!("{e}"),
        }
        consumer.advance(position).unwrap();
        number += 1;
        popped.store(number, Ordering::Relaxed);
        wait = None;
    }
}

/// One backend after the other is killed between a producer and a consumer, of whom `guest` is the front end.
fn kill_backends(guest: Side, durability: Durability) {
    let scene = Scene::new();
    let role = if guest == Side::Producer { "producer" } else { "consumer" };
    let mut daemon = scene.start(&["--size", "1M", "--guest", role]);
    let (enough, popped) = (&AtomicBool::new(false), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        let scene = &scene;
        let disk = Box::new(connect(scene)) as Box<dyn BlockDevice>;
        let host = |role| Box::new(scene.connect(role).unwrap()) as Box<dyn BlockDevice>;
        let (inner, outer) = match guest {
            Side::Producer => (disk, host(Role::Consumer)),
            Side::Consumer => (host(Role::Producer), disk),
        };
        let mut producer = Producer::attach(inner, "q", "p").unwrap();
        let mut consumer = Consumer::attach(outer, "q", "c").unwrap();
        producer.set_durability(durability);
        consumer.set_durability(durability);
        let ends = [
            scope.spawn(move || produce(producer, enough)),
            scope.spawn(move || consume(consumer, popped)),
        ];
        for kill in 0..KILLS {
            let before = popped.load(Ordering::Relaxed);
            eventually(&format!("something arrives after {kill} kills"), || {
                popped.load(Ordering::Relaxed) >= before + BETWEEN
                    || ends.iter().any(std::thread::ScopedJoinHandle::is_finished)
            });
            drop(daemon);
            daemon = scene.start(&["--size", "1M", "--guest", role]);
        }
        enough.store(true, Ordering::Relaxed);
        // The last backend lives until they have ended.
        for end in ends {
            end.join().unwrap();
        }
        assert_eq!(scene.refused(), 0);
    });
}

#[test]
fn a_producer_loses_nothing_when_backends_are_killed() {
    kill_backends(Side::Producer, Durability::Flush);
}

#[test]
fn a_producer_that_flushes_nothing_loses_nothing_when_backends_are_killed() {
    kill_backends(Side::Producer, Durability::PageCache);
}

#[test]
fn a_consumer_loses_and_repeats_nothing_when_backends_are_killed() {
    kill_backends(Side::Consumer, Durability::Flush);
}

#[test]
fn a_consumer_that_flushes_nothing_loses_and_repeats_nothing_when_backends_are_killed() {
    kill_backends(Side::Consumer, Durability::PageCache);
}

const HOLD: [&str; 2] = ["--hold-ms", "3600000"];

/// A producer whose ring is full, and whose first read for news was answered: the next one is held.
fn full(scene: &Scene) -> Producer<VirtioDevice> {
    let mut producer = Producer::attach(connect(scene), "q", "p").unwrap();
    while let Ok(end) = producer.push(&[7; 1000]) {
        producer.advance(end).unwrap();
    }
    assert_eq!(pause(&producer, PATIENCE, &[]), Woken::Elapsed);
    producer
}

fn pause(
    producer: &Producer<VirtioDevice>,
    timeout: Duration,
    interrupts: &[BorrowedFd<'_>],
) -> Woken {
    Wait::new(Side::Consumer, Some(timeout)).pause(producer.device(), interrupts).unwrap()
}

#[test]
fn a_held_read_goes_on_with_the_next_backend() {
    let scene = Scene::new();
    let mut daemon = scene.start(&HOLD);
    let producer = full(&scene);
    for _ in 0..5 {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pause(&producer, PATIENCE, &[]));
            eventually("the read is held", || scene.counter("held") >= 1);
            daemon.signal(Signal::SIGKILL);
            daemon.0.wait().unwrap();
            daemon = scene.start(&HOLD);
            // The new one has told nobody anything yet, and answers at once.
            assert_eq!(waiting.join().unwrap(), Woken::Elapsed);
        });
    }
    assert_eq!(producer.debug_info().unwrap().consumer, Position::ZERO);
}

#[test]
fn a_wait_ends_by_its_deadline_and_by_a_descriptor_while_the_backend_is_gone() {
    let scene = Scene::new();
    let daemon = scene.start(&HOLD);
    let producer = full(&scene);
    drop(daemon);
    assert_eq!(pause(&producer, Duration::from_millis(50), &[]), Woken::TimedOut);
    let (reader, writer) = UnixStream::pair().unwrap();
    nix::unistd::write(&writer, b"x").unwrap();
    assert_eq!(pause(&producer, PATIENCE, &[reader.as_fd()]), Woken::Readable(0));
    let _daemon = scene.start(&HOLD);
    assert_eq!(pause(&producer, PATIENCE, &[]), Woken::Elapsed);
    assert_eq!(producer.debug_info().unwrap().consumer, Position::ZERO);
}

#[test]
fn a_backend_that_comes_back_with_another_disk_is_an_error() {
    let scene = Scene::new();
    for (arguments, words) in [
        (&["--size", "128K"][..], "131072 bytes instead of 65536"),
        (&["--sector-size", "4096"], "sectors of 4096 bytes instead of 512"),
        (&["--read-only"], "it is read-only"),
    ] {
        let daemon = scene.start(&[]);
        let device = connect(&scene);
        drop(daemon);
        if arguments != ["--read-only"] {
            std::fs::remove_file(scene.path("ring")).unwrap();
        }
        let daemon = scene.start(arguments);
        let text = device.flush().unwrap_err().to_string();
        assert!(text.contains("has come back with another disk"), "{text}");
        assert!(text.contains(words), "{text:?} lacks {words:?}");
        // And for good.
        drop(daemon);
        std::fs::remove_file(scene.path("ring")).unwrap();
        let _daemon = scene.start(&[]);
        assert_eq!(device.flush().unwrap_err().source.kind(), ErrorKind::NotConnected);
    }
}

#[test]
fn a_backend_that_stays_away_is_an_error_in_the_end() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let device = connect(&scene).patience(Duration::from_millis(200));
    drop(daemon);
    let start = Instant::now();
    let error = device.flush().unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(error.source.kind(), ErrorKind::ConnectionAborted);
    let text = error.to_string();
    assert!(text.contains("the backend is gone, and did not come back in 0.2 s"), "{text}");
    let _daemon = scene.start(&[]);
    assert_eq!(device.flush().unwrap_err().source.kind(), ErrorKind::NotConnected);
}

#[test]
fn who_waits_for_a_backend_that_is_gone_can_be_stopped() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let (reader, writer) = UnixStream::pair().unwrap();
    let device = connect(&scene).stop_on(reader.into());
    device.flush().unwrap();
    drop(daemon);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| device.flush().unwrap_err().to_string());
        nix::unistd::write(&writer, b"x").unwrap();
        let text = waiting.join().unwrap();
        assert!(text.contains("the backend is gone, and we were asked to stop"), "{text}");
    });
}
