//! Memory that several processes change at any time: the operations on it, and their orderings.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The orderings that the promises of [`Memory`] come down to where memory is atomic. They stand
/// here once, so that a model that is searched for interleavings cannot drift from the mapping that
/// runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Orders {
    /// The ordering of a load in one piece.
    pub load: Ordering,
    /// The ordering of a store in one piece.
    pub store: Ordering,
    /// The ordering of [`Memory::fence`].
    pub fence: Ordering,
    /// The fence behind a copy out: a reader that finds bytes of a later state then finds at least
    /// the position that was stored before them.
    pub after_read: Ordering,
    /// The fence in front of a copy in, with which [`after_read`](Self::after_read) pairs.
    pub before_write: Ordering,
}

impl Orders {
    /// The orderings that a ring needs.
    pub const RING: Self = Self {
        load: Ordering::Acquire,
        store: Ordering::Release,
        fence: Ordering::SeqCst,
        after_read: Ordering::Acquire,
        before_write: Ordering::Release,
    };
}

/// What the ring's rules ask of shared memory: copies without an order of their own, and single
/// stores and loads with one.
///
/// Offsets are the caller's to keep within bounds, those of 64-bit values multiples of 8.
pub trait Memory: Send {
    /// Copies out, byte by byte in any order, but before every load and copy that follows.
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// Copies in, byte by byte in any order, but after every store and copy that precedes.
    fn write(&self, offset: u64, bytes: &[u8]);

    /// Loads a little-endian value in one piece: everything stored before its store is seen after
    /// this.
    fn load_u64(&self, offset: u64) -> u64;

    /// Borrows `len` bytes at `offset` as they lie, without a copy; `None` where that is not
    /// possible.
    ///
    /// # Safety
    /// Nobody changes these bytes while the borrow lasts: no other process, no other mapping of the
    /// same file, and nothing by way of this memory.
    unsafe fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let _ = (offset, len);
        None
    }

    /// Whether `len` bytes at `offset` may be stored to. Stores elsewhere panic.
    fn is_writable(&self, offset: u64, len: usize) -> bool {
        let _ = (offset, len);
        true
    }

    /// Stores a little-endian value in one piece, after everything stored before.
    fn store_u64(&self, offset: u64, value: u64);

    /// Stores one byte and disturbs none beside it.
    fn store_u8(&self, offset: u64, value: u8);

    /// Orders every store before it against every load after it.
    fn fence(&self);

    /// Makes durable what was stored before.
    ///
    /// # Errors
    /// The operating system's.
    fn sync(&self) -> io::Result<()>;

    /// Returns the file that advisory locks are taken on, if the memory has one.
    fn lock_file(&self) -> Option<BorrowedFd<'_>>;
}

/// Memory that several owners in one process share, each with a device of its own over it.
impl<M: Memory + Sync + ?Sized> Memory for Arc<M> {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        (**self).read(offset, bytes);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        (**self).write(offset, bytes);
    }

    fn load_u64(&self, offset: u64) -> u64 {
        (**self).load_u64(offset)
    }

    unsafe fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        // SAFETY: the caller vouches for the same bytes.
        unsafe { (**self).bytes(offset, len) }
    }

    fn is_writable(&self, offset: u64, len: usize) -> bool {
        (**self).is_writable(offset, len)
    }

    fn store_u64(&self, offset: u64, value: u64) {
        (**self).store_u64(offset, value);
    }

    fn store_u8(&self, offset: u64, value: u8) {
        (**self).store_u8(offset, value);
    }

    fn fence(&self) {
        (**self).fence();
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        (**self).lock_file()
    }
}
