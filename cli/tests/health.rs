//! `health`: one line a ring, and the exit code.
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, SockType, accept, send};
use nix::unistd::close;
use ring_test_support::process::{signal, status_of};
use ring_test_support::{assert_fails, assert_ok};
use serde_json::Value;
use shared_block_ring::format::{
    EXTENSION, Geometry, PointerSector, SectorSize, Side, Slot, decode_sector0, find_slot, put_slot,
};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::process::Stdio;

/// Returns the exit code and what was printed.
fn health(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let output = scene.run(&[&["health"], arguments].concat(), b"");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn health_is_judged_by_the_used_part_and_by_the_consumer() {
    let scene = Scene::with_ring("64K");
    assert_eq!(health(&scene, &["ring"]), (0, "ring: healthy: 0.0 % used, 0 items\n".to_owned()));
    scene.succeed("head -c 31996 /dev/zero | $RING produce --framing whole ring");
    let before = scene.read("ring");
    let (code, words) = health(&scene, &["--max-used", "50", "ring"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.starts_with("ring: healthy: 50.0 % used, 1 item, the oldest "), "{words}");
    let (code, words) = health(&scene, &["--max-used", "49.9", "--need-consumer", "ring"]);
    let reasons = "ring: not healthy: 50.0 % is used (at most 49.9 %); no process is its consumer; 50.0 % used, 1 item";
    assert!(code == 1 && words.starts_with(reasons), "{words}");
    assert_eq!(scene.read("ring"), before);
    let mut consumer = scene
        .without_input(&["consume", "--follow", "ring"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    scene.wait_for_role("ring", "consumer", &consumer);
    assert_eq!(health(&scene, &["--need-consumer", "ring"]).0, 0);
    signal(&consumer, Signal::SIGTERM);
    assert!(status_of(&mut consumer, "after SIGTERM").success());
}

#[test]
fn health_is_judged_by_the_age_of_the_oldest_item() {
    let scene = Scene::with_ring("64K");
    scene.succeed(
        "echo 1 | $RING produce ring; $RING consume ring > /dev/null; echo 2 | $RING produce ring",
    );
    // All of it was published at once: the age is known.
    let (code, words) = health(&scene, &["--max-age", "3600", "ring"]);
    assert_eq!(code, 0, "{words}");
    let (code, words) = health(&scene, &["--max-age", "0", "ring"]);
    assert!(code == 1 && words.contains(": not healthy: the oldest item is "), "{words}");
    // The ring forgets when the oldest item was published; nobody consumes it.
    scene.succeed("for n in 3 4 5; do echo $n | $RING produce ring; done");
    let (code, words) = health(&scene, &["--max-age", "0.000001", "ring"]);
    assert!(code == 1 && words.contains("not healthy: the oldest item is"), "{words}");
    scene.succeed("$RING consume ring > /dev/null");
    assert_eq!(health(&scene, &["--max-age", "0", "ring"]).0, 0, "there is no item");
}

/// Has the consumer's last advance look as if it had been an hour ago.
fn age_consumer(scene: &Scene) {
    let mut bytes = scene.read("ring");
    let geometry = Geometry::new(SectorSize::DEFAULT, bytes.len() as u64 / 512).unwrap();
    let uuid = decode_sector0(&bytes[..512], geometry).unwrap().uuid().unwrap();
    let sector = &mut bytes[1024..1536];
    let position = PointerSector::decode(Side::Consumer, sector).unwrap().position;
    let slot = find_slot(uuid, Side::Consumer, sector, position).unwrap().unwrap();
    let old = Slot { time_ns: slot.time_ns - 3_600_000_000_000, ..slot };
    sector[EXTENSION].fill(0);
    put_slot(uuid, sector, position, &old);
    scene.write("ring", bytes);
}

#[test]
fn health_watches_a_consumer_that_may_be_stuck() {
    let scene = Scene::with_ring("64K");
    scene.succeed("echo 1 | $RING produce ring; $RING consume ring > /dev/null");
    age_consumer(&scene);
    assert_eq!(health(&scene, &["--max-age", "600", "ring"]).0, 0, "there is no item");
    // The oldest item came before the last two batches, as far as the ring tells.
    scene.succeed("for n in 1 2 3; do echo $n | $RING produce ring; done");
    let (code, words) = health(&scene, &["--max-age", "600", "ring"]);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.contains("items wait, and the consumer has not moved for 1.0 h (at most 10 min)")
    );
    scene.succeed("$RING consume --count 1 ring > /dev/null");
    assert_eq!(health(&scene, &["--max-age", "600", "ring"]).0, 0, "the consumer has moved");
}

#[test]
fn health_watches_the_consumer_of_a_ring_without_times() {
    let scene = Scene::new();
    scene.succeed("$RING create --plain --size 64K ring");
    assert_eq!(health(&scene, &["--max-age", "600", "ring"]).0, 0, "there is no item");
    scene.succeed("echo 1 | $RING produce ring");
    let (code, words) = health(&scene, &["ring"]);
    assert!(code == 0 && !words.contains("old"), "{words}");
    let (code, words) = health(&scene, &["--max-age", "600", "ring"]);
    assert!(code == 1 && words.contains(": not healthy: items wait, the ring tells no times"));
    let output = scene.run(&["health", "--json", "ring"], b"");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object["rings"][0]["oldest_item_age_seconds"].is_null(), "{object}");
}

#[test]
fn health_looks_at_silent_backends_side_by_side_and_keeps_their_order() {
    let scene = Scene::with_ring("64K");
    let listening = scene.silent_socket(SockType::SeqPacket);
    let mut child = scene
        .without_input(&["health", "--timeout", "600", "unix:socket", "ring", "unix:socket"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Both are connected at once: one after another they would take twenty minutes.
    let both = [(); 2].map(|()| accept(listening.as_raw_fd()).unwrap());
    for connection in both {
        send(connection, b"no answer", MsgFlags::empty()).unwrap();
    }
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!status_of(&mut child, "after both answers").success());
    // Not before: a backend that hangs up is tried again, where nobody accepts any more.
    for connection in both {
        close(connection).unwrap();
    }
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[1].starts_with("ring: healthy: "), "{text}");
    for line in [lines[0], lines[2]] {
        assert!(line.starts_with("unix:socket: not healthy: "), "{text}");
    }
}

#[test]
fn health_of_many_rings_has_the_exit_code_of_the_worst() {
    let scene = Scene::with_ring("64K");
    let _listening = scene.silent_socket(SockType::SeqPacket);
    scene.succeed(
        "cp ring bad; printf X | dd of=bad bs=1 seek=520 conv=notrunc status=none; echo 1 > text",
    );
    let (code, words) = health(&scene, &["ring", "missing"]);
    let lines: Vec<_> = words.lines().collect();
    assert!(code == 1 && lines.len() == 2, "{words}");
    assert!(
        lines[0].starts_with("ring: healthy: ") && lines[1].starts_with("missing: not healthy: "),
        "{words}"
    );
    assert!(lines[1].contains("No such file"), "{words}");
    let (code, words) = health(&scene, &["--timeout", "0.1", "missing", "unix:socket"]);
    assert!(code == 3 && words.contains("unix:socket: not healthy: "), "{words}");
    let (code, words) = health(&scene, &["--timeout", "0.1", "unix:socket", "bad", "text", "ring"]);
    assert!(
        code == 5 && words.contains("bad: not healthy: producer sector: flag byte is 88"),
        "{words}"
    );
    let output = scene.run(&["health", "ring", "vhost-user:socket"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let output = scene.run(&["health", "--json", "ring", "text"], b"");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["exit_code"], &object["healthy"]), (&5.into(), &false.into()));
    assert_eq!(object["error"], "1 of 2 rings are not healthy");
    assert_eq!(
        (&object["rings"][0]["healthy"], &object["rings"][0]["used"]),
        (&true.into(), &0.into())
    );
    assert!(object["rings"][1]["reasons"][0].as_str().unwrap().contains("too small"));
    assert_ok(&scene.run(&["health", "--json", "ring"], b""));
}

#[test]
fn health_of_a_long_list_of_rings_keeps_its_order() {
    let scene = Scene::with_ring("64K");
    for number in 0..3000 {
        symlink("ring", scene.path(&format!("{number:04}.out"))).unwrap();
    }
    let text = scene.succeed("ulimit -n 128; $RING health *.out");
    assert_eq!(text.lines().count(), 3000);
    for (number, line) in text.lines().enumerate() {
        assert!(line.starts_with(&format!("{number:04}.out: healthy: ")), "{line}");
    }
    scene.succeed("printf X | dd of=ring bs=1 seek=520 conv=notrunc status=none");
    let output = scene.shell("ulimit -n 128; exec $RING health *.out");
    assert_fails(&output, 5, "3000 of 3000 rings are not healthy");
}

#[test]
fn health_takes_patterns_and_one_that_matches_nothing_is_a_ring_that_is_not_there() {
    let scene = Scene::with_ring("64K");
    scene.succeed("mkdir rings; for name in b a c; do cp ring rings/$name.out; done");
    let (code, words) = health(&scene, &["rings/*.out", "ring"]);
    let rings: Vec<_> = words.lines().filter_map(|line| line.split(": healthy").next()).collect();
    assert_eq!((code, rings), (0, vec!["rings/a.out", "rings/b.out", "rings/c.out", "ring"]));
    for pattern in ["rings/*.in", "unix:rings/*.sock"] {
        let (code, words) = health(&scene, &["ring", pattern]);
        assert!(code != 0 && words.contains(&format!("{pattern}: not healthy: ")), "{words}");
    }
}

/// Needs root, for a mount namespace.
#[test]
fn health_finds_consumers_without_proc() {
    succeed(
        r#"umount -l /proc
        "$RING" create --size 64K ring
        must 1 "not healthy: no process is its consumer" "$RING" health --need-consumer ring
        "$RING" consume --follow --timeout 60 ring > out &
        timeout 60 sh -c 'until "$RING" health --need-consumer ring > health; do sleep 0.01; done'
        must 0 "ring: healthy: 0.0 % used, 0 items" "$RING" health --need-consumer ring
        kill $!
        wait $!"#,
    );
}

#[test]
fn health_refuses_limits_that_are_none() {
    let scene = Scene::with_ring("64K");
    for option in
        ["--max-used=101", "--max-used=-1", "--max-age=-1", "--max-age=soon", "--timeout=x"]
    {
        let output = scene.run(&["health", option, "ring"], b"");
        assert_eq!(output.status.code(), Some(2), "{option}");
    }
    assert_eq!(scene.run(&["health"], b"").status.code(), Some(2));
}
