//! The sockets of a daemon's settings: made at a path, or passed.

use super::{ConsumerSocket, Invalid, group_of, groups_of, users_of};
use crate::daemon::config::Arguments;
use crate::daemon::peer::Admission;
use crate::daemon::sandbox::Identity;
use crate::daemon::sockets::{Access, Inherited, PassedSockets, Source};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use ring_program::sockets::GROUP_MODE;

/// The mode of a socket that every user can connect to.
const OPEN_MODE: Mode = GROUP_MODE.union(Mode::S_IROTH).union(Mode::S_IWOTH);

/// Returns the socket for front ends.
pub fn front_ends(
    arguments: &Arguments,
    guest: Option<Inherited>,
    passed: &PassedSockets,
    identity: Option<Identity>,
) -> Result<Source, Invalid> {
    let named = |option| move |inherited| Invalid::TwoSockets { inherited, option };
    let inherited = |inherited| {
        let options = [
            ("socket-mode", arguments.socket_mode.is_some()),
            ("socket-group", arguments.socket_group.is_some()),
        ];
        expect_none("socket-path", options).map(|()| Source::Inherited(inherited))
    };
    match (&arguments.socket_path, arguments.fd, guest) {
        (Some(_), _, Some(guest)) => Err(named("socket-path")(guest)),
        (_, Some(_), Some(guest)) => Err(named("fd")(guest)),
        (Some(path), ..) => {
            let group = arguments.socket_group.as_deref();
            let group = group.map(|name| group_of("socket-group", name)).transpose()?;
            let mode = arguments.socket_mode.unwrap_or(if group.is_some() {
                GROUP_MODE
            } else {
                Access::default().mode
            });
            let group = group.or(identity.map(|identity| identity.gid));
            let owner = identity.map(|identity| identity.uid);
            Ok(Source::Path(path.clone(), Access { mode, owner, group }))
        }
        (None, Some(number), None) => inherited(Inherited { number, purpose: None }),
        (None, None, Some(guest)) => inherited(guest),
        (None, None, None) => Err(Invalid::NoEntrance(why_none(passed))),
    }
}

/// Checks that no option about a socket's file is given, for a socket that `maker` does not make.
fn expect_none(maker: &'static str, options: [(&'static str, bool); 2]) -> Result<(), Invalid> {
    match options.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => Err(Invalid::NotMade { option, maker }),
        None => Ok(()),
    }
}

/// Returns why a service manager has passed no socket for front ends, if there is one.
fn why_none(passed: &PassedSockets) -> String {
    match passed.other_process {
        Some(other) => format!(
            "; LISTEN_PID says that the sockets are for process {other}, and this is {}: start this program without \
             a process in between, in a shell by exec",
            std::process::id()
        ),
        None if passed.all.is_empty() => String::new(),
        None => {
            let names: Vec<_> = passed.all.iter().map(|passed| passed.name.as_str()).collect();
            format!(
                "; LISTEN_FDNAMES has only {}: FileDescriptorName=guest in the socket unit",
                names.join(":")
            )
        }
    }
}

/// Returns the hand-over's socket, if there is one.
pub fn consumers(
    arguments: &Arguments,
    inherited: Option<Inherited>,
    identity: Option<Identity>,
) -> Result<Option<ConsumerSocket>, Invalid> {
    let users = users_of("consumer-user", &arguments.consumer_user)?;
    let groups = groups_of("consumer-group", &arguments.consumer_group)?;
    let owner = identity.map(|identity| identity.uid);
    if arguments.consumer_socket.is_none() {
        let options = [
            ("consumer-socket-mode", arguments.consumer_socket_mode.is_some()),
            ("consumer-socket-group", arguments.consumer_socket_group.is_some()),
        ];
        expect_none("consumer-socket", options)?;
    }
    let source = match (&arguments.consumer_socket, inherited) {
        (None, None) => {
            let option = if !users.is_empty() {
                "consumer-user"
            } else if !groups.is_empty() {
                "consumer-group"
            } else {
                return Ok(None);
            };
            return Err(Invalid::NoConsumerSocket { option });
        }
        (Some(_), Some(inherited)) => {
            return Err(Invalid::TwoSockets { inherited, option: "consumer-socket" });
        }
        (None, Some(inherited)) => Source::Inherited(inherited),
        (Some(path), None) => {
            let group = arguments.consumer_socket_group.as_deref();
            let group = group.map(|name| group_of("consumer-socket-group", name)).transpose()?;
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
            let group = group.or(identity.map(|identity| identity.gid));
            Source::Path(path.clone(), Access { mode, owner, group })
        }
    };
    let mut admission = Admission { users, groups };
    if admission == Admission::default() {
        admission.users.push(owner.unwrap_or(geteuid()));
    }
    Ok(Some(ConsumerSocket { source, admission }))
}
