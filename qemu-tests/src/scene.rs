//! A ring, the backend that serves it, and programs of the host around it.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    missing_debug_implementations
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::{Daemon, Disk, Guest, GuestBuilder, Job, Result, binaries, wait_until};
use serde_json::Value;

/// Bound on waits for what takes seconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Bound on a whole stream.
pub const LONG: Duration = Duration::from_secs(400);

/// Free bytes of a ring that counts as full: less than a batch.
const ROOM: u64 = 4000;

/// A folder with a ring in the file `ring`, made by the backend that serves it at the sockets `s`
/// and `c`.
pub struct Scene {
    dir: tempfile::TempDir,
    socket: &'static str,
    options: Vec<String>,
}

impl Scene {
    /// Makes a folder; `options` are the backend's, `--size` among them.
    pub fn new(options: &[&str]) -> Self {
        Self::with_socket("s", options)
    }

    /// Makes a folder with the front ends' socket at another path in it.
    pub fn with_socket(socket: &'static str, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { dir: tempfile::tempdir().unwrap(), socket, options }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Returns the ring's address at the backend's hand-over.
    pub fn address(&self) -> String {
        format!("unix:{}", self.path("c").display())
    }

    pub fn backend(&self) -> Result<Daemon> {
        self.backend_with(|_| {})
    }

    /// Starts a backend whose command `prepare` has changed.
    pub fn backend_with(&self, prepare: impl FnOnce(&mut Command)) -> Result<Daemon> {
        let mut command = Command::new(binaries::programs()?.vhost_device_blockring());
        command.current_dir(self.dir()).args(["--socket-path", self.socket, "--blk-file", "ring"]);
        command.args(["--consumer-socket", "c", "--serial", "ring"]).args(&self.options);
        prepare(&mut command);
        let mut backend = Daemon::spawn("backend", command, self.dir())?;
        // The socket of a killed backend does not answer.
        backend.wait_for("answering", SOON, |_| self.facts().is_ok())?;
        Ok(backend)
    }

    /// Returns a builder of a guest with two processors.
    pub fn guest(&self) -> GuestBuilder {
        GuestBuilder::new()
            .processors(2)
            .disk(Disk::vhost_user(self.path(self.socket)).reconnecting())
    }

    /// Starts a program of the workspace in this folder.
    pub fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Daemon> {
        Daemon::spawn(name, self.command(program, arguments)?, self.dir())
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let built = binaries::programs()?;
        let mut command = match program {
            "blockring" => Command::new(built.blockring()),
            tool => built.tool(tool),
        };
        command.current_dir(self.dir()).args(arguments);
        Ok(command)
    }

    /// Runs `blockring` to its end.
    pub fn blockring(&self, arguments: &[&str]) -> Output {
        self.command("blockring", arguments).unwrap().output().unwrap()
    }

    /// Runs `blockring`, which must succeed, and returns its standard output.
    pub fn check(&self, arguments: &[&str]) -> String {
        let output = self.blockring(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn facts(&self) -> std::result::Result<Value, Output> {
        let output = self.blockring(&["diagnostics", "--json", &self.address()]);
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(output)
        }
    }

    /// Returns the report of `diagnostics --json`, the backend's counters under `backend`. A client
    /// that is slow on a busy machine is hung up on, and asks again.
    pub fn diagnostics(&self) -> Value {
        let mut facts = self.facts();
        wait_until(SOON, || {
            if facts.is_err() {
                facts = self.facts();
            }
            facts.is_ok()
        });
        facts.unwrap_or_else(|output| panic!("the backend does not answer: {output:?}"))
    }

    /// Returns the number of reads that the backend has held.
    pub fn held(&self) -> u64 {
        self.diagnostics()["backend"]["held"].as_u64().unwrap()
    }

    /// Waits until the consumer has everything.
    pub fn wait_until_empty(&self) {
        let empty = || self.diagnostics()["used"] == 0;
        assert!(wait_until(SOON, empty), "{}", self.diagnostics());
    }

    /// Waits until the producer has no room for more.
    pub fn wait_until_full(&self) {
        assert!(wait_until(SOON, || is_full(&self.diagnostics())), "{}", self.diagnostics());
    }
}

/// Returns whether a ring of which these are the diagnostics has no room for more.
pub fn is_full(facts: &Value) -> bool {
    facts["used"].as_u64().unwrap() + ROOM > facts["capacity"].as_u64().unwrap()
}

/// Returns the JSON object that a program printed.
pub fn report(stdout: &[u8]) -> Value {
    let text = String::from_utf8_lossy(stdout);
    serde_json::from_slice(stdout).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

/// Returns the JSON object that a successful job printed.
pub fn job_report(job: &Job, timeout: Duration) -> Result<Value> {
    let output = job.wait(timeout)?;
    assert_eq!(output.status, 0, "{output:?}");
    Ok(report(output.stdout.as_bytes()))
}

/// Waits for a daemon that prints a JSON object and ends.
pub fn daemon_report(daemon: &mut Daemon, timeout: Duration) -> Result<Value> {
    let status = daemon.wait(timeout)?;
    assert!(status.success(), "{}", daemon.stderr());
    Ok(report(&daemon.stdout()))
}

/// Fails where the guest's kernel has met an I/O error.
pub fn assert_no_io_error(guest: &Guest) -> Result<()> {
    let log = guest.check("dmesg")?;
    assert!(!log.contains("I/O error"), "{log}");
    Ok(())
}

/// `first..=last`, a line each.
pub fn numbers(first: u64, last: u64) -> String {
    use std::fmt::Write;
    (first..=last).fold(String::new(), |mut text, number| {
        writeln!(text, "{number}").unwrap();
        text
    })
}
