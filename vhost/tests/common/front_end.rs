//! A front end by the letter of a script: guest memory in a memfd, a split ring written by hand (virtio 1.3, 2.7), and no virtual
//! machine.

use super::daemon::{PATIENCE, Scene, eventually};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, Consumer, Position, Producer};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of guest memory, from address 0 on.
pub const MEMORY: u64 = 4 << 20;

pub const HEADER: u64 = 0x5000;
pub const STATUS: u64 = 0x6000;
pub const DATA: u64 = 0x1_0000;
/// Room for an indirect table of 65,535 entries.
pub const TABLE: u64 = 0x20_0000;

/// Bytes of the ring's sectors.
const SECTOR: usize = 512;

/// Where the driver puts the three parts of a queue, and how many descriptors it has.
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

pub const RINGS: Rings = Rings { size: 256, descriptors: 0x1000, available: 0x3000, used: 0x4000 };

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub address: u64,
    pub len: u32,
    pub flags: u32,
    pub next: u16,
}

/// Readable by the device.
pub fn readable(address: u64, len: u32) -> Desc {
    Desc { address, len, flags: 0, next: 0 }
}

/// Writable by the device.
pub fn writable(address: u64, len: u32) -> Desc {
    Desc { flags: VRING_DESC_F_WRITE, ..readable(address, len) }
}

/// A table of descriptors.
pub fn indirect(address: u64, len: u32) -> Desc {
    Desc { flags: VRING_DESC_F_INDIRECT, ..readable(address, len) }
}

/// Each with the next one, from `first` on.
pub fn linked(first: u16, descriptors: &[Desc]) -> Vec<Desc> {
    let mut chain = descriptors.to_vec();
    let count = chain.len();
    for (descriptor, next) in chain.iter_mut().zip(first + 1..=u16::MAX).take(count - 1) {
        descriptor.flags |= VRING_DESC_F_NEXT;
        descriptor.next = next;
    }
    chain
}

pub struct FrontEnd {
    pub wire: Frontend,
    pub memory: GuestMemoryMmap,
    pub kick_event: EventFd,
    call: EventFd,
    pub rings: Rings,
    available: u16,
    used: u16,
}

/// Guest memory that can be given to a backend.
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
    /// Connected, with memory and a running queue.
    pub fn new(scene: &Scene) -> Self {
        let mut front_end = Self::connect(scene);
        front_end.start(RINGS);
        front_end
    }

    /// Connected, with memory.
    pub fn connect(scene: &Scene) -> Self {
        let mut wire = Frontend::connect(scene.path("s"), 1).unwrap();
        wire.set_owner().unwrap();
        // All but event indices: every completion interrupts, every kick counts.
        let features = wire.get_features().unwrap() & !(1 << 29);
        wire.set_features(features).unwrap();
        let protocol = wire.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        wire.set_protocol_features(protocol).unwrap();
        // From here on each message is answered before the next is sent.
        wire.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let memory = GuestMemoryMmap::from_regions(vec![region(0, MEMORY)]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick_event, call) = (event(), event());
        let front_end =
            Self { wire, memory, kick_event, call, rings: RINGS, available: 0, used: 0 };
        front_end.set_memory();
        front_end
    }

    /// Tells the backend what memory there is.
    pub fn set_memory(&self) {
        let regions: Vec<_> = self.memory.iter().map(described).collect();
        self.wire.set_mem_table(&regions).unwrap();
    }

    fn user_address(&self, guest: u64) -> u64 {
        let start = self.memory.iter().next().unwrap();
        described(start).userspace_addr + (guest - start.start_addr().raw_value())
    }

    /// Tells the backend where the rings are.
    pub fn place(&mut self, rings: Rings) -> vhost::Result<()> {
        self.rings = rings;
        self.wire.set_vring_num(0, rings.size)?;
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: rings.size,
            desc_table_addr: self.user_address(rings.descriptors),
            used_ring_addr: self.user_address(rings.used),
            avail_ring_addr: self.user_address(rings.available),
            ..VringConfigData::default()
        };
        self.wire.set_vring_addr(0, &config)
    }

    /// Starts the queue with empty rings.
    pub fn start(&mut self, rings: Rings) {
        for at in [rings.available, rings.used] {
            // As much of it as there is.
            let _ = self.memory.write_obj(0u32, GuestAddress(at));
        }
        (self.available, self.used) = (0, 0);
        self.place(rings).unwrap();
        self.wire.set_vring_base(0, 0).unwrap();
        self.wire.set_vring_call(0, &self.call).unwrap();
        self.wire.set_vring_kick(0, &self.kick_event).unwrap();
        self.wire.set_vring_enable(0, true).unwrap();
    }

    /// What QEMU does when the guest resets the device. Where the backend had got to.
    pub fn stop(&mut self) -> u32 {
        self.wire.set_vring_enable(0, false).unwrap();
        self.wire.get_vring_base(0).unwrap()
    }

    /// The guest resets the device, and its driver begins anew.
    pub fn reset(&mut self) {
        self.stop();
        self.start(RINGS);
    }

    /// As QEMU does it when the guest masks or unmasks an interrupt.
    pub fn change_call(&mut self) {
        self.wire.set_vring_call(0, &self.call).unwrap();
    }

    /// Interrupts since the last look.
    pub fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    pub fn kick(&self) {
        self.kick_event.write(1).unwrap();
    }

    /// Kicks, and waits until the backend has looked what it was about.
    pub fn kick_and_wait(&self) {
        let event = format!("/proc/self/fdinfo/{}", self.kick_event.as_raw_fd());
        // It looks after it has heard: when it hears the second kick it has looked after the first.
        for _ in 0..2 {
            self.kick();
            eventually("the kick is heard", || {
                let about = std::fs::read_to_string(&event).unwrap();
                about.lines().any(|line| {
                    line.strip_prefix("eventfd-count:").is_some_and(|count| count.trim() == "0")
                })
            });
        }
    }

    /// Writes descriptors to a table, from `first` on.
    pub fn describe(&self, table: u64, first: u16, descriptors: &[Desc]) {
        for (index, descriptor) in (first..=u16::MAX).zip(descriptors) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
            bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
            let flags = u16::try_from(descriptor.flags).unwrap();
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..16].copy_from_slice(&descriptor.next.to_le_bytes());
            self.memory.write_slice(&bytes, GuestAddress(table + u64::from(index) * 16)).unwrap();
        }
    }

    /// Puts a chain into the available ring, without a kick.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.rings.size);
        let at = GuestAddress(self.rings.available + 4 + slot * 2);
        self.memory.write_obj(head, at).unwrap();
        self.set_available(self.available.wrapping_add(1));
    }

    /// Sets the available index.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        let at = GuestAddress(self.rings.available + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub fn available(&self) -> u16 {
        self.available
    }

    pub fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(self.rings.used + 2), Ordering::Acquire).unwrap()
    }

    /// The next completion: head and length.
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
        let slot = u64::from(self.used % self.rings.size);
        let at = self.rings.used + 4 + slot * 8;
        self.used = self.used.wrapping_add(1);
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((word(at), word(at + 4)))
    }

    /// The header of a request, as the device reads it.
    pub fn header(&self, kind: u32, sector: u64) {
        self.header_at(HEADER, kind, sector);
        self.memory.write_obj(0xaau8, GuestAddress(STATUS)).unwrap();
    }

    /// The same elsewhere.
    pub fn header_at(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(at)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
    }

    pub fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// One chain, alone in the queue: its status byte, if it is answered.
    pub fn chain(&mut self, descriptors: &[Desc]) -> u8 {
        self.describe(self.rings.descriptors, 0, &linked(0, descriptors));
        self.offer(0);
        self.kick();
        assert_eq!(self.completion().expect("no answer").0, 0);
        self.status()
    }

    /// One request of the usual form.
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

    /// A producer in the guest, and an item of its. The position behind that.
    pub fn publish(&mut self, item: &str) -> Position {
        let driver = Driver(Mutex::new(self));
        let mut producer = Producer::attach(&driver, "q", "guest").unwrap();
        let end = producer.push(item).unwrap();
        producer.advance(end).unwrap();
        end
    }

    /// A producer in the guest, a consumer on the host, and an item from one to the other.
    pub fn honest(&mut self, scene: &Scene) {
        assert_eq!(self.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA, 20)), 0);
        let end = self.publish("an honest item");
        let device = scene.connect(Role::Consumer).unwrap();
        let mut consumer = Consumer::attach(device, "q", "host").unwrap();
        let mut at = consumer.position();
        while at < end {
            let item = consumer.pop(at).unwrap();
            // What an attack has published in front of it is no harm.
            assert!(item.next < end || item.bytes == b"an honest item");
            at = item.next;
        }
        assert_eq!(at, end);
        consumer.advance(end).unwrap();
    }
}

/// The disk as the guest's driver has it.
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

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
