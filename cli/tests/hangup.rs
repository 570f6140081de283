//! A terminal that is closed under a program: SIGHUP stops it as SIGTERM does, unless SIGHUP is
//! ignored (`nohup`). `forward` reads its configuration again, and tells its service manager.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{Guarded, ended, signal};
use ring_test_support::service::Manager;
use ring_test_support::{RingFile, assert_fails, assert_ok};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `blockring` with these arguments and the ring's path, from a shell that runs `before`
/// first.
fn start(before: &str, arguments: &[&str], ring: &RingFile) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_blockring")]);
    command.args(arguments).arg(&ring.path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the program prints a line, and returns it.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line
}

#[test]
fn hangup_ends_produce_with_a_message_and_consume_with_everything_freed() {
    let ring = RingFile::new(64 * 1024, 512);
    let mut consuming = start("", &["consume", "--follow"], &ring);
    let mut producing = start("", &["produce"], &ring);
    let mut input = producing.stdin.take().unwrap();
    input.write_all(b"whole\nhalf").unwrap();
    assert_eq!(first_line(&mut consuming), "whole\n");
    signal(&producing, Signal::SIGHUP);
    let output = producing.wait_with_output().unwrap();
    assert_fails(&output, 1, "not accepted: item 2 of the input");
    signal(&consuming, Signal::SIGHUP);
    assert_eq!(consuming.wait_with_output().unwrap().status.code(), Some(0));
    let facts = start("", &["diagnostics", "--json"], &ring).wait_with_output().unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&facts.stdout).unwrap();
    assert_eq!(facts["producer"], facts["consumer"], "{facts}");
}

#[test]
fn consume_goes_on_after_a_hangup_that_is_ignored() {
    let ring = RingFile::new(64 * 1024, 512);
    let mut consuming = start("trap '' HUP;", &["consume", "--follow"], &ring);
    let produce = |line: &[u8]| {
        let mut producing = start("", &["produce"], &ring);
        producing.stdin.take().unwrap().write_all(line).unwrap();
        assert!(producing.wait().unwrap().success());
    };
    produce(b"before\n");
    assert_eq!(first_line(&mut consuming), "before\n");
    signal(&consuming, Signal::SIGHUP);
    produce(b"after\n");
    assert_eq!(first_line(&mut consuming), "after\n");
    consuming.kill().unwrap();
    let mut rest = String::new();
    consuming.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    consuming.wait().unwrap();
}

#[test]
fn forward_tells_its_service_manager_of_its_start_reload_life_and_end() {
    let scene = Scene::new();
    scene.succeed(
        "for r in a b; do $RING create --size 64K $r.img; done; echo 1 | $RING produce a.img",
    );
    scene.write("forward.toml", "to = \"file:{ring}.log\"\nrings = [\"a.img\"]\n");
    for manager in [Manager::at(&scene.path("notify")), Manager::abstract_name("forward")] {
        let mut command = scene.without_input(&["forward", "--config", "forward.toml"]);
        command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "1000000");
        let forwarder = Guarded::start(&mut command);
        assert_eq!(manager.next(), ["READY=1", "STATUS=forwarding 1 ring"]);
        manager.until("WATCHDOG=1");
        scene.write("forward.toml", "to = \"file:{ring}.log\"\nrings = [\"a.img\", \"b.img\"]\n");
        signal(&forwarder, Signal::SIGHUP);
        let reloading = manager.until("RELOADING=1");
        assert!(reloading[1].starts_with("MONOTONIC_USEC="), "{reloading:?}");
        assert_eq!(manager.until("READY=1")[1], "STATUS=forwarding 2 rings");
        // A reload that fails is over, too, and says so.
        scene.write("forward.toml", "rigns = []\n");
        signal(&forwarder, Signal::SIGHUP);
        manager.until("RELOADING=1");
        let ready = manager.until("READY=1");
        assert!(ready[1].starts_with("STATUS=the configuration stays as it was: forward.toml"));
        manager.until("WATCHDOG=1");
        signal(&forwarder, Signal::SIGTERM);
        assert_eq!(manager.until("STOPPING=1")[1], "STATUS=waiting for what is in flight");
        assert_ok(&ended(forwarder, "forward"));
        scene.write("forward.toml", "to = \"file:{ring}.log\"\nrings = [\"a.img\"]\n");
    }
}

#[test]
fn forward_tells_its_service_manager_what_is_wrong() {
    let scene = Scene::new();
    scene.succeed("$RING create --size 64K a.img; mkdir folder");
    let manager = Manager::at(&scene.path("notify"));
    let mut command = scene.without_input(&["forward", "a.img", "--to", "file:folder"]);
    command.env("NOTIFY_SOCKET", &manager.name);
    assert_fails(&command.output().unwrap(), 1, "is a folder");
    manager.status("is a folder");
    let mut command =
        scene.without_input(&["forward", "a.img", "b.img", "--to", "file:{ring}.log"]);
    let forwarder = Guarded::start(command.env("NOTIFY_SOCKET", &manager.name));
    let status = manager.status("forwarding 2 rings, 1 not now: b: ");
    assert!(status.contains("b.img"), "{status}");
    signal(&forwarder, Signal::SIGTERM);
    manager.until("STOPPING=1");
    ended(forwarder, "forward");
}

#[test]
fn forward_tells_its_service_manager_soon_of_a_ring_that_comes_when_all_is_idle() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    let mut command = scene.without_input(&["forward", "*.img", "--to", "file:{ring}.log"]);
    let forwarder = Guarded::start(command.env("NOTIFY_SOCKET", &manager.name));
    assert_eq!(manager.next(), ["READY=1", "STATUS=forwarding 0 rings"]);
    // The file comes in one step, and nothing happens after that: no other status is due before
    // the folders are looked up anew, after 30 s.
    let come = Instant::now();
    scene.succeed("$RING create --size 64K new; mv new a.img");
    manager.status("forwarding 1 ring");
    assert!(come.elapsed() < Duration::from_secs(25), "{:?}", come.elapsed());
    signal(&forwarder, Signal::SIGTERM);
    manager.until("STOPPING=1");
    ended(forwarder, "forward");
}

#[test]
fn commands_of_forward_do_not_see_its_service_manager() {
    let scene = Scene::new();
    scene.succeed("$RING create --size 64K a.img; echo 1 | $RING produce a.img");
    let manager = Manager::at(&scene.path("notify"));
    let to = "exec:env > seen.new; mv seen.new seen; while read -r p rest; do echo $p; done";
    let mut command = scene.without_input(&["forward", "--drain", "a.img", "--to", to]);
    command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "1000000");
    assert_ok(&command.output().unwrap());
    assert_eq!(manager.until("STOPPING=1")[1], "STATUS=everything has arrived");
    let seen = std::fs::read_to_string(scene.path("seen")).unwrap();
    assert!(seen.contains("BLOCKRING_RING=a"), "{seen}");
    assert!(!seen.contains("NOTIFY_SOCKET") && !seen.contains("WATCHDOG"), "{seen}");
}
