//! The options of `--listen`.

use super::endpoint::{Endpoint, Entrance, Kind};
use crate::address::positive;
use crate::failure::Failure;
use crate::framing::Framing;
use crate::oversize::OnTooLarge;
use crate::passed;
use crate::produce::OnFull;
use clap::builder::{OsStringValueParser, TypedValueParser};
use nix::sys::stat::Mode;
use ring_program::sockets::{Access, GROUP_MODE, parse_mode};
use ring_program::{parse_size, users};
use std::ffi::OsString;
use std::num::NonZeroUsize;

/// The longest record without `--max-record`, in bytes: far longer than a line of a log, and of
/// hundreds of connections it is still little memory.
const MAX_RECORD: &str = "1M";

/// Where items come from in the place of standard input.
#[derive(clap::Args)]
pub struct ListenOptions {
    /// Take items from the processes that send to this socket, in the place of standard input:
    /// unixgram:PATH for datagrams, each of which is an item, unix:PATH for connections, which get
    /// acknowledgements, or passed for the sockets of either kind that a service manager
    /// passes; repeat it for more
    #[arg(long, value_name = "SOCKET", value_parser = OsStringValueParser::new().try_map(|text: OsString| Endpoint::parse(&text)))]
    pub listen: Vec<Endpoint>,
    /// With --listen: begin each item with its sender, as the kernel names it: pid=4711 uid=1000
    /// gid=1000
    #[arg(long, requires = "listen")]
    pub credentials: bool,
    /// With --listen: mode of the sockets, in octal (without it 600, or 660 with --socket-group)
    #[arg(long, value_name = "MODE", requires = "listen", value_parser = parse_mode)]
    socket_mode: Option<Mode>,
    /// With --listen: group of the sockets, by name or number
    #[arg(long, value_name = "GROUP", requires = "listen")]
    socket_group: Option<String>,
    /// With --listen: connections at a time; more of them wait until one ends [default: 256]
    #[arg(long, value_name = "N", requires = "listen", value_parser = positive::<NonZeroUsize>)]
    max_connections: Option<NonZeroUsize>,
    /// With --listen: longest record of a sender, or longest part of it with --on-too-large split;
    /// memory for one is taken for each connection
    #[arg(long, value_name = "SIZE", requires = "listen", default_value = MAX_RECORD, value_parser = parse_size)]
    pub max_record: u64,
}

/// The most connections without `--max-connections`.
const MAX_CONNECTIONS: usize = 256;

impl ListenOptions {
    /// Returns the sockets to listen at; takes those that a service manager has passed.
    pub fn entrances(&self) -> Result<Vec<Entrance>, Failure> {
        let fail = |words: String| Err(Failure::Usage(words));
        let mut entrances = Vec::new();
        for (index, endpoint) in self.listen.iter().enumerate() {
            if self.listen[..index].contains(endpoint) {
                return fail(format!("--listen {endpoint} is given twice"));
            }
            match endpoint {
                Endpoint::Path(kind, path) => entrances.push(Entrance::at(*kind, path)),
                Endpoint::Passed => {
                    let before = entrances.len();
                    for socket in passed::take_all()? {
                        entrances.push(Entrance::passed(socket)?);
                    }
                    if entrances.len() == before {
                        return fail("--listen passed: no socket was passed to this process (a service manager does it by LISTEN_FDS: start the socket unit)".to_owned());
                    }
                }
            }
        }
        if !self.listen.contains(&Endpoint::Passed) && passed::is_any() {
            log::warn!("the sockets of the service manager are not used without --listen passed");
        }
        let is_made = entrances.iter().any(|entrance| !entrance.is_passed());
        if (self.socket_mode.is_some() || self.socket_group.is_some()) && !is_made {
            return fail("--socket-mode and --socket-group are for sockets that this program makes (for those of a service manager: SocketMode= and SocketGroup= in the socket unit)".to_owned());
        }
        Ok(entrances)
    }

    /// Refuses options that contradict each other.
    pub fn check(
        &self,
        entrances: &[Entrance],
        framing: Option<Framing>,
        on_full: OnFull,
        on_too_large: OnTooLarge,
    ) -> Result<(), Failure> {
        let fail = |words: String| Err(Failure::Usage(words));
        if self.credentials && framing == Some(Framing::Export) {
            return fail("--credentials does not go with --framing export: an item would not begin with its first field".to_owned());
        }
        if let Some(entrance) = entrances.iter().find(|one| one.kind == Kind::Streams) {
            let dropped = match (on_full, on_too_large) {
                (OnFull::Drop, _) => "--on-full",
                (_, OnTooLarge::Drop) => "--on-too-large",
                _ => return Ok(()),
            };
            return fail(format!(
                "{dropped} drop does not go with --listen {entrance}, whose senders are told how many of their records are in the ring"
            ));
        }
        let foreign = match (framing, self.max_connections) {
            (Some(_), _) => "--framing",
            (_, Some(_)) => "--max-connections",
            _ => return Ok(()),
        };
        fail(format!(
            "{foreign} is for connections (--listen unix:PATH): a datagram is an item as it is"
        ))
    }

    /// Returns who may use the sockets.
    pub fn access(&self) -> Result<Access, Failure> {
        let group = match &self.socket_group {
            None => None,
            Some(name) => {
                let found = users::group(name);
                let found = found.map_err(Failure::io(format!("--socket-group {name}")))?;
                let unknown = || format!("--socket-group {name}: there is no such group");
                Some(found.ok_or_else(|| Failure::Refused(unknown()))?)
            }
        };
        let usual = if group.is_some() { GROUP_MODE } else { Access::default().mode };
        Ok(Access { mode: self.socket_mode.unwrap_or(usual), owner: None, group })
    }

    /// Returns the most connections at a time.
    pub fn max_connections(&self) -> usize {
        self.max_connections.map_or(MAX_CONNECTIONS, NonZeroUsize::get)
    }
}
