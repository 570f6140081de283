//! Threads that drive the queues of several rings: each has its share, whatever the others do.
#![allow(clippy::unwrap_used)]

use log::{Log, Metadata, Record};
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::process::eventually;
use ring_test_support::worker_disk::{Payload, Sharing};
use shared_block_ring::format::Side;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::Duration;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::io_threads::{IoThreads, OnPanic, RingNumber};
use vhost_device_blockring::data_path::polling::Polling;

/// A free sector.
const FREE: u64 = 8;

fn ring(polling: Polling) -> Sharing {
    let disk = Disk::new(Side::Producer);
    let counters = Arc::clone(&disk.counters);
    let flusher = Flusher::start(&FlushPool::new(), open(&disk.path), counters).unwrap();
    Sharing::new(disk, flusher, polling)
}

fn rings(count: u64) -> Vec<(RingNumber, Sharing)> {
    (1..=count).map(|number| (RingNumber(number), ring(Polling::For(Duration::ZERO)))).collect()
}

fn none_panics() -> OnPanic {
    Arc::new(|RingNumber(number)| panic!("ring {number} has panicked"))
}

/// Threads that serve these rings.
fn serving(count: usize, rings: &[(RingNumber, Sharing)], panicked: &OnPanic) -> IoThreads {
    let threads = IoThreads::start(count, &[], panicked).unwrap();
    for (number, ring) in rings {
        threads.serve(*number, ring.worker());
    }
    threads
}

fn write_and_kick(ring: &Sharing) -> impl Fn() -> Option<u8> {
    let place = ring.put(0, 0, FREE, Payload::Write(&[7; 512]));
    nix::unistd::write(ring.kick(), &1u64.to_ne_bytes()).unwrap();
    move || ring.status(place)
}

fn is_served(ring: &Sharing) {
    let status = write_and_kick(ring);
    eventually("a request is answered", || status() == Some(0));
}

/// Keeps a ring busy until told to stop: one request after the other, each as soon as the last one
/// is answered.
fn keep_busy(ring: &Sharing, over: &AtomicBool) {
    while !over.load(SeqCst) {
        let status = write_and_kick(ring);
        while status().is_none() && !over.load(SeqCst) {
            thread::yield_now();
        }
    }
}

#[test]
fn idle_rings_are_served_beside_busy_ones() {
    let rings = rings(6);
    let _threads = serving(1, &rings, &none_panics());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (_, busy) in &rings[..2] {
            scope.spawn(|| keep_busy(busy, &over));
        }
        for _ in 0..100 {
            for (_, ring) in &rings[2..] {
                is_served(ring);
            }
        }
        over.store(true, SeqCst);
    });
}

#[test]
fn ring_that_was_released_is_served_by_nobody_and_can_be_served_again() {
    let rings = rings(2);
    let threads = serving(2, &rings, &none_panics());
    let (number, ring) = &rings[0];
    for _ in 0..20 {
        is_served(ring);
        threads.release(*number);
        let status = write_and_kick(ring);
        is_served(&rings[1].1);
        assert_eq!(status(), None);
        threads.serve(*number, ring.worker());
        eventually("the request is answered", || status() == Some(0));
    }
    assert_eq!(threads.rings().iter().sum::<u32>(), 2);
}

/// A logger that panics where a thread of queues refuses a request, once that is asked for.
struct Panics;

static ASKED: AtomicBool = AtomicBool::new(false);

impl Log for Panics {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let is_of_queues = thread::current().name().is_some_and(|name| name.starts_with("queues "));
        let refuses = record.args().to_string().contains("refused");
        assert!(!(is_of_queues && refuses && ASKED.swap(false, SeqCst)), "on purpose");
    }

    fn flush(&self) {}
}

#[test]
fn ring_whose_code_panics_is_reported_and_the_others_are_served() {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| {
        log::set_logger(&Panics).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    let rings = rings(3);
    let failed = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failed);
    let threads = serving(1, &rings, &(Arc::new(move |ring| told.lock().unwrap().push(ring)) as _));
    for (_, ring) in &rings {
        is_served(ring);
    }
    ASKED.store(true, SeqCst);
    let (number, ring) = &rings[1];
    // Sector 0 is not the guest's: the write is refused, which is logged.
    let _ = ring.put(0, 0, 0, Payload::Write(&[7; 512]));
    nix::unistd::write(ring.kick(), &1u64.to_ne_bytes()).unwrap();
    eventually("it is reported", || *failed.lock().unwrap() == [*number]);
    for _ in 0..10 {
        is_served(&rings[0].1);
        is_served(&rings[2].1);
    }
    assert_eq!(threads.rings(), [2]);
    // What is left of it can be ended, and its front end let go.
    threads.release(*number);
    let worker = ring.worker();
    worker.lock().close();
    worker.lock().disconnect();
}
