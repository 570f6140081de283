//! A scripted front end: guest memory in a memfd, a split ring written by hand, and no virtual
//! machine.

use crate::process::PATIENCE;
use crate::split_ring::{Desc, Rings, describe, linked, put_header, readable, writable};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, Consumer, Position, Producer, RingDevice, UnixDevice};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The daemon's sockets, in its folder: for front ends, and for processes of the host.
pub const SOCKET: &str = "s";
pub const HAND_OVER: &str = "c";

/// Bytes of guest memory, from address 0 on.
pub const MEMORY: u64 = 4 << 20;

pub const HEADER: u64 = 0x5000;
pub const STATUS: u64 = 0x6000;
pub const DATA: u64 = 0x1_0000;
/// Place of an indirect table of up to 65,535 entries.
pub const TABLE: u64 = 0x20_0000;

pub const RINGS: Rings = Rings { size: 256, descriptors: 0x1000, available: 0x3000, used: 0x4000 };

/// Rings of a queue in which nothing is offered.
fn idle_rings(queue: usize) -> Rings {
    let start = 0x30_0000 + 0x4000 * queue as u64;
    Rings { size: 64, descriptors: start, available: start + 0x1000, used: start + 0x2000 }
}

/// Bytes of the ring's sectors.
const SECTOR: usize = 512;

/// A status that no device gives.
const UNANSWERED: u8 = 0xaa;

/// A front end that uses one of its queues.
pub struct FrontEnd {
    pub wire: Frontend,
    pub memory: GuestMemoryMmap,
    pub kick_event: EventFd,
    pub call: EventFd,
    /// The features that were negotiated.
    pub features: u64,
    pub rings: Rings,
    /// The number of the queue.
    queue: usize,
    available: u16,
    used: u16,
}

/// Makes guest memory that can be shared with a backend.
pub fn region(start: u64, len: u64) -> GuestRegionMmap {
    let name = c"guest memory";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    let offset = FileOffset::new(file, 0);
    let mapping = MmapRegion::from_file(offset, usize::try_from(len).unwrap()).unwrap();
    GuestRegionMmap::new(mapping, GuestAddress(start)).unwrap()
}

pub fn described(region: &GuestRegionMmap) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
}

impl FrontEnd {
    /// Connects to the daemon in that folder, shares memory and starts the queue.
    pub fn new(folder: &impl AsRef<Path>) -> Self {
        Self::on_queue(folder, 0)
    }

    /// Connects to the daemon in that folder, shares memory, and starts the queue of that number,
    /// which is used, behind others in which nothing is ever offered.
    pub fn on_queue(folder: &impl AsRef<Path>, queue: usize) -> Self {
        let mut front_end = Self::connect(folder);
        for idle in 0..queue {
            front_end.queue = idle;
            front_end.start(idle_rings(idle));
        }
        front_end.queue = queue;
        front_end.start(RINGS);
        front_end
    }

    /// Connects to the daemon in that folder, and shares memory.
    pub fn connect(folder: &impl AsRef<Path>) -> Self {
        // Without event indices: every completion interrupts, every kick counts.
        Self::without(folder, 1 << VIRTIO_RING_F_EVENT_IDX)
    }

    /// Connects without some of the features that are offered.
    pub fn without(folder: &impl AsRef<Path>, unwanted: u64) -> Self {
        let wire = UnixStream::connect(folder.as_ref().join(SOCKET)).unwrap();
        Self::over(wire, unwanted)
    }

    /// Negotiates over a connection, without some of the features that are offered, and shares
    /// memory.
    pub fn over(wire: UnixStream, unwanted: u64) -> Self {
        // One more than there are, so that a test can ask for it.
        let mut wire = Frontend::from_stream(wire, 65);
        wire.set_owner().unwrap();
        let features = wire.get_features().unwrap() & !unwanted;
        wire.set_features(features).unwrap();
        let protocol = wire.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        wire.set_protocol_features(protocol).unwrap();
        // From here on each message is answered before the next is sent.
        wire.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let memory = GuestMemoryMmap::from_regions(vec![region(0, MEMORY)]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick_event, call) = (event(), event());
        let (rings, queue, available, used) = (RINGS, 0, 0, 0);
        let front_end =
            Self { wire, memory, kick_event, call, features, rings, queue, available, used };
        front_end.set_memory();
        front_end
    }

    /// The number of queues that were started.
    pub fn queues(&self) -> u64 {
        self.queue as u64 + 1
    }

    /// Shares the memory with the backend.
    pub fn set_memory(&self) {
        let regions: Vec<_> = self.memory.iter().map(described).collect();
        self.wire.set_mem_table(&regions).unwrap();
    }

    fn user_address(&self, guest: u64) -> u64 {
        let start = self.memory.iter().next().unwrap();
        described(start).userspace_addr + (guest - start.start_addr().raw_value())
    }

    /// Sets size and addresses of the rings.
    pub fn place(&mut self, rings: Rings) -> vhost::Result<()> {
        self.rings = rings;
        self.wire.set_vring_num(self.queue, rings.size)?;
        self.address()
    }

    /// Sets the addresses of the rings alone.
    pub fn address(&self) -> vhost::Result<()> {
        let rings = self.rings;
        let config = VringConfigData {
            queue_max_size: 1024,
            queue_size: rings.size,
            desc_table_addr: self.user_address(rings.descriptors),
            used_ring_addr: self.user_address(rings.used),
            avail_ring_addr: self.user_address(rings.available),
            ..VringConfigData::default()
        };
        self.wire.set_vring_addr(self.queue, &config)
    }

    /// Starts the queue with empty rings.
    pub fn start(&mut self, rings: Rings) {
        for at in [rings.available, rings.used] {
            // A ring that is to be refused may lie outside of the memory.
            let _ = self.memory.write_obj(0u32, GuestAddress(at));
        }
        (self.available, self.used) = (0, 0);
        self.place(rings).unwrap();
        self.run_from(0);
    }

    /// Starts the queue whose rings are placed, at that index.
    pub fn run_from(&mut self, base: u16) {
        self.wire.set_vring_base(self.queue, base).unwrap();
        self.wire.set_vring_call(self.queue, &self.call).unwrap();
        self.wire.set_vring_kick(self.queue, &self.kick_event).unwrap();
        self.wire.set_vring_enable(self.queue, true).unwrap();
    }

    /// Stops the queue, as QEMU does when the guest resets the device. Returns the base.
    pub fn stop(&mut self) -> u32 {
        self.wire.set_vring_enable(self.queue, false).unwrap();
        self.wire.get_vring_base(self.queue).unwrap()
    }

    /// Has the guest reset the device, and its driver begin anew.
    pub fn reset(&mut self) {
        self.stop();
        self.start(RINGS);
    }

    /// Sets the event for interrupts again, as QEMU does when the guest masks or unmasks one.
    pub fn change_call(&mut self) {
        self.wire.set_vring_call(self.queue, &self.call).unwrap();
    }

    /// Returns the number of interrupts since the last look.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    pub fn kick(&self) {
        self.kick_event.write(1).unwrap();
    }

    /// Writes descriptors to a table in guest memory, from entry `first` on.
    pub fn describe(&self, table: u64, first: u16, descriptors: &[Desc]) {
        describe(&self.memory, table, first, descriptors);
    }

    /// Puts a chain into the available ring, without a kick.
    pub fn offer(&mut self, head: u16) {
        self.rings.offer(&self.memory, self.available, head);
        self.set_available(self.available.wrapping_add(1));
    }

    /// Sets the available index.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        self.rings.set_available_index(&self.memory, index);
    }

    pub fn available(&self) -> u16 {
        self.available
    }

    pub fn used_index(&self) -> u16 {
        self.rings.used_index(&self.memory)
    }

    /// Waits for the next completion, and returns its head and length.
    pub fn completion(&mut self) -> Option<(u32, u32)> {
        self.completion_within(PATIENCE)
    }

    pub fn completion_within(&mut self, time: Duration) -> Option<(u32, u32)> {
        let start = Instant::now();
        while self.used_index() == self.used {
            if start.elapsed() > time {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let completion = self.rings.completion(&self.memory, self.used);
        self.used = self.used.wrapping_add(1);
        Some(completion)
    }

    /// Writes the header of a request, and a status that no device gives.
    pub fn header(&self, kind: u32, sector: u64) {
        self.header_at(HEADER, kind, sector);
        self.memory.write_obj(UNANSWERED, GuestAddress(STATUS)).unwrap();
    }

    /// Writes the header of a request elsewhere.
    pub fn header_at(&self, at: u64, kind: u32, sector: u64) {
        put_header(&self.memory, at, kind, 0, sector);
    }

    pub fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Has one chain carried out, alone in the queue, and returns its status byte.
    pub fn chain(&mut self, descriptors: &[Desc]) -> u8 {
        self.rings.describe(&self.memory, 0, &linked(0, descriptors));
        self.offer(0);
        self.kick();
        assert_eq!(self.completion().expect("no answer").0, 0);
        self.status()
    }

    /// Has one request of the usual form carried out, and returns its status byte.
    pub fn request(&mut self, kind: u32, sector: u64, data: Desc) -> u8 {
        self.header(kind, sector);
        let mut chain = vec![readable(HEADER, 16), data, writable(STATUS, 1)];
        if data.len == 0 {
            chain.remove(1);
        }
        self.chain(&chain)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        self.request(VIRTIO_BLK_T_OUT, sector, readable(DATA, u32::try_from(bytes.len()).unwrap()))
    }

    pub fn read(&mut self, sector: u64, bytes: &mut [u8]) -> u8 {
        let len = u32::try_from(bytes.len()).unwrap();
        let status = self.request(VIRTIO_BLK_T_IN, sector, writable(DATA, len));
        self.memory.read_slice(bytes, GuestAddress(DATA)).unwrap();
        status
    }

    /// Has a producer in the guest publish an item, and returns the position behind that.
    pub fn publish(&mut self, item: &str) -> Position {
        let driver = Driver(Mutex::new(self));
        let mut producer = Producer::attach(&driver, "q", "guest").unwrap();
        let end = producer.push(item).unwrap();
        producer.advance(end).unwrap();
        end
    }

    /// Must be served: one sector is read.
    pub fn works(mut self) {
        self.start(RINGS);
        assert_eq!(self.read(0, &mut [0; SECTOR]), 0);
    }

    /// Passes an item from a producer in the guest to a consumer on the host of the daemon in that
    /// folder.
    pub fn honest(&mut self, folder: &impl AsRef<Path>) {
        assert_eq!(self.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA, 20)), 0);
        let end = self.publish("an honest item");
        let device = UnixDevice::connect(folder.as_ref().join(HAND_OVER), Role::Consumer).unwrap();
        let mut consumer = Consumer::attach(device, "q", "host").unwrap();
        let mut at = consumer.position();
        while at < end {
            let item = consumer.pop(at).unwrap();
            // What an attack has published in front of the item does no harm.
            assert!(item.next < end || item.bytes == b"an honest item");
            at = item.next;
        }
        assert_eq!(at, end);
        consumer.advance(end).unwrap();
    }
}

/// The disk as the guest's driver uses it.
struct Driver<'a>(Mutex<&'a mut FrontEnd>);

impl BlockDevice for &Driver<'_> {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(SectorSize::DEFAULT, (64 << 10) / SECTOR as u64).unwrap()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let mut sector = first;
        for buf in bufs {
            assert_eq!(self.0.lock().unwrap().read(sector, buf), 0, "read {sector}");
            sector += (buf.len() / SECTOR) as u64;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        assert_eq!(self.0.lock().unwrap().write(first, &bytes), 0, "write {first}");
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        assert_eq!(self.0.lock().unwrap().request(VIRTIO_BLK_T_FLUSH, 0, readable(0, 0)), 0);
        Ok(())
    }
}

impl RingDevice for &Driver<'_> {}
