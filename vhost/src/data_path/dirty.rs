//! The log of the pages of guest memory that the device has written to, while the front end
//! migrates the guest or saves it to a file.

use crate::data_path::fault::{Owner, Shared, Watched};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vhost_user_backend::bitmap::{
    AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace, MemRegionBitmap, MmapLogReg,
};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

/// The most memory regions of a front end: the number that the vhost-user library answers to
/// `GET_MAX_MEM_SLOTS`, without enforcing it. Each keeps a descriptor.
pub const MAX_REGIONS: usize = 509;

/// Guest memory of a connection.
pub type GuestMemory = GuestMemoryMmap<Dirty>;

/// The dirty bits of one region of guest memory: none until a front end asks for a log, and until
/// then a write costs one load.
#[derive(Debug, Clone, Default)]
pub struct Dirty(Arc<Bits>);

#[derive(Debug, Default)]
struct Bits {
    /// The region's part of the log, once there is one.
    part: OnceLock<BitmapMmapRegion>,
    /// The same memory, whose loss is survived.
    watched: Mutex<Option<Watched<Pages>>>,
    /// The log of the connection that the region belongs to.
    log: OnceLock<DirtyLog>,
}

/// The log that a front end has asked for, kept for memory that it shares later. One for each
/// connection.
#[derive(Debug, Clone, Default)]
pub struct DirtyLog(Arc<Mutex<Option<Arc<MmapLogReg>>>>);

impl DirtyLog {
    /// Attaches every region of `memory` to the log, if there is one, and to the one that the front
    /// end asks for next.
    ///
    /// # Errors
    ///
    /// The present log does not cover all of `memory`.
    pub fn cover(&self, memory: &GuestMemory) -> io::Result<()> {
        for region in memory.iter() {
            let bits = &MmapRegion::bitmap(region).0;
            bits.log.get_or_init(|| self.clone());
            if let (None, Some(log)) = (bits.part.get(), self.current().clone()) {
                let part = Part::new(region, log).map_err(|e| {
                    let start = region.start_addr().raw_value();
                    let what = "the log of dirty pages does not cover the memory";
                    io::Error::new(e.kind(), format!("{what} at {start:#x}"))
                })?;
                bits.set(part);
            }
        }
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<MmapLogReg>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bits {
    fn set(&self, Part { bits, pages }: Part) {
        let watched = Watched::new(pages, Owner::FrontEnd);
        self.part.get_or_init(BitmapMmapRegion::default).replace(bits);
        // The one before is not written to any more.
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
    }
}

/// One region's part of a log, with the pages of the log that it lies in.
pub struct Part {
    bits: AtomicBitmapMmap,
    pages: Pages,
}

impl MemRegionBitmap for Part {
    fn new<R: GuestMemoryRegion>(region: &R, log: Arc<MmapLogReg>) -> io::Result<Self> {
        let bits = AtomicBitmapMmap::new(region, Arc::clone(&log))?;
        // The log reaches that far, or there would be no part of it.
        let last = region.last_addr().raw_value() / (LOG_PAGE * 8);
        let last = usize::try_from(last).map_err(io::Error::other)?;
        Ok(Self { bits, pages: Pages { log, last } })
    }
}

/// Bytes of guest memory that one bit of a log is about (vhost-user, "Migration").
const LOG_PAGE: u64 = 4096;

/// A log, up to a byte of it.
#[derive(Debug)]
struct Pages {
    log: Arc<MmapLogReg>,
    last: usize,
}

// SAFETY: the log is one mapping, which lives as long as any part of it, and is accessed as atomic
// bytes.
unsafe impl Shared for Pages {
    fn addresses(&self) -> impl Iterator<Item = Range<usize>> {
        let [first, last] = [0, self.last].map(|at| (&raw const self.log[at]).addr());
        std::iter::once(first..last + 1)
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
        if let Some(log) = self.0.part.get() {
            log.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.part.get().is_some_and(|log| log.dirty_at(offset))
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { whole: self, start: offset }
    }
}

impl NewBitmap for Dirty {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for Dirty {
    type InnerBitmap = Part;

    /// Called by the front end's thread. A request that is carried out meanwhile is over before the
    /// front end's next message, which sets `VHOST_F_LOG_ALL`, is answered: that one waits for the
    /// worker.
    fn replace(&self, part: Part) {
        if let Some(connection) = self.0.log.get() {
            *connection.current() = Some(Arc::clone(&part.pages.log));
        }
        self.0.set(part);
    }
}
