//! SIGBUS: an access to shared memory whose file another process has truncated, or whose medium
//! cannot be read.
//!
//! The handler repairs memory that is [`Watched`], and nothing else. It puts zero pages of our own
//! in the place of what is gone, so that the access that met the hole can end, and notes whose
//! memory it was in the [`Losses`] of that ring. A ring whose own memory is lost answers nothing
//! but errors from then on, the access in question included; a front end whose memory is lost is
//! let go. Other rings of the process go on. Every other SIGBUS goes on to whoever had it before,
//! as if this handler were not there.

mod losses;
mod numbers;
mod previous;
mod ranges;

pub use losses::Losses;
pub use ranges::{Owner, Shared, Watched};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use ranges::Found;
use std::io;

/// Replacements of single pages in the memory of one front end. Each can split a mapping in three,
/// and a process has 65,530 mappings for all its rings: after these, a region that has one more
/// hole is replaced whole.
const MAX_PAGES: u32 = 16;

/// The sizes of pages, the smallest first. A huge page cannot be replaced in part.
const PAGE_SIZES: [usize; 3] = [4 << 10, 2 << 20, 1 << 30];

/// Has faults in memory that is [`Watched`] repaired from now on. From the second call on this does
/// nothing.
///
/// # Errors
/// The handler cannot be set.
pub fn catch() -> io::Result<()> {
    let flags = SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(replace), flags, SigSet::empty());
    // SAFETY: the handler uses atomics and system calls only; it allocates nothing and takes no
    // lock.
    unsafe { previous::replace_by(Signal::SIGBUS, &action) }
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
    let Some(Found { range, owner, losses }) = met else {
        // SAFETY: these are what the kernel has called this handler with.
        unsafe { previous::pass_on(signal, info, context) };
        nix::errno::Errno::set(errno);
        return;
    };
    let record = losses::record(losses);
    let replaced = match owner {
        Owner::Ring => {
            record.lose_ring();
            zeros(range.start, range.len())
        }
        Owner::FrontEnd => {
            let is_early = record.lose_guest() < MAX_PAGES;
            let page = || {
                let mut pages = PAGE_SIZES.into_iter().map(|size| (address & !(size - 1), size));
                pages.any(|(at, size)| {
                    // A page of that size is a part of what is watched, or there are none here.
                    range.start <= at && size <= range.end - at && zeros(at, size)
                })
            };
            // A kernel that commits no more memory than it has may refuse so much at once.
            is_early && page() || zeros(range.start, range.len()) || page()
        }
    };
    if !replaced {
        die();
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: a local, whose length is passed with it; a descriptor that is not one answers EBADF.
    unsafe { libc::write(record.event(), one.as_ptr().cast(), one.len()) };
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
