//! Memory mapped into this process: of a file that other processes share, or of its own. The
//! library's one module for raw memory.
//!
//! Whoever has the file can change the bytes at any time, from another process or by a second
//! mapping in this one. So no reference to them is made, except by [`Memory::bytes`], whose caller
//! vouches for them. Everything else is atomic integers, and copies that the compiler cannot look
//! into.

use crate::{Limits, Memory, Orders};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use nix::sys::stat::fstat;
use nix::unistd::{SysconfVar, sysconf};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed, fence};

/// Bytes that [`Mapping::prefault`] asks for at a time: a huge page, and little enough for a slow
/// disk.
const PREFAULT: usize = 2 << 20;

/// An integer that several processes may load and store.
///
/// # Safety
/// The type is atomic, has no padding, and is valid whatever its bytes are.
pub unsafe trait Word {}

// SAFETY: an atomic integer.
unsafe impl Word for AtomicU8 {}
// SAFETY: an atomic integer.
unsafe impl Word for AtomicU16 {}
// SAFETY: an atomic integer.
unsafe impl Word for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Word for AtomicU64 {}

/// Bytes of a copy that is made here, word by word: to call the C library costs more.
const SHORT: usize = 16;

/// Bytes of the words that short copies are made of.
const WORD: usize = size_of::<AtomicU32>();

/// The C library's `memcpy`.
type Copy =
    unsafe extern "C" fn(*mut libc::c_void, *const libc::c_void, usize) -> *mut libc::c_void;

/// Pages that [`Mapping::prefault`] makes: by default small ones, for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Prefault {
    huge: bool,
    for_writing: bool,
}

impl Prefault {
    /// Describes small pages, for reading.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the pages are huge ones, where the kernel has them for such memory.
    #[must_use]
    pub fn huge(self, huge: bool) -> Self {
        Self { huge, ..self }
    }

    /// Sets whether the pages are ready for writing, which costs a file on a disk a write-back of
    /// every page.
    #[must_use]
    pub fn for_writing(self, for_writing: bool) -> Self {
        Self { for_writing, ..self }
    }
}

/// Mapped memory. Every access is checked against its bounds, and every store against what may be
/// stored to: either panics.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Bytes from the start that may be stored to.
    writable: usize,
    /// `None` for memory of this process alone.
    file: Option<Arc<File>>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is unmapped only when the one
// owner is dropped.
unsafe impl Send for Mapping {}

// SAFETY: what can be done by a shared reference is atomic, or a copy that may race with stores.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`, for reading and writing.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped.
    pub fn new(file: impl Into<Arc<File>>, len: u64) -> io::Result<Self> {
        Self::part(file, 0, len)
    }

    /// Maps the first `len` bytes of `file`, for reading. The file may be open for reading alone.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped.
    pub fn read_only(file: impl Into<Arc<File>>, len: u64) -> io::Result<Self> {
        Self::map(file.into(), 0, len, ProtFlags::PROT_READ)
    }

    /// Maps the first `len` bytes of `file` for reading, and the first `writable` of them for
    /// writing too. The pages behind those are read-only for the processor as well.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped, or is not open for writing.
    pub fn writable_to(file: impl Into<Arc<File>>, len: u64, writable: u64) -> io::Result<Self> {
        let mut mapping = Self::read_only(file, len)?;
        let writable = usize::try_from(writable).unwrap_or(usize::MAX).min(mapping.len);
        let pages = writable.next_multiple_of(mapping.page()?).min(mapping.len);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: these pages are part of the mapping, and nobody relies on a store to them being
        // refused.
        unsafe { mprotect(mapping.start.cast(), pages, access) }?;
        mapping.writable = writable;
        Ok(mapping)
    }

    /// Maps `len` bytes of `file` from `offset` on, a multiple of the page's size, for reading and
    /// writing.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped.
    pub fn part(file: impl Into<Arc<File>>, offset: u64, len: u64) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mut mapping = Self::map(file.into(), offset, len, access)?;
        mapping.writable = mapping.len;
        Ok(mapping)
    }

    /// Closes the file, which the mapping does not need: to close one that another process serves
    /// may wait for that process, and at the end of this process nothing bounds that wait.
    #[must_use]
    pub fn without_file(self) -> Self {
        let mut mapping = self;
        mapping.file = None;
        mapping
    }

    /// Makes `len` bytes of memory without a file, all zero: for both ends of a ring in one
    /// process, and for tests. Processes that this one forks share it.
    ///
    /// # Errors
    /// There is no such memory to be had.
    pub fn anonymous(len: u64) -> io::Result<Self> {
        let len = length(len)?;
        // The interpreter that looks for undefined behaviour knows private memory alone.
        let kind = if cfg!(miri) { MapFlags::MAP_PRIVATE } else { MapFlags::MAP_SHARED };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust
        // knows of.
        let start = unsafe { mmap_anonymous(None, len, access, kind) }?;
        Ok(Self { start: start.cast(), len: len.get(), writable: len.get(), file: None })
    }

    fn map(file: Arc<File>, offset: u64, len: u64, access: ProtFlags) -> io::Result<Self> {
        let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = length(len)?;
        let end = offset.saturating_add(len.get() as u64);
        if file.metadata()?.is_file() && file.metadata()?.len() < end {
            // A page behind the end would be SIGBUS.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust
        // knows of.
        let start = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, start) }?;
        Ok(Self { start: start.cast(), len: len.get(), writable: 0, file: Some(file) })
    }

    /// Bytes of the pages whose access can be changed: huge ones where the file has them.
    fn page(&self) -> io::Result<usize> {
        let huge = self.file.as_ref().map(fstat).transpose()?.map_or(0, |about| about.st_blksize);
        let usual = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        Ok(usize::try_from(huge.max(usual)).unwrap_or(usize::MAX).next_power_of_two())
    }

    /// Returns the addresses of the mapping, by which a handler of SIGBUS knows it.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.start.addr().get();
        start..start + self.len
    }

    /// Returns a pointer to the first byte, which is valid for as long as the mapping lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Brings all pages into memory before they are needed, where the kernel can: each page that is
    /// touched for the first time later costs a fault. Bytes stay as they are.
    ///
    /// # Errors
    /// The kernel's, and those of [`Limits::check_now`]; the memory can be used all the same.
    pub fn prefault(&self, pages: Prefault, limits: &Limits<'_>) -> io::Result<()> {
        let populate =
            if pages.for_writing { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        let advise = |at: usize, len: usize, how| {
            let start = self.at(at as u64, len, self.len);
            // SAFETY: `at` has checked that the range lies in one mapping of ours; none of these
            // advices changes what it holds.
            let advised = unsafe { libc::madvise(start.as_ptr().cast(), len, how) };
            nix::errno::Errno::result(advised)
        };
        if pages.huge {
            advise(0, self.len, libc::MADV_HUGEPAGE)?;
        }
        for at in (0..self.len).step_by(PREFAULT) {
            limits.check_now()?;
            advise(at, PREFAULT.min(self.len - at), populate)?;
        }
        Ok(())
    }

    /// Asks for the cache line at `offset` ahead of reading it.
    pub fn prefetch(&self, offset: u64) {
        let at = self.at(offset, 1, self.len);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint, which faults at no address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast());
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = at;
    }

    /// Returns a pointer to `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If they do not all lie in the first `limit` bytes of the mapping.
    #[inline]
    fn at(&self, offset: u64, len: usize, limit: usize) -> NonNull<u8> {
        debug_assert!(limit <= self.len);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= limit),
            "access beyond the mapping, or beyond what of it may be written"
        );
        // SAFETY: the assertion keeps the result within (or one behind) the one mapping that
        // `start` begins.
        unsafe { self.start.add(offset) }
    }

    /// Loads a little-endian value in one piece, with the order of [`Memory::read`]. `offset` is a
    /// multiple of 4.
    #[inline]
    pub fn load_u32(&self, offset: u64) -> u32 {
        let value = self.atoms::<AtomicU32>(offset, 1, self.len)[0].load(Relaxed);
        fence(Orders::RING.after_read);
        u32::from_le(value)
    }

    /// `count` integers from `offset` on, which is a multiple of their size, to load and store.
    pub fn words<T: Word>(&self, offset: u64, count: usize) -> &[T] {
        self.atoms(offset, count, self.writable)
    }

    /// The same, of the first `limit` bytes of the mapping. What may only be read is not to be
    /// stored to.
    #[inline]
    fn atoms<T: Word>(&self, offset: u64, count: usize, limit: usize) -> &[T] {
        assert!(
            offset.is_multiple_of(align_of::<T>() as u64),
            "a word lies at a multiple of its size"
        );
        let at = self.at(offset, count.saturating_mul(size_of::<T>()), limit).cast::<T>();
        // SAFETY: `at` has checked the bytes, which live as long as `self`; a mapping starts at a
        // page, so a multiple of the size is aligned; a word is atomic, so that other processes may
        // store to it meanwhile, and any bytes are a valid one.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), count) }
    }

    /// `len` bytes from `offset` on as words and what is left of them, for a short copy.
    #[inline]
    fn pieces(&self, offset: u64, len: usize, limit: usize) -> (&[AtomicU32], &[AtomicU8]) {
        // Miri knows no atomics of different sizes in one place.
        if cfg!(miri) || !offset.is_multiple_of(WORD as u64) {
            return (&[], self.atoms(offset, len, limit));
        }
        let bytes = len / WORD * WORD;
        let rest = self.atoms(offset.saturating_add(bytes as u64), len - bytes, limit);
        (self.atoms(offset, len / WORD, limit), rest)
    }

    fn u64_at(&self, offset: u64, limit: usize) -> &AtomicU64 {
        &self.atoms(offset, 1, limit)[0]
    }
}

fn length(len: u64) -> io::Result<NonZeroUsize> {
    let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
    len.ok_or(io::ErrorKind::InvalidInput.into())
}

/// Whether a copy is made in words. The interpreter that looks for undefined behaviour knows no
/// other one that may race.
#[inline]
fn is_short(len: usize) -> bool {
    cfg!(miri) || len <= SHORT
}

/// The C library's copy, as a function that the compiler does not know.
///
/// A copy that it knows (`ptr::copy`) may not race with stores: it could be changed into one that
/// reads a byte twice and takes both readings for the same. This one is finished machine code, each
/// byte of whose result is one that was there. Words would do as well, at a fraction of the speed.
#[inline]
fn opaque_copy() -> Copy {
    static COPY: Copy = libc::memcpy;
    // SAFETY: a static is initialised and aligned. It is read as volatile, so that the compiler
    // does not learn what it holds.
    unsafe { (&raw const COPY).read_volatile() }
}

impl Memory for Mapping {
    #[inline]
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let len = bytes.len();
        if is_short(len) {
            let (words, rest) = self.pieces(offset, len, self.len);
            let (to_words, to_rest) = bytes.split_at_mut(words.len() * WORD);
            for (to, word) in to_words.chunks_exact_mut(WORD).zip(words) {
                to.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
            }
            for (to, byte) in to_rest.iter_mut().zip(rest) {
                *to = byte.load(Relaxed);
            }
        } else {
            let from = self.at(offset, len, self.len);
            // SAFETY: `at` has checked the source, and private memory never overlaps a mapping.
            // Others may write meanwhile; any bytes are valid, and the ring's rules say which of
            // them may be believed.
            unsafe { opaque_copy()(bytes.as_mut_ptr().cast(), from.as_ptr().cast(), len) };
        }
        fence(Orders::RING.after_read);
    }

    #[inline]
    fn write(&self, offset: u64, bytes: &[u8]) {
        let len = bytes.len();
        fence(Orders::RING.before_write);
        if is_short(len) {
            let (words, rest) = self.pieces(offset, len, self.writable);
            let (from_words, from_rest) = bytes.split_at(words.len() * WORD);
            for (from, word) in from_words.as_chunks::<WORD>().0.iter().zip(words) {
                word.store(u32::from_ne_bytes(*from), Relaxed);
            }
            for (from, byte) in from_rest.iter().zip(rest) {
                byte.store(*from, Relaxed);
            }
        } else {
            let to = self.at(offset, len, self.writable);
            // SAFETY: as in `read`, the other way round.
            unsafe { opaque_copy()(to.as_ptr().cast(), bytes.as_ptr().cast(), len) };
        }
    }

    unsafe fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let at = self.at(offset, len, self.len);
        // SAFETY: `at` has checked the bytes, which live as long as `self`, and the caller vouches
        // that nobody stores to them while they are borrowed. That the file is truncated is no
        // change of a value: the access never returns (SIGBUS ends the process).
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) })
    }

    fn is_writable(&self, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.writable as u64)
    }

    #[inline]
    fn load_u64(&self, offset: u64) -> u64 {
        // Memory that is mapped for reading may only be loaded from without an order; the fence
        // makes up for it, and costs nothing where loads are in order anyway.
        let value = self.u64_at(offset, self.len).load(Relaxed);
        fence(Orders::RING.load);
        u64::from_le(value)
    }

    fn store_u64(&self, offset: u64, value: u64) {
        self.u64_at(offset, self.writable).store(value.to_le(), Orders::RING.store);
    }

    fn store_u8(&self, offset: u64, value: u8) {
        self.atoms::<AtomicU8>(offset, 1, self.writable)[0].store(value, Orders::RING.store);
    }

    fn fence(&self) {
        fence(Orders::RING.fence);
    }

    fn sync(&self) -> io::Result<()> {
        // This covers stores through the mapping too: the kernel marks their pages dirty at the
        // first one.
        self.file.as_ref().map_or(Ok(()), |file| file.sync_data())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and nothing borrows from it beyond
        // `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests;
