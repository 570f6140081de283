//! The sockets, and the options that go with them.

use super::senders::{Listening, connect, send, wait_for_acknowledgement};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{assert_fails, signal};
use ring_test_support::service::Manager;
use std::io::{BufRead, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

#[test]
fn stale_sockets_are_replaced_and_live_ones_respected() {
    let scene = Scene::with_ring("1M");
    scene.succeed("$RING create --size 1M other");
    let sockets = ["--listen", "unix:in", "--listen", "unixgram:log"];
    let mut killed = Listening::start(&scene, &sockets);
    signal(&killed.child, Signal::SIGKILL);
    killed.child.wait().unwrap();
    assert!(scene.path("in").exists() && scene.path("log").exists());
    let listening = Listening::start(&scene, &sockets);
    for socket in ["unix:in", "unixgram:log", "unix:log"] {
        let output = scene.run(&["produce", "other", "--listen", socket], b"");
        assert_fails(&output, 1, &format!("--listen {socket}: in use"));
    }
    // The ring, too.
    let output = scene.run(&["produce", "ring", "--listen", "unix:free"], b"");
    assert_fails(&output, 1, "already has a producer");
    send(&connect(&scene, "in"), b"a\n", 1);
    assert!(listening.stop().0.success());
    assert!(!scene.path("in").exists() && !scene.path("log").exists());
    assert!(!scene.path("free").exists());
}

#[test]
fn socket_without_its_name_is_reported() {
    let scene = Scene::with_ring("1M");
    let mut listening = Listening::start(&scene, &["--listen", "unix:in"]);
    let sender = connect(&scene, "in");
    std::fs::rename(scene.path("in"), scene.path("other")).unwrap();
    let mut line = String::new();
    listening.errors.read_line(&mut line).unwrap();
    assert!(line.contains("unix:in: the socket was removed or replaced"), "{line}");
    std::fs::rename(scene.path("other"), scene.path("in")).unwrap();
    line.clear();
    listening.errors.read_line(&mut line).unwrap();
    assert!(line.contains("unix:in: is there again"), "{line}");
    send(&sender, b"a\n", 1);
    assert!(listening.stop().0.success());
}

#[test]
fn connections_beyond_the_limit_of_descriptors_wait_until_others_end() {
    let scene = Scene::with_ring("1M");
    let mut command = Command::new("prlimit");
    command.args(["--nofile=24:24", env!("CARGO_BIN_EXE_blockring")]);
    command.args(["produce", "ring", "--json", "--listen", "unix:in"]);
    command.current_dir(scene.path(".")).stderr(Stdio::piped());
    let listening = Listening::start_command(&mut command, "unix:in");
    let senders: Vec<_> = (0..40).map(|_| connect(&scene, "in")).collect();
    for mut sender in &senders {
        sender.write_all(b"a\n").unwrap();
    }
    for sender in senders {
        wait_for_acknowledgement(&sender, 1);
    }
    let (status, words) = listening.stop();
    assert!(status.success());
    assert!(words.contains("unix:in: cannot accept a connection: Too many open files"), "{words}");
    assert!(words.contains(r#""items":40"#), "{words}");
}

#[test]
fn service_manager_is_told_when_the_sockets_are_there_and_of_the_end() {
    let scene = Scene::with_ring("1M");
    let manager = Manager::at(&scene.path("notify"));
    let arguments = ["produce", "ring", "--listen", "unix:in", "--listen", "unixgram:log"];
    let mut command = scene.command(&arguments);
    let listening =
        Listening::start_command(command.env("NOTIFY_SOCKET", &manager.name), "unixgram:log");
    assert_eq!(manager.next(), ["READY=1", "STATUS=takes items at unix:in, unixgram:log"]);
    assert!(listening.stop().0.success());
    assert_eq!(manager.next()[0], "STOPPING=1");
}

#[test]
fn sockets_have_the_mode_and_the_group_that_are_given() {
    let scene = Scene::with_ring("1M");
    let group = nix::unistd::getgid().to_string();
    let both = ["--listen", "unix:in", "--listen", "unixgram:log"];
    for (more, mode) in [
        (&[][..], 0o600),
        (&["--socket-group", &group], 0o660),
        (&["--socket-group", &group, "--socket-mode", "622"], 0o622),
    ] {
        let listening = Listening::start(&scene, &[more, &both].concat());
        for name in ["in", "log"] {
            let about = std::fs::metadata(scene.path(name)).unwrap();
            assert_eq!(about.permissions().mode() & 0o777, mode);
            assert_eq!(about.gid().to_string(), group);
        }
        assert!(listening.stop().0.success());
    }
}

#[test]
fn options_that_do_not_go_with_the_sockets_are_refused_by_name() {
    let scene = Scene::with_ring("1M");
    let (stream, datagrams) = (["--listen", "unix:in"], ["--listen", "unixgram:log"]);
    let refused: [(&[&str], &[&str], &str); 11] = [
        (&stream, &["--on-full", "drop"], "--on-full drop does not go with --listen unix:in"),
        (&stream, &["--on-too-large", "drop"], "--on-too-large drop does not go with"),
        (&stream, &stream, "--listen unix:in is given twice"),
        (&datagrams, &["--framing", "nul"], "--framing is for connections"),
        (&datagrams, &["--max-connections", "5"], "--max-connections is for connections"),
        (&stream, &["--max-connections", "0"], "it takes a whole number larger than 0"),
        (&stream, &["--framing", "export", "--credentials"], "--credentials does not go with"),
        (&stream, &["--journald"], "cannot be used with"),
        (&["--listen", "tcp:1"], &[], "it takes unixgram:PATH, unix:PATH or passed"),
        (&[], &["--credentials"], "--listen <SOCKET>"),
        (&stream, &["--socket-mode", "999"], "must be octal digits"),
    ];
    for (sockets, more, words) in refused {
        let output = scene.run(&[&["produce", "ring"], sockets, more].concat(), b"");
        assert_fails(&output, 2, words);
    }
    let unknown = ["produce", "ring", "--listen", "unix:in", "--socket-group", "no such group"];
    assert_fails(&scene.run(&unknown, b""), 1, "--socket-group no such group: there is no such");
    let nowhere = ["produce", "ring", "--listen", "unix:no/in"];
    assert_fails(&scene.run(&nowhere, b""), 1, "--listen unix:no/in: ");
    assert!(!scene.path("in").exists() && !scene.path("log").exists());
}
