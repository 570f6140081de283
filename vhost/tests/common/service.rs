//! A daemon that is started as a service manager starts it.

use super::daemon::{Daemon, Scene};
use ring_test_support::service;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Output};

/// The start of a daemon.
pub struct Service<'a> {
    scene: &'a Scene,
    command: Command,
    pid: &'static str,
}

impl<'a> Service<'a> {
    pub fn new(scene: &'a Scene, arguments: &[&str]) -> Self {
        Self { scene, command: service::as_service(&scene.command(arguments)), pid: "" }
    }

    /// Passes these descriptors, under these names.
    pub fn pass(mut self, passed: &[(&str, OwnedFd)]) -> Self {
        service::pass(&mut self.command, passed);
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
