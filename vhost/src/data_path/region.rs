//! The ring's bytes, as backend and host process share them: a mapped file or block device.

use crate::data_path::fault::{Losses, Owner, Watched};
use crate::data_path::request::Segment;
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use shared_block_ring::device::{
    BlockDevice, DeviceError, LockRange, MappedDevice, Memory, Orders, Prefault, RangeLock,
};
use shared_block_ring::format::{Geometry, Side, encode_suspend};
use shared_block_ring::wait::Limits;
use shared_block_ring::{Position, RingDevice};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::fence;
use vm_memory::bitmap::{BitmapSlice, MS};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// Bytes of guest memory looked at in one go: what most looks are for. To clear a larger array
/// costs more than those looks.
const CHUNK: usize = 512;

/// Bytes of a cache line, and the most lines that are prefetched for a write.
const LINE: u64 = 64;
const LINES: u64 = 8;

/// The largest file on a disk that is read as a whole when the daemon starts; of larger ones what
/// is needed is read then.
const MAX_READ_AHEAD: u64 = 1 << 30;

/// The one mapping that requests are answered from.
#[derive(Debug)]
pub struct Region {
    device: Watched<MappedDevice>,
    /// Room for a sector in front of the data area.
    room: RefCell<Vec<u8>>,
}

/// Guest memory that a request names is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAddress;

impl Region {
    /// Maps `file`. What is lost of it is noted in `losses`, which are the ring's.
    pub fn new(
        file: impl Into<Arc<File>>,
        name: &str,
        geometry: Geometry,
        losses: &Losses,
    ) -> Result<Self, DeviceError> {
        let room = RefCell::new(vec![0; geometry.sector_size().bytes()]);
        let device = MappedDevice::new(file, name, geometry)?;
        Ok(Self { device: Watched::new(device, Owner::Ring, losses), room })
    }

    /// The losses of the ring's memory, and of its front end's.
    pub fn losses(&self) -> &Losses {
        self.device.losses()
    }

    /// Has it in memory before the first request. What cannot be done costs time later, and is told
    /// of.
    ///
    /// # Errors
    /// Those of [`Limits::check_now`].
    pub fn prefault(&self, file: &File, huge: bool, limits: &Limits<'_>) -> io::Result<()> {
        let volatile = fstatfs(file)
            .is_ok_and(|about| [HUGETLBFS_MAGIC, TMPFS_MAGIC].contains(&about.filesystem_type()));
        if !volatile && self.geometry().total_bytes() > MAX_READ_AHEAD {
            return Ok(());
        }
        let memory = self.device.memory();
        if let Err(e) = memory.prefault(Prefault::new().huge(huge).for_writing(volatile), limits) {
            limits.check_now()?;
            let what = if huge { "have huge pages under" } else { "have all of" };
            log::warn!("{}: cannot {what} the region in memory: {e}", self.device.name());
        }
        Ok(())
    }

    /// The ring's shape.
    pub fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Sets whether the host wants the producer to stop. Returns false, with nothing changed, while
    /// another process edits the sector: whoever may read the file can keep that lock for ever, and
    /// the queue waits for nobody.
    pub fn suspend(&self, suspend: bool) -> Result<bool, DeviceError> {
        let edit = LockRange::Edit(Side::Consumer);
        let Some(_alone) = RangeLock::acquire_now(&*self.device, edit)? else { return Ok(false) };
        self.device.edit_pointer(Side::Consumer, &mut |sector| encode_suspend(sector, suspend))?;
        Ok(true)
    }

    /// The device below, for the ring library.
    pub fn device(&self) -> &MappedDevice {
        &self.device
    }

    /// One whole pointer sector or sector 0, its position read in one piece.
    pub fn read_control_sector(&self, index: u64, sector: &mut [u8]) {
        // Within the mapping by construction: a geometry has at least four sectors.
        let read = self.device.read(index, &mut [IoSliceMut::new(sector)]);
        debug_assert!(read.is_ok());
    }

    /// One side's position; `None` when it is no position.
    pub fn position(&self, side: Side) -> Option<Position> {
        Position::new(self.device.memory().load_u64(self.geometry().pointer_start(side)))
    }

    /// The beginning of one side's pointer sector: its position, and the word with its flag.
    pub fn pointer_words(&self, side: Side) -> [u64; 2] {
        let (memory, start) = (self.device.memory(), self.geometry().pointer_start(side));
        [memory.load_u64(start), memory.load_u64(start + 8)]
    }

    /// Prefetches the first cache lines of `len` bytes at a device offset, for a write. Any offset
    /// will do.
    #[inline]
    pub fn prefetch_to_write(&self, offset: u64, len: u64) {
        let start = self.device.memory().addresses().start;
        let start = start.wrapping_add(usize::try_from(offset).unwrap_or(0));
        for line in 0..len.div_ceil(LINE).min(LINES) {
            let line = usize::try_from(line * LINE).unwrap_or(0);
            ring_os::prefetch_to_write(std::ptr::without_provenance(start.wrapping_add(line)));
        }
    }

    /// Stores a whole sector in front of the data area: of a pointer sector, what comes with the
    /// position first.
    pub fn store_control_sector(&self, index: u64, sector: &[u8]) {
        let stored = self.device.write(index, &[IoSlice::new(sector)]);
        debug_assert!(stored.is_ok());
    }

    /// Stores one side's pointer sector, but for its flag.
    pub fn store_beside_flag(&self, side: Side, sector: &[u8]) {
        self.device.write_beside_flag(side, sector);
    }

    /// Four bytes at a device offset that is a multiple of 4.
    pub fn word(&self, offset: u64) -> [u8; 4] {
        self.device.memory().load_u32(offset).to_le_bytes()
    }

    /// The mapping, for copies that need no detour.
    fn bytes(&self, range: Range<u64>) -> Option<VolatileSlice<'_>> {
        let memory = self.device.memory();
        let len = memory.addresses().len();
        // SAFETY: the bytes are those of a mapping that lives as long as `self`, and that is
        // shared: nobody has it but as memory that changes at any time, as this slice does.
        let whole = unsafe { VolatileSlice::new(memory.as_ptr().as_ptr(), len) };
        let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        whole.subslice(usize::try_from(range.start).ok()?, len).ok()
    }

    /// Copies device bytes to the guest.
    pub fn to_guest<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        data: &[Segment],
        start: u64,
    ) -> Result<(), BadAddress> {
        let len: usize = data.iter().map(|segment| segment.len).sum();
        if start >= self.geometry().data_start() {
            each_slice(mem, data, 0..len as u64, |slice, within| {
                let at = start + within;
                let ours = self.bytes(at..at + slice.len() as u64).ok_or(BadAddress)?;
                ours.copy_to_volatile_slice(slice);
                Ok(())
            })?;
            fence(Orders::RING.after_read);
            return Ok(());
        }
        each_chunk(data, 0..len as u64, |address, within, len| {
            let mut chunk = [0; CHUNK];
            self.read(start + within, &mut chunk[..len]);
            mem.write_slice(&chunk[..len], address).map_err(|_| BadAddress)
        })
    }

    /// Device bytes as the guest may see them: positions in one piece.
    fn read(&self, start: u64, bytes: &mut [u8]) {
        let size = self.geometry().sector_size().bytes();
        let mut at = 0;
        // Chunks are cut at multiples of the sector size or within one sector; heads are few, and
        // whole ones cheap.
        while at < bytes.len() && start + (at as u64) < self.geometry().data_start() {
            let offset = start + at as u64;
            let index = offset / size as u64;
            let within = usize::try_from(offset % size as u64).unwrap_or(0);
            let mut sector = self.room.borrow_mut();
            self.read_control_sector(index, &mut sector);
            let len = (size - within).min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&sector[within..within + len]);
            at += len;
        }
        self.device.memory().read(start + at as u64, &mut bytes[at..]);
    }

    /// Copies bytes `part` of the request's data (counted from its start) to `private`.
    pub fn from_guest<M: GuestMemoryBackend>(
        mem: &M,
        data: &[Segment],
        part: Range<u64>,
        private: &mut [u8],
    ) -> Result<(), BadAddress> {
        let start = part.start;
        each_chunk(data, part, |address, within, len| {
            let at = usize::try_from(within - start).unwrap_or(usize::MAX);
            mem.read_slice(&mut private[at..at + len], address).map_err(|_| BadAddress)
        })
    }

    /// Stores bytes `part` of the request's data at device offset `start`, which is in the data
    /// area.
    pub fn store<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        data: &[Segment],
        part: Range<u64>,
        start: u64,
    ) -> Result<(), BadAddress> {
        let base = part.start;
        // Behind everything that was stored before: what is free now was consumed before.
        fence(Orders::RING.before_write);
        each_slice(mem, data, part, |slice, within| {
            let at = start + (within - base);
            let ours = self.bytes(at..at + slice.len() as u64).ok_or(BadAddress)?;
            slice.copy_to_volatile_slice(ours);
            Ok(())
        })
    }

    /// Copies `data` to device offset `start`, if that is in the data area with all of it.
    #[inline]
    pub fn store_slice<B: BitmapSlice>(&self, data: &VolatileSlice<'_, B>, start: u64) {
        if let Some(ours) = self.data(start, data.len()) {
            // As in `store`.
            fence(Orders::RING.before_write);
            data.copy_to_volatile_slice(ours);
        }
    }

    /// Copies from device offset `start` to `data`, if that is in the data area with all of it.
    #[inline]
    pub fn load_slice<B: BitmapSlice>(&self, start: u64, data: &VolatileSlice<'_, B>) {
        if let Some(ours) = self.data(start, data.len()) {
            ours.copy_to_volatile_slice(data.clone());
            fence(Orders::RING.after_read);
        }
    }

    /// Some bytes of the data area.
    #[inline]
    fn data(&self, start: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let end = start.checked_add(len as u64)?;
        if start >= self.geometry().data_start() { self.bytes(start..end) } else { None }
    }

    /// Whether bytes `part` of the request's data are what the region holds from device offset
    /// `start` on.
    pub fn same<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        data: &[Segment],
        part: Range<u64>,
        start: u64,
    ) -> Result<bool, BadAddress> {
        let base = part.start;
        let mut same = true;
        each_chunk(data, part, |address, within, len| {
            let (mut theirs, mut ours) = ([0; CHUNK], [0; CHUNK]);
            mem.read_slice(&mut theirs[..len], address).map_err(|_| BadAddress)?;
            self.read(start + (within - base), &mut ours[..len]);
            same &= theirs[..len] == ours[..len];
            Ok(())
        })?;
        Ok(same)
    }
}

/// The stretches of `part` that lie in one segment each: guest address, place within the data,
/// length.
fn stretches(
    data: &[Segment],
    part: Range<u64>,
) -> impl Iterator<Item = Result<(GuestAddress, u64, usize), BadAddress>> {
    let mut end = 0;
    data.iter().filter_map(move |segment| {
        let start = end;
        end += segment.len as u64;
        let from = part.start.clamp(start, end);
        let to = part.end.clamp(from, end);
        let stretch = || {
            let address = segment.address.checked_add(from - start).ok_or(BadAddress)?;
            Ok((address, from, usize::try_from(to - from).map_err(|_| BadAddress)?))
        };
        (from < to).then(stretch)
    })
}

/// Calls `f` with each stretch of `part` that lies side by side in our address space, and its place
/// within the data.
fn each_slice<'m, M: GuestMemoryBackend>(
    mem: &'m M,
    data: &[Segment],
    part: Range<u64>,
    mut f: impl FnMut(VolatileSlice<'m, MS<'m, M>>, u64) -> Result<(), BadAddress>,
) -> Result<(), BadAddress> {
    for stretch in stretches(data, part) {
        let (address, mut within, len) = stretch?;
        for slice in mem.get_slices(address, len) {
            let slice = slice.map_err(|_| BadAddress)?;
            let next = within + slice.len() as u64;
            f(slice, within)?;
            within = next;
        }
    }
    Ok(())
}

/// Calls `f` with the guest address, the place within the data, and the length of each piece of
/// `part`: no more than [`CHUNK`], in one segment.
fn each_chunk(
    data: &[Segment],
    part: Range<u64>,
    mut f: impl FnMut(GuestAddress, u64, usize) -> Result<(), BadAddress>,
) -> Result<(), BadAddress> {
    for stretch in stretches(data, part) {
        let (address, within, len) = stretch?;
        for at in (0..len).step_by(CHUNK) {
            let address = address.checked_add(at as u64).ok_or(BadAddress)?;
            f(address, within + at as u64, CHUNK.min(len - at))?;
        }
    }
    Ok(())
}
