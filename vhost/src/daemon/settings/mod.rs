//! The daemon's settings: a checked command line, with names resolved to numbers.

mod sources;

use crate::daemon::config::{Arguments, Poll, Switch};
use crate::daemon::peer::Admission;
use crate::daemon::sandbox::Identity;
use crate::daemon::service::Terms;
use crate::daemon::sockets::{Inherited, Misdescribed, Misdirected, PassedSockets, Sorted, Source};
use crate::data_path::executor::SERIAL_BYTES;
use crate::data_path::polling::Polling;
use crate::data_path::rate::Rates;
use nix::unistd::{Gid, Uid, geteuid};
use ring_program::users;
use shared_block_ring::device::shown;
use shared_block_ring::format::{SectorSize, Side};
use std::collections::BTreeMap;
use std::io;
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
    #[error("--{option} {name}: {reason}")]
    Database {
        /// The option.
        option: &'static str,
        /// The name as given.
        name: String,
        /// The error of the operating system or of `getent`.
        reason: String,
    },
    /// A user's number that the user database has no group for.
    #[error("--user {0} has no group of its own here: give one with --group")]
    NoGroup(Uid),
    /// A required option is missing.
    #[error("--{0} is missing")]
    Missing(&'static str),
    /// An option about one ring, beside a folder of many.
    #[error(
        "--{0} is about one ring: with a folder of rings it belongs into the ring's file there"
    )]
    OfOneRing(&'static str),
    /// A socket of a service manager for one ring, beside a folder of many.
    #[error(
        "{0} is for one ring: with a folder of rings each makes the sockets that its file there names, and only `metrics` can be passed"
    )]
    SocketOfOneRing(Inherited),
    /// An option for many rings, without a folder of them.
    #[error("--{0} is for a daemon of many rings: --config has to name a folder")]
    OfManyRings(&'static str),
    /// More than one processor for the one thread of a ring.
    #[error("--cpu takes one processor for one ring")]
    ManyProcessors,
    /// An address that the control socket cannot have.
    #[error("--control {0}: unix:PATH is the address of a control socket")]
    ControlAddress(String),
    /// There is no socket for front ends.
    #[error(
        "--socket-path is missing, the socket for front ends (or --fd, or a socket named `guest` from a service manager{0})"
    )]
    NoEntrance(String),
    /// An option about a socket that there is not.
    #[error(
        "--{option} is about the hand-over's socket: --consumer-socket is missing (or a socket named `consumer` from a service manager)"
    )]
    NoConsumerSocket {
        /// The option.
        option: &'static str,
    },
    /// An option about the file of a socket that the daemon does not make.
    #[error(
        "--{option} is about the socket that --{maker} makes, which is missing: a socket that is passed has the mode and group of its maker"
    )]
    NotMade {
        /// The option.
        option: &'static str,
        /// The option that makes the socket.
        maker: &'static str,
    },
    /// A socket that is given twice.
    #[error(
        "{inherited} from the service manager and --{option} are both given: one of them has to go"
    )]
    TwoSockets {
        /// The descriptor.
        inherited: Inherited,
        /// The option.
        option: &'static str,
    },
    /// One path for two things.
    #[error("--{} and --{} are one path, {}: each needs its own", options[0], options[1], shown(path))]
    SamePath {
        /// The options.
        options: [&'static str; 2],
        /// The path.
        path: PathBuf,
    },
    /// The sockets of a service manager make no sense.
    #[error(transparent)]
    Passed(#[from] Misdirected),
    /// The environment's description of those sockets makes no sense.
    #[error(transparent)]
    Environment(#[from] Misdescribed),
}

/// The socket of the hand-over, and the users that may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSocket {
    /// Where it comes from.
    pub source: Source,
    /// The users that get the region.
    pub admission: Admission,
}

/// The settings of a daemon.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The vhost-user socket.
    pub front_ends: Source,
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
    /// Limits of what the guest has done per second.
    pub rates: Rates,
    /// Whether the guest's writes are judged.
    pub guarded: bool,
    /// The addresses of the metrics.
    pub metrics: Vec<ring_metrics::Address>,
    /// The sockets of the metrics that the daemon was started with.
    pub inherited_metrics: Vec<Inherited>,
    /// The processor of the queue's thread; any if there is none.
    pub cpus: Vec<usize>,
    /// Whether to ask for huge pages.
    pub huge_pages: bool,
    /// The user and group to become once everything is open.
    pub identity: Option<Identity>,
    /// Whether to apply the sandbox then.
    pub confined: bool,
}

impl Settings {
    /// Checks `arguments`, beside the sockets that a service manager has passed.
    ///
    /// # Errors
    ///
    /// The first option or socket that is wrong or missing.
    pub fn new(arguments: Arguments, passed: &PassedSockets) -> Result<Self, Invalid> {
        if arguments.cpu.len() > 1 {
            return Err(Invalid::ManyProcessors);
        }
        let identity = identity(arguments.user.as_deref(), arguments.group.as_deref())?;
        let sockets = Sorted::new(passed, arguments.fd)?;
        let front_ends = sources::front_ends(&arguments, sockets.guest, passed, identity)?;
        let consumers = sources::consumers(&arguments, sockets.consumer, identity)?;
        expect_own_paths(&arguments)?;
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
            inherited_metrics: sockets.metrics,
            cpus: arguments.cpu,
            huge_pages: arguments.hugepages,
            polling: match arguments.poll {
                Some(Poll::Always) => Polling::Always,
                None => Polling::For(arguments.poll_us),
            },
            rates: Rates {
                bytes: arguments.max_bytes_per_second,
                requests: arguments.max_requests_per_second,
            },
            identity,
            confined: arguments.sandbox == Switch::On,
        })
    }
}

impl Settings {
    /// How the ring is served, as a disk with this serial number.
    pub fn terms(&self, serial: [u8; SERIAL_BYTES]) -> Terms {
        Terms {
            path: self.ring.clone(),
            guest: self.guest,
            serial,
            read_only: self.read_only,
            guarded: self.guarded,
            migratable: self.migratable,
            hold: self.hold,
            polling: self.polling,
            rates: self.rates,
            scope: 0,
        }
    }
}

/// Checks that no socket has the path of another one or of the ring, in whose place it would be
/// made.
fn expect_own_paths(arguments: &Arguments) -> Result<(), Invalid> {
    let metrics = arguments.metrics.iter().filter_map(|address| match address {
        ring_metrics::Address::Unix(path) => Some(("metrics", path)),
        ring_metrics::Address::Tcp(_) => None,
    });
    let named = [
        ("blk-file", &arguments.blk_file),
        ("socket-path", &arguments.socket_path),
        ("consumer-socket", &arguments.consumer_socket),
    ];
    let named = named.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?)));
    let mut known = BTreeMap::new();
    for (option, path) in named.chain(metrics) {
        if let Some(other) = known.insert(path, option) {
            return Err(Invalid::SamePath { options: [other, option], path: path.clone() });
        }
    }
    Ok(())
}

/// Returns the user and group that the options name.
pub(super) fn identity(
    user: Option<&str>,
    group: Option<&str>,
) -> Result<Option<Identity>, Invalid> {
    let group = group.map(|name| group_of("group", name)).transpose()?;
    let uid = match user {
        None => return Ok(group.map(|gid| Identity { uid: geteuid(), gid })),
        Some(name) => user_of("user", name)?,
    };
    let own = || match users::primary_group(uid) {
        Ok(Some(group)) => Ok(group),
        _ => Err(Invalid::NoGroup(uid)),
    };
    Ok(Some(Identity { uid, gid: group.map_or_else(own, Ok)? }))
}

/// Returns the users that an option names.
pub(super) fn users_of(option: &'static str, names: &[String]) -> Result<Vec<Uid>, Invalid> {
    ids(names, |name| user_of(option, name))
}

/// Returns the groups that an option names.
pub(super) fn groups_of(option: &'static str, names: &[String]) -> Result<Vec<Gid>, Invalid> {
    ids(names, |name| group_of(option, name))
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
    id: io::Result<Option<T>>,
) -> Result<T, Invalid> {
    id.map_err(|e| Invalid::Database { option, name: name.to_owned(), reason: e.to_string() })?
        .ok_or_else(|| Invalid::Unknown { option, name: name.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::sockets::Access;
    use clap::Parser;
    use nix::sys::stat::Mode;

    fn settings(more: &[&str]) -> Result<Settings, Invalid> {
        let usual =
            ["daemon", "--blk-file", "ring", "--socket-path", "s", "--consumer-socket", "c"];
        let arguments = Arguments::try_parse_from(usual.iter().chain(more)).unwrap();
        Settings::new(arguments, &PassedSockets::default())
    }

    /// Owner and mode of the hand-over's socket, and who may have the region.
    fn consumers(more: &[&str]) -> (Access, Admission) {
        match settings(more).unwrap().consumers.unwrap() {
            ConsumerSocket { source: Source::Path(_, access), admission } => (access, admission),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sockets_are_for_the_daemons_own_user_by_default() {
        let plain = settings(&[]).unwrap();
        assert_eq!(plain.front_ends, Source::Path("s".into(), Access::default()));
        assert!(plain.confined && plain.identity.is_none());
        let (access, admission) = consumers(&[]);
        assert_eq!(access, Access::default());
        assert_eq!(admission.users, [geteuid()]);
    }

    #[test]
    fn admitted_users_and_groups_can_connect() {
        let (access, admission) = consumers(&["--consumer-group", "77"]);
        assert_eq!(access.mode, Mode::from_bits_truncate(0o660));
        assert_eq!(access.group, Some(Gid::from_raw(77)));
        assert!(admission.users.is_empty());
        let user = ["--consumer-user", "77", "--consumer-user", "root"];
        let (access, admission) = consumers(&user);
        assert_eq!(access.mode, Mode::from_bits_truncate(0o666));
        assert_eq!(admission.users, [Uid::from_raw(77), Uid::from_raw(0)]);
        let (access, _) = consumers(&["--consumer-user", "77", "--consumer-socket-mode", "600"]);
        assert_eq!(access.mode, Mode::from_bits_truncate(0o600));
    }

    #[test]
    fn sockets_belong_to_the_user_that_the_daemon_becomes() {
        let options = ["--user", "77", "--group", "78"];
        let ids = (Uid::from_raw(77), Gid::from_raw(78));
        let identity = settings(&options).unwrap().identity;
        assert_eq!(identity, Some(Identity { uid: ids.0, gid: ids.1 }));
        let (access, admission) = consumers(&options);
        assert_eq!((access.owner, access.group), (Some(ids.0), Some(ids.1)));
        assert_eq!(admission.users, [ids.0]);
    }

    #[test]
    fn option_about_a_socket_that_is_not_made_is_refused() {
        let refused = |line: &[&str]| {
            let arguments = Arguments::try_parse_from(["d", "--blk-file", "r"].iter().chain(line));
            let passed = PassedSockets::default();
            Settings::new(arguments.unwrap(), &passed).unwrap_err().to_string()
        };
        for (line, words) in [
            (
                ["--fd", "3", "--socket-mode", "600"],
                "--socket-mode is about the socket that --socket-path",
            ),
            (["--fd", "3", "--socket-group", "0"], "--socket-group is about"),
            (["--fd", "3", "--consumer-socket-mode", "600"], "--consumer-socket-mode is about"),
            (["--fd", "3", "--consumer-socket-group", "0"], "that --consumer-socket makes"),
            (["--fd", "3", "--consumer-user", "0"], "--consumer-user is about the hand-over's"),
        ] {
            let error = refused(&line);
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
    }

    #[test]
    fn path_that_is_given_twice_is_refused_with_both_options() {
        for (more, words) in [
            (["--metrics", "unix:s"], "--socket-path and --metrics are one path, s:"),
            (["--metrics", "unix:c"], "--consumer-socket and --metrics are one path, c:"),
            (["--metrics", "unix:ring"], "--blk-file and --metrics are one path, ring:"),
        ] {
            let error = settings(&more).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
        let line = ["d", "--blk-file", "r", "--socket-path", "s", "--consumer-socket", "s"];
        let arguments = Arguments::try_parse_from(line).unwrap();
        let error = Settings::new(arguments, &PassedSockets::default()).unwrap_err().to_string();
        assert!(error.starts_with("--socket-path and --consumer-socket are one path"), "{error}");
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
