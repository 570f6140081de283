//! What a request costs beside its bytes: no allocation, and no system call while both sides look for work.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene, eventually};
use common::direct::Direct;
use common::disk::Disk;
use nix::sys::signal::Signal;
use shared_block_ring::format::Side;
use shared_block_ring::virtqueue::{BlockQueue, Operation, Request, Shape, Transport, VhostUser};
use shared_block_ring::{BlockDevice, Consumer, Durability, Producer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Allocations of this thread since they began to be counted, if they are.
    static ALLOCATIONS: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get().map(|count| count + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A disk whose requests are counted, and the allocations of the worker at them.
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

    /// Items through the ring, and allocations and requests that they took.
    fn spent(&self, items: usize, mut turn: impl FnMut(usize)) -> (u64, u64) {
        (0..items).for_each(&mut turn);
        (self.spent.0.swap(0, Ordering::Relaxed), self.spent.1.swap(0, Ordering::Relaxed))
    }
}

/// Items go from end to end, one of which has the counted disk, and the worker at it allocates nothing.
fn costs_no_allocation<P: BlockDevice, C: BlockDevice>(
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
fn a_producing_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Producer);
    let mut consumer = disk.consumer();
    let counted = Counted::over(disk);
    let mut producer = Producer::attach(&counted.disk, "queue", "guest").unwrap();
    producer.set_durability(Durability::PageCache);
    costs_no_allocation(&counted, &mut producer, &mut consumer);
}

#[test]
fn a_consuming_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Consumer);
    let mut producer = Producer::attach(disk.outside()(), "queue", "host").unwrap();
    let counted = Counted::over(disk);
    let mut consumer = Consumer::attach(&counted.disk, "queue", "guest").unwrap();
    consumer.set_durability(Durability::PageCache);
    costs_no_allocation(&counted, &mut producer, &mut consumer);
}

#[test]
fn a_request_costs_no_system_call_while_both_sides_look() {
    let scene = Scene::new();
    let daemon = scene.start(&["--poll", "always", "--size", "1M"]);
    let mut transport = VhostUser::connect(&scene.path("s")).unwrap();
    let shape = Shape::new(32, 4096);
    let memory = transport.allocate(shape.memory()).unwrap();
    let mut queue = BlockQueue::new(memory, shape, transport.disk().event_idx);
    transport.start(queue.memory(), queue.ring().layout()).unwrap();
    let mut requests = |count: u32| {
        let (mut kicks, mut done) = (0, 0);
        while done < count {
            while let Some(slot) = queue.slot() {
                let request =
                    Request { operation: Operation::Write, sector: 64, bytes: 4096, priority: 0 };
                queue.submit(slot, request);
            }
            if queue.publish() {
                kicks += 1;
                transport.notify().unwrap();
            }
            while let Some(completion) = queue.reap().unwrap() {
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
    drop(transport);
    eventually("without a front end the thread sleeps, and strace sees it", || {
        traced().contains("poll(")
    });
    strace.signal(Signal::SIGINT);
    strace.0.wait().unwrap();
}
