//! Pages of guest memory that we have written to while the front end migrates the guest, or saves it to a file.

use std::sync::{Arc, OnceLock};
use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Guest memory, as a connection has it.
pub type GuestMemory = GuestMemoryMmap<Dirty>;

/// Of one region of guest memory: nothing, until a front end asks for a log. Until then a write costs one load.
#[derive(Debug, Clone, Default)]
pub struct Dirty(Arc<OnceLock<BitmapMmapRegion>>);

/// The same from some offset on.
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
        if let Some(log) = self.0.get() {
            log.mark_dirty(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.get().is_some_and(|log| log.dirty_at(offset))
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
    type InnerBitmap = AtomicBitmapMmap;

    /// By the thread that answers the front end. A request that is being carried out meanwhile is over before the front end's
    /// next message, which sets `VHOST_F_LOG_ALL`, is answered: that one waits for the worker.
    fn replace(&self, log: AtomicBitmapMmap) {
        self.0.get_or_init(BitmapMmapRegion::default).replace(log);
    }
}
