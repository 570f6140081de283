//! The process at the other end of a socket, as the kernel recorded it when it connected, and
//! whether it may have the region.

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Uid};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most supplementary groups of a process (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Bytes of a group's ID.
const GROUP_BYTES: usize = size_of::<libc::gid_t>();

/// A process that has connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The process ID, which may be another process's by now: for messages only.
    pub pid: i32,
    /// The effective user.
    pub uid: Uid,
    /// The effective group and the supplementary ones.
    pub groups: Vec<Gid>,
}

impl Peer {
    /// Returns the process at the other end of `socket`.
    ///
    /// # Errors
    ///
    /// The socket is not connected, or not a UNIX one.
    pub fn of(socket: BorrowedFd<'_>) -> nix::Result<Self> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        let mut groups = supplementary_groups(socket)?;
        groups.push(Gid::from_raw(peer.gid()));
        Ok(Self { pid: peer.pid(), uid: Uid::from_raw(peer.uid()), groups })
    }
}

fn supplementary_groups(socket: BorrowedFd<'_>) -> nix::Result<Vec<Gid>> {
    // Few processes have more than a handful. If there are more, the kernel returns the length that
    // it needs.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut len =
            libc::socklen_t::try_from(groups.len() * GROUP_BYTES).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `groups` has room for the `len` bytes that the kernel may write, all bytes are
        // valid numbers, and both pointers are to locals that live through the call.
        let answered = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / GROUP_BYTES;
        if answered == 0 {
            return Ok(groups.into_iter().take(count).map(Gid::from_raw).collect());
        }
        match Errno::last() {
            Errno::ERANGE if count > groups.len() && count <= MAX_GROUPS => {
                groups.resize(count, 0);
            }
            e => return Err(e),
        }
    }
}

/// The users and groups that may have the region, besides root, which can take it anyway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admission {
    /// Users.
    pub users: Vec<Uid>,
    /// Groups, as a process's effective or supplementary one.
    pub groups: Vec<Gid>,
}

impl Admission {
    /// Returns why `peer` may not have the region; `None` if it may.
    pub fn refusal(&self, peer: &Peer) -> Option<String> {
        let admitted = peer.uid.is_root()
            || self.users.contains(&peer.uid)
            || peer.groups.iter().any(|group| self.groups.contains(group));
        if admitted {
            return None;
        }
        let list = |what: &str, numbers: Vec<String>| {
            (!numbers.is_empty()).then(|| format!("{what} {}", numbers.join(", ")))
        };
        let allowed: Vec<String> = [
            Some("root".to_owned()),
            list("user", self.users.iter().map(ToString::to_string).collect()),
            list("group", self.groups.iter().map(ToString::to_string).collect()),
        ]
        .into_iter()
        .flatten()
        .collect();
        Some(format!(
            "user {} may not attach, only {} (--consumer-user and --consumer-group of the backend)",
            peer.uid,
            allowed.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(one.as_fd()).unwrap();
        assert_eq!(peer.pid, std::process::id().cast_signed());
        assert_eq!(peer.uid, nix::unistd::geteuid());
        assert!(peer.groups.contains(&nix::unistd::getegid()));
        for group in nix::unistd::getgroups().unwrap() {
            assert!(peer.groups.contains(&group));
        }
    }

    #[test]
    fn admission_is_for_the_users_the_groups_and_root_alone() {
        let peer = |uid, groups: &[u32]| Peer {
            pid: 1,
            uid: Uid::from_raw(uid),
            groups: groups.iter().copied().map(Gid::from_raw).collect(),
        };
        let admission =
            Admission { users: vec![Uid::from_raw(7)], groups: vec![Gid::from_raw(70)] };
        for admitted in [peer(7, &[1]), peer(8, &[1, 70]), peer(0, &[0])] {
            assert_eq!(admission.refusal(&admitted), None);
        }
        let words = admission.refusal(&peer(70, &[7])).unwrap();
        assert!(words.contains("user 70 may not") && words.contains("user 7, group 70"), "{words}");
        assert!(Admission::default().refusal(&peer(1, &[0])).is_some());
    }
}
