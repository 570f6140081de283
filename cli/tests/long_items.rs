//! Items far larger than the read buffer: linear time, bounded memory.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, counts};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use ring_test_support::assert_ok;
use ring_test_support::process::finish;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// One test at a time: processor time is counted for all children.
static TURN: Mutex<()> = Mutex::new(());

/// Returns the user time of all children, in microseconds.
fn computed() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().user_time().num_microseconds()
}

/// Returns the user time for a line of that many bytes, in microseconds: the least of three.
fn cost(bytes: usize, arguments: &[&str]) -> i64 {
    let scene = Scene::with_ring("48M");
    let line = vec![b'x'; bytes];
    let attempt = |_| {
        let before = computed();
        assert_ok(&scene.run(arguments, &line));
        let cost = computed() - before;
        std::fs::remove_file(scene.path("ring")).unwrap();
        assert_ok(&scene.run(&["create", "--size", "48M", "ring"], b""));
        cost
    };
    (0..3).map(attempt).min().unwrap()
}

#[test]
fn computing_for_a_line_is_linear_in_its_length() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let produce = ["produce", "--no-flush", "ring"];
    let journal = ["journal", "--exec", "true", "ring"];
    for arguments in [&produce[..], &journal] {
        let (short, long) = (cost(4 << 20, arguments), cost(40 << 20, arguments));
        // Ten times as much, where the square is a hundred times.
        assert!(long < 30 * short.max(5_000), "{arguments:?}: {short} us, {long} us");
    }
}

#[test]
fn memory_does_not_grow_with_an_item_that_never_fits() {
    const MEBIBYTES: usize = 200;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let journal = ["journal", "--exec", "true", "--limit", "1", "--aside", "aside", "ring"];
    for (arguments, field, expected) in [
        (&["produce", "--on-too-large", "drop"][..], "too_large_dropped", 1),
        (&["produce", "--on-too-large", "split", "--on-full", "drop"], "too_large_split", 1),
        (&["journal", "--exec", "true", "--on-too-large", "drop"], "too_large_dropped", 1),
        (&journal[..7], "aside", 1),
    ] {
        let scene = Scene::with_ring("1M");
        let mut child = scene.spawn(&[arguments, &["--json", "ring"]].concat());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"short\n").unwrap();
        for _ in 0..MEBIBYTES {
            stdin.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        // All but what fits into a pipe was read.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 48 << 10, "{arguments:?}: {peak} kB");
        child.stdin = Some(stdin);
        let output = finish(child, b"\nlast\n");
        assert_ok(&output);
        assert_eq!(counts(&output)[field], expected, "{arguments:?}");
        if field == "aside" {
            assert_eq!(scene.read("aside").len(), (MEBIBYTES << 20) + 1);
        }
    }
}
