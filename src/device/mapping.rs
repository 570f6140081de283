//! A file mapped into memory and shared with other processes: the library's one room for raw memory.

use super::{Memory, Orders};
use crate::format::{Geometry, Lap, Position, Side};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};

/// An integer that several processes may load and store: atomic, without padding, and valid whatever its bytes are.
pub(crate) trait Word {}

impl Word for AtomicU8 {}
impl Word for AtomicU16 {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

/// Every access is bounds-checked. Bytes are copied, and what is lent is atomic: others may change it at any time. Only where
/// [somebody vouches](Self::guarded) for what a ring has published that is lent as it lies.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    file: File,
    /// Where published bytes are frozen.
    frozen: Option<Frozen>,
}

/// What is known of a ring whose published bytes are frozen.
#[derive(Debug, Default)]
struct Frozen {
    /// The producer's position as we have seen it last: it only grows.
    published: u64,
    lap: Lap,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is unmapped only when the one owner is dropped.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`, for reading and writing.
    pub fn new(file: File, len: u64) -> io::Result<Self> {
        Self::part(file, 0, len)
    }

    /// Maps `len` bytes of `file` from `offset` on, a multiple of the page's size.
    pub(crate) fn part(file: File, offset: u64, len: u64) -> io::Result<Self> {
        let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = usize::try_from(len)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let end = offset.saturating_add(len.get() as u64);
        if file.metadata()?.is_file() && file.metadata()?.len() < end {
            // A page behind the end would be SIGBUS.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let start = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, start) }?;
        Ok(Self { start: start.cast(), len: len.get(), file, frozen: None })
    }

    /// Has [`Memory::lend`] lend what is published from now on.
    ///
    /// # Safety
    /// The file is a ring, and until this mapping is dropped, whoever else can write to it
    /// - leaves every byte of its data area from the consumer's position up to the producer's as it is;
    /// - stores a producer's position only after the bytes in front of it, with release ordering, and none that is smaller than the one
    ///   before, or more than the ring's capacity ahead of the consumer;
    /// - does not change the consumer's position: that is for the owner of this mapping alone.
    #[must_use]
    pub unsafe fn guarded(mut self) -> Self {
        self.frozen = Some(Frozen::default());
        self
    }

    /// The addresses that it takes, for a handler of SIGBUS to know it by.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.start.addr().get();
        start..start + self.len
    }

    /// Has all of it in memory before it is needed, where the kernel can: pages that are met for the first time later cost a
    /// fault each. Bytes stay as they are.
    ///
    /// `huge` asks for huge ones; `writable` is whether to make them ready for writing, which costs a file on a disk
    /// a write-back of every page.
    pub fn prefault(&self, huge: bool, writable: bool) -> io::Result<()> {
        let advice = if writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        for advice in huge.then_some(libc::MADV_HUGEPAGE).into_iter().chain([advice]) {
            // SAFETY: the whole of one mapping of ours; none of these advices changes what it holds.
            let advised = unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) };
            nix::errno::Errno::result(advised)?;
        }
        Ok(())
    }

    /// Asks for the cache line at `offset` ahead of reading it.
    pub fn prefetch(&self, offset: u64) {
        let at = self.at(offset, 1);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which faults at no address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// Where `len` bytes from `offset` lie.
    fn at(&self, offset: u64, len: usize) -> NonNull<u8> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "access beyond the mapping"
        );
        // SAFETY: the assertion keeps the result within (or one behind) the one mapping that `start` begins.
        unsafe { self.start.add(offset) }
    }

    /// `count` integers from `offset` on, which is a multiple of their size.
    pub(crate) fn words<T: Word>(&self, offset: u64, count: usize) -> &[T] {
        assert!(
            offset.is_multiple_of(align_of::<T>() as u64),
            "a word lies at a multiple of its size"
        );
        let at = self.at(offset, count.saturating_mul(size_of::<T>())).cast::<T>();
        // SAFETY: `at` has checked the bytes, which live as long as `self`; a mapping starts at a page, so a multiple of the
        // size is aligned; a word is atomic, so that other processes may store to it meanwhile, and any bytes are a valid one.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), count) }
    }

    fn u64_at(&self, offset: u64) -> &AtomicU64 {
        &self.words(offset, 1)[0]
    }
}

impl Memory for Mapping {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: `at` has checked the source, and private memory never overlaps a shared mapping. Another process may
        // write meanwhile; any bytes are valid, and the ring's rules say which of them may be believed.
        unsafe { from.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
        fence(Orders::RING.after_read);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        fence(Orders::RING.before_write);
        // SAFETY: as in `read`, the other way round; only this ring end writes these bytes.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn lend(&mut self, geometry: Geometry, from: Position, to: Position) -> Option<&[u8]> {
        let mut frozen = self.frozen.take()?;
        if to.get() > frozen.published {
            let published = self.load_u64(geometry.pointer_start(Side::Producer));
            frozen.published = published.max(frozen.published);
        }
        let published = frozen.published;
        let offset = frozen.lap.data_offset(geometry, from);
        self.frozen = Some(frozen);
        let freed = self.load_u64(geometry.pointer_start(Side::Consumer));
        let len = to.since(from)?;
        let capacity = geometry.capacity().get();
        let unread = from.get() >= freed && to.get() <= published;
        if !unread || to.get() - freed > capacity || len > capacity - offset {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        let at = self.at(geometry.data_start() + offset, len);
        // SAFETY: `at` has checked the bytes, and the mapping lives as long as the loan. Nobody stores to them for as long:
        // - they lie between the consumer's position and the producer's, which we have just seen. Whoever called `guarded` has vouched that
        //   others leave those as they are, as long as the consumer's position stays; and that this is ours alone to store;
        // - we store through `&self` only, and the loan borrows `self` exclusively.
        // They were stored before the producer's position was, by release and acquire. That the file is cut short is no change of a
        // value: the access never returns (SIGBUS ends the process).
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) })
    }

    fn load_u64(&self, offset: u64) -> u64 {
        u64::from_le(self.u64_at(offset).load(Orders::RING.load))
    }

    fn store_u64(&self, offset: u64, value: u64) {
        self.u64_at(offset).store(value.to_le(), Orders::RING.store);
    }

    fn store_u8(&self, offset: u64, value: u8) {
        let at = self.at(offset, 1);
        // SAFETY: `at` has checked the byte, it lives as long as `self`, and atomics may be shared between processes.
        unsafe { AtomicU8::from_ptr(at.as_ptr()) }.store(value, Orders::RING.store);
    }

    fn fence(&self) {
        fence(Orders::RING.fence);
    }

    fn sync(&self) -> io::Result<()> {
        // This covers stores through the mapping too: the kernel marks their pages dirty at the first one.
        self.file.sync_data()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and nothing borrows from it beyond `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
