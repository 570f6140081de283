//! A daemon process with a ring of its own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_simulation::Footprint;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::eventually;
use shared_block_ring::handover::Role;
use shared_block_ring::{Error, UnixDevice};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use vhost_device_blockring::data_path::guard::Reason;

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
        let tasks = format!("/proc/{}/task", self.0.id());
        // A thread gives itself its name, some time after it was started; others come and go.
        let is_queue = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "queue\n")
        };
        let mut queue = None;
        eventually("the queue's thread has its name", || {
            queue = std::fs::read_dir(&tasks).unwrap().filter_map(Result::ok).find(is_queue);
            queue.is_some()
        });
        queue.unwrap().file_name().into_string().unwrap()
    }

    /// Waits for its end, and returns its exit code.
    pub fn code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the daemon ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// Waits until that thread waits in the kernel for a page: it sleeps, and is in no system call
    /// (`proc_pid_syscall(5)`).
    pub fn queue_waits_for_a_page(&self) {
        let call = format!("/proc/{}/task/{}/syscall", self.0.id(), self.queue_thread());
        eventually("the queue's thread waits for a page", || {
            std::fs::read_to_string(&call).unwrap().starts_with("-1 ")
        });
    }

    /// Waits until that thread sleeps: it has looked at the queue for the last time before the next
    /// kick.
    pub fn queue_sleeps(&self) {
        let status = format!("/proc/{}/status", self.queue_thread());
        eventually("the queue's thread sleeps", || {
            std::fs::read_to_string(&status)
                .unwrap()
                .lines()
                .any(|line| line.starts_with("State:\tS"))
        });
    }

    /// Has the guest kick, and waits until the queue's thread has looked at the queue and sleeps
    /// again.
    pub fn kicked_by(&self, guest: &FrontEnd) {
        // A sleeping thread is awake when the kick has returned.
        guest.kick();
        self.queue_sleeps();
    }

    /// Stops it, and waits until each of its threads stands still.
    pub fn halt(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.0.id());
        eventually("the daemon is stopped", || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status"));
                status.is_ok_and(|text| text.contains("State:\tT"))
            })
        });
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    pub fn footprint(&self) -> Footprint {
        Footprint::of(self.0.id())
    }
}

impl AsRef<Path> for Scene {
    fn as_ref(&self) -> &Path {
        self.dir.path()
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
        // The consumer socket is bound after the front ends' one; a stale one refuses until it is
        // replaced.
        eventually("the daemon comes up", || self.connect(Role::Control).is_ok());
        daemon
    }

    /// Starts one that accepts front ends on `listener`, which others may have, too.
    pub fn start_inherited(&self, listener: OwnedFd) -> Daemon {
        let daemon = self.spawn_inherited(listener);
        eventually("the daemon comes up", || self.connect(Role::Control).is_ok());
        daemon
    }

    /// The same, and does not wait for it.
    pub fn spawn_inherited(&self, listener: OwnedFd) -> Daemon {
        let usual = ["--fd", "3", "--blk-file", "ring", "--size", "64K", "--consumer-socket", "c"];
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let daemon = self.command(&usual);
        // As systemd passes it: by number.
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec "$@" 3<&0 </dev/null"#, "sh"]).arg(daemon.get_program());
        shell.args(daemon.get_args()).current_dir(self.dir.path()).stdin(listener).stderr(log);
        Daemon(shell.spawn().unwrap())
    }

    pub fn connect(&self, role: Role) -> Result<UnixDevice, Error> {
        UnixDevice::connect(self.path("c"), role)
    }

    /// A device that lends items where they lie.
    pub fn connect_in_place(&self, role: Role) -> Result<UnixDevice, Error> {
        // SAFETY: the daemon guards the ring. Tests that change the ring's file by themselves do so
        // while nothing is lent.
        self.connect(role).map(|device| unsafe { device.lend_in_place() })
    }

    /// One of the daemon's counters, as `diagnostics` has it; that of a reason for refusals is
    /// `refused.REASON`.
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

    /// The daemon's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Lines of the daemon's log that contain these words.
    pub fn logged(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }
}
