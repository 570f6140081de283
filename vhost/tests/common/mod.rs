//! The daemon in a folder of its own.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use shared_block_ring::handover::Role;
use shared_block_ring::{Error, UnixDevice};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder for a ring in the file `ring`, served at the sockets `s` and `c`.
pub struct Scene {
    dir: tempfile::TempDir,
}

/// Killed when the test is over, however it ends.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Scene {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-blockring"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn start(&self, more: &[&str]) -> Daemon {
        let usual = ["--socket-path", "s", "--blk-file", "ring", "--consumer-socket", "c"];
        let size: &[&str] = if more.contains(&"--size") { &[] } else { &["--size", "64K"] };
        let daemon = Daemon(
            self.command(&usual).args(size).args(more).stderr(Stdio::null()).spawn().unwrap(),
        );
        let start = Instant::now();
        // The consumer socket is bound after the front ends' one; a stale one refuses until it is replaced.
        while self.connect(Role::Control).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the daemon does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub fn connect(&self, role: Role) -> Result<UnixDevice, Error> {
        UnixDevice::connect(&self.path("c"), role)
    }
}
