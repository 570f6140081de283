//! A guest's disk over the backend's worker: the calling thread drives both sides of the queue, and
//! there is no front end.

use crate::executor_disk::{Disk, open};
use crate::split_ring::{Rings, linked, put_header, readable, writable};
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::shared_queue::Memory;
use vhost_device_blockring::data_path::waiters::Waiters;
use vhost_device_blockring::data_path::worker::{TurnEnd, Worker};
use vhost_device_blockring::front_end::vring::{Vring, making};
use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress};

/// Requests that the queue holds.
pub const SIZE: u16 = 16;
const RINGS: Rings = Rings { size: SIZE, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x1_0000;

/// Called with a request's kind and sector, and with the worker's turn for it, which it runs.
pub type Watch = Box<dyn Fn(u32, u64, &mut dyn FnMut()) + Send + Sync>;

/// A guest's disk whose queue one thread drives on both sides.
pub struct Direct {
    geometry: Geometry,
    mem: GuestMemory,
    waiters: Waiters,
    watch: Watch,
    state: Mutex<State>,
}

struct State {
    worker: Worker,
    offered: u16,
}

impl Direct {
    pub fn over(disk: Disk, watch: Watch) -> Self {
        let flusher = Flusher::start(open(&disk.path)).unwrap();
        Self::flushing(disk, watch, flusher)
    }

    pub fn flushing(disk: Disk, watch: Watch, flusher: Flusher) -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let bell = Bell::new(&new_page().unwrap(), new_event().unwrap(), Sleeper::Backend).unwrap();
        let (polling, hold) = (Polling::For(Duration::ZERO), Duration::from_secs(1));
        let counters = Arc::clone(&disk.counters);
        let mut worker = Worker::new(disk.executor, counters, flusher, bell, hold, polling);
        let waiters = Waiters::new().unwrap();
        let signaller = Arc::new(Signaller::new().unwrap());
        let memory = Memory::new(mem.clone());
        let (vring, queues) =
            making(&waiters, &signaller, || Vring::new(memory.clone(), SIZE).unwrap());
        vring.set_queue_size(SIZE);
        vring.set_queue_info(RINGS.descriptors, RINGS.available, RINGS.used).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        for queue in queues {
            worker.connect(queue);
        }
        worker.set_memory(&memory);
        let state = Mutex::new(State { worker, offered: 0 });
        Self { geometry: disk.geometry, mem, waiters, watch, state }
    }

    /// Has one request carried out.
    pub fn request(&self, kind: u32, first: u64, len: usize) {
        self.requests(kind, first, len, 1);
    }

    /// Has the same request carried out `count` times at once, at most [`SIZE`].
    pub fn requests(&self, kind: u32, first: u64, len: usize, count: u16) {
        let offered = self.offer(kind, first, len, count);
        (self.watch)(kind, first, &mut || {
            self.turn();
        });
        assert_eq!(self.used(), offered);
        assert_eq!(self.mem.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
    }

    /// Sets whether the front end has negotiated write-through.
    pub fn set_write_through(&self, on: bool) {
        self.state.lock().unwrap().worker.set_write_through(on);
    }

    /// Runs one turn of the worker.
    pub fn turn(&self) -> TurnEnd {
        self.state.lock().unwrap().worker.turn(&self.waiters)
    }

    /// Returns the used index.
    pub fn used(&self) -> u16 {
        RINGS.used_index(&self.mem)
    }

    /// Puts requests into the queue without a turn. Returns the available index behind them.
    pub fn offer(&self, kind: u32, first: u64, len: usize, count: u16) -> u16 {
        put_header(&self.mem, HEADER, kind, 0, first);
        let len = u32::try_from(len).unwrap();
        let data = if kind == VIRTIO_BLK_T_IN { writable(DATA, len) } else { readable(DATA, len) };
        let chain = [readable(HEADER, 16), data, writable(STATUS, 1)];
        RINGS.describe(&self.mem, 0, &linked(0, &chain));
        let State { offered, .. } = &mut *self.state.lock().unwrap();
        // Every entry of the available ring is the chain that begins with descriptor 0.
        *offered = offered.wrapping_add(count);
        self.mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        RINGS.set_available_index(&self.mem, *offered);
        *offered
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
}

impl RingDevice for &Direct {}
