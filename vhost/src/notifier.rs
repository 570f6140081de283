//! The front end's descriptors, which must not hold us up.
//!
//! The front end chooses what kicks arrive on and what interrupts are written to. The library reads and writes until it has
//! all eight bytes: on a pipe with one byte in it, or an event of the blocking kind that somebody else has emptied or
//! filled, it would never come back, and with it the thread that the end of the connection is waited for with.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What `/proc` calls an event.
const EVENT: &str = "anon_inode:[eventfd]";

/// The descriptor, if it is one that never blocks.
pub fn event(file: Option<File>, use_of_it: &str) -> Option<File> {
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
pub fn consume(event: BorrowedFd<'_>) -> nix::Result<()> {
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
