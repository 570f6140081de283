//! What a service manager is told about this process (`sd_notify(3)`): that it is ready, what it
//! does, that it reloads its configuration, that it stops, and that it is alive.
//!
//! The socket is connected once, at the start: a process that has confined itself cannot connect.

use crate::{Pace, text};
use sd_notify::NotifyState;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The variables by which a service manager addresses this process, and not those that it starts.
pub const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// The longest that a message waits for a service manager that does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of a status at most.
const MAX_STATUS: usize = 1000;

/// The service manager that has started this process, if one has.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// The time between two signs of life.
    interval: Option<Duration>,
    lost: Mutex<Pace>,
}

impl ServiceManager {
    /// Connects to the manager that the environment names. One that cannot be reached is logged,
    /// and told nothing.
    pub fn connect() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match connect(&name) {
            Ok(socket) => {
                // Half of the time after which the manager takes this process for dead.
                let interval = sd_notify::watchdog_enabled().map(|limit| limit / 2);
                let interval = interval.filter(|interval| !interval.is_zero());
                Self { socket: Some(socket), interval, lost: Mutex::default() }
            }
            Err(e) => {
                log::warn!(
                    "the service manager is told nothing: cannot connect to NOTIFY_SOCKET={}: {e}",
                    name.to_string_lossy()
                );
                Self::default()
            }
        }
    }

    /// Whether there is a manager that is told anything.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The time between two signs of life, if the manager expects them.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Says that this process serves, and what.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// Says what this process does.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&line(status))]);
    }

    /// Says that this process reads its configuration again. [`ready`](Self::ready) has to follow.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            // Without the time, a manager would take the reload for one that has failed.
            Err(e) => log::warn!("the service manager is not told of the reload: no clock: {e}"),
        }
    }

    /// Says that this process stops.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
    }

    /// Says that this process is alive.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
        if let Err(e) = socket.send(lines.join("\n").as_bytes())
            && self.lost.lock().unwrap_or_else(PoisonError::into_inner).due()
        {
            log::warn!("the service manager was not told {:?}: {e}", lines.join(" "));
        }
    }
}

/// Returns a status that is one line.
fn line(status: &str) -> String {
    text::one_line(format_args!("{status}"), MAX_STATUS)
}

/// Connects to a path, or to an abstract name behind an `@`.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => {
            let text = "neither a path from the root nor an abstract name (@NAME)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let count = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    fn manager(name: &OsStr) -> ServiceManager {
        ServiceManager { socket: Some(connect(name).unwrap()), ..ServiceManager::default() }
    }

    #[test]
    fn messages_go_to_a_path_and_to_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        manager(path.as_os_str()).ready("serving\nREADY=0");
        assert_eq!(told(&receiver), "READY=1\nSTATUS=serving\\nREADY=0");
        let name = format!("ring-program-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        let manager = manager(OsStr::new(&format!("@{name}")));
        manager.reloading();
        let reloading = told(&receiver);
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        manager.alive();
        assert_eq!(told(&receiver), "WATCHDOG=1");
    }

    #[test]
    fn manager_that_is_gone_or_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let manager = manager(path.as_os_str());
        // More than the kernel queues.
        let filled = (0..).take_while(|_| {
            let start = std::time::Instant::now();
            manager.alive();
            start.elapsed() < PATIENCE
        });
        assert!(filled.count() > 0);
        drop(receiver);
        manager.alive();
        ServiceManager::default().stopping("nobody listens");
        let error = connect(OsStr::new("relative")).unwrap_err().to_string();
        assert!(error.contains("@NAME"), "{error}");
    }
}
