//! Memory that more than one process changes at any time.

use std::io;
use std::os::fd::BorrowedFd;

/// What the ring's rules ask of shared memory: copies without order, and single stores and loads with one.
///
/// Offsets are the caller's to keep within bounds, those of 64-bit values multiples of 8.
pub trait Memory: Send {
    /// Copies out, byte by byte in any order.
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// Copies in, byte by byte in any order.
    fn write(&self, offset: u64, bytes: &[u8]);

    /// Loads a little-endian value in one piece: everything stored before its store is seen after this.
    fn load_u64(&self, offset: u64) -> u64;

    /// Stores a little-endian value in one piece, after everything stored before.
    fn store_u64(&self, offset: u64, value: u64);

    /// Stores one byte and disturbs none beside it.
    fn store_u8(&self, offset: u64, value: u8);

    /// Orders every store before it against every load after it.
    fn fence(&self);

    /// Makes durable what was stored before.
    fn sync(&self) -> io::Result<()>;

    /// What advisory locks are taken on, if it has a file.
    fn lock_file(&self) -> Option<BorrowedFd<'_>>;
}
