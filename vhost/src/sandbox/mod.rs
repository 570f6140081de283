//! What the daemon gives up once everything is open: whoever takes it over from inside then has a process that can serve one
//! ring and do nothing else.
//!
//! In this order: another user and group, limits, capabilities, new privileges, the file system, system calls. Each step is
//! looked at afterwards, and what a kernel does not offer is said; only Landlock may be missing.

mod filter;
mod identity;
mod paths;
mod trap;

pub use identity::Identity;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::fd::BorrowedFd;

/// Descriptors of the daemon by itself: standard ones, sockets, region, bells, timers, and what a connection adds to them.
const OWN_DESCRIPTORS: u64 = 64;

/// Memory regions of a front end, a descriptor each (`MAX_MEM_SLOTS` of the vhost-user library).
const MEMORY_DESCRIPTORS: u64 = 509;

/// Of each client of the hand-over: its connection, and for a moment the region and what it sent.
const CLIENT_DESCRIPTORS: u64 = crate::handover::MAX_CONNECTIONS as u64 + 8;

/// Open files at most.
pub const MAX_DESCRIPTORS: u64 = OWN_DESCRIPTORS + MEMORY_DESCRIPTORS + CLIENT_DESCRIPTORS;

/// What the daemon still needs.
#[derive(Debug, Default)]
pub struct Policy<'a> {
    /// Files that will be opened again, for reading and writing.
    pub files: &'a [BorrowedFd<'a>],
    /// Folders from which files will be removed.
    pub folders: &'a [BorrowedFd<'a>],
}

/// Why the daemon cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    System {
        /// Which step.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A step went without an error, and without effect.
    #[error("{0} without effect")]
    Ineffective(&'static str),
    /// What is confined to one thread would not be for the others.
    #[error("other threads run already")]
    Threads,
    /// Capabilities.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Landlock, which is there and refuses.
    #[error("cannot restrict the file system: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls.
    #[error("cannot restrict system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// A mistake in the filter itself.
    #[error("cannot restrict system calls: {0}")]
    Rules(#[from] seccompiler::BackendError),
}

fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> Failure {
    move |errno| Failure::System { what, source: errno.into() }
}

/// Confines this process to `policy`. To be called before any other thread runs: they inherit it.
pub fn apply(policy: &Policy<'_>) -> Result<(), Failure> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| Failure::System { what: "count threads", source })?;
    if threads.count() != 1 {
        return Err(Failure::Threads);
    }
    limits()?;
    identity::drop_capabilities()?;
    nix::sys::prctl::set_no_new_privs().map_err(system("give up new privileges"))?;
    if !nix::sys::prctl::get_no_new_privs().map_err(system("look at new privileges"))? {
        return Err(Failure::Ineffective("gave up new privileges"));
    }
    let files = paths::restrict(policy)?;
    trap::install().map_err(system("catch forbidden system calls"))?;
    filter::apply()?;
    log::info!("sandbox: system calls and descriptors restricted; file system: {files}");
    Ok(())
}

/// Nobody raises them again: that takes a capability, and a system call that the filter does not let through.
fn limits() -> Result<(), Failure> {
    // A core would hold the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("forbid core dumps"))?;
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(system("look at the limit of descriptors"))?;
    let most = hard.min(MAX_DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(system("limit descriptors"))
}
