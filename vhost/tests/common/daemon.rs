//! A daemon process with a ring of its own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_simulation::Footprint;
use shared_block_ring::handover::Role;
use shared_block_ring::{Error, UnixDevice};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vhost_device_blockring::guard::Reason;

/// The longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory for the sockets, the ring, and the daemon's log.
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

impl Daemon {
    /// The number of the thread that drives the queue.
    pub fn queue_thread(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let name =
            |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap();
        let queue = tasks.map(Result::unwrap).find(|task| name(task).trim() == "queue");
        queue.unwrap().file_name().into_string().unwrap()
    }

    /// Waits until that thread sleeps: it has looked at the queue for the last time before the next kick.
    pub fn queue_sleeps(&self) {
        let status = format!("/proc/{}/status", self.queue_thread());
        eventually("the queue's thread sleeps", || {
            std::fs::read_to_string(&status)
                .unwrap()
                .lines()
                .any(|line| line.starts_with("State:\tS"))
        });
    }
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    pub fn footprint(&self) -> Footprint {
        Footprint::of(self.0.id())
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
        let size = if more.contains(&"--size") { &[][..] } else { &["--size", "64K"] };
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let daemon =
            Daemon(self.command(&usual).args(size).args(more).stderr(log).spawn().unwrap());
        // The consumer socket is bound after the front ends' one; a stale one refuses until it is replaced.
        eventually("the daemon comes up", || self.connect(Role::Control).is_ok());
        daemon
    }

    pub fn connect(&self, role: Role) -> Result<UnixDevice, Error> {
        UnixDevice::connect(&self.path("c"), role)
    }

    /// One of the daemon's counters, as `diagnostics` has it; that of a reason for refusals is `refused.REASON`.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.connect(Role::Control).unwrap().counters();
        let Some(name) = name.strip_prefix("refused.") else {
            return counters[name].as_u64().unwrap_or_else(|| panic!("{name} in {counters}"));
        };
        assert!(Reason::ALL.iter().any(|reason| reason.name() == name), "{name} is no reason");
        // Only those that occurred are there.
        counters["refused"].get(name).map_or(0, |count| count.as_u64().unwrap())
    }

    /// Requests that were refused, for whatever reason.
    pub fn refused(&self) -> u64 {
        let counters = self.connect(Role::Control).unwrap().counters();
        counters["refused"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
    }

    /// Lines of the daemon's log that contain these words.
    pub fn logged(&self, words: &str) -> usize {
        let log = std::fs::read_to_string(self.path("log")).unwrap();
        log.lines().filter(|line| line.contains(words)).count()
    }
}

/// It must have ended with that code, and with these words on standard error.
pub fn fails(output: &Output, code: i32, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text:?} lacks {words:?}");
}

/// Waits until it is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
