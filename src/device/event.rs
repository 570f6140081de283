//! Events (`eventfd`) that other processes hold as well.
//!
//! `O_NONBLOCK` belongs to the open file description, which all holders of an event share: any of
//! them can clear it, empty the event, or fill its counter, at any time. A plain `read` or `write`
//! can then block for as long as that process likes. Nothing here does.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

/// Takes what is in `event`, if there is something.
pub fn drain(event: BorrowedFd<'_>) -> nix::Result<()> {
    let mut count = [0u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // Whatever the flags of the description are by now.
    let flags = libc::RWF_NOWAIT;
    // SAFETY: one part, a local of that length; an event is read from no offset (-1).
    let read = unsafe { libc::preadv2(event.as_raw_fd(), &raw const part, 1, -1, flags) };
    match Errno::result(read) {
        // A kernel before 5.8, whose events do not know this.
        Err(Errno::EOPNOTSUPP) => match nix::unistd::read(event, &mut count) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e),
        },
        // Emptied by somebody else, or by an earlier look.
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Adds to events without waiting for anybody.
///
/// `write` has no variant that ignores the flags of an event. The completion of an asynchronous
/// read does: the kernel adds one to the event that the read names, and leaves a full counter as it
/// is. So each signal is an asynchronous read of a file of no bytes, which is complete when the one
/// system call (`io_submit`) returns.
#[derive(Debug)]
pub struct Signaller {
    /// None where the kernel has no asynchronous reads, and after the retirement.
    context: RwLock<Option<Context>>,
}

impl Signaller {
    /// Prepares for signals: this opens a file and makes a context in the kernel.
    pub fn new() -> io::Result<Self> {
        let context = match Context::new() {
            Ok(context) => Some(context),
            // Left out of the kernel, forbidden by a sandbox around this process, or used up by
            // others (`fs.aio-max-nr`).
            Err(Errno::ENOSYS | Errno::EPERM | Errno::EAGAIN | Errno::ENOMEM) => None,
            Err(e) => return Err(e.into()),
        };
        Ok(Self { context: RwLock::new(context) })
    }

    /// Whether [`signal`](Self::signal) never waits. Where the kernel lacks what that takes, it is
    /// a plain `write`, which waits if another holder of the event fills its counter between two
    /// system calls.
    pub fn never_waits(&self) -> bool {
        self.context.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Gives the kernel's context back, and returns when that is done: the kernel waits for two
    /// grace periods, tens of milliseconds, and a process that exits with a context waits as long.
    /// A process that serves others calls this before it stops: its successor can then start that
    /// much earlier. Signals are still sent, as on a kernel without asynchronous reads.
    pub fn retire(&self) {
        let context = self.context.write().unwrap_or_else(PoisonError::into_inner).take();
        // The lock is free again: no signal waits for this.
        drop(context);
    }

    /// Adds one to `event`. A full counter is no error: whoever waits for the event is awake then.
    /// Any thread may call this at any time.
    ///
    /// # Errors
    /// `EINVAL` when it is no event.
    pub fn signal(&self, event: BorrowedFd<'_>) -> nix::Result<()> {
        if let Some(context) = &*self.context.read().unwrap_or_else(PoisonError::into_inner) {
            return context.signal(event);
        }
        write_one(event)
    }
}

/// Adds one to `event` by a `write`, unless its counter is full.
fn write_one(event: BorrowedFd<'_>) -> nix::Result<()> {
    fcntl(event, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut room = [PollFd::new(event, PollFlags::POLLOUT)];
    match poll(&mut room, PollTimeout::ZERO) {
        // Full, and perhaps there was a signal as well.
        Ok(0) | Err(Errno::EINTR) => return Ok(()),
        Ok(_) => {}
        Err(e) => return Err(e),
    }
    match nix::unistd::write(event, &1u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The start of the ring of completions that the kernel shares with this process (`struct aio_ring`
/// in its `fs/aio.c`).
#[repr(C)]
#[derive(Debug)]
struct Completions {
    _id: u32,
    _capacity: u32,
    /// Advanced by this process when it has taken completions.
    head: AtomicU32,
    /// Advanced by the kernel.
    tail: AtomicU32,
}

/// One request (`struct iocb` in `linux/aio_abi.h`). Key and flags of the read are both zero here,
/// so that their order, which depends on the processor, does not matter.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key_and_flags: [u32; 2],
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// `IOCB_CMD_PREAD`.
const READ: u16 = 0;

/// `IOCB_FLAG_RESFD`: the request names an event.
const NAMES_EVENT: u32 = 1;

/// A context for asynchronous reads (`io_setup`), and the file of no bytes that is read.
#[derive(Debug)]
struct Context {
    /// The kernel names a context by the address of its ring.
    completions: NonNull<Completions>,
    nothing: OwnedFd,
}

// SAFETY: a context belongs to the process; what is written of its ring is one atomic.
unsafe impl Send for Context {}

// SAFETY: system calls on a context can be made by any thread. Heads that two threads store in
// either order are both places up to which completions have been taken: the kernel counts too few
// as taken for a moment, never too many.
unsafe impl Sync for Context {}

impl Context {
    fn new() -> nix::Result<Self> {
        let nothing = memfd_create("nothing", MFdFlags::MFD_CLOEXEC)?;
        let mut context = 0usize;
        // SAFETY: the kernel writes one word (`aio_context_t`, a long) to the local, which is zero
        // as it has to be.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
        Errno::result(made)?;
        let completions = std::ptr::with_exposed_provenance_mut(context);
        let completions = NonNull::new(completions).ok_or(Errno::EFAULT)?;
        Ok(Self { completions, nothing })
    }

    fn signal(&self, event: BorrowedFd<'_>) -> nix::Result<()> {
        let mut request = Request {
            operation: READ,
            // Descriptors that are open are not negative.
            file: self.nothing.as_raw_fd().cast_unsigned(),
            flags: NAMES_EVENT,
            event: event.as_raw_fd().cast_unsigned(),
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: one request, which lives through the call, and by whose end the read of no bytes
        // is complete.
        let submitted = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.completions.as_ptr(),
                1 as libc::c_long,
                requests.as_mut_ptr(),
            )
        };
        // SAFETY: the ring begins with these fields, all of them valid whatever their bytes are,
        // and is mapped until the context is destroyed. The kernel changes only those that are
        // atomic.
        let completions = unsafe { self.completions.as_ref() };
        // Nobody wants to know: all completions are taken, so that there is room for the next.
        completions.head.store(completions.tail.load(Ordering::Relaxed), Ordering::Relaxed);
        Errno::result(submitted).map(drop)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing of it is used any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.completions.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::bell::new_event;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Long enough to fail a test, not to pass one.
    const LONG: Duration = Duration::from_secs(60);

    /// An event as a peer can leave it: a plain read or write blocks.
    fn blocking(count: u64) -> OwnedFd {
        let event = new_event().unwrap();
        if count > 0 {
            nix::unistd::write(&event, &count.to_ne_bytes()).unwrap();
        }
        fcntl(&event, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        event
    }

    fn count(event: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        nix::unistd::read(event, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    /// Runs `call` on a thread that may block for ever.
    fn returns(call: impl FnOnce() + Send + 'static) {
        let (done, returned) = mpsc::channel();
        std::thread::spawn(move || {
            call();
            done.send(()).unwrap();
        });
        returned.recv_timeout(LONG).expect("it blocks");
    }

    #[test]
    fn drain_does_not_wait_for_an_empty_event_that_blocks() {
        let event = blocking(0);
        returns(move || drain(event.as_fd()).unwrap());
        let event = blocking(3);
        drain(event.as_fd()).unwrap();
        nix::unistd::write(&event, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(count(&event), 1);
    }

    #[test]
    fn signal_does_not_wait_for_a_full_event_that_blocks() {
        let event = blocking(u64::MAX - 1);
        returns(move || {
            let signaller = Signaller::new().unwrap();
            assert!(signaller.never_waits());
            // One more than the counter holds, and then some.
            (0..1000).for_each(|_| signaller.signal(event.as_fd()).unwrap());
        });
    }

    #[test]
    fn signaller_that_has_retired_signals_and_waits_for_no_full_event() {
        let (event, full) = (blocking(0), blocking(u64::MAX - 1));
        returns(move || {
            let signaller = Signaller::new().unwrap();
            std::thread::scope(|scope| {
                let signals = scope
                    .spawn(|| (0..10_000).for_each(|_| signaller.signal(event.as_fd()).unwrap()));
                signaller.retire();
                assert!(!signaller.never_waits());
                signals.join().unwrap();
            });
            (0..1000).for_each(|_| signaller.signal(full.as_fd()).unwrap());
            assert_eq!(count(&event), 10_000);
        });
    }

    #[test]
    fn signal_adds_one_each_time_from_any_thread() {
        let (event, signaller) = (blocking(0), Signaller::new().unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..10_000).for_each(|_| signaller.signal(event.as_fd()).unwrap());
                });
            }
        });
        assert_eq!(count(&event), 40_000);
    }

    #[test]
    fn signal_refuses_what_is_no_event() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let signaller = Signaller::new().unwrap();
        assert_eq!(signaller.signal(reader.as_fd()), Err(Errno::EINVAL));
    }
}
