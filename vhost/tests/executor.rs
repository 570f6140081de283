//! Requests against a region, with no front end between: what a guest may change, and what it may not.
#![allow(clippy::unwrap_used)]

use shared_block_ring::device::DeviceError;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::format::{Geometry, PointerSector, SectorSize, Side};
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, MappedDevice, OpenOptions, Position, Producer, create,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use vhost_device_blockring::counters::Counters;
use vhost_device_blockring::executor::{Executor, Outcome, Service};
use vhost_device_blockring::guard::{Guard, Reason};
use vhost_device_blockring::region::Region;
use vhost_device_blockring::request::Request;
use vhost_device_blockring::ring::guest_side;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const DATA_AT: u64 = 0x10000;
const STATUS_AT: u64 = 0x1000;
const IDLE: u32 = 3 << 13;

/// A guest's disk: a file ring of ten data sectors behind an executor.
struct Disk {
    _dir: tempfile::TempDir,
    path: PathBuf,
    geometry: Geometry,
    executor: Executor,
    counters: Arc<Counters>,
    request: Request,
    mem: GuestMemoryMmap,
}

impl Disk {
    fn new(guest: Side) -> Self {
        Self::with(guest, false, 13, |_| ())
    }

    /// `prepare` works on the ring's file before it is served.
    fn with(guest: Side, read_only: bool, sectors: usize, prepare: impl Fn(&PathBuf)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        std::fs::write(&path, vec![0; sectors * 512]).unwrap();
        create(&OpenOptions::default().open(&path).unwrap(), CreateOptions::default()).unwrap();
        prepare(&path);
        let geometry = Geometry::new(SectorSize::DEFAULT, sectors as u64).unwrap();
        let device = MappedDevice::new(open(&path), "ring", geometry).unwrap();
        let (uuid, mine) = guest_side(&device, guest).unwrap();
        let guard = Guard::new(geometry, guest, uuid);
        let region = Region::new(open(&path), "ring", geometry).unwrap();
        let counters = Arc::new(Counters::default());
        let bell = Bell::new(&new_page().unwrap(), new_event().unwrap(), Sleeper::Host).unwrap();
        let serial = *b"ring\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let service = Service { read_only, serial };
        let executor = Executor::new(region, guard, service, Arc::clone(&counters), bell, mine);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self { _dir: dir, path, geometry, executor, counters, request: Request::default(), mem }
    }

    fn run(&mut self, kind: u32, priority: u32, sector: u64, len: usize, patient: bool) -> Outcome {
        self.mem.write_obj(kind, GuestAddress(0)).unwrap();
        self.mem.write_obj(priority, GuestAddress(4)).unwrap();
        self.mem.write_obj(sector, GuestAddress(8)).unwrap();
        let writes = if kind == VIRTIO_BLK_T_OUT { 0 } else { VRING_DESC_F_WRITE };
        let descriptor = |address, len: usize, flags: u32| {
            Descriptor::new(address, u32::try_from(len).unwrap(), u16::try_from(flags).unwrap(), 0)
        };
        let chain = [
            descriptor(0, 16, VRING_DESC_F_NEXT),
            descriptor(DATA_AT, len, VRING_DESC_F_NEXT | writes),
            descriptor(STATUS_AT, 1, VRING_DESC_F_WRITE),
        ];
        match self.request.parse(&self.mem, chain.into_iter()) {
            Ok(()) => self.executor.execute(&self.mem, &self.request, patient),
            Err(reason) => self.executor.refuse(reason),
        }
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Outcome {
        self.mem.write_slice(bytes, GuestAddress(DATA_AT)).unwrap();
        self.run(VIRTIO_BLK_T_OUT, 0, sector, bytes.len(), true)
    }

    fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let outcome = self.run(VIRTIO_BLK_T_IN, 0, sector, len, true);
        assert!(matches!(outcome, Outcome::Done(done) if done as usize == len), "{outcome:?}");
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(DATA_AT)).unwrap();
        bytes
    }

    /// A refused write must be counted under its reason, and leave the region as it was.
    fn refused(&mut self, sector: u64, bytes: &[u8], reason: Reason) {
        let (before, count) = (self.bytes(), self.counters.refused(reason));
        let outcome = self.write(sector, bytes);
        assert!(matches!(outcome, Outcome::Failed), "{outcome:?} instead of {reason}");
        assert_eq!(self.counters.refused(reason), count + 1, "{}", self.counters.to_json());
        assert!(self.bytes() == before, "{reason} changed the region");
    }

    fn accepted(&mut self, sector: u64, bytes: &[u8]) {
        let outcome = self.write(sector, bytes);
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}: {}", self.counters.to_json());
        let at = usize::try_from(sector * 512).unwrap();
        assert!(self.bytes()[at..at + bytes.len()] == *bytes, "not stored");
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn consumer(&self) -> Consumer<MappedDevice> {
        let device = MappedDevice::new(open(&self.path), "ring", self.geometry).unwrap();
        Consumer::attach(device, "queue", "consumer").unwrap()
    }
}

fn open(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn at(bytes: u64) -> Position {
    Position::new(bytes).unwrap()
}

fn pointer(side: Side, position: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    PointerSector { position: at(position), flag: false }.encode(
        side,
        Some(("q", "guest")),
        &mut sector,
    );
    sector
}

/// One sector that starts with an item of `len` bytes of `byte`.
fn item(len: u32, byte: u8) -> Vec<u8> {
    let mut sector = len.to_le_bytes().to_vec();
    sector.extend(std::iter::repeat_n(byte, len as usize));
    sector.resize(512, 0xff);
    sector
}

#[test]
fn an_honest_producer_is_served() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    let mut consumer = disk.consumer();
    assert!(consumer.pop(Position::ZERO).is_err(), "visible before its advance");
    disk.accepted(1, &pointer(Side::Producer, 12));
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, [7; 8]);
    consumer.advance(at(12)).unwrap();
    assert_eq!(disk.read(2, 512), disk.bytes()[1024..1536]);
    assert_eq!(disk.counters.published.get(), 1);
}

/// The disk as a driver in the guest has it: every request goes past the guard, and a refusal is an I/O error.
struct Driver<'a>(Mutex<&'a mut Disk>);

impl BlockDevice for &Driver<'_> {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        self.0.lock().unwrap().geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let mut sector = first;
        for buf in bufs {
            let bytes = self.0.lock().unwrap().read(sector, buf.len());
            buf.copy_from_slice(&bytes);
            sector += bytes.len() as u64 / 512;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let mut disk = self.0.lock().unwrap();
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let mut outcome = disk.write(first, &bytes);
        while let Outcome::Walking(write) = outcome {
            let disk = &mut **disk;
            outcome = disk.executor.resume(&disk.mem, &disk.request, write);
        }
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}: {}", disk.counters.to_json());
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Pushes numbered items of growing length in batches, attaching anew now and then; each batch is popped with steps of `stride` items.
fn laps<P: BlockDevice, C: BlockDevice>(
    producer: impl Fn() -> P,
    consumer: impl Fn() -> C,
    stride: u32,
) {
    let mut next = 0u32;
    for lap in 0..40u8 {
        let mut pushing = Producer::attach(producer(), "q", "sender").unwrap();
        for batch in 0..3 {
            let items: Vec<_> = (0..10).map(|n| vec![lap; usize::from(lap + n + batch)]).collect();
            let end = pushing.push_batch(&items).unwrap();
            pushing.advance(end).unwrap();
        }
        drop(pushing);
        let mut popping = Consumer::attach(consumer(), "q", "receiver").unwrap();
        let mut at = popping.position();
        for number in 0..30u8 {
            let item = popping.pop(at).unwrap();
            assert_eq!(item.bytes.len(), usize::from(lap + number % 10 + number / 10));
            at = item.next;
            next += 1;
            if next.is_multiple_of(stride) {
                popping.advance(at).unwrap();
            }
        }
        popping.advance(at).unwrap();
        let facts = popping.debug_info().unwrap();
        assert_eq!(
            (facts.producer_items, facts.consumer_items),
            (Some(next.into()), Some(next.into()))
        );
        assert_eq!(popping.unchecked(), 0);
    }
}

#[test]
fn what_the_library_writes_in_a_guest_is_never_refused() {
    for (guest, stride) in
        [(Side::Producer, 1), (Side::Producer, 7), (Side::Consumer, 1), (Side::Consumer, 7)]
    {
        let mut disk = Disk::new(guest);
        let mapped = (disk.path.clone(), disk.geometry);
        let host = || MappedDevice::new(open(&mapped.0), "ring", mapped.1).unwrap();
        let shared = Driver(Mutex::new(&mut disk));
        match guest {
            Side::Producer => laps(|| &shared, host, stride),
            Side::Consumer => laps(host, || &shared, stride),
        }
    }
}

#[test]
fn what_is_not_the_guests_cannot_change() {
    let mut disk = Disk::new(Side::Producer);
    let image = disk.bytes();
    disk.accepted(0, &image[..512]);
    disk.accepted(2, &image[1024..1536]);
    let mut signature = image[..512].to_vec();
    signature[40] ^= 1;
    disk.refused(0, &signature, Reason::Signature);
    disk.refused(2, &pointer(Side::Consumer, 4), Reason::HostPointer);
    disk.refused(0, &vec![0; 512], Reason::Signature);
}

#[test]
fn published_items_are_frozen() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    disk.refused(3, &item(8, 8), Reason::PublishedData);
    // The rest of the sector is free, and the published part unchanged.
    let mut sector = item(8, 7);
    sector[12..16].copy_from_slice(&4u32.to_le_bytes());
    disk.accepted(3, &sector);
}

#[test]
fn a_pointer_must_be_true() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.refused(1, &pointer(Side::Producer, 16), Reason::ItemFraming);
    disk.refused(1, &pointer(Side::Producer, 8), Reason::ItemFraming);
    disk.refused(1, &pointer(Side::Producer, 5124), Reason::PointerBeyond);
    let mut bytes = pointer(Side::Producer, 12);
    bytes[8] = 0;
    disk.refused(1, &bytes, Reason::PointerFlag);
    bytes[8] = 2;
    bytes[0] = 13;
    disk.refused(1, &bytes, Reason::PointerMisaligned);
    bytes[0] = 12;
    bytes[100] = 1;
    disk.refused(1, &bytes, Reason::PointerExtension);
    disk.accepted(1, &pointer(Side::Producer, 12));
    disk.refused(1, &pointer(Side::Producer, 0), Reason::PointerBackwards);
    disk.accepted(1, &pointer(Side::Producer, 12));
}

#[test]
fn a_write_across_pointer_and_data_is_judged_as_the_sequence_of_its_sectors() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    let image = disk.bytes();
    // Sector 1 publishes the item, so that sector 3 behind it may not change it any more.
    let write = |data: &[u8]| [&pointer(Side::Producer, 12)[..], &image[1024..1536], data].concat();
    disk.refused(1, &write(&item(8, 8)), Reason::PublishedData);
    disk.accepted(1, &write(&item(8, 7)));
}

#[test]
fn a_stale_page_has_its_own_reason() {
    let mut disk = Disk::new(Side::Producer);
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    let cached = disk.bytes()[..4096].to_vec();
    let mut consumer = disk.consumer();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(at(12)).unwrap();
    disk.refused(0, &cached, Reason::BufferedPage);
    let fresh = disk.bytes()[..4096].to_vec();
    disk.accepted(0, &fresh);
}

#[test]
fn a_guest_consumer_only_moves_its_pointer() {
    let publish = |path: &PathBuf| {
        let mut producer =
            Producer::attach(OpenOptions::default().open(path).unwrap(), "q", "host").unwrap();
        let end = producer.push_batch(&["first", "second"]).unwrap();
        producer.advance(end).unwrap();
    };
    let mut disk = Disk::with(Side::Consumer, false, 13, publish);
    disk.refused(1, &pointer(Side::Producer, 0), Reason::HostPointer);
    disk.refused(3, &item(5, 0), Reason::ForeignData);
    disk.refused(2, &pointer(Side::Consumer, 8), Reason::ItemFraming);
    disk.refused(2, &pointer(Side::Consumer, 28), Reason::PointerBeyond);
    disk.accepted(2, &pointer(Side::Consumer, 12));
    disk.accepted(2, &pointer(Side::Consumer, 24));
    disk.refused(2, &pointer(Side::Consumer, 12), Reason::PointerBackwards);
}

#[test]
fn a_read_only_disk_refuses_every_write() {
    let mut disk = Disk::with(Side::Producer, true, 13, |_| ());
    disk.refused(3, &item(8, 7), Reason::ReadOnly);
    let same = disk.bytes()[..512].to_vec();
    disk.refused(0, &same, Reason::ReadOnly);
}

#[test]
fn requests_end_where_the_device_ends() {
    let mut disk = Disk::new(Side::Producer);
    disk.refused(13, &[0; 512], Reason::OutOfRange);
    disk.refused(12, &[0; 1024], Reason::OutOfRange);
    disk.refused(u64::MAX / 512, &[0; 512], Reason::OutOfRange);
    disk.refused(3, &[0; 100], Reason::OutOfRange);
    assert!(matches!(disk.run(VIRTIO_BLK_T_IN, 0, 13, 512, true), Outcome::Failed));
}

#[test]
fn other_requests() {
    let mut disk = Disk::new(Side::Producer);
    assert!(matches!(disk.run(VIRTIO_BLK_T_GET_ID, 0, 0, 20, true), Outcome::Done(20)));
    assert_eq!(disk.mem.read_obj::<[u8; 4]>(GuestAddress(DATA_AT)).unwrap(), *b"ring");
    assert!(matches!(disk.run(VIRTIO_BLK_T_FLUSH, 0, 0, 0, true), Outcome::Flush));
    assert!(matches!(disk.run(11, 0, 0, 16, true), Outcome::Unsupported));
}

#[test]
fn an_idle_read_is_told_something_new_or_held() {
    let mut disk = Disk::new(Side::Producer);
    let idle = |disk: &mut Disk, patient| disk.run(VIRTIO_BLK_T_IN, IDLE, 2, 512, patient);
    assert!(matches!(idle(&mut disk, true), Outcome::Done(512)), "told nothing before");
    assert!(matches!(idle(&mut disk, true), Outcome::Hold));
    // Ordinary reads, and reads of other sectors, are answered at once and tell nothing.
    disk.read(2, 512);
    assert!(matches!(disk.run(VIRTIO_BLK_T_IN, IDLE, 1, 512, true), Outcome::Done(512)));
    assert!(matches!(idle(&mut disk, true), Outcome::Hold));
    assert!(matches!(idle(&mut disk, false), Outcome::Done(512)), "its time is up");
    disk.accepted(3, &item(8, 7));
    disk.accepted(1, &pointer(Side::Producer, 12));
    let mut consumer = disk.consumer();
    consumer.pop(Position::ZERO).unwrap();
    consumer.advance(at(12)).unwrap();
    assert!(matches!(idle(&mut disk, true), Outcome::Done(512)));
    disk.executor.forget();
    assert!(
        matches!(idle(&mut disk, true), Outcome::Done(512)),
        "a new front end was told nothing"
    );
}

#[test]
fn a_long_batch_is_walked_in_turns() {
    // 65,536 items are the budget of a turn: 300,000 empty ones need five.
    let sectors = 3 + 300_000 * 4 / 512 + 1;
    let mut disk = Disk::with(Side::Producer, false, sectors, |_| ());
    let mut outcome = disk.write(1, &pointer(Side::Producer, 1_200_000));
    let mut turns = 0;
    while let Outcome::Walking(write) = outcome {
        turns += 1;
        outcome = disk.executor.resume(&disk.mem, &disk.request, write);
    }
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    assert_eq!(turns, 4);
}
