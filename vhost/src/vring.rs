//! The queue as the vhost-user library has it, with descriptors that cannot hold us up.
//!
//! The front end chooses what kicks arrive on and what interrupts are written to. The library reads and writes until it has
//! all eight bytes: on a pipe with one byte in it, or an event of the blocking kind that somebody else has emptied or
//! filled, it would never come back, and with it the thread that the end of the connection is waited for with.

use crate::worker::Memory;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::MutexGuard;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

/// What `/proc` calls an event.
const EVENT: &str = "anon_inode:[eventfd]";

/// The library's queue, but for its descriptors.
#[derive(Clone)]
pub struct Vring(VringMutex<Memory>);

/// The descriptor, if it is one that never blocks.
fn event(file: Option<File>, use_of_it: &str) -> Option<File> {
    let file = file?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if name.as_os_str() != EVENT {
        log::warn!("the front end's {use_of_it} is no event ({}): not used", name.display());
        return None;
    }
    // Of the open file description, which the front end has too: it can take it back. See docs/security.md.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    Some(file)
}

/// Takes what is in the event.
fn consume(event: BorrowedFd<'_>) -> nix::Result<()> {
    let mut count = [0u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // Whatever the flags of the description are by now.
    let flags = libc::RWF_NOWAIT;
    // SAFETY: one part, a local of that length; an event is read from no offset (-1).
    let read = unsafe { libc::preadv2(event.as_raw_fd(), &raw const part, 1, -1, flags) };
    match Errno::result(read) {
        // A kernel whose events do not know this.
        Err(Errno::EOPNOTSUPP) => match nix::unistd::read(event, &mut count) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e),
        },
        // Emptied by somebody else, or by an earlier look.
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(e) => Err(e),
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(mem, max_queue_size).map(Self)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.0.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.0.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(event(file, "kick"));
    }

    fn read_kick(&self) -> io::Result<bool> {
        let state = self.0.get_ref();
        if let Some(kick) = state.get_kick() {
            // SAFETY: the queue's own, open for as long as its lock is held.
            consume(unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) })?;
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(event(file, "interrupt"));
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}
