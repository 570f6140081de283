//! Aligned memory, which `O_DIRECT` needs.

use crate::format::crc32c;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// The strictest alignment that a block device with 4 KiB logical sectors asks of memory.
const ALIGN: usize = 4096;

/// An aligned unit; a vector of units is aligned as a whole.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN]);

/// A buffer whose first byte is aligned to 4 KiB; empty by default.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// Makes a buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { pages: vec![Page([0; ALIGN]); len.div_ceil(ALIGN)], len }
    }

    /// Makes the buffer `len` bytes long. What it held stays, as far as it fits; the rest is
    /// unspecified.
    pub fn resize(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(ALIGN), Page([0; ALIGN]));
        self.len = len;
    }
}

/// The size and the checksum of the bytes: enough to tell two buffers apart in a log.
impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {:#010x}", self.len, crc32c(self))
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are initialised bytes without padding (size and alignment are both
        // ALIGN), in one allocation of at least `len` bytes, and borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive, and every bit pattern is a valid byte.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}
