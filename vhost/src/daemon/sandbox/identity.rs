//! The daemon's user, group and capabilities.

use super::{Failure, system};
use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{
    Gid, Uid, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid,
};

/// A user and one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

impl Identity {
    /// Makes the process this user and group, for good. Without root's rights that works only if it
    /// is both already.
    ///
    /// # Errors
    ///
    /// The step that failed or had no effect.
    pub fn assume(self) -> Result<(), Failure> {
        let Self { uid, gid } = self;
        let was_root = geteuid().is_root();
        if was_root {
            setgroups(&[gid]).map_err(system("leave other groups"))?;
        }
        setresgid(gid, gid, gid).map_err(system("become --group (only root can)"))?;
        setresuid(uid, uid, uid).map_err(system("become --user (only root can)"))?;
        let users = getresuid().map_err(system("look at the user"))?;
        let groups = getresgid().map_err(system("look at the group"))?;
        if [users.real, users.effective, users.saved] != [uid; 3]
            || [groups.real, groups.effective, groups.saved] != [gid; 3]
            || was_root && getgroups().map_err(system("look at the groups"))? != [gid]
        {
            return Err(Failure::Ineffective("became --user and --group"));
        }
        if !uid.is_root() && setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
        {
            return Err(Failure::Ineffective("gave root's rights up"));
        }
        Ok(())
    }
}

/// Drops all capabilities but those that a daemon which stays root needs to reopen a ring and to
/// remove a socket that belong to another user. Other users have none to keep.
///
/// # Errors
///
/// Capabilities cannot be read or set, or the step had no effect.
pub fn drop_capabilities() -> Result<(), Failure> {
    let kept = CapsHashSet::from([Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER]);
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = permitted.intersection(&kept).copied().collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        if caps::read(None, set)? != kept {
            return Err(Failure::Ineffective("dropped capabilities"));
        }
    }
    Ok(())
}
