//! Restricting the file system (Landlock) to files that are opened again and folders that sockets
//! are removed from. Also: no network ports, no abstract sockets and no signals to processes
//! outside.

use super::{Failure, Policy};
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

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
