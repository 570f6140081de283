//! The descriptors that a front end sends for kicks and interrupts, which must not block us.
//!
//! A call on a descriptor of another kind can wait for its owner: a file of a FUSE file system asks
//! its server even when it is polled. So nothing but an eventfd is used, and that by calls that
//! ignore its flags ([`shared_block_ring::device::event`]).

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::os::fd::AsRawFd;

/// The name of an eventfd in `/proc/self/fd`.
const EVENT: &str = "anon_inode:[eventfd]";

/// Returns the descriptor if it is an eventfd. Another one is logged; `purpose` names what it was
/// for.
pub fn event(file: Option<File>, purpose: &str) -> Option<File> {
    let file = file?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if name.as_os_str() != EVENT {
        log::warn!("the front end's {purpose} is no event ({}): not used", name.display());
        return None;
    }
    // For a kernel that lacks those calls. The flag belongs to the open file description, and the
    // front end can clear it.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    Some(file)
}
