//! SIGBUS: an access to shared memory whose file another process has truncated, or whose medium
//! cannot be read.
//!
//! The handler repairs memory that is [`Watched`], and nothing else. It puts zero pages of our own
//! in the place of what is gone, so that the access that met the hole can end, and notes whose
//! memory it was. A ring whose own memory is lost answers nothing but errors from then on, the
//! access in question included; a front end whose memory is lost is let go. Every other SIGBUS goes
//! on to whoever had it before, as if this handler were not there.

mod previous;
mod ranges;

pub use ranges::{Owner, Shared, Watched};

use crate::data_path::request::{MAX_BYTES, MAX_SEGMENTS};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use shared_block_ring::device::bell::new_event;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering::SeqCst};

/// Replacements in a front end's memory at most, for one connection. The queue stops with the
/// request that meets the first, and that may meet one in every page it names: data that begins
/// anywhere in a page, in as many pieces as there can be. Twice that leaves room for the queue's
/// own pages and the log of dirty ones. Each replacement can split a mapping, of which a process
/// has 65,530.
const MAX_REPLACEMENTS: u32 = 2 * (PAGES_OF_A_REQUEST + 2 * MAX_SEGMENTS);

/// Pages that the data of the largest request fills.
const PAGES_OF_A_REQUEST: u32 = 4096;
const _: () = assert!(MAX_BYTES <= 4096 * 4096, "a request fills more pages");

/// The sizes of pages, the smallest first. A huge page cannot be replaced in part.
const PAGE_SIZES: [usize; 3] = [4 << 10, 2 << 20, 1 << 30];

/// Whose memory was lost, as bits; 0 while none was, which one load tells. A signal handler has no
/// argument of ours, so this is global.
static LOST: AtomicU8 = AtomicU8::new(0);
static REPLACED: AtomicU32 = AtomicU32::new(0);
static EVENT: AtomicI32 = AtomicI32::new(-1);

/// Bit of [`LOST`]: memory of the ring. It stays set.
const RING: u8 = 1;

/// Bit of [`LOST`]: memory of the present front end.
const GUEST: u8 = 2;

/// Returns whether anything was lost. One load, for the data path.
pub fn anything_lost() -> bool {
    LOST.load(SeqCst) != 0
}

/// Returns whether memory of the region was lost: later reads may have returned zeros, and later
/// writes are lost.
pub fn region_lost() -> bool {
    LOST.load(SeqCst) & RING != 0
}

/// Returns whether memory of the present front end was lost. Its queue stops: it is about to be let
/// go.
pub fn guest_lost() -> bool {
    LOST.load(SeqCst) & GUEST != 0
}

/// The handler of SIGBUS, and an event that says that memory was lost.
#[derive(Debug)]
pub struct Faults {
    event: OwnedFd,
}

impl Faults {
    /// Has faults in memory that is [`Watched`] repaired from now on.
    ///
    /// # Errors
    /// There is no event to be had, or no handler.
    pub fn catch() -> io::Result<Self> {
        let event = new_event()?;
        EVENT.store(event.as_raw_fd(), SeqCst);
        let flags = SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::SigAction(replace), flags, SigSet::empty());
        // SAFETY: the handler uses atomics and system calls only; it allocates nothing and takes no
        // lock.
        unsafe { previous::replace_by(Signal::SIGBUS, &action) }?;
        Ok(Self { event })
    }

    /// Returns the event's descriptor, which is readable after memory was lost.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Returns whether the lost memory was the front end's, and resets the event.
    pub fn guest_lost(&self) -> bool {
        // An event that is not readable says that nothing was lost since.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
        REPLACED.load(SeqCst) > 0
    }

    /// Forgets the losses of a front end that is gone, and whose memory is unmapped.
    pub fn forget_guest(&self) {
        REPLACED.store(0, SeqCst);
        LOST.fetch_and(!GUEST, SeqCst);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        EVENT.store(-1, SeqCst);
    }
}

/// The handler: maps zero pages over the lost memory that this thread has just accessed, if that
/// memory is watched.
extern "C" fn replace(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = nix::errno::Errno::last();
    // SAFETY: the kernel passes a whole siginfo, which is only read.
    let about = unsafe { &*info };
    // SAFETY: a SIGBUS of the kernel's has an address; that of another one is some number, and not
    // used.
    let address = unsafe { about.si_addr() }.addr();
    // A signal that a process has sent is not about memory.
    let met = if about.si_code > 0 { ranges::find(address) } else { None };
    let Some((range, owner)) = met else {
        // SAFETY: these are what the kernel has called this handler with.
        unsafe { previous::pass_on(signal, info, context) };
        nix::errno::Errno::set(errno);
        return;
    };
    let replaced = match owner {
        Owner::Ring => {
            LOST.fetch_or(RING, SeqCst);
            zeros(range.start, range.len())
        }
        Owner::FrontEnd => {
            LOST.fetch_or(GUEST, SeqCst);
            let mut pages = PAGE_SIZES.into_iter().map(|size| (address & !(size - 1), size));
            REPLACED.fetch_add(1, SeqCst) < MAX_REPLACEMENTS
                && pages.any(|(at, size)| {
                    // A page of that size is a part of what is watched, or there are none here.
                    range.start <= at && size <= range.end - at && zeros(at, size)
                })
        }
    };
    if !replaced {
        die();
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: a local, whose length is passed with it; a descriptor that is not one answers EBADF.
    unsafe { libc::write(EVENT.load(SeqCst), one.as_ptr().cast(), one.len()) };
    nix::errno::Errno::set(errno);
}

/// Maps private zero pages at `start`. Returns whether that has succeeded.
fn zeros(start: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = std::ptr::without_provenance_mut(start);
    // SAFETY: the pages were mapped from a file and cannot be read any more. They belong to a
    // mapping that is watched: one that is only ever accessed as memory that others change, and
    // unmapped by address and length.
    let mapped = unsafe { libc::mmap(at, len, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn die() -> ! {
    let text = b"vhost-device-blockring: SIGBUS that cannot be dealt with: stopped\n";
    ring_program::stderr::write_now(text);
    // SAFETY: may be called in a signal handler (signal-safety(7)); no memory is passed.
    unsafe { libc::_exit(1) }
}
