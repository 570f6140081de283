//! A ring through libblkio, a driver of virtio disks that is none of ours, with its own front end.
//!
//! Its crate `blkio` is what the C library `libblkio` is built from.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags, State};
use ring_test_support::process::PATIENCE;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, Consumer, Producer, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::sync::Mutex;

/// Bytes of the memory that requests are made of.
const BUFFER: usize = 1 << 20;

/// A disk of 512-byte sectors.
struct Disk {
    sectors: u64,
    queue: Mutex<Queue>,
}

/// The queue, whose fields are dropped in this order.
struct Queue {
    requests: Blkioq,
    buffer: MemoryRegion,
    _disk: Blkio,
}

impl Disk {
    fn connect(scene: &Scene) -> Self {
        let mut disk = Blkio::new("virtio-blk-vhost-user").unwrap();
        disk.set_str("path", scene.path("s").to_str().unwrap()).unwrap();
        disk.connect().unwrap();
        disk.set_i32("queue-size", 64).unwrap();
        let requests = disk.start().unwrap().queues.remove(0);
        assert!(disk.state() == State::Started && disk.get_bool("needs-mem-regions").unwrap());
        let buffer = disk.alloc_mem_region(BUFFER).unwrap();
        disk.map_mem_region(&buffer).unwrap();
        let sectors = disk.get_u64("capacity").unwrap() / 512;
        Self { sectors, queue: Mutex::new(Queue { requests, buffer, _disk: disk }) }
    }
}

impl Queue {
    /// The buffer that all requests use, one at a time.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the region is mapped for as long as this value lives. Nobody else uses it between
        // two requests, each of which is waited for, and this borrows the queue exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.addr as *mut u8, self.buffer.len) }
    }

    /// Waits for the one request in flight.
    fn finish(&mut self) {
        let mut done = [MaybeUninit::<Completion>::uninit()];
        let mut patience = PATIENCE;
        assert_eq!(self.requests.do_io(&mut done, 1, Some(&mut patience), None).unwrap(), 1);
        // SAFETY: the library has filled in as many as it has returned.
        let done = unsafe { done[0].assume_init_ref() };
        assert_eq!(done.ret, 0);
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &'static str {
        "libblkio"
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(SectorSize::DEFAULT, self.sectors).unwrap()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let mut queue = self.queue.lock().unwrap();
        let mut start = first * 512;
        for buf in bufs {
            for part in buf.chunks_mut(BUFFER) {
                let at = queue.buffer.addr as *mut u8;
                queue.requests.read(start, at, part.len(), 0, ReqFlags::empty());
                queue.finish();
                part.copy_from_slice(&queue.bytes()[..part.len()]);
                start += part.len() as u64;
            }
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let mut queue = self.queue.lock().unwrap();
        // One request: bytes of a ring may share a sector over two buffers.
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let mut start = first * 512;
        for part in bytes.chunks(BUFFER) {
            queue.bytes()[..part.len()].copy_from_slice(part);
            let at = queue.buffer.addr as *const u8;
            queue.requests.write(start, at, part.len(), 0, ReqFlags::empty());
            queue.finish();
            start += part.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut queue = self.queue.lock().unwrap();
        queue.requests.flush(0, ReqFlags::empty());
        queue.finish();
        Ok(())
    }
}

impl RingDevice for Disk {}

#[test]
fn items_pushed_through_libblkio_reach_the_host() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--size", "64K"]);
    let mut producer = Producer::attach(Disk::connect(&scene), "q", "libblkio").unwrap();
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "h").unwrap();
    for number in 0..500u32 {
        let item = vec![number.to_le_bytes()[0]; number as usize * 7 % 5000];
        let end = producer.push(&item).unwrap();
        producer.advance(end).unwrap();
        let found = consumer.pop(consumer.position()).unwrap();
        assert!(found.bytes == item && found.next == end, "item {number}");
        consumer.advance(end).unwrap();
    }
    assert!(scene.counter("flushed") >= 1000, "each advance flushes twice");
    assert_eq!((scene.refused(), scene.counter("broken")), (0, 0));
}

#[test]
fn libblkio_reads_back_what_it_has_written_and_flushed() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--guard", "off", "--size", "4M"]);
    let disk = Disk::connect(&scene);
    assert_eq!(disk.sectors, (4 << 20) / 512);
    let bytes: Vec<u8> = (0..3 << 20).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
    disk.write(8, &[IoSlice::new(&bytes)]).unwrap();
    disk.flush().unwrap();
    let mut read = vec![0; bytes.len()];
    disk.read(8, &mut [IoSliceMut::new(&mut read)]).unwrap();
    assert!(read == bytes);
    drop(disk);
    // The next front end is served.
    Disk::connect(&scene).flush().unwrap();
}
