//! NATS servers on loopback ports, and a proxy before them that fails in chosen ways.
//! `scripts/setup.sh` fetches the servers.

mod proxy;

pub use proxy::{Fault, Proxy};

use crate::process::{PATIENCE, eventually, signal};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// JetStream that flushes each message before it acknowledges it.
const JETSTREAM: &str = "jetstream { store_dir: 'jetstream', sync_interval: always }";

/// A server in a folder of its own. Killed when this is dropped.
pub struct NatsServer {
    dir: tempfile::TempDir,
    program: PathBuf,
    child: Option<Child>,
    pub port: u16,
}

impl NatsServer {
    /// Starts a server with JetStream, and with these lines in its configuration.
    pub fn start(configuration: &str) -> Self {
        Self::start_program("nats-server", &format!("{JETSTREAM}\n{configuration}"))
    }

    /// Starts Debian's server, which is too old for atomic batches.
    pub fn start_old() -> Self {
        Self::start_program("nats-server-2.9", "jetstream { store_dir: 'jetstream' }")
    }

    /// Starts a server without JetStream.
    pub fn start_without_jetstream() -> Self {
        Self::start_program("nats-server", "")
    }

    fn start_program(program: &str, configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self { dir, program: find(program), child: None, port: 0 };
        // Somebody else may take a port between the look and the start.
        for _ in 0..20 {
            server.port = free_port();
            let listen = format!("listen: 127.0.0.1:{}\n{configuration}\n", server.port);
            std::fs::write(server.path("nats.conf"), listen).unwrap();
            if server.run() {
                return server;
            }
        }
        panic!("{program} does not start: {}", server.log());
    }

    /// Starts the server again, on the same port and with the same streams.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "the server does not start again: {}", self.log());
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the server, or lets it go on: it accepts connections, and answers nothing.
    pub fn set_stopped(&self, stopped: bool) {
        let number = if stopped { Signal::SIGSTOP } else { Signal::SIGCONT };
        signal(self.child.as_ref().unwrap(), number);
    }

    /// Returns the address as a client writes it.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns a path in the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts the process, and waits until it serves clients. Returns false if it ends instead.
    fn run(&mut self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let log = log.unwrap();
        // The server ends with the test, however that ends.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&self.program)
            .args(["-c", "nats.conf"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut has_ended = false;
        eventually("the NATS server serves or ends", || {
            has_ended = child.try_wait().unwrap().is_some();
            has_ended || greets(self.port)
        });
        self.child = Some(child);
        !has_ended
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns whether a NATS server says who it is at that port.
fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

/// Returns a port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Returns the path of a server that was fetched.
fn find(program: &str) -> PathBuf {
    let fetched = || {
        let this = std::env::current_exe().unwrap();
        // target/debug/deps/TEST, or below target/TRIPLE for another target.
        let mut places = this.ancestors().skip(2).map(|folder| folder.join("nats-server"));
        places.find(|folder| folder.join(program).exists()).unwrap_or_default()
    };
    let folder = std::env::var_os("BLOCKRING_NATS").map_or_else(fetched, PathBuf::from);
    let path = folder.join(program);
    assert!(path.exists(), "{program} is missing: run scripts/setup.sh first");
    path
}
