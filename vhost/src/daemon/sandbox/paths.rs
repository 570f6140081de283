//! Restricting the file system (Landlock) to files that are opened again and folders that sockets
//! are removed from. Also: no network ports, no abstract sockets and no signals to processes
//! outside.

use super::{Failure, Policy};
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use std::io;
use std::thread;

/// The newest version of Landlock that is used; what an older kernel lacks is left out (the crate's
/// "best effort").
const KNOWN: ABI = ABI::V6;

/// Restricts the file system. Returns what the kernel has enforced, in words for the log.
///
/// # Errors
///
/// Landlock is there and refuses.
pub fn restrict(policy: &Policy<'_>) -> Result<&'static str, Failure> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for file in policy.files {
        // Without the right to truncate, which a descriptor that is handed on carries along.
        rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile | AccessFs::WriteFile))?;
    }
    for folder in policy.folders {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => "restricted",
        RulesetStatus::PartiallyEnforced => "restricted as far as this kernel can",
        RulesetStatus::NotEnforced => "not restricted, this kernel has no Landlock",
    })
}

/// Calls `open` where files are opened without the right to be truncated, which a descriptor that
/// is handed on carries along: on a thread of its own, which has lost that right. A kernel without
/// Landlock takes none.
///
/// # Errors
///
/// Those of `open`; there is no thread; or Landlock is there and refuses.
pub fn without_truncation<T: Send>(open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let give_up = || {
        let rules = Ruleset::default().handle_access(AccessFs::Truncate)?.create()?;
        rules.restrict_self()
    };
    let open = || give_up().map_err(io::Error::other).and_then(|_| open());
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("open".to_owned()).spawn_scoped(scope, open)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("it has panicked")))
    })
}
