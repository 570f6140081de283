//! A daemon that is started as a service manager starts it.

use super::daemon::{Daemon, Scene};
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::dup2_raw;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// The number of the first descriptor that is passed.
const FIRST: i32 = 3;

/// Where descriptors are kept until each has its number.
const ABOVE: i32 = 100;

/// The start of a daemon.
pub struct Service<'a> {
    scene: &'a Scene,
    command: Command,
    pid: &'static str,
}

impl<'a> Service<'a> {
    pub fn new(scene: &'a Scene, arguments: &[&str]) -> Self {
        let daemon = scene.command(arguments);
        let mut command = Command::new("sh");
        // The shell's number is that of the daemon.
        command.args(["-c", r#"LISTEN_PID=${PID:-$$} exec "$@""#, "sh"]).arg(daemon.get_program());
        command.args(daemon.get_args()).current_dir(scene.path("."));
        Self { scene, command, pid: "" }
    }

    /// Passes these descriptors, under these names.
    pub fn pass(mut self, passed: &[(&str, OwnedFd)]) -> Self {
        let names: Vec<_> = passed.iter().map(|(name, _)| *name).collect();
        if !names.is_empty() {
            self.command.env("LISTEN_FDS", names.len().to_string());
            self.command.env("LISTEN_FDNAMES", names.join(":"));
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
        unsafe { self.command.pre_exec(number_them) };
        self
    }

    /// Says that the descriptors are for another process.
    pub fn for_another_process(mut self) -> Self {
        self.pid = "1";
        self
    }

    /// Sets a variable of the daemon's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn run(mut self) -> Output {
        self.command.env("PID", self.pid).output().unwrap()
    }

    /// Starts the daemon, and does not wait for it.
    pub fn start(mut self) -> Daemon {
        let log = File::options().create(true).append(true).open(self.scene.path("log")).unwrap();
        self.command.env("PID", self.pid).stderr(log);
        Daemon(self.command.spawn().unwrap())
    }
}
