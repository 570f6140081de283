//! The cost of a request in the steady state: no allocation, and no system call while both sides
//! poll.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene};
use nix::sys::signal::Signal;
use ring_test_support::executor_disk::Disk;
use ring_test_support::process::eventually;
use ring_test_support::worker_disk::Direct;
use shared_block_ring::format::Side;
use shared_block_ring::wait::Limits;
use shared_block_ring::{BlockDevice, Consumer, Durability, Producer, RingDevice};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio_blk_driver::{BlockDriver, Request, Shape, VhostUser};

thread_local! {
    /// Allocations of this thread since counting began; `None` while they are not counted.
    static ALLOCATIONS: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get().map(|count| count + 1));
        // SAFETY: the caller keeps the contract of the same function of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of the same function of the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A disk that counts requests, and the worker's allocations for them.
struct Counted {
    disk: Direct,
    spent: Arc<(AtomicU64, AtomicU64)>,
}

impl Counted {
    fn over(disk: Disk) -> Self {
        let spent = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let count = Arc::clone(&spent);
        let watch = move |_, _, turn: &mut dyn FnMut()| {
            ALLOCATIONS.set(Some(0));
            turn();
            count.0.fetch_add(ALLOCATIONS.take().unwrap(), Ordering::Relaxed);
            count.1.fetch_add(1, Ordering::Relaxed);
        };
        Self { disk: Direct::over(disk, Box::new(watch)), spent }
    }

    /// Sends items through the ring. Returns the allocations and requests that they took.
    fn spent(&self, items: usize, mut turn: impl FnMut(usize)) -> (u64, u64) {
        (0..items).for_each(&mut turn);
        (self.spent.0.swap(0, Ordering::Relaxed), self.spent.1.swap(0, Ordering::Relaxed))
    }
}

/// Sends items from producer to consumer, one of which has the counted disk. Its worker must not
/// allocate.
fn costs_no_allocation<P: RingDevice, C: RingDevice>(
    counted: &Counted,
    producer: &mut Producer<P>,
    consumer: &mut Consumer<C>,
) {
    let mut turn = |item: usize| {
        let end = producer.push(&vec![7u8; item % 900]).unwrap();
        producer.advance(end).unwrap();
        assert_eq!(consumer.pop(consumer.position()).unwrap().bytes.len(), item % 900);
        consumer.advance(end).unwrap();
    };
    counted.spent(1000, &mut turn);
    let (allocations, requests) = counted.spent(5000, &mut turn);
    assert!(requests > 10_000, "{requests} requests");
    assert_eq!(allocations, 0, "in {requests} requests");
}

#[test]
fn producing_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Producer);
    let mut consumer = disk.consumer();
    let counted = Counted::over(disk);
    let mut producer = Producer::attach(&counted.disk, "queue", "guest").unwrap();
    producer.set_durability(Durability::PageCache);
    costs_no_allocation(&counted, &mut producer, &mut consumer);
}

#[test]
fn consuming_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Consumer);
    let mut producer = Producer::attach(disk.outside()(), "queue", "host").unwrap();
    let counted = Counted::over(disk);
    let mut consumer = Consumer::attach(&counted.disk, "queue", "guest").unwrap();
    consumer.set_durability(Durability::PageCache);
    costs_no_allocation(&counted, &mut producer, &mut consumer);
}

#[test]
fn guest_of_a_plain_disk_costs_no_allocation() {
    let counted = Counted::over(Disk::plain(Side::Producer));
    let mut write = |_| {
        // Control sectors, data, and both in one request.
        for first in [0, 1, 2, 3, 5, 1] {
            let sectors = if first == 1 { 4 } else { 1 };
            (&counted.disk).write(first, &[IoSlice::new(&[7; 4 * 512][..sectors * 512])]).unwrap();
        }
    };
    counted.spent(10, &mut write);
    let (allocations, requests) = counted.spent(1000, &mut write);
    assert_eq!((allocations, requests), (0, 6000));
}

#[test]
fn request_costs_no_system_call_while_both_sides_poll() {
    let scene = Scene::new();
    let daemon = scene.start(&["--poll", "always", "--size", "1M"]);
    let backend = VhostUser::connect(scene.path("s")).unwrap();
    let mut driver = BlockDriver::new(backend, Shape::new(32, 4096), &Limits::default()).unwrap();
    let mut requests = |count: u32| {
        let (mut kicks, mut done) = (0, 0);
        while done < count {
            while let Some(slot) = driver.slot() {
                slot.submit(Request::write(64, 4096));
            }
            if driver.publish().unwrap() {
                kicks += 1;
            }
            while let Some(completion) = driver.reap().unwrap() {
                completion.result().unwrap();
                done += 1;
            }
        }
        kicks
    };
    requests(1000);
    let trace = scene.path("trace");
    let thread = daemon.queue_thread();
    let mut strace = Daemon(
        Command::new("strace")
            .args(["-qq", "-p", &thread, "-o"])
            .arg(&trace)
            .spawn()
            .expect("strace, which scripts/setup.sh installs"),
    );
    eventually("strace is there", || {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    });
    let served = scene.counter("writes");
    let kicks = requests(20_000);
    let served = scene.counter("writes") - served;
    let traced = || std::fs::read_to_string(&trace).unwrap();
    let calls = traced();
    println!("{served} requests, {kicks} kicks, system calls of the queue's thread: {calls:?}");
    assert!(served >= 20_000 && kicks < 20, "{served} requests, {kicks} kicks");
    assert!(calls.lines().count() < 20, "{calls}");
    drop(driver);
    eventually("without a front end the thread sleeps, and strace sees it", || {
        traced().contains("epoll_")
    });
    strace.signal(Signal::SIGINT);
    strace.0.wait().unwrap();
}
