//! A service manager's end of a service: the socket that the service tells it about itself, and
//! the sockets that it passes.

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::dup2_raw;
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Long enough to fail a test, not to pass one.
const LONG: Duration = Duration::from_secs(60);

/// The number of the first descriptor that is passed.
const FIRST: i32 = 3;

/// Where descriptors are kept until each has its number.
const ABOVE: i32 = 100;

/// Returns a command that starts `program` as a service manager does: any sockets are for that
/// process, or for the one that `PID` in its environment names.
pub fn as_service(program: &Command) -> Command {
    let mut command = Command::new("sh");
    // The shell's number is that of the program.
    command.args(["-c", r#"LISTEN_PID=${PID:-$$} exec "$@""#, "sh"]).arg(program.get_program());
    command.args(program.get_args());
    if let Some(folder) = program.get_current_dir() {
        command.current_dir(folder);
    }
    command
}

/// Passes these descriptors to the program of a command of [`as_service`], under these names.
pub fn pass(command: &mut Command, passed: &[(&str, OwnedFd)]) {
    let names: Vec<_> = passed.iter().map(|(name, _)| *name).collect();
    if !names.is_empty() {
        command.env("LISTEN_FDS", names.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
    }
    let above = |(_, fd): &(&str, OwnedFd)| {
        let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE)).unwrap();
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let kept: Vec<_> = passed.iter().map(above).collect();
    let number_them = move || {
        for (number, fd) in (FIRST..).zip(&kept) {
            // SAFETY: in the child nobody has a descriptor of that number that is used later.
            let copy = unsafe { dup2_raw(fd, number) }?;
            std::mem::forget(copy);
        }
        Ok(())
    };
    // SAFETY: the child duplicates descriptors, and does nothing else.
    unsafe { command.pre_exec(number_them) };
}

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
