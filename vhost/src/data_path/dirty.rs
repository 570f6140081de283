//! The log of the pages of guest memory that the device has written to, while the front end
//! migrates the guest or saves it to a file.

use crate::data_path::fault::{Losses, Owner, Shared, Watched};
use shared_block_ring::device::Mapping;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use vhost_user_backend::bitmap::BitmapReplace;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

/// The most memory regions of a front end, which is the answer to `GET_MAX_MEM_SLOTS`. Each keeps a
/// descriptor.
pub const MAX_REGIONS: usize = 509;

/// Guest memory of a connection.
pub type GuestMemory = GuestMemoryMmap<Dirty>;

/// The dirty bits of one region of guest memory: none until a front end asks for a log, and until
/// then a write costs one load.
#[derive(Debug, Clone, Default)]
pub struct Dirty(Arc<OnceLock<RwLock<Part>>>);

/// The log that a front end has asked for, kept for memory that it shares later. One for each
/// connection.
#[derive(Debug, Clone, Default)]
pub struct DirtyLog(Arc<Mutex<Option<Arc<Log>>>>);

impl DirtyLog {
    /// Attaches every region of `memory` to `log`, in place of the one before. Called by the front
    /// end's thread. A request that is carried out meanwhile is over before the front end's next
    /// message, which sets `VHOST_F_LOG_ALL`, is answered: that one waits for the worker. What is
    /// lost of the log is noted in `losses`, which are those of the front end's ring.
    ///
    /// # Errors
    ///
    /// `log` does not cover all of `memory`; nothing is changed then.
    pub fn begin(&self, memory: &GuestMemory, log: Log, losses: &Losses) -> io::Result<()> {
        let log = Arc::new(log);
        let parts = memory.iter().map(|region| Part::new(region, &log, losses));
        let parts: Vec<_> = parts.collect::<io::Result<_>>()?;
        for (region, part) in memory.iter().zip(parts) {
            MmapRegion::bitmap(region).set(part);
        }
        *self.current() = Some(log);
        Ok(())
    }

    /// Attaches every region of `memory` to the log, if there is one. `losses` are those of
    /// [`begin`](Self::begin).
    ///
    /// # Errors
    ///
    /// The present log does not cover all of `memory`.
    pub fn cover(&self, memory: &GuestMemory, losses: &Losses) -> io::Result<()> {
        let Some(log) = self.current().clone() else { return Ok(()) };
        for region in memory.iter() {
            let bitmap = MmapRegion::bitmap(region);
            if bitmap.0.get().is_none() {
                bitmap.set(Part::new(region, &log, losses)?);
            }
        }
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Log>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dirty {
    /// Marks in this part of a log from now on. The one before is not written to any more.
    fn set(&self, part: Part) {
        let mut part = Some(part);
        let set = self.0.get_or_init(|| RwLock::new(part.take().expect("not set yet")));
        if let Some(part) = part {
            *set.write().unwrap_or_else(PoisonError::into_inner) = part;
        }
    }
}

/// Bytes of guest memory that one bit of a log is about (vhost-user, "Migration").
const LOG_PAGE: u64 = 4096;

/// A log: one bit for each page of guest memory, from address 0 on.
#[derive(Debug)]
pub struct Log(Mapping);

impl Log {
    /// Maps the log that a front end shares in `file`.
    ///
    /// # Errors
    ///
    /// The file is shorter, or cannot be mapped.
    pub fn new(file: File, offset: u64, len: u64) -> io::Result<Self> {
        Mapping::part(file, offset, len).map(|mapping| Self(mapping.without_file()))
    }

    fn bytes(&self) -> u64 {
        self.0.addresses().len() as u64
    }
}

/// One region's part of a log. A loss of the log's memory is survived.
#[derive(Debug)]
struct Part {
    bytes: Watched<Bytes>,
    /// The region's first page, and number of pages.
    first: u64,
    pages: u64,
}

impl Part {
    fn new(region: &impl GuestMemoryRegion, log: &Arc<Log>, losses: &Losses) -> io::Result<Self> {
        let start = region.start_addr().raw_value();
        let (first, last) = (start / LOG_PAGE, region.last_addr().raw_value() / LOG_PAGE);
        let end = last / 8 + 1;
        if end > log.bytes() {
            let what = "the log of dirty pages does not cover the memory";
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{what} at {start:#x}"),
            ));
        }
        let bytes = Bytes { log: Arc::clone(log), end };
        let bytes = Watched::new(bytes, Owner::FrontEnd, losses);
        Ok(Self { bytes, first, pages: last - first + 1 })
    }

    /// The byte and the bit of the page at `offset` in the region.
    fn place(&self, page: u64) -> (&AtomicU8, u8) {
        let page = self.first + page;
        (&self.bytes.log.0.words(page / 8, 1)[0], 1 << (page % 8))
    }

    fn mark(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else { return };
        let [first, last] = [offset, offset.saturating_add(last)].map(|at| at as u64 / LOG_PAGE);
        // The range may end behind the region, whose pages these are not.
        for page in first..=last.min(self.pages - 1) {
            let (byte, bit) = self.place(page);
            byte.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn is_marked(&self, offset: usize) -> bool {
        let page = offset as u64 / LOG_PAGE;
        page < self.pages && {
            let (byte, bit) = self.place(page);
            byte.load(Ordering::Relaxed) & bit != 0
        }
    }
}

/// A log, up to a byte of it.
#[derive(Debug)]
struct Bytes {
    log: Arc<Log>,
    end: u64,
}

// SAFETY: the log is one mapping, which lives as long as any part of it, and is accessed as atomic
// bytes.
unsafe impl Shared for Bytes {
    fn addresses(&self) -> impl Iterator<Item = Range<usize>> {
        let start = self.log.0.addresses().start;
        std::iter::once(start..start + usize::try_from(self.end).unwrap_or_default())
    }
}

/// The dirty bits of a region from an offset on.
#[derive(Debug, Clone, Copy)]
pub struct DirtySlice<'a> {
    whole: &'a Dirty,
    start: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.whole.mark_dirty(self.start.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.whole.dirty_at(self.start.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { whole: self.whole, start: self.start.saturating_add(offset) }
    }
}

impl<'a> WithBitmapSlice<'a> for Dirty {
    type S = DirtySlice<'a>;
}

impl Bitmap for Dirty {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(part) = self.0.get() {
            mark(part, offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.get().is_some_and(|part| {
            part.read().unwrap_or_else(PoisonError::into_inner).is_marked(offset)
        })
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { whole: self, start: offset }
    }
}

/// Out of the way of guests that nobody migrates.
#[cold]
fn mark(part: &RwLock<Part>, offset: usize, len: usize) {
    part.read().unwrap_or_else(PoisonError::into_inner).mark(offset, len);
}

impl NewBitmap for Dirty {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// Such memory may also be served by the vhost-user library's own handler, as a disk of the tests
/// is. Logs are not its part: it cannot make one.
impl BitmapReplace for Dirty {
    type InnerBitmap = ();

    fn replace(&self, (): ()) {}
}
