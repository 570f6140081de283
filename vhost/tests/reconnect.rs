//! A backend that goes away while our own front end uses it: the disk's user sees nothing but a
//! delay.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::device::Displaced;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Consumer, Durability, Error, Position, Producer, RingDevice};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use virtio_blk_driver::VirtioDevice;

/// Backends that are killed under each load.
const KILLS: u64 = 50;

/// Items that arrive between two kills: each backend has served some.
const BETWEEN: u64 = 20;

/// Items that are pushed in one batch, alternately: one request, and several in flight.
const BATCHES: [u64; 3] = [1, 8, 400];

/// Behind the last item.
const END: &[u8] = b"end";

fn connect(scene: &Scene) -> VirtioDevice {
    VirtioDevice::connect(scene.path("s"), None).unwrap().patience(PATIENCE)
}

/// Returns item `number`, which begins with its number.
fn item(number: u64) -> Vec<u8> {
    let mut item = vec![7; usize::try_from(8 + number * 7919 % 600).unwrap()];
    item[..8].copy_from_slice(&number.to_le_bytes());
    item
}

/// Pushes a batch when there is space for all of it, and publishes it.
fn put<D: RingDevice>(producer: &mut Producer<D>, items: &[Vec<u8>]) {
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

/// Pushes items one after the other until `enough`.
fn produce<D: RingDevice>(mut producer: Producer<D>, enough: &AtomicBool) {
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

/// Pops each item once, in order.
fn consume<D: RingDevice>(mut consumer: Consumer<D>, popped: &AtomicU64) {
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

/// Kills one backend after the other between a producer and a consumer, of which `guest` is the
/// front end's.
fn kill_backends(guest: Side, durability: Durability) {
    let scene = Scene::new();
    let role = if guest == Side::Producer { "producer" } else { "consumer" };
    let mut daemon = scene.start(&["--size", "1M", "--guest", role]);
    let (enough, popped) = (&AtomicBool::new(false), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        let scene = &scene;
        let disk = Box::new(connect(scene)) as Box<dyn RingDevice>;
        let host = |role| Box::new(scene.connect(role).unwrap()) as Box<dyn RingDevice>;
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
        // The last backend lives until both have ended.
        for end in ends {
            end.join().unwrap();
        }
        assert_eq!(scene.refused(), 0);
    });
}

#[test]
fn producer_loses_nothing_when_backends_are_killed() {
    kill_backends(Side::Producer, Durability::Flush);
}

#[test]
fn producer_without_flushes_loses_nothing_when_backends_are_killed() {
    kill_backends(Side::Producer, Durability::PageCache);
}

#[test]
fn consumer_loses_and_repeats_nothing_when_backends_are_killed() {
    kill_backends(Side::Consumer, Durability::Flush);
}

#[test]
fn consumer_without_flushes_loses_and_repeats_nothing_when_backends_are_killed() {
    kill_backends(Side::Consumer, Durability::PageCache);
}

const HOLD: [&str; 2] = ["--hold-ms", "3600000"];

/// Returns a producer whose ring is full and whose first idle-class read was answered: the next one
/// is held.
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
fn held_read_is_answered_by_the_next_backend() {
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
            // The new backend has answered no such read yet, and answers at once.
            assert_eq!(waiting.join().unwrap(), Woken::Elapsed);
        });
    }
    assert_eq!(producer.debug_info().unwrap().consumer, Position::ZERO);
}

#[test]
fn wait_without_a_backend_ends_by_its_deadline_and_by_a_descriptor() {
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
fn reconnect_to_another_disk_is_an_error() {
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
        // No other backend comes.
        drop(daemon);
        std::fs::remove_file(scene.path("ring")).unwrap();
        let _daemon = scene.start(&[]);
        assert_eq!(device.flush().unwrap_err().source.kind(), ErrorKind::NotConnected);
    }
}

#[test]
fn producer_tells_that_a_backend_came_back_with_another_ring_of_the_same_size() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let producer = Producer::attach(connect(&scene), "q", "p").unwrap();
    producer.check_presence().unwrap();
    drop(daemon);
    std::fs::remove_file(scene.path("ring")).unwrap();
    let _daemon = scene.start(&[]);
    let Err(Error::Device(error)) = producer.check_presence() else { panic!("it is another ring") };
    assert_eq!(Displaced::of(&error), Some(&Displaced::Overwritten { is_ring: true }));
}

#[test]
fn reconnect_gives_up_after_patience() {
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
fn reconnect_ends_when_asked_to_stop() {
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

/// Requests of vhost-user, and the flag of those that are to be answered in any case.
const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_CONFIG: u32 = 24;
const NEED_REPLY: u32 = 1 << 3;

/// Reads a message: its request, its flags, and all of its bytes.
fn message(from: &mut UnixStream) -> (u32, u32, Vec<u8>) {
    let mut bytes = vec![0; 12];
    from.read_exact(&mut bytes).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (request, flags, size) = (word(0), word(4), word(8));
    let start = bytes.len();
    bytes.resize(start + size as usize, 0);
    from.read_exact(&mut bytes[start..]).unwrap();
    (request, flags, bytes)
}

/// Stands between a front end and the backend at `real`, and hangs up when `last` comes.
fn relay_up_to(last: u32, mut front_end: UnixStream, real: &Path) {
    let mut backend = UnixStream::connect(real).unwrap();
    loop {
        let (request, flags, bytes) = message(&mut front_end);
        if request == last {
            return;
        }
        backend.write_all(&bytes).unwrap();
        let asks = matches!(request, GET_FEATURES | GET_PROTOCOL_FEATURES | GET_CONFIG);
        if asks || flags & NEED_REPLY != 0 {
            front_end.write_all(&message(&mut backend).2).unwrap();
        }
    }
}

#[test]
fn first_connection_outlives_a_backend_that_goes_away_in_the_middle_of_the_handshake() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let (path, real) = (scene.path("s"), scene.path("real"));
    for last in [GET_FEATURES, GET_CONFIG, SET_MEM_TABLE] {
        std::fs::rename(&path, &real).unwrap();
        let between = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                relay_up_to(last, between.accept().unwrap().0, &real);
                std::fs::remove_file(&path).unwrap();
                // Nobody is there for a while.
                std::thread::sleep(Duration::from_millis(30));
                std::fs::rename(&real, &path).unwrap();
            });
            connect(&scene).flush().unwrap();
        });
    }
}
