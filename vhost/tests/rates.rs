//! Limits of what a guest has done per second: it gets no more, and nothing but its next requests
//! waits for that.
//!
//! A limit of one byte per second leaves a debt of minutes after the first request: until the end
//! of a test no other one is taken, however slow the machine is.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use nix::sys::signal::Signal;
use ring_test_support::executor_disk::{Disk, IDLE, open};
use ring_test_support::front_end::{DATA, FrontEnd, HEADER, RINGS, STATUS};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{linked, readable, writable};
use ring_test_support::worker_disk::{Direct, Payload, Place, SIZE, Sharing};
use shared_block_ring::Consumer;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::io_threads::{IoThreads, OnPanic, RingNumber};
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::queue_thread::QueueThread;
use vhost_device_blockring::data_path::rate::Rates;
use vhost_device_blockring::data_path::worker::TurnEnd;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_IN;

/// A free sector.
const FREE: u64 = 8;

/// A limit of one byte per second.
const BYTE: Rates = Rates { bytes: Some(NonZeroU64::MIN), requests: None };

/// Far less than the rest behind a request at that limit.
const SOON: Duration = Duration::from_secs(300);

fn requests(number: u64) -> Rates {
    Rates { bytes: None, requests: NonZeroU64::new(number) }
}

fn flusher(disk: &Disk) -> Flusher {
    Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters)).unwrap()
}

fn direct(queues: usize) -> Direct {
    let disk = Disk::new(Side::Producer);
    let flusher = flusher(&disk);
    Direct::with_queues(disk, queues, flusher)
}

/// A ring with limits whose worker nobody drives yet.
fn ring(rates: Rates, polling: Polling) -> Sharing {
    let disk = Disk::new(Side::Producer);
    let flusher = flusher(&disk);
    let ring = Sharing::new(disk, flusher, polling);
    ring.worker().lock().limit(rates);
    ring
}

fn kick(event: &OwnedFd) {
    nix::unistd::write(event, &1u64.to_ne_bytes()).unwrap();
}

/// Runs turns until there is nothing to do.
fn turns(direct: &Direct) -> TurnEnd {
    loop {
        match direct.turn() {
            TurnEnd::GiveWay | TurnEnd::More | TurnEnd::Poll => {}
            end => return end,
        }
    }
}

/// Runs turns until the ring rests. Returns until when, and whether kicks are let pass.
fn rest(direct: &Direct) -> (Instant, bool) {
    match turns(direct) {
        TurnEnd::Rest { until, deaf } => (until, deaf),
        end => panic!("it does not rest: {end:?}"),
    }
}

#[test]
fn no_request_is_taken_once_the_limit_is_used_up() {
    let direct = direct(3);
    direct.limit(BYTE);
    let puts = || [0, 1, 2].map(|queue| direct.put(queue, 0, FREE, Payload::Write(&[7; 512])));
    let places = [puts(), puts()].concat();
    for _ in 0..10 {
        let (until, deaf) = rest(&direct);
        assert!(deaf && until > Instant::now() + SOON);
    }
    let answered = places.iter().filter(|place| direct.status(**place).is_some()).count();
    assert_eq!((answered, direct.status(places[0])), (1, Some(0)), "the first one alone");
}

#[test]
fn requests_pass_at_the_rate_of_their_limit_and_in_order() {
    let direct = direct(1);
    let start = Instant::now();
    direct.limit(requests(40));
    let places: Vec<_> =
        (1..=16).map(|n| direct.put(0, 0, FREE, Payload::Write(&[n; 512]))).collect();
    while direct.used(0) < 16 {
        // On a slow machine it need not rest.
        let end = turns(&direct);
        let answered = direct.used(0);
        assert!(f64::from(answered) <= 4.0 + 40.0 * start.elapsed().as_secs_f64(), "{answered}");
        let is_answered = |place: &Place| direct.status(*place) == Some(0);
        assert_eq!(
            places.iter().take_while(|place| is_answered(place)).count(),
            usize::from(answered)
        );
        match end {
            TurnEnd::Rest { until, .. } => {
                thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            end => assert_eq!((answered, end), (16, TurnEnd::Sleep(None))),
        }
    }
    let read = direct.put(0, 0, FREE, Payload::Read(512));
    while direct.status(read).is_none() {
        direct.turn();
    }
    assert_eq!(direct.data(read, 512), [16; 512], "the last write");
}

#[test]
fn write_that_was_taken_is_made_durable_during_the_rest() {
    let direct = direct(1);
    direct.limit(BYTE);
    direct.set_write_through(true);
    // The second one would share the first one's flush.
    let [first, second] = [7, 8].map(|n| direct.put(0, 0, FREE, Payload::Write(&[n; 512])));
    let start = Instant::now();
    eventually("the first write is answered", || {
        rest(&direct);
        direct.status(first) == Some(0)
    });
    assert!(direct.status(second).is_none() && start.elapsed() < SOON);
}

#[test]
fn held_read_is_answered_during_the_rest_when_another_request_comes() {
    let direct = direct(1);
    let told = direct.put(0, IDLE, 2, Payload::Read(512));
    direct.turn();
    assert_eq!(direct.status(told), Some(0));
    // What was read is charged, too.
    direct.limit(BYTE);
    let held = direct.put(0, IDLE, 2, Payload::Read(512));
    let (until, deaf) = rest(&direct);
    assert_eq!(direct.status(held), None);
    assert!(!deaf && until < Instant::now() + SOON, "not beyond the time of the read");
    let other = direct.put(0, 0, FREE, Payload::Read(512));
    let (_, deaf) = rest(&direct);
    assert_eq!((direct.status(held), direct.status(other)), (Some(0), None));
    assert!(deaf);
}

fn none_panics() -> OnPanic {
    Arc::new(|RingNumber(number)| panic!("ring {number} has panicked"))
}

#[test]
fn ring_beside_a_limited_one_is_not_held_back() {
    let polling = Polling::For(Duration::from_micros(50));
    let start = Instant::now();
    let (limited, free) = (ring(requests(20), polling), ring(Rates::default(), polling));
    let threads = IoThreads::start(1, &[], &none_panics()).unwrap();
    threads.serve(RingNumber(1), limited.worker());
    threads.serve(RingNumber(2), free.worker());
    let mut offered = 0;
    for _ in 0..1000 {
        // It is never short of requests.
        let answered = limited.used(0);
        while offered - answered < SIZE {
            limited.put(0, 0, FREE, Payload::Write(&[7; 512]));
            offered += 1;
        }
        kick(limited.kick());
        let place = free.put(0, 0, FREE, Payload::Write(&[7; 512]));
        kick(free.kick());
        eventually("the free ring's request is answered", || free.status(place) == Some(0));
    }
    let answered = limited.used(0);
    assert!(f64::from(answered) <= 2.0 + 20.0 * start.elapsed().as_secs_f64(), "{answered}");
    assert!(answered > 0);
}

#[test]
fn one_kick_is_enough_for_requests_that_wait_for_several_rests() {
    let polling = Polling::For(Duration::ZERO);
    let (single, shared) = (ring(requests(40), polling), ring(requests(40), polling));
    let _thread = QueueThread::start(single.worker(), None).unwrap();
    let threads = IoThreads::start(1, &[], &none_panics()).unwrap();
    threads.serve(RingNumber(1), shared.worker());
    for ring in [&single, &shared] {
        for _ in 0..SIZE {
            ring.put(0, 0, FREE, Payload::Write(&[7; 512]));
        }
        kick(ring.kick());
        eventually("all are answered", || ring.used(0) == SIZE);
    }
}

/// Has a ring rest for long, with a request that waits.
fn have_rest(ring: &Sharing) {
    let place = ring.put(0, 0, FREE, Payload::Write(&[7; 512]));
    kick(ring.kick());
    eventually("the first request is answered", || ring.status(place) == Some(0));
    ring.put(0, 0, FREE, Payload::Write(&[8; 512]));
    kick(ring.kick());
}

#[test]
fn kicks_during_a_rest_cost_no_turn_and_whoever_needs_the_worker_has_one() {
    // Neither does a ring that is polled at all times.
    for polling in [Polling::For(Duration::ZERO), Polling::Always] {
        let (single, shared) = (ring(BYTE, polling), ring(BYTE, polling));
        let _thread = QueueThread::start(single.worker(), None).unwrap();
        let threads = IoThreads::start(1, &[], &none_panics()).unwrap();
        threads.serve(RingNumber(1), shared.worker());
        for ring in [&single, &shared] {
            have_rest(ring);
            let worker = ring.worker();
            let waiters = worker.waiters();
            let mut before = waiters.turns();
            eventually("the ring rests", || {
                thread::sleep(Duration::from_millis(100));
                std::mem::replace(&mut before, waiters.turns()) == waiters.turns()
            });
            for _ in 0..1000 {
                kick(ring.kick());
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(50));
            assert_eq!(waiters.turns(), before);
            let call = waiters.call();
            eventually("the worker takes a turn", || waiters.has_answered(call));
            assert_eq!(ring.used(0), 1);
        }
    }
}

#[test]
fn end_of_a_thread_waits_for_no_rest() {
    let start = Instant::now();
    let polling = Polling::For(Duration::ZERO);
    let (single, shared) = (ring(BYTE, polling), ring(BYTE, polling));
    let thread = QueueThread::start(single.worker(), None).unwrap();
    let threads = IoThreads::start(1, &[], &none_panics()).unwrap();
    threads.serve(RingNumber(1), shared.worker());
    have_rest(&single);
    have_rest(&shared);
    thread.finish().unwrap();
    threads.release(RingNumber(1));
    drop(threads);
    assert_eq!((single.used(0), shared.used(0)), (1, 1));
    assert!(start.elapsed() < SOON);
}

/// Has the guest write a sector, and then offer a read which is not answered soon.
pub fn wait_in_vain(guest: &mut FrontEnd) {
    assert_eq!(guest.write(100, &[7; 512]), 0);
    guest.header(VIRTIO_BLK_T_IN, 3);
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    guest.describe(RINGS.descriptors, 0, &linked(0, &chain));
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.completion_within(Duration::from_millis(50)), None);
}

#[test]
fn stops_of_the_queue_and_of_the_daemon_wait_for_no_rest() {
    let start = Instant::now();
    let scene = Scene::new();
    let mut daemon = scene.start(&["--max-bytes-per-second", "1", "--guard", "off"]);
    let mut guest = FrontEnd::new(&scene);
    wait_in_vain(&mut guest);
    assert_eq!(guest.stop(), 1, "the read is given back");
    guest.run_from(1);
    assert_eq!(guest.completion_within(Duration::from_millis(50)), None);
    // The next front end has the debts of this one.
    drop(guest);
    let mut guest = FrontEnd::new(&scene);
    guest.header(VIRTIO_BLK_T_IN, 3);
    guest.offer(0);
    guest.kick();
    assert_eq!(guest.completion_within(Duration::from_millis(50)), None);
    assert_eq!((scene.counter("served"), scene.counter("rests")), (1, 1));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
    assert!(start.elapsed() < SOON);
}

#[test]
fn items_of_a_limited_guest_arrive_whole_and_in_order() {
    let scene = Scene::new();
    let start = Instant::now();
    let _daemon = scene.start(&["--max-requests-per-second", "500"]);
    let words = "guest is the producer and gets at most 500 requests a second,";
    eventually("the limit is logged", || scene.logged(words) == 1);
    let mut guest = FrontEnd::new(&scene);
    let items: Vec<_> = (0..40).map(|number| format!("item {number}")).collect();
    for item in &items {
        guest.publish(item);
    }
    let served = scene.counter("served");
    let most = 50.0 + 500.0 * start.elapsed().as_secs_f64();
    assert!(f64::from(u32::try_from(served).unwrap()) <= most, "{served} requests");
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    let mut position = consumer.position();
    for item in &items {
        let popped = consumer.pop(position).unwrap();
        assert_eq!(popped.bytes, item.as_bytes());
        position = popped.next;
    }
    consumer.advance(position).unwrap();
}
