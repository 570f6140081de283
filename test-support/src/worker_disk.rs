//! A guest's disk over the backend's worker: the calling thread drives both sides of its queues,
//! and there is no front end.

use crate::executor_disk::{Disk, open};
use crate::split_ring::{Desc, Rings, linked, put_header, readable, writable};
use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::kicks::Kicks;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::queue_set::{MAX_QUEUES, QueueSet};
use vhost_device_blockring::data_path::queue_thread::{QueueThread, SharedWorker};
use vhost_device_blockring::data_path::rate::Rates;
use vhost_device_blockring::data_path::shared_queue::{Links, Memory};
use vhost_device_blockring::data_path::waiters::Waiters;
use vhost_device_blockring::data_path::worker::{Share, TurnEnd, Worker};
use vhost_device_blockring::front_end::vring::Vring;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress};

/// Requests that a queue holds.
pub const SIZE: u16 = 16;

/// Descriptors of a queue: a request has up to four.
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
    guest: Guest,
    waiters: Waiters,
    vrings: Vec<Vring>,
    watch: Watch,
    worker: Mutex<Worker>,
}

/// A guest's disk whose queues a thread of the backend drives, as in the daemon.
pub struct Running {
    guest: Guest,
    kicks: Vec<OwnedFd>,
    thread: QueueThread,
}

/// A guest's disk whose queues threads drive that serve other disks as well.
pub struct Sharing {
    guest: Guest,
    kicks: Vec<OwnedFd>,
    worker: Arc<SharedWorker>,
}

/// The guest's side of the queues.
pub struct Guest {
    mem: GuestMemory,
    /// The available index of each queue.
    offered: Mutex<Vec<u16>>,
}

impl Deref for Direct {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Deref for Running {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Deref for Sharing {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
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

    fn first_descriptor(self) -> u16 {
        4 * self.slot
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
    /// A write from two buffers.
    WriteSplit(&'a [u8], &'a [u8]),
    /// Room for so many bytes.
    Read(usize),
    Flush,
}

/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(3600);

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
        let flusher =
            Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                .unwrap();
        Self::flushing(disk, watch, flusher)
    }

    /// A disk with one queue, whose region is made durable by `flusher`.
    pub fn flushing(disk: Disk, watch: Watch, flusher: Flusher) -> Self {
        Self { watch, ..Self::with_queues(disk, 1, flusher) }
    }

    /// A disk with several queues, all of them running.
    pub fn with_queues(disk: Disk, queues: usize, flusher: Flusher) -> Self {
        Self::serving(Guest::new(queues), disk, queues, flusher)
    }

    /// Returns the guest's disk behind the next backend: this one was killed. It finds in guest
    /// memory what this one has left.
    #[must_use]
    pub fn killed(self, disk: Disk, flusher: Flusher) -> Self {
        let Self { guest, vrings, watch, .. } = self;
        Self { watch, ..Self::serving(guest, disk, vrings.len(), flusher) }
    }

    fn serving(guest: Guest, disk: Disk, queues: usize, flusher: Flusher) -> Self {
        let geometry = disk.geometry;
        let hold = Duration::from_secs(1);
        let mut worker = worker(disk, flusher, hold, Polling::For(Duration::ZERO));
        let waiters = Waiters::new().unwrap();
        let links = Links {
            waiters: waiters.clone(),
            kicks: Kicks::new().unwrap(),
            signaller: signaller(),
        };
        let vrings = guest.connect(&mut worker, &links, queues);
        let watch: Watch = Box::new(|_, _, turn: &mut dyn FnMut()| turn());
        Self { geometry, guest, waiters, vrings, watch, worker: Mutex::new(worker) }
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
        self.worker.lock().unwrap().set_write_through(on);
    }

    /// Sets the limits of the ring.
    pub fn limit(&self, rates: Rates) {
        self.worker.lock().unwrap().limit(rates);
    }

    /// Runs one turn of the worker, after kicks of all queues.
    pub fn turn(&self) -> TurnEnd {
        self.turn_after(QueueSet::first(MAX_QUEUES))
    }

    /// Runs one turn of the worker as beside others of the same thread, after kicks of all queues.
    pub fn fair_turn(&self) -> TurnEnd {
        let kicked = QueueSet::first(MAX_QUEUES);
        self.worker.lock().unwrap().turn(&self.waiters, kicked, Share::Fair(None))
    }

    /// Runs one turn of the worker, after kicks of these queues.
    pub fn turn_after(&self, kicked: QueueSet) -> TurnEnd {
        self.worker.lock().unwrap().turn(&self.waiters, kicked, Share::Whole)
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
        self.vrings[queue].set_ready(false);
        self.worker.lock().unwrap().stop(queue);
        self.vrings[queue].base()
    }

    /// Starts a stopped queue.
    pub fn start(&self, queue: usize) {
        self.vrings[queue].set_ready(true);
    }
}

/// The signaller of all disks: the kernel takes tens of milliseconds to end one.
fn signaller() -> Arc<Signaller> {
    static SHARED: LazyLock<Arc<Signaller>> = LazyLock::new(|| Arc::new(Signaller::new().unwrap()));
    Arc::clone(&SHARED)
}

fn worker(disk: Disk, flusher: Flusher, hold: Duration, polling: Polling) -> Worker {
    let bell = Bell::new(&new_page().unwrap(), new_event().unwrap(), Sleeper::Backend).unwrap();
    Worker::new(disk.executor, disk.counters, flusher, bell, hold, polling)
}

impl Running {
    /// Starts the backend's thread for a disk with so many running queues. It holds a read for
    /// longer than any test runs.
    pub fn start(disk: Disk, queues: usize, flusher: Flusher, polling: Polling) -> Self {
        let signaller = Arc::new(Signaller::new().unwrap());
        let Sharing { guest, kicks, worker } =
            Sharing::with(disk, queues, flusher, polling, &signaller);
        Self { guest, kicks, thread: QueueThread::start(worker, None).unwrap() }
    }

    /// Ends the backend's thread, and the flush that is under way.
    ///
    /// # Errors
    ///
    /// A flush has failed.
    pub fn finish(self) -> io::Result<()> {
        self.thread.finish()
    }

    /// The event by which the driver kicks a queue.
    pub fn kick(&self, queue: usize) -> &OwnedFd {
        &self.kicks[queue]
    }
}

impl Sharing {
    /// Makes a disk with one running queue, whose [`worker`](Self::worker) nobody drives yet. It
    /// holds a read for longer than any test runs.
    pub fn new(disk: Disk, flusher: Flusher, polling: Polling) -> Self {
        Self::with(disk, 1, flusher, polling, &signaller())
    }

    fn with(
        disk: Disk,
        queues: usize,
        flusher: Flusher,
        polling: Polling,
        signaller: &Arc<Signaller>,
    ) -> Self {
        let guest = Guest::new(queues);
        let worker = Arc::new(SharedWorker::new(worker(disk, flusher, LONG, polling)).unwrap());
        let links = worker.links(signaller);
        let vrings = guest.connect(&mut worker.lock(), &links, queues);
        let kick = |vring: &Vring| {
            let event = new_event().unwrap();
            vring.set_kick(Some(event.try_clone().unwrap().into()));
            event
        };
        let kicks = vrings.iter().map(kick).collect();
        Self { guest, kicks, worker }
    }

    /// The worker, for the threads that are to serve it.
    pub fn worker(&self) -> Arc<SharedWorker> {
        Arc::clone(&self.worker)
    }

    /// The event by which the driver kicks its queue.
    pub fn kick(&self) -> &OwnedFd {
        &self.kicks[0]
    }
}

impl Guest {
    fn new(queues: usize) -> Self {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), queues << 20)]).unwrap();
        Self { mem, offered: Mutex::new(vec![0; queues]) }
    }

    /// Has `worker` serve the queues.
    fn connect(&self, worker: &mut Worker, links: &Links, queues: usize) -> Vec<Vring> {
        let memory = Memory::new(self.mem.clone());
        let new = |queue| {
            let vring = Vring::new(queue, memory.clone(), DESCRIPTORS, links.clone()).unwrap();
            let rings = rings(queue);
            vring.set_size(DESCRIPTORS);
            vring.set_addresses(rings.descriptors, rings.available, rings.used).unwrap();
            vring.find_used_index().unwrap();
            vring.set_ready(true);
            vring.set_enabled(true);
            vring
        };
        let vrings: Vec<_> = (0..queues).map(new).collect();
        worker.connect(vrings.iter().map(|vring| vring.queue().clone()).collect());
        worker.set_memory(&memory);
        vrings
    }

    /// Returns a queue's used index.
    pub fn used(&self, queue: usize) -> u16 {
        rings(queue).used_index(&self.mem)
    }

    /// Sets a queue's used index, as a backend that was killed left it.
    pub fn set_used(&self, queue: usize, index: u16) {
        rings(queue).set_used_index(&self.mem, index);
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

    /// Puts a request into a queue without a kick.
    pub fn put(&self, queue: usize, priority: u32, first: u64, payload: Payload<'_>) -> Place {
        let mut offered = self.offered.lock().unwrap();
        let place = Place { queue, slot: offered[queue] % SIZE };
        let at = place.data().0;
        let written = |at, bytes: &[u8]| {
            self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
            readable(at, u32::try_from(bytes.len()).unwrap())
        };
        let (kind, data) = match payload {
            Payload::Write(bytes) => (VIRTIO_BLK_T_OUT, vec![written(at, bytes)]),
            Payload::WriteSplit(first, second) => {
                (VIRTIO_BLK_T_OUT, vec![written(at, first), written(at + DATA_STEP / 2, second)])
            }
            Payload::Read(len) => {
                (VIRTIO_BLK_T_IN, vec![writable(at, u32::try_from(len).unwrap())])
            }
            Payload::Flush => (VIRTIO_BLK_T_FLUSH, Vec::new()),
        };
        put_header(&self.mem, place.header(), kind, priority, first);
        self.describe(place, data);
        let rings = rings(queue);
        rings.offer(&self.mem, offered[queue], place.first_descriptor());
        offered[queue] = offered[queue].wrapping_add(1);
        rings.set_available_index(&self.mem, offered[queue]);
        place
    }

    fn describe(&self, place: Place, data: Vec<Desc>) {
        self.mem.write_obj(UNANSWERED, place.status()).unwrap();
        let mut chain = vec![readable(place.header(), 16)];
        chain.extend(data);
        chain.push(writable(place.status().0, 1));
        let first = place.first_descriptor();
        rings(place.queue).describe(&self.mem, first, &linked(first, &chain));
    }

    /// Puts the same request into the first queue `count` times, without a kick. Returns the
    /// available index behind them.
    pub fn offer(&self, kind: u32, first: u64, len: usize, count: u16) -> u16 {
        let place = Place { queue: 0, slot: 0 };
        put_header(&self.mem, place.header(), kind, 0, first);
        let (at, len) = (place.data().0, u32::try_from(len).unwrap());
        let data = if kind == VIRTIO_BLK_T_IN { writable(at, len) } else { readable(at, len) };
        self.describe(place, vec![data]);
        let mut offered = self.offered.lock().unwrap();
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
            self.guest.mem.read_slice(buf, GuestAddress(DATA)).unwrap();
            first += buf.len() as u64 / 512;
        }
        Ok(())
    }

    fn write(&self, mut first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        for buf in bufs {
            self.guest.mem.write_slice(buf, GuestAddress(DATA)).unwrap();
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
