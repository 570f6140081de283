//! A guest's disk over the backend's worker: the calling thread drives both sides of its queues, and
//! there is no front end.

use crate::executor_disk::{Disk, open};
use crate::split_ring::{Desc, Rings, linked, put_header, readable, writable};
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
use vhost_device_blockring::data_path::kicks::Kicks;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::queue_set::{MAX_QUEUES, QueueSet};
use vhost_device_blockring::data_path::shared_queue::{Links, Memory};
use vhost_device_blockring::data_path::waiters::Waiters;
use vhost_device_blockring::data_path::worker::{TurnEnd, Worker};
use vhost_device_blockring::front_end::vring::{Vring, making};
use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress};

/// Requests that a queue holds.
pub const SIZE: u16 = 16;

/// Descriptors of a queue: a request has three.
const DESCRIPTORS: u16 = 64;

/// Bytes of guest memory that a queue has for itself, and the places in there.
const PART: u64 = 1 << 20;
const RINGS: Rings =
    Rings { size: DESCRIPTORS, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const HEADERS: u64 = 0x4000;
const STATUSES: u64 = 0x5000;
const DATA: u64 = 0x1_0000;

/// Bytes from one request's data to the next's. A request that is alone may have more.
const DATA_STEP: u64 = 0x8000;

/// Called with a request's kind and sector, and with the worker's turn for it, which it runs.
pub type Watch = Box<dyn Fn(u32, u64, &mut dyn FnMut()) + Send + Sync>;

/// A guest's disk whose queues one thread drives on both sides.
pub struct Direct {
    geometry: Geometry,
    mem: GuestMemory,
    waiters: Waiters,
    vrings: Vec<Vring>,
    watch: Watch,
    state: Mutex<State>,
}

struct State {
    worker: Worker,
    /// The available index of each queue.
    offered: Vec<u16>,
}

/// One request of several: its queue, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub queue: usize,
    slot: u16,
}

impl Place {
    fn start(self) -> u64 {
        self.queue as u64 * PART
    }

    fn header(self) -> u64 {
        self.start() + HEADERS + 16 * u64::from(self.slot)
    }

    fn status(self) -> GuestAddress {
        GuestAddress(self.start() + STATUSES + u64::from(self.slot))
    }

    fn data(self) -> GuestAddress {
        GuestAddress(self.start() + DATA + DATA_STEP * u64::from(self.slot))
    }
}

/// What a request carries.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    Write(&'a [u8]),
    /// Room for so many bytes.
    Read(usize),
    Flush,
}

/// A status that no device gives.
const UNANSWERED: u8 = 0xff;

fn rings(queue: usize) -> Rings {
    let start = queue as u64 * PART;
    let Rings { size, descriptors, available, used } = RINGS;
    Rings {
        size,
        descriptors: start + descriptors,
        available: start + available,
        used: start + used,
    }
}

impl Direct {
    /// A disk with one queue. `watch` runs the turns of the requests that a ring makes.
    pub fn over(disk: Disk, watch: Watch) -> Self {
        let flusher = Flusher::start(open(&disk.path)).unwrap();
        Self::flushing(disk, watch, flusher)
    }

    /// A disk with one queue, whose region is made durable by `flusher`.
    pub fn flushing(disk: Disk, watch: Watch, flusher: Flusher) -> Self {
        Self { watch, ..Self::with_queues(disk, 1, flusher) }
    }

    /// A disk with several queues, all of them running.
    pub fn with_queues(disk: Disk, queues: usize, flusher: Flusher) -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), queues << 20)]).unwrap();
        let bell = Bell::new(&new_page().unwrap(), new_event().unwrap(), Sleeper::Backend).unwrap();
        let (polling, hold) = (Polling::For(Duration::ZERO), Duration::from_secs(1));
        let counters = Arc::clone(&disk.counters);
        let mut worker = Worker::new(disk.executor, counters, flusher, bell, hold, polling);
        let waiters = Waiters::new().unwrap();
        let (kicks, signaller) = (Kicks::new().unwrap(), Arc::new(Signaller::new().unwrap()));
        let links = Links { waiters: waiters.clone(), kicks, signaller };
        let memory = Memory::new(mem.clone());
        let new = |_| Vring::new(memory.clone(), DESCRIPTORS).unwrap();
        let (vrings, made) = making(links, || (0..queues).map(new).collect::<Vec<_>>());
        for (queue, vring) in vrings.iter().enumerate() {
            let rings = rings(queue);
            vring.set_queue_size(DESCRIPTORS);
            vring.set_queue_info(rings.descriptors, rings.available, rings.used).unwrap();
            vring.set_queue_ready(true);
            vring.set_enabled(true);
        }
        worker.connect(made);
        worker.set_memory(&memory);
        let state = Mutex::new(State { worker, offered: vec![0; queues] });
        let watch: Watch = Box::new(|_, _, turn: &mut dyn FnMut()| turn());
        Self { geometry: disk.geometry, mem, waiters, vrings, watch, state }
    }

    /// Has one request carried out in the first queue.
    pub fn request(&self, kind: u32, first: u64, len: usize) {
        self.requests(kind, first, len, 1);
    }

    /// Has the same request carried out `count` times at once, at most [`SIZE`].
    pub fn requests(&self, kind: u32, first: u64, len: usize, count: u16) {
        let offered = self.offer(kind, first, len, count);
        (self.watch)(kind, first, &mut || {
            self.turn();
        });
        assert_eq!(self.used(0), offered);
        assert_eq!(self.status(Place { queue: 0, slot: 0 }), Some(0));
    }

    /// Sets whether the front end has negotiated write-through.
    pub fn set_write_through(&self, on: bool) {
        self.state.lock().unwrap().worker.set_write_through(on);
    }

    /// Runs one turn of the worker, after kicks of all queues.
    pub fn turn(&self) -> TurnEnd {
        self.turn_after(QueueSet::first(MAX_QUEUES))
    }

    /// Runs one turn of the worker, after kicks of these queues.
    pub fn turn_after(&self, kicked: QueueSet) -> TurnEnd {
        self.state.lock().unwrap().worker.turn(&self.waiters, kicked)
    }

    /// Runs one round of the worker: another thread waits for it.
    pub fn round(&self) -> TurnEnd {
        let _waiter = self.waiters.enter();
        self.turn()
    }

    /// Starts or stops a queue, as a front end does by `SET_VRING_ENABLE`.
    pub fn enable(&self, queue: usize, on: bool) {
        self.vrings[queue].set_enabled(on);
    }

    /// Stops a queue, as a front end does by `GET_VRING_BASE`. Returns its base.
    pub fn stop(&self, queue: usize) -> u16 {
        self.vrings[queue].set_queue_ready(false);
        self.state.lock().unwrap().worker.stop(queue);
        self.vrings[queue].queue_next_avail()
    }

    /// Starts a stopped queue.
    pub fn start(&self, queue: usize) {
        self.vrings[queue].set_queue_ready(true);
    }

    /// Returns a queue's used index.
    pub fn used(&self, queue: usize) -> u16 {
        rings(queue).used_index(&self.mem)
    }

    /// Returns the answer to a request, if it has one.
    pub fn status(&self, place: Place) -> Option<u8> {
        let status = self.mem.read_obj(place.status()).unwrap();
        (status != UNANSWERED).then_some(status)
    }

    /// Returns what a read has returned.
    pub fn data(&self, place: Place, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, place.data()).unwrap();
        bytes
    }

    /// Puts a request into a queue without a turn.
    pub fn put(&self, queue: usize, priority: u32, first: u64, payload: Payload<'_>) -> Place {
        let State { offered, .. } = &mut *self.state.lock().unwrap();
        let place = Place { queue, slot: offered[queue] % SIZE };
        let at = place.data().0;
        let (kind, data) = match payload {
            Payload::Write(bytes) => {
                self.mem.write_slice(bytes, place.data()).unwrap();
                (VIRTIO_BLK_T_OUT, Some(readable(at, u32::try_from(bytes.len()).unwrap())))
            }
            Payload::Read(len) => {
                (VIRTIO_BLK_T_IN, Some(writable(at, u32::try_from(len).unwrap())))
            }
            Payload::Flush => (VIRTIO_BLK_T_FLUSH, None),
        };
        put_header(&self.mem, place.header(), kind, priority, first);
        self.describe(place, data);
        let rings = rings(queue);
        rings.offer(&self.mem, offered[queue], 3 * place.slot);
        offered[queue] = offered[queue].wrapping_add(1);
        rings.set_available_index(&self.mem, offered[queue]);
        place
    }

    fn describe(&self, place: Place, data: Option<Desc>) {
        self.mem.write_obj(UNANSWERED, place.status()).unwrap();
        let header = readable(place.header(), 16);
        let chain: Vec<_> = [Some(header), data, Some(writable(place.status().0, 1))]
            .into_iter()
            .flatten()
            .collect();
        let first = 3 * place.slot;
        rings(place.queue).describe(&self.mem, first, &linked(first, &chain));
    }

    /// Puts the same request into the first queue `count` times, without a turn. Returns the
    /// available index behind them.
    pub fn offer(&self, kind: u32, first: u64, len: usize, count: u16) -> u16 {
        let place = Place { queue: 0, slot: 0 };
        put_header(&self.mem, place.header(), kind, 0, first);
        let (at, len) = (place.data().0, u32::try_from(len).unwrap());
        let data = if kind == VIRTIO_BLK_T_IN { writable(at, len) } else { readable(at, len) };
        self.describe(place, Some(data));
        let State { offered, .. } = &mut *self.state.lock().unwrap();
        for _ in 0..count {
            RINGS.offer(&self.mem, offered[0], 0);
            offered[0] = offered[0].wrapping_add(1);
        }
        RINGS.set_available_index(&self.mem, offered[0]);
        offered[0]
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
