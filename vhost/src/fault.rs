//! SIGBUS: memory that others share with us, and have taken away by cutting its file short, or whose medium cannot be read.
//!
//! The handler puts zero pages of our own in its place, so that the access that met the hole can end, and notes whose memory
//! it was. A ring whose region is lost answers nothing but errors from then on, the access in question included; a front end whose memory
//! is lost is let go.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use shared_block_ring::device::bell::new_event;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Replacements in a front end's memory at most, for one connection: each can split a mapping, of which a process has 65,530. The
/// front end is let go after the first; this bounds what happens until then.
const MAX_REPLACEMENTS: u32 = 4096;

/// What a replacement can cover: a page, or a huge one, which cannot be replaced in part.
const PAGE_SIZES: [usize; 3] = [4 << 10, 2 << 20, 1 << 30];

/// What the handler has to know: a process has one.
static REGION_START: AtomicUsize = AtomicUsize::new(0);
static REGION_END: AtomicUsize = AtomicUsize::new(0);
static REGION_LOST: AtomicBool = AtomicBool::new(false);
static REPLACED: AtomicU32 = AtomicU32::new(0);
static EVENT: AtomicI32 = AtomicI32::new(-1);

/// Whether the region was lost: what was read from it since may be zeros, and what was written is nowhere.
pub fn region_lost() -> bool {
    REGION_LOST.load(SeqCst)
}

/// Tells of losses, for as long as it lives.
#[derive(Debug)]
pub struct Faults {
    event: OwnedFd,
}

impl Faults {
    /// From now on a fault in `region` (addresses of a mapping) is the ring's end, and any other one the front end's.
    pub fn catch(region: &Range<usize>) -> io::Result<Self> {
        let event = new_event()?;
        REGION_START.store(region.start, SeqCst);
        REGION_END.store(region.end, SeqCst);
        EVENT.store(event.as_raw_fd(), SeqCst);
        let action =
            SigAction::new(SigHandler::SigAction(replace), SaFlags::SA_ONSTACK, SigSet::empty());
        // SAFETY: the handler uses atomics and system calls only; it allocates nothing and takes no lock.
        unsafe { sigaction(Signal::SIGBUS, &action) }?;
        Ok(Self { event })
    }

    /// Readable when something was lost.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Whether it was memory of the front end. Takes note.
    pub fn guest_lost(&self) -> bool {
        // Not readable: nothing was lost since.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
        REPLACED.load(SeqCst) > 0
    }

    /// That front end is gone, and its memory with it.
    pub fn forget_guest(&self) {
        REPLACED.store(0, SeqCst);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        EVENT.store(-1, SeqCst);
    }
}

/// Puts zeros where the memory was that this thread has just missed.
extern "C" fn replace(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    let errno = nix::errno::Errno::last();
    // SAFETY: the kernel passes a whole siginfo, which is only read.
    let info = unsafe { &*info };
    // SAFETY: a SIGBUS of the kernel's has an address; that of another one is some number, and not used.
    let address = unsafe { info.si_addr() }.addr();
    let region = REGION_START.load(SeqCst)..REGION_END.load(SeqCst);
    let replaced = if info.si_code <= 0 {
        // Sent by a process: there is nothing to replace.
        false
    } else if region.contains(&address) {
        REGION_LOST.store(true, SeqCst);
        zeros(region.start, region.len())
    } else {
        REPLACED.fetch_add(1, SeqCst) < MAX_REPLACEMENTS
            && PAGE_SIZES.into_iter().any(|size| zeros(address & !(size - 1), size))
    };
    if !replaced {
        die();
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: a local, whose length is passed with it; a descriptor that is not one answers EBADF.
    unsafe { libc::write(EVENT.load(SeqCst), one.as_ptr().cast(), one.len()) };
    nix::errno::Errno::set(errno);
}

/// Maps private zeros there. Whether that went well.
fn zeros(start: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = std::ptr::without_provenance_mut(start);
    // SAFETY: the pages were mapped from a file and cannot be read any more. They belong to the region's mapping, or to one of guest
    // memory or of the front end's log of dirty pages, all of which are only ever accessed as memory that others change, and unmapped by address and length. (A page
    // of anything else, such as our own program's file that was cut, would have ended us now, and does so soon.)
    let mapped = unsafe { libc::mmap(at, len, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn die() -> ! {
    let text = b"vhost-device-blockring: SIGBUS that cannot be dealt with: stopped\n";
    // SAFETY: a constant, whose length is passed with it.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: may be called in a signal handler (signal-safety(7)).
    unsafe { libc::abort() }
}
