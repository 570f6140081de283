//! Memory that more than one process changes at any time.

use crate::format::{Geometry, Position};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

/// The orderings that the promises of [`Memory`] come down to where memory is atomic. They stand here once, so that a model that
/// is searched for interleavings cannot drift from the mapping that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// Of a load in one piece.
    pub load: Ordering,
    /// Of a store in one piece.
    pub store: Ordering,
    /// Of [`Memory::fence`].
    pub fence: Ordering,
    /// Of the fence behind a copy out: who finds bytes of a later state finds at least the position stored before them, too.
    pub after_read: Ordering,
    /// Of the fence in front of a copy in, which makes that so.
    pub before_write: Ordering,
}

impl Orders {
    /// What a ring needs.
    pub const RING: Self = Self {
        load: Ordering::Acquire,
        store: Ordering::Release,
        fence: Ordering::SeqCst,
        after_read: Ordering::Acquire,
        before_write: Ordering::Release,
    };
}

/// What the ring's rules ask of shared memory: copies without an order of their own, and single stores and loads with one.
///
/// Offsets are the caller's to keep within bounds, those of 64-bit values multiples of 8.
pub trait Memory: Send {
    /// Copies out, byte by byte in any order, but before every load and copy that follows.
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// Copies in, byte by byte in any order, but after every store and copy that precedes.
    fn write(&self, offset: u64, bytes: &[u8]);

    /// Loads a little-endian value in one piece: everything stored before its store is seen after this.
    fn load_u64(&self, offset: u64) -> u64;

    /// Lends `from..to` of the stream of a ring that lies in this memory: see [`BlockDevice::lend`](super::BlockDevice::lend).
    fn lend(&mut self, geometry: Geometry, from: Position, to: Position) -> Option<&[u8]> {
        let _ = (geometry, from, to);
        None
    }

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
