//! The daemon's settings: a checked command line, with names resolved to numbers.

use crate::daemon::config::{Arguments, Poll, Switch};
use crate::daemon::peer::Admission;
use crate::daemon::sandbox::Identity;
use crate::daemon::sockets::Access;
use crate::data_path::executor::SERIAL_BYTES;
use crate::data_path::polling::Polling;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, User, geteuid};
use ring_program::sockets::GROUP_MODE;
use ring_program::users;
use shared_block_ring::format::{SectorSize, Side};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// An error in a command line that parses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A user or group that does not exist here.
    #[error("--{option} {name}: there is no such {kind}")]
    Unknown {
        /// The option.
        option: &'static str,
        /// The name as given.
        name: String,
        /// "user" or "group".
        kind: &'static str,
    },
    /// Reading the user database has failed.
    #[error("--{option} {name}: {source}")]
    Database {
        /// The option.
        option: &'static str,
        /// The name as given.
        name: String,
        /// The operating system's error.
        source: nix::errno::Errno,
    },
    /// A user's number that the user database has no group for.
    #[error("--user {0} has no group of its own here: give one with --group")]
    NoGroup(Uid),
    /// A required option is missing.
    #[error("--{0} is missing")]
    Missing(&'static str),
}

/// The socket that front ends connect to.
#[derive(Debug, PartialEq, Eq)]
pub enum FrontEnds {
    /// A socket that the daemon makes.
    Path(PathBuf, Access),
    /// A listening socket that the daemon was started with.
    Inherited(RawFd),
}

/// The socket of the hand-over, and the users that may use it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConsumerSocket {
    /// The path.
    pub path: PathBuf,
    /// Owner and mode of the socket's file.
    pub access: Access,
    /// The users that get the region.
    pub admission: Admission,
}

/// The settings of a daemon.
#[derive(Debug)]
pub struct Settings {
    /// The vhost-user socket.
    pub front_ends: FrontEnds,
    /// The hand-over's socket.
    pub consumers: Option<ConsumerSocket>,
    /// The ring's file or block device.
    pub ring: PathBuf,
    /// The size to make the ring with, if it is not there.
    pub size: Option<u64>,
    /// The sector size to make the ring with, or to expect.
    pub sector_size: Option<SectorSize>,
    /// Refuse every write of the guest.
    pub read_only: bool,
    /// Log the pages of guest memory that are written to, when the front end asks for that.
    pub migratable: bool,
    /// The guest's role.
    pub guest: Side,
    /// The disk's serial number; if `None`, one derived from the ring.
    pub serial: Option<[u8; SERIAL_BYTES]>,
    /// How long a read is held at most.
    pub hold: Duration,
    /// When to poll for requests.
    pub polling: Polling,
    /// Whether the guest's writes are judged.
    pub guarded: bool,
    /// The addresses of the metrics.
    pub metrics: Vec<ring_metrics::Address>,
    /// The processor of the queue's thread; any if `None`.
    pub cpu: Option<usize>,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// The user and group to become once everything is open.
    pub identity: Option<Identity>,
    /// Whether to apply the sandbox then.
    pub confined: bool,
}

impl TryFrom<Arguments> for Settings {
    type Error = Invalid;

    fn try_from(arguments: Arguments) -> Result<Self, Invalid> {
        let identity = identity(arguments.user.as_deref(), arguments.group.as_deref())?;
        let owner = identity.map(|identity| identity.uid);
        let front_ends = match (arguments.socket_path, arguments.fd) {
            (Some(path), _) => {
                let group = arguments.socket_group.as_deref();
                let group = group.map(|name| group_of("socket-group", name)).transpose()?;
                let mode = arguments.socket_mode.unwrap_or(if group.is_some() {
                    GROUP_MODE
                } else {
                    Access::default().mode
                });
                let group = group.or(identity.map(|identity| identity.gid));
                FrontEnds::Path(path, Access { mode, owner, group })
            }
            (None, Some(number)) => FrontEnds::Inherited(number),
            (None, None) => return Err(Invalid::Missing("socket-path")),
        };
        let consumers = match arguments.consumer_socket {
            None => None,
            Some(path) => {
                let users = ids(&arguments.consumer_user, |name| user_of("consumer-user", name))?;
                let groups =
                    ids(&arguments.consumer_group, |name| group_of("consumer-group", name))?;
                let group = arguments.consumer_socket_group.as_deref();
                let group =
                    group.map(|name| group_of("consumer-socket-group", name)).transpose()?;
                let group = group.or(groups.first().copied());
                // A user that may have the region has to be able to connect; another one that can
                // connect is told why it gets nothing.
                let mode = arguments.consumer_socket_mode.unwrap_or(if group.is_some() {
                    GROUP_MODE
                } else if users.is_empty() {
                    Access::default().mode
                } else {
                    OPEN_MODE
                });
                let access =
                    Access { mode, owner, group: group.or(identity.map(|identity| identity.gid)) };
                let mut admission = Admission { users, groups };
                if admission == Admission::default() {
                    admission.users.push(owner.unwrap_or(geteuid()));
                }
                Some(ConsumerSocket { path, access, admission })
            }
        };
        Ok(Self {
            front_ends,
            consumers,
            ring: arguments.blk_file.ok_or(Invalid::Missing("blk-file"))?,
            size: arguments.size,
            sector_size: arguments.sector_size,
            read_only: arguments.read_only,
            migratable: arguments.migratable,
            guest: arguments.guest.into(),
            serial: arguments.serial,
            hold: arguments.hold_ms,
            guarded: arguments.guard == Switch::On,
            metrics: arguments.metrics,
            cpu: arguments.cpu,
            huge_pages: arguments.hugepages,
            polling: match arguments.poll {
                Some(Poll::Always) => Polling::Always,
                None => Polling::For(arguments.poll_us),
            },
            identity,
            confined: arguments.sandbox == Switch::On,
        })
    }
}

/// The mode of a socket that every user can connect to.
const OPEN_MODE: Mode = GROUP_MODE.union(Mode::S_IROTH).union(Mode::S_IWOTH);

fn identity(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, Invalid> {
    let group = group.map(|name| group_of("group", name)).transpose()?;
    let uid = match user {
        None => return Ok(group.map(|gid| Identity { uid: geteuid(), gid })),
        Some(name) => user_of("user", name)?,
    };
    let own = || match User::from_uid(uid) {
        Ok(Some(user)) => Ok(user.gid),
        _ => Err(Invalid::NoGroup(uid)),
    };
    Ok(Some(Identity { uid, gid: group.map_or_else(own, Ok)? }))
}

fn ids<T>(names: &[String], id: impl Fn(&str) -> Result<T, Invalid>) -> Result<Vec<T>, Invalid> {
    names.iter().map(|name| id(name)).collect()
}

fn user_of(option: &'static str, name: &str) -> Result<Uid, Invalid> {
    found(option, name, "user", users::user(name))
}

fn group_of(option: &'static str, name: &str) -> Result<Gid, Invalid> {
    found(option, name, "group", users::group(name))
}

fn found<T>(
    option: &'static str,
    name: &str,
    kind: &'static str,
    id: nix::Result<Option<T>>,
) -> Result<T, Invalid> {
    id.map_err(|source| Invalid::Database { option, name: name.to_owned(), source })?
        .ok_or_else(|| Invalid::Unknown { option, name: name.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    fn settings(more: &[&str]) -> Result<Settings, Invalid> {
        let usual =
            ["daemon", "--blk-file", "ring", "--socket-path", "s", "--consumer-socket", "c"];
        Arguments::try_parse_from(usual.iter().chain(more)).unwrap().try_into()
    }

    fn consumers(more: &[&str]) -> ConsumerSocket {
        settings(more).unwrap().consumers.unwrap()
    }

    #[test]
    fn sockets_are_for_the_daemons_own_user_by_default() {
        let plain = settings(&[]).unwrap();
        assert_eq!(plain.front_ends, FrontEnds::Path("s".into(), Access::default()));
        assert!(plain.confined && plain.identity.is_none());
        let consumers = plain.consumers.unwrap();
        assert_eq!(consumers.access, Access::default());
        assert_eq!(consumers.admission.users, [geteuid()]);
    }

    #[test]
    fn admitted_users_and_groups_can_connect() {
        let group = consumers(&["--consumer-group", "77"]);
        assert_eq!(group.access.mode, Mode::from_bits_truncate(0o660));
        assert_eq!(group.access.group, Some(Gid::from_raw(77)));
        assert!(group.admission.users.is_empty());
        let user = consumers(&["--consumer-user", "77", "--consumer-user", "root"]);
        assert_eq!(user.access.mode, Mode::from_bits_truncate(0o666));
        assert_eq!(user.admission.users, [Uid::from_raw(77), Uid::from_raw(0)]);
        let told = consumers(&["--consumer-user", "77", "--consumer-socket-mode", "600"]);
        assert_eq!(told.access.mode, Mode::from_bits_truncate(0o600));
    }

    #[test]
    fn sockets_belong_to_the_user_that_the_daemon_becomes() {
        let other = settings(&["--user", "77", "--group", "78"]).unwrap();
        let ids = (Uid::from_raw(77), Gid::from_raw(78));
        assert_eq!(other.identity, Some(Identity { uid: ids.0, gid: ids.1 }));
        let consumers = other.consumers.unwrap();
        assert_eq!((consumers.access.owner, consumers.access.group), (Some(ids.0), Some(ids.1)));
        assert_eq!(consumers.admission.users, [ids.0]);
    }

    #[test]
    fn unknown_user_or_group_is_named_in_the_error() {
        let error = settings(&["--socket-group", "no such group"]).unwrap_err().to_string();
        assert_eq!(error, "--socket-group no such group: there is no such group");
        let error = settings(&["--user", "4294967294"]).unwrap_err();
        assert_eq!(error, Invalid::NoGroup(Uid::from_raw(u32::MAX - 1)));
        assert!(settings(&["--consumer-user", "4294967295"]).is_err());
    }
}
