//! A disk whose queue this thread drives on both sides: the worker itself, and no front end.

use super::disk::{Disk, open};
use shared_block_ring::BlockDevice;
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::format::Geometry;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
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

pub const SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x1_0000;

/// Runs the worker's turn for a request of that kind at that sector, and may watch it.
pub type Watch = Box<dyn Fn(u32, u64, &mut dyn FnMut()) + Send + Sync>;

/// The disk.
pub struct Direct {
    geometry: Geometry,
    mem: GuestMemory,
    claims: Claims,
    watch: Watch,
    state: Mutex<State>,
}

struct State {
    worker: Worker,
    offered: u16,
}

impl Direct {
    pub fn over(disk: Disk, watch: Watch) -> Self {
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
        let state = Mutex::new(State { worker, offered: 0 });
        Self { geometry: disk.geometry, mem, claims, watch, state }
    }

    /// One request, to its end.
    pub fn request(&self, kind: u32, first: u64, len: usize) {
        self.requests(kind, first, len, 1);
    }

    /// The same request so many times at once, of which the queue holds [`SIZE`].
    pub fn requests(&self, kind: u32, first: u64, len: usize, count: u16) {
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
        let State { worker, offered } = &mut *self.state.lock().unwrap();
        // Every entry of the available ring is the chain that begins with descriptor 0.
        *offered = offered.wrapping_add(count);
        self.mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        self.mem.store(*offered, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
        (self.watch)(kind, first, &mut || {
            worker.turn(&self.claims);
        });
        let used: u16 = self.mem.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap();
        assert_eq!(used, *offered);
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
