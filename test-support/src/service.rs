//! A service manager's end of a service: the socket that the service tells it about itself.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// Long enough to fail a test, not to pass one.
const LONG: Duration = Duration::from_secs(60);

/// The receiver of a service's messages.
pub struct Manager {
    socket: UnixDatagram,
    /// The value of `NOTIFY_SOCKET`.
    pub name: String,
}

impl Manager {
    /// Listens at a path.
    pub fn at(path: &Path) -> Self {
        Self::new(UnixDatagram::bind(path).unwrap(), path.to_str().unwrap().to_owned())
    }

    /// Listens at an abstract name; `tag` makes it this test's own.
    pub fn abstract_name(tag: &str) -> Self {
        let name = format!("ring-test-{}-{tag}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn new(socket: UnixDatagram, name: String) -> Self {
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, name }
    }

    /// Waits for the next message, and returns its lines.
    pub fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let count = self.socket.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a message with this line, skips those before it, and returns its lines.
    pub fn until(&self, line: &str) -> Vec<String> {
        loop {
            let lines = self.next();
            if lines.iter().any(|one| one == line) {
                return lines;
            }
        }
    }

    /// Waits for a status that contains these words.
    pub fn status(&self, words: &str) -> String {
        loop {
            let lines = self.next();
            let status = lines.iter().find_map(|line| line.strip_prefix("STATUS="));
            if let Some(status) = status.filter(|status| status.contains(words)) {
                return status.to_owned();
            }
        }
    }

    /// Returns whether no message comes for this long.
    pub fn is_silent(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let received = self.socket.recv(&mut [0; 4096]);
        self.socket.set_read_timeout(Some(LONG)).unwrap();
        matches!(received, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}
