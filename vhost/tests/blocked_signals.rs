//! Signals that a parent process blocks, and that its child inherits as blocked.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene};
use nix::sys::signal::{SigSet, Signal};
use ring_test_support::process::eventually;
use shared_block_ring::handover::Role;
use std::os::unix::process::CommandExt;

#[test]
fn sigterm_ends_a_backend_whose_parent_blocks_it() {
    let scene = Scene::new();
    let places = ["--socket-path", "s", "--blk-file", "ring", "--consumer-socket", "c"];
    let mut command = scene.command(&places);
    command.args(["--size", "64K"]);
    // SAFETY: the closure makes one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(|| Ok(SigSet::all().thread_block()?)) };
    let mut daemon = Daemon(command.spawn().unwrap());
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    daemon.signal(Signal::SIGTERM);
    eventually("the daemon ends", || daemon.0.try_wait().unwrap().is_some());
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
}
