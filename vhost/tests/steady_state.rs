//! What a request costs beside its bytes: no allocation, and no system call while both sides look for work.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Scene, eventually};
use common::disk::{Disk, open};
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::virtqueue::{
    BlockQueue, DmaMemory, Operation, Pages, Request, Shape, VhostUser,
};
use shared_block_ring::{BlockDevice, Consumer, Durability, Producer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vhost_device_blockring::dirty::GuestMemory;
use vhost_device_blockring::flusher::Flusher;
use vhost_device_blockring::polling::Polling;
use vhost_device_blockring::vring::{Claims, Memory, Vring, making};
use vhost_device_blockring::worker::Worker;
use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

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

const SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x1_0000;

/// A disk whose queue this thread drives on both sides.
struct Direct {
    geometry: Geometry,
    mem: GuestMemory,
    claims: Claims,
    state: Mutex<State>,
}

struct State {
    worker: Worker,
    offered: u16,
    /// Allocations of the worker, and its requests.
    spent: (u64, u64),
}

impl Direct {
    fn over(disk: Disk) -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let bell = Bell::new(&new_page().unwrap(), new_event().unwrap(), Sleeper::Backend).unwrap();
        let flusher = Flusher::start(open(&disk.path)).unwrap();
        let (polling, hold) = (Polling::For(Duration::ZERO), Duration::from_secs(1));
        let counters = Arc::clone(&disk.counters);
        let mut worker = Worker::new(disk.executor, counters, flusher, bell, hold, polling);
        let claims = Claims::new().unwrap();
        let memory = Memory::new(mem.clone());
        let (vring, _) = making(&claims, || Vring::new(memory.clone(), SIZE).unwrap());
        vring.set_queue_size(SIZE);
        vring.set_queue_info(DESCRIPTORS, AVAILABLE, USED).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        worker.connect(vring);
        worker.set_memory(memory);
        let state = Mutex::new(State { worker, offered: 0, spent: (0, 0) });
        Self { geometry: disk.geometry, mem, claims, state }
    }

    fn request(&self, kind: u32, first: u64, len: usize) {
        let put = |value: u32, at| self.mem.write_obj(value, GuestAddress(at)).unwrap();
        put(kind, HEADER);
        put(0, HEADER + 4);
        self.mem.write_obj(first, GuestAddress(HEADER + 8)).unwrap();
        let writes = if kind == VIRTIO_BLK_T_IN { VRING_DESC_F_WRITE } else { 0 };
        let chain = [
            (HEADER, 16, VRING_DESC_F_NEXT),
            (DATA, u32::try_from(len).unwrap(), VRING_DESC_F_NEXT | writes),
            (STATUS, 1, VRING_DESC_F_WRITE),
        ];
        for (index, (address, len, flags)) in (0u32..).zip(chain) {
            let at = DESCRIPTORS + 16 * u64::from(index);
            self.mem.write_obj(address, GuestAddress(at)).unwrap();
            put(len, at + 8);
            put(flags | (index + 1) << 16, at + 12);
        }
        let state = &mut *self.state.lock().unwrap();
        state.offered = state.offered.wrapping_add(1);
        self.mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        self.mem.store(state.offered, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
        ALLOCATIONS.set(Some(0));
        state.worker.turn(&self.claims);
        let (allocations, requests) = state.spent;
        state.spent = (allocations + ALLOCATIONS.take().unwrap(), requests + 1);
        assert_eq!(self.mem.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
    }
}

impl BlockDevice for &Direct {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, mut first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        for buf in bufs {
            self.request(VIRTIO_BLK_T_IN, first, buf.len());
            self.mem.read_slice(buf, GuestAddress(DATA)).unwrap();
            first += buf.len() as u64 / 512;
        }
        Ok(())
    }

    fn write(&self, mut first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        for buf in bufs {
            self.mem.write_slice(buf, GuestAddress(DATA)).unwrap();
            self.request(VIRTIO_BLK_T_OUT, first, buf.len());
            first += buf.len() as u64 / 512;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Items through the ring, and allocations and requests that they took.
fn spent(disk: &Direct, items: usize, mut turn: impl FnMut(usize)) -> (u64, u64) {
    disk.state.lock().unwrap().spent = (0, 0);
    (0..items).for_each(&mut turn);
    disk.state.lock().unwrap().spent
}

#[test]
fn a_producing_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Producer);
    let mut consumer = disk.consumer();
    let disk = Direct::over(disk);
    let mut producer = Producer::attach(&disk, "queue", "guest").unwrap();
    producer.set_durability(Durability::PageCache);
    let mut turn = |item: usize| {
        let end = producer.push(&vec![7u8; item % 900]).unwrap();
        producer.advance(end).unwrap();
        assert_eq!(consumer.pop(consumer.position()).unwrap().bytes.len(), item % 900);
        consumer.advance(end).unwrap();
    };
    spent(&disk, 1000, &mut turn);
    let (allocations, requests) = spent(&disk, 5000, &mut turn);
    assert!(requests > 10_000, "{requests} requests");
    assert_eq!(allocations, 0, "in {requests} requests");
}

#[test]
fn a_consuming_guest_costs_no_allocation() {
    let disk = Disk::new(Side::Consumer);
    let mut producer = Producer::attach(disk.outside()(), "queue", "host").unwrap();
    let disk = Direct::over(disk);
    let mut consumer = Consumer::attach(&disk, "queue", "guest").unwrap();
    consumer.set_durability(Durability::PageCache);
    let mut turn = |item: usize| {
        let end = producer.push(&vec![7u8; item % 900]).unwrap();
        producer.advance(end).unwrap();
        assert_eq!(consumer.pop(consumer.position()).unwrap().bytes.len(), item % 900);
        consumer.advance(end).unwrap();
    };
    spent(&disk, 1000, &mut turn);
    let (allocations, requests) = spent(&disk, 5000, &mut turn);
    assert!(requests > 10_000, "{requests} requests");
    assert_eq!(allocations, 0, "in {requests} requests");
}

/// The queue's thread of a process.
fn queue_thread(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name =
        |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap();
    let queue = tasks.map(Result::unwrap).find(|task| name(task).trim() == "queue");
    queue.unwrap().file_name().into_string().unwrap()
}

#[test]
fn a_request_costs_no_system_call_while_both_sides_look() {
    let scene = Scene::new();
    let daemon = scene.start(&["--poll", "always", "--size", "1M"]);
    let mut transport = VhostUser::connect(&scene.path("s")).unwrap();
    let shape = Shape::new(32, 4096);
    let memory = DmaMemory::new(shape.memory(), Pages::Small).unwrap();
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
    let mut strace = Command::new("strace")
        .args(["-qq", "-p", &queue_thread(daemon.0.id()), "-o"])
        .arg(&trace)
        .spawn()
        .expect("strace, which scripts/setup.sh installs");
    eventually("strace is there", || {
        std::fs::read_to_string(format!(
            "/proc/{0}/task/{1}/status",
            daemon.0.id(),
            queue_thread(daemon.0.id())
        ))
        .unwrap()
        .lines()
        .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
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
    let process = nix::unistd::Pid::from_raw(i32::try_from(strace.id()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    strace.wait().unwrap();
}
