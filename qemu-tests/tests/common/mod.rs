//! A ring, the backend that serves it, and programs of the host around it.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Job, Result, binaries, wait_until};
use serde_json::Value;

/// For everything that takes seconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(60);

/// For a whole stream.
pub const LONG: Duration = Duration::from_secs(400);

/// Bytes that may be left in a ring that is full: less than a batch.
const ROOM: u64 = 4000;

/// A folder with a ring in the file `ring`, made by the backend that serves it at the sockets `s` and `c`.
pub struct Scene {
    dir: tempfile::TempDir,
    socket: &'static str,
    options: Vec<String>,
}

impl Scene {
    /// `options` are the backend's, `--size` among them.
    pub fn new(options: &[&str]) -> Self {
        Self::with_socket("s", options)
    }

    /// With the front ends' socket somewhere else in the folder.
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

    /// The ring as the backend's hand-over has it.
    pub fn address(&self) -> String {
        format!("unix:{}", self.path("c").display())
    }

    pub fn backend(&self) -> Result<Daemon> {
        self.backend_with(|_| {})
    }

    /// A backend whose process `prepare` has its way with.
    pub fn backend_with(&self, prepare: impl FnOnce(&mut Command)) -> Result<Daemon> {
        let mut command = Command::new(binaries::host()?.vhost_device_blockring());
        command.current_dir(self.dir()).args(["--socket-path", self.socket, "--blk-file", "ring"]);
        command.args(["--consumer-socket", "c", "--serial", "ring"]).args(&self.options);
        prepare(&mut command);
        let mut backend = Daemon::spawn("backend", command, self.dir())?;
        // What a killed one left behind does not answer.
        backend.wait_for("answering", SOON, |_| self.facts().is_ok())?;
        Ok(backend)
    }

    pub fn guest(&self) -> GuestBuilder {
        GuestBuilder::new().disk(Disk::vhost_user(self.path(self.socket)).reconnecting())
    }

    /// A program of the workspace in this folder, running on.
    pub fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Daemon> {
        Daemon::spawn(name, self.command(program, arguments)?, self.dir())
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let built = binaries::host()?;
        let path = match program {
            "blockring" => built.blockring(),
            "ringload" => built.ringload(),
            other => panic!("no program {other}"),
        };
        let mut command = Command::new(path);
        command.current_dir(self.dir()).args(arguments);
        Ok(command)
    }

    /// Runs `blockring` to its end.
    pub fn blockring(&self, arguments: &[&str]) -> Output {
        self.command("blockring", arguments).unwrap().output().unwrap()
    }

    /// Runs `blockring`, which must succeed, and answers its standard output.
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

    /// What `diagnostics --json` says, the backend's counters under `backend`. A client that a busy machine lets speak late is hung up
    /// on, and asks again.
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

    /// How often the backend has held a read until there was something to tell.
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

/// Whether a ring of which these are the diagnostics has no room for more.
pub fn is_full(facts: &Value) -> bool {
    facts["used"].as_u64().unwrap() + ROOM > facts["capacity"].as_u64().unwrap()
}

/// The JSON object that a program printed.
pub fn report(stdout: &[u8]) -> Value {
    let text = String::from_utf8_lossy(stdout);
    serde_json::from_slice(stdout).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

/// The JSON object that a successful job printed.
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
