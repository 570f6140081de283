//! A guest's disk over the backend's executor: there is no front end and no queue.

use crate::split_ring::put_header;
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_simulation::oracle::{Refusal, Ring};
use ring_simulation::requests::Backend;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event, new_page};
use shared_block_ring::device::{DeviceError, Operation};
use shared_block_ring::format::{Geometry, SectorSize, Side};
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, MappedDevice, OpenOptions, RingDevice, create,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use vhost_device_blockring::daemon::ring::{guest_side, unknown};
use vhost_device_blockring::data_path::counters::Counters;
use vhost_device_blockring::data_path::executor::{Executor, Replay, Service};
use vhost_device_blockring::data_path::fault::Losses;
use vhost_device_blockring::data_path::guard::{Guard, Judgement, Reason};
use vhost_device_blockring::data_path::region::Region;
use vhost_device_blockring::data_path::request::Request;
use vhost_device_blockring::data_path::request_state::{Answer, RequestState};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const DATA_AT: u64 = 0x10000;
pub const STATUS_AT: u64 = 0x1000;
pub const IDLE: u32 = 3 << 13;

/// How long reads are held.
pub const HOLD: Duration = Duration::from_secs(5);

/// A guest's disk: a file ring of ten data sectors behind an executor.
pub struct Disk {
    /// The ring's file, in memory.
    file: File,
    /// Path by which the file is opened again.
    pub path: PathBuf,
    pub guest: Side,
    pub geometry: Geometry,
    pub executor: Executor,
    pub counters: Arc<Counters>,
    /// The host's end of the bell that the executor rings.
    pub host: Bell,
    pub request: Request,
    /// Whether the next request of the disk's one queue may be a replayed one.
    pub replay: Replay,
    pub mem: GuestMemoryMmap,
}

impl Disk {
    pub fn new(guest: Side) -> Self {
        Self::with(guest, false, 13, |_| ())
    }

    /// Makes a disk; `prepare` works on the ring's file before it is served.
    pub fn with(guest: Side, read_only: bool, sectors: usize, prepare: impl Fn(&PathBuf)) -> Self {
        let geometry = Geometry::new(SectorSize::DEFAULT, sectors as u64).unwrap();
        let (file, path) = in_memory(&vec![0; sectors * 512]);
        create(&OpenOptions::default().open(&path).unwrap(), CreateOptions::default()).unwrap();
        prepare(&path);
        Self::serve(guest, (read_only, true), geometry, file, path)
    }

    /// Makes a plain disk: no guard, and no ring on it.
    pub fn plain(guest: Side) -> Self {
        let geometry = Geometry::new(SectorSize::DEFAULT, 13).unwrap();
        let (file, path) = in_memory(&vec![0; 13 * 512]);
        Self::serve(guest, (false, false), geometry, file, path)
    }

    /// Makes a disk of a ring in this state.
    pub fn of(ring: &Ring) -> Self {
        let size = SectorSize::new(u32::try_from(ring.size).unwrap()).unwrap();
        Self::holding(ring.guest, size, &ring.bytes)
    }

    /// Makes a disk of a ring that these bytes hold.
    pub fn holding(guest: Side, size: SectorSize, bytes: &[u8]) -> Self {
        let geometry = Geometry::new(size, (bytes.len() / size.bytes()) as u64).unwrap();
        let (file, path) = in_memory(bytes);
        Self::serve(guest, (false, true), geometry, file, path)
    }

    fn serve(
        guest: Side,
        (read_only, guarded): (bool, bool),
        geometry: Geometry,
        file: File,
        path: PathBuf,
    ) -> Self {
        let device = MappedDevice::new(open(&path), "ring", geometry).unwrap();
        let (uuid, state) = if guarded { guest_side(&device, guest).unwrap() } else { unknown() };
        let guard = Guard::new(geometry, guest, uuid);
        let losses = Losses::new().unwrap();
        let region = Region::new(open(&path), "ring", geometry, &losses).unwrap();
        let counters = Arc::new(Counters::default());
        let (page, event) = (new_page().unwrap(), new_event().unwrap());
        let bell = |event| Bell::new(&page, event, Sleeper::Host).unwrap();
        let (rung, host) = (bell(event.try_clone().unwrap()), bell(event));
        let serial = *b"ring\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let service = Service { read_only, guarded, serial };
        let executor = Executor::new(region, guard, service, Arc::clone(&counters), rung, state);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let (request, replay) = (Request::default(), Replay::default());
        Self { file, path, guest, geometry, executor, counters, host, request, replay, mem }
    }

    pub fn run(
        &mut self,
        kind: u32,
        priority: u32,
        sector: u64,
        len: usize,
        hold: Option<Duration>,
    ) -> RequestState {
        put_header(&self.mem, 0, kind, priority, sector);
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
            Ok(()) => {
                let state = self.executor.execute(&self.mem, &self.request, &self.replay, hold);
                self.answered(state)
            }
            Err(reason) => self.executor.refuse(reason),
        }
    }

    /// Goes on with a write whose items are not all walked.
    pub fn resume(&mut self, judgement: Box<Judgement>) -> RequestState {
        let state = self.executor.resume(&self.mem, &self.request, &self.replay, judgement);
        self.answered(state)
    }

    fn answered(&mut self, state: RequestState) -> RequestState {
        if answer(&state).is_some() {
            self.replay.answered();
        }
        state
    }

    /// Returns why a request was refused; `None` if it was carried out.
    fn refusal(&self, before: &[u64], state: &RequestState) -> Option<Reason> {
        let refused = |reason: &Reason| self.counters.refused(*reason) > before[reason.index()];
        let reason = Reason::ALL.into_iter().find(refused);
        match state {
            RequestState::Done(answer) if answer.is_ok() => assert_eq!(reason, None),
            RequestState::Done(Answer::FAILED) => {
                assert!(reason.is_some(), "failed without a reason");
            }
            other => panic!("{other:?}"),
        }
        reason
    }

    fn refused_so_far(&self) -> Vec<u64> {
        Reason::ALL.map(|reason| self.counters.refused(reason)).into()
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> RequestState {
        self.mem.write_slice(bytes, GuestAddress(DATA_AT)).unwrap();
        self.run(VIRTIO_BLK_T_OUT, 0, sector, bytes.len(), Some(HOLD))
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let state = self.run(VIRTIO_BLK_T_IN, 0, sector, len, Some(HOLD));
        let all = u32::try_from(len).unwrap();
        assert_eq!(answer(&state), Some(Answer::ok(all)), "{state:?}");
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(DATA_AT)).unwrap();
        bytes
    }

    /// A refused write must be counted under its reason, and leave the region as it was.
    pub fn refused(&mut self, sector: u64, bytes: &[u8], reason: Reason) {
        let (before, count) = (self.bytes(), self.counters.refused(reason));
        let state = self.write(sector, bytes);
        assert_eq!(answer(&state), Some(Answer::FAILED), "{state:?} instead of {reason}");
        assert_eq!(self.counters.refused(reason), count + 1, "{}", self.counters.to_json());
        assert!(self.bytes() == before, "{reason} changed the region");
    }

    pub fn accepted(&mut self, sector: u64, bytes: &[u8]) {
        let state = self.write(sector, bytes);
        assert!(is_ok(&state), "{state:?}: {}", self.counters.to_json());
        let at = usize::try_from(sector * 512).unwrap();
        assert!(self.bytes()[at..at + bytes.len()] == *bytes, "not stored");
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.geometry.total_bytes()).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Returns a function that opens the ring as processes on the host do.
    pub fn outside(&self) -> impl Fn() -> MappedDevice + use<> {
        let (path, geometry) = (self.path.clone(), self.geometry);
        move || MappedDevice::new(open(&path), "ring", geometry).unwrap()
    }

    pub fn consumer(&self) -> Consumer<MappedDevice> {
        Consumer::attach(self.outside()(), "queue", "consumer").unwrap()
    }
}

impl Backend for Disk {
    fn write(&mut self, unit: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let before = self.refused_so_far();
        let state = Self::write(self, unit, bytes);
        self.refusal(&before, &state).map_or(Ok(()), |reason| Err(reason.name()))
    }

    fn read(&mut self, unit: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        let before = self.refused_so_far();
        let state = self.run(VIRTIO_BLK_T_IN, 0, unit, len, Some(HOLD));
        if let Some(reason) = self.refusal(&before, &state) {
            return Err(reason.name());
        }
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(DATA_AT)).unwrap();
        Ok(bytes)
    }

    fn restarts(&mut self, waiting: bool) {
        self.replay = Replay::at_start(waiting);
    }

    fn host_stores(&mut self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        Self::bytes(self)
    }
}

/// Returns the answer to a request that has one.
pub fn answer(state: &RequestState) -> Option<Answer> {
    match state {
        RequestState::Done(answer) => Some(*answer),
        _ => None,
    }
}

/// Returns whether a request was carried out and answered.
pub fn is_ok(state: &RequestState) -> bool {
    answer(state).is_some_and(Answer::is_ok)
}

/// Makes a file in memory that holds these bytes. Returns it, and its path.
fn in_memory(bytes: &[u8]) -> (File, PathBuf) {
    let file = File::from(memfd_create("ring", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

pub fn open(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// The disk as a driver in the guest uses it: every request passes the guard.
pub struct Driver<'a> {
    disk: Mutex<&'a mut Disk>,
    /// Whether a refusal is an I/O error, as in a guest. Otherwise it fails the test.
    distrusted: bool,
    /// Called before each request, for events outside the guest.
    before: Mutex<Box<dyn FnMut() + Send + 'a>>,
}

impl<'a> Driver<'a> {
    pub fn new(disk: &'a mut Disk, before: impl FnMut() + Send + 'a) -> Self {
        Self { disk: Mutex::new(disk), distrusted: false, before: Mutex::new(Box::new(before)) }
    }

    /// Makes a driver of a guest whose requests may be refused.
    pub fn distrusted(disk: &'a mut Disk, before: impl FnMut() + Send + 'a) -> Self {
        Self { distrusted: true, ..Self::new(disk, before) }
    }

    /// Starts the queue again, with a request that waits.
    pub fn restarted(&self) {
        self.disk.lock().unwrap().replay = Replay::at_start(true);
    }

    fn disk(&self) -> MutexGuard<'_, &'a mut Disk> {
        (self.before.lock().unwrap())();
        self.disk.lock().unwrap()
    }
}

impl BlockDevice for &Driver<'_> {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        self.disk.lock().unwrap().geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let mut sector = first;
        for buf in bufs {
            let bytes = self.disk().read(sector, buf.len());
            buf.copy_from_slice(&bytes);
            sector += bytes.len() as u64 / 512;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let mut disk = self.disk();
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let mut state = disk.write(first, &bytes);
        while let RequestState::Walking(write) = state {
            state = disk.resume(write);
        }
        let done = is_ok(&state);
        if !done && self.distrusted {
            let refused = nix::errno::Errno::EIO;
            return Err(DeviceError::new(self.name(), Operation::Write, refused).at_sector(first));
        }
        assert!(done, "{state:?}: {}", disk.counters.to_json());
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        drop(self.disk());
        Ok(())
    }
}

impl RingDevice for &Driver<'_> {}
