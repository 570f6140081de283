//! The file system after set-up (Landlock): files that are opened again, folders that sockets are removed from, and nothing else. Beside
//! it: no network ports, no abstract sockets and no signals to processes outside.

use super::{Failure, Policy};
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

/// What the kernel may know of Landlock at most; what it does not know is left out (the crate's "best effort").
const KNOWN: ABI = ABI::V6;

/// What it came to, in words.
pub fn restrict(policy: &Policy<'_>) -> Result<&'static str, Failure> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for file in policy.files {
        // Not to be cut: a descriptor that is handed on carries that along.
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
