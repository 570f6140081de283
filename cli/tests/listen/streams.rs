//! Connections: acknowledgements, ends, and senders that do not behave.

use super::senders::{Listening, connect, last_words, send, wait_for_acknowledgement};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{ended, eventually, signal, state, until_asleep};
use std::io::{ErrorKind, Write};
use std::process::Stdio;

fn items(scene: &Scene) -> Vec<String> {
    scene.items().into_iter().map(|item| String::from_utf8(item).unwrap()).collect()
}

#[test]
fn record_is_acknowledged_when_it_is_in_the_ring() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--listen", "unix:in", "--listen", "unix:other"]);
    let (one, other) = (connect(&scene, "in"), connect(&scene, "other"));
    send(&one, b"a\nb\n", 2);
    assert_eq!(scene.facts("ring")["producer_items"], 2);
    send(&other, b"c\n", 1);
    // A last line without a line feed is a record, as on standard input.
    send(&one, b"\nd", 3);
    assert_eq!(last_words(&one), ["4"]);
    assert!(listening.stop().0.success());
    assert_eq!(items(&scene), ["a", "b", "c", "", "d"]);
}

#[test]
fn framing_is_that_of_each_connection() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--framing", "whole", "--listen", "unix:in"]);
    let (mut one, mut other) = (connect(&scene, "in"), connect(&scene, "in"));
    one.write_all(b"one\n").unwrap();
    other.write_all(b"other\n").unwrap();
    one.write_all(b"one\n").unwrap();
    assert_eq!(last_words(&one), ["1"]);
    assert_eq!(last_words(&other), ["1"]);
    assert_eq!(last_words(&connect(&scene, "in")), [""; 0], "it has sent nothing");
    assert!(listening.stop().0.success());
    assert_eq!(items(&scene), ["one\none\n", "other\n"]);
}

#[test]
fn stopped_and_unread_senders_do_not_hold_up_others() {
    let scene = Scene::with_ring("8M");
    let listening =
        Listening::start(&scene, &["--json", "--framing", "length", "--listen", "unix:in"]);
    let (mut stopped, mut unread) = (connect(&scene, "in"), connect(&scene, "in"));
    stopped.write_all(b"\x05\0\0\0ab").unwrap();
    let normal = connect(&scene, "in");
    for count in 1..=2000 {
        // Far more acknowledgements than its socket takes.
        unread.write_all(b"\x01\0\0\0x").unwrap();
        send(&normal, b"\x01\0\0\0y", count);
    }
    // It has read none before, and the newest one is always the last.
    wait_for_acknowledgement(&unread, 2000);
    stopped.write_all(b"cde").unwrap();
    wait_for_acknowledgement(&stopped, 1);
    let report = listening.report();
    assert_eq!(report["items"], 4001);
    assert_eq!(report["connections"], 3);
}

#[test]
fn sender_that_goes_away_without_reading_loses_nothing() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--listen", "unix:in"]);
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    for _ in 0..3 {
        connect(&scene, "in").write_all(b"one\ntwo\n").unwrap();
    }
    signal(&listening.child, Signal::SIGCONT);
    scene.wait_for_facts("ring", |facts| facts["producer_items"] == 6);
    assert!(listening.stop().0.success());
}

#[test]
fn incomplete_and_overlong_records_end_their_connection_alone() {
    let scene = Scene::with_ring("64K");
    let arguments = ["--json", "--framing", "length", "--max-record", "100", "--listen", "unix:in"];
    let listening = Listening::start(&scene, &arguments);
    let normal = connect(&scene, "in");
    send(&normal, b"\x01\0\0\0a", 1);
    let (mut incomplete, mut long) = (connect(&scene, "in"), connect(&scene, "in"));
    incomplete.write_all(b"\x01\0\0\0b\x09\0\0\0half").unwrap();
    assert_eq!(last_words(&incomplete), ["1"]);
    long.write_all(b"\x01\0\0\0c\x65\0\0\0").unwrap();
    wait_for_acknowledgement(&long, 1);
    let error = loop {
        match long.write_all(b"x") {
            Ok(()) => std::thread::yield_now(),
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "it is not read any more");
    send(&normal, b"\x01\0\0\0d", 2);
    let (status, words) = listening.stop();
    assert!(status.success());
    let who = format!("process {} of user", std::process::id());
    for wanted in
        ["has sent an incomplete record", "sends a record of 101 bytes, which is too long"]
    {
        assert!(words.lines().any(|line| line.contains(&who) && line.contains(wanted)), "{words}");
    }
    assert!(words.contains(r#""too_large_dropped":1"#) && words.contains(r#""incomplete":1"#));
    assert_eq!(items(&scene), ["a", "b", "c", "d"]);
}

#[test]
fn further_connections_wait_until_one_ends() {
    let scene = Scene::with_ring("1M");
    let arguments = ["--max-connections", "1", "--listen", "unix:in"];
    let listening = Listening::start(&scene, &arguments);
    let first = connect(&scene, "in");
    send(&first, b"first\n", 1);
    let mut second = connect(&scene, "in");
    second.write_all(b"second\n").unwrap();
    send(&first, b"first again\n", 2);
    assert_eq!(last_words(&first), [""; 0]);
    wait_for_acknowledgement(&second, 1);
    let (status, words) = listening.stop();
    assert!(status.success());
    assert!(words.contains("as many connections as --max-connections allows (1)"), "{words}");
    assert_eq!(items(&scene), ["first", "first again", "second"]);
}

#[test]
fn full_ring_makes_senders_wait_and_acknowledges_what_is_in_it() {
    let scene = Scene::with_ring("64K");
    let listening = Listening::start(&scene, &["--json", "--listen", "unix:in"]);
    let (sender, idle) = (connect(&scene, "in"), connect(&scene, "in"));
    send(&idle, b"idle\n", 1);
    let lines = (0..20_000).fold(String::new(), |text, number| text + &number.to_string() + "\n");
    std::thread::scope(|scope| {
        scope.spawn(|| (&sender).write_all(lines.as_bytes()).unwrap());
        // More than the first half of the ring: the rest of that read waits for room.
        let full =
            |facts: &serde_json::Value| facts["producer_items"].as_u64().is_some_and(|n| n > 3000);
        scene.wait_for_facts("ring", full);
        until_asleep(&listening.child);
        let published = scene.facts("ring")["producer_items"].as_u64().unwrap() - 1;
        wait_for_acknowledgement(&sender, published);
        let mut command = scene.without_input(&["consume", "--follow", "--count", "20001", "ring"]);
        let output = ended(command.stderr(Stdio::null()).spawn().unwrap(), "consume");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("idle\n{lines}"));
    });
    wait_for_acknowledgement(&sender, 20_000);
    let report = listening.report();
    assert_eq!(report["items"], 20_001);
    assert!(report["full_waits"].as_u64() > Some(0));
}

#[test]
fn suspended_ring_makes_senders_wait_for_the_resume() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--json", "--listen", "unix:in"]);
    let mut sender = connect(&scene, "in");
    send(&sender, b"a\n", 1);
    scene.succeed("$RING suspend --wait --timeout 60 ring");
    sender.write_all(b"b\n").unwrap();
    assert_eq!(scene.facts("ring")["producer_items"], 1);
    scene.succeed("$RING resume --wait --timeout 60 ring");
    wait_for_acknowledgement(&sender, 2);
    listening.report();
}

#[test]
fn sigterm_takes_what_was_sent_and_acknowledges_it() {
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--listen", "unix:in"]);
    let mut old = connect(&scene, "in");
    send(&old, b"a\n", 1);
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    // One more connection, which was not accepted yet, and the begin of a line.
    let mut new = connect(&scene, "in");
    old.write_all(b"b\nc\nhalf of a line").unwrap();
    new.write_all(&b"x\n".repeat(50_000)).unwrap();
    signal(&listening.child, Signal::SIGTERM);
    signal(&listening.child, Signal::SIGCONT);
    wait_for_acknowledgement(&old, 3);
    wait_for_acknowledgement(&new, 50_000);
    let (status, words) = listening.ended();
    assert!(status.success(), "{words}");
    assert!(words.contains("incomplete record"), "{words}");
    assert!(!scene.path("in").exists());
    assert_eq!(items(&scene).len(), 50_003);
}
