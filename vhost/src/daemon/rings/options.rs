//! The options of a daemon of many rings.

use crate::daemon::config::{Arguments, Switch};
use crate::daemon::peer::Admission;
use crate::daemon::rings::folder::{Folder, expect_no_ring};
use crate::daemon::rings::varlink::Callers;
use crate::daemon::sandbox::Identity;
use crate::daemon::settings::{Invalid, groups_of, identity, users_of};
use crate::daemon::sockets::{Access, Inherited, PassedSockets, Sorted};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use ring_program::LogFormat;
use ring_program::sockets::GROUP_MODE;
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread::available_parallelism;

/// The mode of a socket that every user can connect to; who may call is looked at then.
const OPEN_MODE: Mode = GROUP_MODE.union(Mode::S_IROTH).union(Mode::S_IWOTH);

/// The control socket.
#[derive(Debug)]
pub struct ControlSocket {
    /// Its path.
    pub path: PathBuf,
    /// Owner and mode of its file.
    pub access: Access,
    /// Who may call.
    pub callers: Callers,
}

/// The options.
#[derive(Debug)]
pub struct Options {
    /// The files of the rings.
    pub folder: Folder,
    /// Where rings are added and removed while others are served.
    pub control: Option<ControlSocket>,
    /// The addresses of the metrics.
    pub metrics: Vec<ring_metrics::Address>,
    /// The sockets of the metrics that the daemon was started with.
    pub inherited_metrics: Vec<Inherited>,
    /// The most rings.
    pub max_rings: Option<usize>,
    /// The most bytes of all rings.
    pub max_memory: Option<u64>,
    /// Threads that drive queues.
    pub workers: usize,
    /// The processors of those threads.
    pub cpus: Vec<usize>,
    /// The user and group that the data process becomes.
    pub identity: Option<Identity>,
    /// Whether the data process is confined.
    pub confined: bool,
    /// The form of the log.
    pub log_format: LogFormat,
}

impl Options {
    /// Takes the options of a command line, `words`, that names a folder of rings, beside the
    /// sockets that a service manager has passed.
    ///
    /// # Errors
    ///
    /// The first option or socket that is wrong.
    pub fn new(
        path: PathBuf,
        arguments: Arguments,
        words: Vec<OsString>,
        passed: &PassedSockets,
    ) -> Result<Self, Invalid> {
        expect_no_ring(&arguments)?;
        let Sorted { guest, consumer, metrics: inherited_metrics } = Sorted::new(passed, None)?;
        if let Some(inherited) = guest.or(consumer) {
            return Err(Invalid::SocketOfOneRing(inherited));
        }
        let identity = identity(arguments.user.as_deref(), arguments.group.as_deref())?;
        let control = arguments.control.as_deref().map(|address| control(&arguments, address));
        let control = control.transpose()?;
        let all = || available_parallelism().map_or(1, usize::from);
        Ok(Self {
            folder: Folder::new(path, words),
            control,
            metrics: arguments.metrics,
            inherited_metrics,
            max_rings: arguments.max_rings,
            max_memory: arguments.max_memory,
            workers: arguments.workers.unwrap_or_else(all),
            cpus: arguments.cpu,
            identity,
            confined: arguments.sandbox == Switch::On,
            log_format: arguments.log_format,
        })
    }
}

fn control(arguments: &Arguments, address: &str) -> Result<ControlSocket, Invalid> {
    let path = address.strip_prefix("unix:").filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| Invalid::ControlAddress(address.to_owned()))?;
    let mut users = users_of("control-user", &arguments.control_user)?;
    let groups = groups_of("control-group", &arguments.control_group)?;
    let looking = groups_of("control-read-group", &arguments.control_read_group)?;
    let others = !users.is_empty() || !groups.is_empty() || !looking.is_empty();
    users.push(geteuid());
    let access =
        if others { Access { mode: OPEN_MODE, ..Access::default() } } else { Access::default() };
    let changing = Admission { users, groups };
    let looking = Admission { users: Vec::new(), groups: looking };
    Ok(ControlSocket { path: path.into(), access, callers: Callers { changing, looking } })
}
