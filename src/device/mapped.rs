//! A ring in a shared mapping: both ends see each other's stores, with no system call.

use super::{
    BlockDevice, DeviceError, Forbidden, LockRange, Mapping, Memory, Operation, RangeLock,
    RingDevice,
};
use crate::format::{
    EXTENSION, FLAG_AT, Geometry, Lap, POINTER_BYTES, Position, SLOT_BYTES, SLOTS_AT, Side,
    TEXT_AT, u64_at,
};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes in a cache line, the unit that processors exchange.
const CACHE_LINE: usize = 64;

/// A file (on disk, tmpfs, or a memfd) mapped shared, or other shared memory. Flushing syncs the
/// file.
///
/// Reads are copies. [`lend_in_place`](Self::lend_in_place) avoids the copy, if the caller vouches
/// for all that can change the ring.
///
/// ```
/// use shared_block_ring::device::Mapping;
/// use shared_block_ring::format::{Geometry, SectorSize};
/// use shared_block_ring::{Consumer, MappedDevice, Producer, create};
/// use std::sync::Arc;
///
/// let geometry = Geometry::new(SectorSize::DEFAULT, 2048)?;
/// let memory = Arc::new(Mapping::anonymous(geometry.total_bytes())?);
/// let device = || MappedDevice::over(Arc::clone(&memory), "memory", geometry);
/// create(&device(), Default::default())?;
/// let mut producer = Producer::attach(device(), "jobs", "main")?;
/// let mut consumer = Consumer::attach(device(), "jobs", "worker")?; // in another thread, perhaps
/// let end = producer.push("hello")?;
/// producer.advance(end)?;
/// assert_eq!(consumer.pop(consumer.position())?.bytes, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MappedDevice<M = Mapping> {
    memory: M,
    name: String,
    geometry: Geometry,
    /// Scratch: the present bytes of a pointer sector that is being written.
    scratch: RefCell<Vec<u8>>,
    /// Set once published items are lent in place.
    frozen: Option<Frozen>,
}

/// The state of lending from a ring whose published bytes do not change.
#[derive(Debug, Default)]
struct Frozen {
    /// The producer's position as it was seen last: it only grows.
    published: u64,
    lap: Lap,
}

impl MappedDevice {
    /// Maps `file`, which must be as large as `geometry` and stay so; `name` is for messages.
    ///
    /// # Errors
    /// The operating system's, and a file that is too short.
    pub fn new(
        file: impl Into<Arc<File>>,
        name: &str,
        geometry: Geometry,
    ) -> Result<Self, DeviceError> {
        Self::mapped(Mapping::new(file, geometry.total_bytes()), name, geometry)
    }

    /// Maps `file` for reading, as for [`Control`](crate::Control) and [`check`](crate::check()).
    /// Every write is [`Forbidden::ReadOnly`].
    ///
    /// # Errors
    /// The operating system's, and a file that is too short.
    pub fn read_only(
        file: impl Into<Arc<File>>,
        name: &str,
        geometry: Geometry,
    ) -> Result<Self, DeviceError> {
        Self::mapped(Mapping::read_only(file, geometry.total_bytes()), name, geometry)
    }

    fn mapped(
        memory: io::Result<Mapping>,
        name: &str,
        geometry: Geometry,
    ) -> Result<Self, DeviceError> {
        let memory = memory.map_err(|e| DeviceError::new(name, Operation::Map, e))?;
        Ok(Self::over(memory, name, geometry))
    }
}

impl<M: Memory> MappedDevice<M> {
    /// Makes a device over `memory`, which is as large as `geometry`.
    pub fn over(memory: M, name: &str, geometry: Geometry) -> Self {
        let scratch = RefCell::new(vec![0; geometry.sector_size().bytes()]);
        Self { memory, name: name.to_owned(), geometry, scratch, frozen: None }
    }

    /// Has [`lend`](RingDevice::lend) lend published items where they lie from now on: a consumer
    /// over this device copies nothing.
    ///
    /// This is `unsafe`, since the library cannot know who else changes the memory:
    ///
    /// ```compile_fail,E0133
    /// # use shared_block_ring::MappedDevice;
    /// fn without_a_word(device: MappedDevice) -> MappedDevice {
    ///     device.lend_in_place()
    /// }
    /// ```
    ///
    /// A loan borrows the device exclusively, so that it ends before the device is used again:
    ///
    /// ```compile_fail,E0502
    /// # use shared_block_ring::{BlockDevice, MappedDevice, Position, RingDevice};
    /// # fn lent(device: &mut MappedDevice, from: Position, to: Position) {
    /// let item = device.lend(from, to);
    /// device.write(2, &[]).unwrap(); // frees the item, perhaps
    /// println!("{item:?}");
    /// # }
    /// ```
    ///
    /// # Safety
    /// The memory holds a ring. For as long as this device lives, everybody else who can change the
    /// memory, in this process or another, by a mapping, a descriptor or the file's name,
    /// - leaves every byte of the data area from the consumer's position up to the producer's as it
    ///   is: nobody writes there, punches a hole, or cuts the file short and makes it longer again
    ///   (a [`Producer`](crate::Producer) over the same memory does write there while it advances:
    ///   it repeats the published bytes of the sector in which they end);
    /// - stores a producer's position only after the bytes in front of it, with release ordering,
    ///   and none that is smaller than the one before, or more than the ring's capacity ahead of
    ///   the consumer;
    /// - does not change the consumer's position: that is for the consumer over this device alone.
    #[must_use]
    pub unsafe fn lend_in_place(mut self) -> Self {
        // SAFETY: the caller vouches for the same.
        unsafe { self.start_lending() };
        self
    }

    /// Begins to lend, as [`lend_in_place`](Self::lend_in_place) does for a device by value.
    ///
    /// # Safety
    /// The contract of [`lend_in_place`](Self::lend_in_place).
    pub(super) unsafe fn start_lending(&mut self) {
        self.frozen = Some(Frozen::default());
    }

    /// Returns the memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn bounds(&self, operation: Operation, first: u64, len: usize) -> Result<u64, DeviceError> {
        let size = u64::from(self.geometry.sector_size().get());
        let start = first.checked_mul(size);
        start
            .filter(|start| {
                start.checked_add(len as u64).is_some_and(|end| end <= self.geometry.total_bytes())
            })
            .ok_or_else(|| {
                let beyond = io::ErrorKind::UnexpectedEof;
                DeviceError::new(&*self.name, operation, beyond).at_sector(first)
            })
    }

    /// Returns the first byte of a write, which must be within bounds and to writable memory.
    fn to_write(&self, first: u64, len: usize) -> Result<u64, DeviceError> {
        let start = self.bounds(Operation::Write, first, len)?;
        if self.memory.is_writable(start, len) {
            Ok(start)
        } else {
            Err(Forbidden::ReadOnly.error(&self.name, first))
        }
    }

    /// Reads a sector in front of the data area, its position first: what it promises must be read
    /// after it.
    fn read_pointer_at(&self, start: u64, sector: &mut [u8]) {
        let position = self.memory.load_u64(start);
        self.memory.read(start, sector);
        sector[..8].copy_from_slice(&position.to_le_bytes());
    }

    /// Writes a whole pointer sector but for its flag, which others may change meanwhile.
    ///
    /// # Panics
    /// If `sector` is not as long as a sector.
    #[doc(hidden)] // for the region of `vhost-device-blockring`
    pub fn write_beside_flag(&self, side: Side, sector: &[u8]) {
        let start = self.geometry.pointer_start(side);
        let mut old = self.scratch.borrow_mut();
        self.read_pointer_at(start, &mut old);
        // What does not change is not stored.
        old[FLAG_AT] = sector[FLAG_AT];
        self.store_pointer(start, &old, sector);
    }

    /// Stores what of a sector in front of the data area is to change from `old` to `new`.
    ///
    /// A writer that dies between any two stores leaves the old sector or the new one: first what
    /// is beside position and flag, a slot absent until it is whole; then the flag; then the
    /// position. What does not change is not stored, since position and flag can have two writers.
    fn store_pointer(&self, start: u64, old: &[u8], new: &[u8]) {
        let stored = |range: std::ops::Range<usize>| {
            if new[range.clone()] != old[range.clone()] {
                self.memory.write(start + range.start as u64, &new[range]);
            }
        };
        // The text, line by line: one that does not change stays with whoever has read it.
        for line in (EXTENSION.end..new.len()).step_by(CACHE_LINE) {
            stored(line..new.len().min(line + CACHE_LINE));
        }
        stored(EXTENSION.start..SLOTS_AT[0]);
        stored(SLOTS_AT[1] + SLOT_BYTES..EXTENSION.end);
        for at in SLOTS_AT {
            if new[at..at + SLOT_BYTES] != old[at..at + SLOT_BYTES] {
                self.memory.store_u64(start + at as u64, 0);
                stored(at + 8..at + SLOT_BYTES);
                self.memory.store_u64(start + at as u64, u64_at(new, at));
            }
        }
        if new[FLAG_AT] != old[FLAG_AT] {
            self.memory.store_u8(start + FLAG_AT as u64, new[FLAG_AT]);
        }
        if new[..8] != old[..8] {
            self.memory.store_u64(start, u64_at(new, 0));
        }
    }
}

impl<M: Memory> BlockDevice for MappedDevice<M> {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let size = self.geometry.sector_size().bytes();
        let mut at = self.bounds(Operation::Read, first, bufs.iter().map(|buf| buf.len()).sum())?;
        for buf in bufs {
            let head = self.geometry.data_start().saturating_sub(at).min(buf.len() as u64);
            let (heads, data) = buf.split_at_mut(usize::try_from(head).unwrap_or(usize::MAX));
            for (index, sector) in heads.chunks_mut(size).enumerate() {
                self.read_pointer_at(at + (index * size) as u64, sector);
            }
            self.memory.read(at + head, data);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let size = self.geometry.sector_size().bytes();
        let mut at = self.to_write(first, bufs.iter().map(|buf| buf.len()).sum())?;
        for buf in bufs {
            let head = self.geometry.data_start().saturating_sub(at).min(buf.len() as u64);
            let (heads, data) = buf.split_at(usize::try_from(head).unwrap_or(usize::MAX));
            self.memory.write(at + head, data);
            for (index, new) in heads.chunks(size).enumerate() {
                let start = at + (index * size) as u64;
                let mut old = self.scratch.borrow_mut();
                let old = &mut old[..new.len()];
                self.read_pointer_at(start, old);
                self.store_pointer(start, old, new);
            }
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.memory.sync().map_err(|e| DeviceError::new(&*self.name, Operation::Flush, e))
    }
}

impl<M: Memory> RingDevice for MappedDevice<M> {
    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        let (geometry, memory) = (self.geometry, &self.memory);
        let frozen = self.frozen.as_mut()?;
        if to.get() > frozen.published {
            let published = memory.load_u64(geometry.pointer_start(Side::Producer));
            frozen.published = published.max(frozen.published);
        }
        let freed = memory.load_u64(geometry.pointer_start(Side::Consumer));
        let offset = frozen.lap.data_offset(geometry, from);
        let len = to.since(from)?;
        let capacity = geometry.capacity().get();
        let unread = from.get() >= freed && to.get() <= frozen.published;
        if !unread || to.get() - freed > capacity || len > capacity - offset {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        // SAFETY: nobody stores to these bytes while they are lent:
        // - they lie between the consumer's position and the producer's, which were read just now.
        //   Whoever called `lend_in_place` has vouched that others leave those as they are while
        //   the consumer's position stays, and that this is ours alone to store;
        // - this device stores through `&self` only, and the loan borrows it exclusively.
        // They were stored before the producer's position was, by release and acquire.
        unsafe { memory.bytes(geometry.data_start() + offset, len) }
    }

    fn peek_position(&self, side: Side) -> Option<u64> {
        Some(self.memory.load_u64(self.geometry.pointer_start(side)))
    }

    /// Without the text, which takes most of the cache lines of a sector.
    fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.read_pointer_at(self.geometry.pointer_start(side), &mut sector[..TEXT_AT]);
        Ok(())
    }

    fn reads_are_free(&self) -> bool {
        true
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.lock_file()
    }

    /// Without a lock, if it is not the flag that changes: flag and position are stores of their
    /// own.
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let start = self.to_write(side.sector(), POINTER_BYTES)?;
        let mut old = [0; POINTER_BYTES];
        let mut edited = || {
            self.read_pointer_at(start, &mut old);
            let mut new = old;
            edit(&mut new);
            (old, new)
        };
        let (mut old, mut new) = edited();
        // The ring's consumer can be one on the same block device, which writes the sector as a
        // whole, and holds this lock for it.
        let mut exclusive = None;
        if old[FLAG_AT] != new[FLAG_AT] {
            exclusive = Some(RangeLock::acquire(self, LockRange::Edit(side))?);
            (old, new) = edited();
        }
        self.store_pointer(start, &old, &new);
        drop(exclusive);
        Ok(())
    }
}
