//! The process that sends items, as the kernel names it.

use nix::sys::socket::UnixCredentials;
use std::fmt;

/// The process that has connected to a socket, or has sent a datagram. The kernel fills it in: only
/// a privileged process can name another one, and only itself as another of its own users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// 0 for a process outside this PID namespace.
    pid: i32,
    uid: u32,
    gid: u32,
}

impl From<UnixCredentials> for Sender {
    fn from(found: UnixCredentials) -> Self {
        Self { pid: found.pid(), uid: found.uid(), gid: found.gid() }
    }
}

impl Sender {
    /// Returns what stands in front of its items with `--credentials`.
    pub fn prefix(self) -> String {
        let Self { pid, uid, gid } = self;
        format!("pid={pid} uid={uid} gid={gid} ")
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_has_the_three_numbers_and_ends_with_a_space() {
        let sender = Sender { pid: 4711, uid: 1000, gid: 0 };
        assert_eq!(sender.prefix(), "pid=4711 uid=1000 gid=0 ");
        assert_eq!(sender.to_string(), "process 4711 of user 1000");
    }
}
