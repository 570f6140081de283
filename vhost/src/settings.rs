//! What the daemon is told, found sound: names are numbers, and what depends on each other agrees.

use crate::config::{Arguments, Poll, Switch};
use crate::executor::SERIAL_BYTES;
use crate::peer::Admission;
use crate::polling::Polling;
use crate::sandbox::Identity;
use crate::sockets::Access;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use shared_block_ring::format::{SectorSize, Side};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// What is wrong with a command line that reads well.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Neither the name of one here nor a number.
    #[error("--{option} {name}: there is no such {kind}")]
    Unknown {
        /// The option.
        option: &'static str,
        /// As given.
        name: String,
        /// Of user and group.
        kind: &'static str,
    },
    /// Reading the user database has failed.
    #[error("--{option} {name}: {source}")]
    Database {
        /// The option.
        option: &'static str,
        /// As given.
        name: String,
        /// The operating system's error.
        source: nix::errno::Errno,
    },
    /// A number that the user database has no group for.
    #[error("--user {0} has no group of its own here: give one with --group")]
    NoGroup(Uid),
    /// Without the option that everything else serves.
    #[error("--{0} is missing")]
    Missing(&'static str),
}

/// Where front ends come from.
#[derive(Debug, PartialEq, Eq)]
pub enum FrontEnds {
    /// A socket of our own.
    Path(PathBuf, Access),
    /// A listening one that we were started with.
    Inherited(RawFd),
}

/// Where the host's process comes from, and who that may be.
#[derive(Debug, PartialEq, Eq)]
pub struct ConsumerSocket {
    /// Its path.
    pub path: PathBuf,
    /// Who can connect.
    pub access: Access,
    /// Who gets the region.
    pub admission: Admission,
}

/// A daemon's settings.
#[derive(Debug)]
pub struct Settings {
    /// The vhost-user socket.
    pub front_ends: FrontEnds,
    /// The hand-over's socket.
    pub consumers: Option<ConsumerSocket>,
    /// The ring's file or block device.
    pub ring: PathBuf,
    /// To make it with.
    pub size: Option<u64>,
    /// To make it with, or to expect.
    pub sector_size: Option<SectorSize>,
    /// Refuse every write of the guest.
    pub read_only: bool,
    /// Log what is written to guest memory, when the front end asks for it.
    pub migratable: bool,
    /// Which end the guest is.
    pub guest: Side,
    /// The disk's.
    pub serial: [u8; SERIAL_BYTES],
    /// How long a read is held.
    pub hold: Duration,
    /// How long to look for more.
    pub polling: Polling,
    /// Whether the guest's writes are judged.
    pub guarded: bool,
    /// Where the queue's thread runs; anywhere if there is none.
    pub cpu: Option<usize>,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// Who to be once everything is open.
    pub identity: Option<Identity>,
    /// Whether to give up what is not needed then.
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
                // Who may attach has to be able to connect; who else connects is told why not.
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

/// A socket for a group.
const GROUP_MODE: Mode =
    Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IWGRP);

/// A socket that everybody can connect to.
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
    let found = |name: &str| Ok(User::from_name(name)?.map(|user| user.uid));
    id_of(option, name, "user", Uid::from_raw, found)
}

fn group_of(option: &'static str, name: &str) -> Result<Gid, Invalid> {
    let found = |name: &str| Ok(Group::from_name(name)?.map(|group| group.gid));
    id_of(option, name, "group", Gid::from_raw, found)
}

/// By number first: a daemon that is linked statically may not be able to read the user database.
fn id_of<T>(
    option: &'static str,
    name: &str,
    kind: &'static str,
    number: impl Fn(u32) -> T,
    find: impl Fn(&str) -> nix::Result<Option<T>>,
) -> Result<T, Invalid> {
    if let Ok(id) = name.parse::<u32>() {
        // The kernel takes it for "leave it as it is".
        if id != u32::MAX {
            return Ok(number(id));
        }
    }
    let unknown = || Invalid::Unknown { option, name: name.to_owned(), kind };
    find(name)
        .map_err(|source| Invalid::Database { option, name: name.to_owned(), source })?
        .ok_or_else(unknown)
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
    fn sockets_are_the_daemon_s_own_unless_told_otherwise() {
        let plain = settings(&[]).unwrap();
        assert_eq!(plain.front_ends, FrontEnds::Path("s".into(), Access::default()));
        assert!(plain.confined && plain.identity.is_none());
        let consumers = plain.consumers.unwrap();
        assert_eq!(consumers.access, Access::default());
        assert_eq!(consumers.admission.users, [geteuid()]);
    }

    #[test]
    fn who_may_attach_can_connect() {
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
    fn sockets_belong_to_whom_the_daemon_becomes() {
        let other = settings(&["--user", "77", "--group", "78"]).unwrap();
        let ids = (Uid::from_raw(77), Gid::from_raw(78));
        assert_eq!(other.identity, Some(Identity { uid: ids.0, gid: ids.1 }));
        let consumers = other.consumers.unwrap();
        assert_eq!((consumers.access.owner, consumers.access.group), (Some(ids.0), Some(ids.1)));
        assert_eq!(consumers.admission.users, [ids.0]);
    }

    #[test]
    fn a_name_that_nobody_has_is_named() {
        let error = settings(&["--socket-group", "no such group"]).unwrap_err().to_string();
        assert_eq!(error, "--socket-group no such group: there is no such group");
        let error = settings(&["--user", "4294967294"]).unwrap_err();
        assert_eq!(error, Invalid::NoGroup(Uid::from_raw(u32::MAX - 1)));
        assert!(settings(&["--consumer-user", "4294967295"]).is_err());
    }
}
