//! The privileges that the daemon gives up once everything is open: an attacker who takes the
//! process over then can serve one ring with it, and do nothing else.
//!
//! In this order: another user and group, limits, capabilities, new privileges, the file system,
//! system calls. Each step is verified afterwards, and what a kernel does not offer is logged; only
//! Landlock may be missing.

mod filter;
mod identity;
mod paths;
mod trap;

pub use identity::Identity;
pub use paths::without_truncation;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::fd::BorrowedFd;

/// Descriptors of the daemon itself: standard ones, sockets, region, bells, timers, those of a
/// connection, and those of the metrics' clients.
const OWN_DESCRIPTORS: u64 = 80;

/// Descriptors of a front end's memory regions, one each.
const MEMORY_DESCRIPTORS: u64 = crate::data_path::dirty::MAX_REGIONS as u64;

/// Descriptors of the hand-over's clients: a connection each, and for a moment the region and the
/// descriptors that one has sent.
const CLIENT_DESCRIPTORS: u64 = crate::daemon::clients::MAX_CONNECTIONS as u64 + 8;

/// The most open descriptors.
pub const MAX_DESCRIPTORS: u64 = OWN_DESCRIPTORS + MEMORY_DESCRIPTORS + CLIENT_DESCRIPTORS;

/// The files that the daemon still needs.
#[derive(Debug, Default)]
pub struct Policy<'a> {
    /// Files that will be opened again for reading and writing.
    pub files: &'a [BorrowedFd<'a>],
    /// Folders from which files will be removed.
    pub folders: &'a [BorrowedFd<'a>],
    /// The most open descriptors; as many as this process may have if there is none.
    pub descriptors: Option<u64>,
}

/// Why the daemon cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    System {
        /// The step that failed.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// A step had no error and no effect.
    #[error("{0} without effect")]
    Ineffective(&'static str),
    /// Other threads run, which the sandbox would not confine.
    #[error("other threads run already")]
    Threads,
    /// Capabilities cannot be dropped.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Landlock is there and refuses.
    #[error("cannot restrict the file system: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls cannot be installed.
    #[error("cannot restrict system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The filter's rules cannot be compiled.
    #[error("cannot restrict system calls: {0}")]
    Rules(#[from] seccompiler::BackendError),
}

fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> Failure {
    move |errno| Failure::System { what, source: errno.into() }
}

/// Confines this process to `policy`. To be called before any other thread runs: threads inherit
/// it. Returns how far the file system is restricted, in words.
///
/// # Errors
///
/// The first step that failed. Later ones were not taken.
pub fn apply(policy: &Policy<'_>) -> Result<&'static str, Failure> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|source| Failure::System { what: "count threads", source })?;
    if threads.count() != 1 {
        return Err(Failure::Threads);
    }
    limits(policy)?;
    identity::drop_capabilities()?;
    nix::sys::prctl::set_no_new_privs().map_err(system("give up new privileges"))?;
    if !nix::sys::prctl::get_no_new_privs().map_err(system("look at new privileges"))? {
        return Err(Failure::Ineffective("gave up new privileges"));
    }
    let files = paths::restrict(policy)?;
    trap::install().map_err(system("catch forbidden system calls"))?;
    filter::apply()?;
    Ok(files)
}

/// Lowers the limits for good: raising them takes a capability, and a system call that the filter
/// forbids.
fn limits(policy: &Policy<'_>) -> Result<(), Failure> {
    // A core would hold the guest's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("forbid core dumps"))?;
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(system("look at the limit of descriptors"))?;
    let most = policy.descriptors.map_or(hard, |most| hard.min(most));
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(system("limit descriptors"))
}
