//! Users and groups by name or number.

use nix::unistd::{Gid, Group, Uid, User};

/// Returns a user by name or number; none if there is no such name.
///
/// # Errors
/// The operating system's, if the user database cannot be read.
pub fn user(name: &str) -> nix::Result<Option<Uid>> {
    match number(name) {
        Some(id) => Ok(Some(Uid::from_raw(id))),
        None => Ok(User::from_name(name)?.map(|user| user.uid)),
    }
}

/// Returns a group by name or number; none if there is no such name.
///
/// # Errors
/// As [`user`].
pub fn group(name: &str) -> nix::Result<Option<Gid>> {
    match number(name) {
        Some(id) => Ok(Some(Gid::from_raw(id))),
        None => Ok(Group::from_name(name)?.map(|group| group.gid)),
    }
}

/// Returns the ID that `name` is, if it is one. It is tried first: a program that is linked
/// statically may not be able to read the user database.
fn number(name: &str) -> Option<u32> {
    // The largest number means "unchanged" to the kernel.
    name.parse().ok().filter(|id| *id != u32::MAX)
}
