//! Items that contain the output's separator: refused or escaped, never read as two.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::{assert_fails, assert_ok};

/// Three items, the second of which contains all separators and escapes.
const INPUT: &[u8] = b"\x05\0\0\0first\x08\0\0\0a\n\0\\n\\0b\x04\0\0\0last";

fn scene() -> Scene {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "--framing", "length", "ring"], INPUT));
    scene
}

#[test]
fn item_with_a_separator_ends_consume_and_stays() {
    for (framing, separator, byte) in [("lines", "\n", "line feed"), ("nul", "\0", "zero byte")] {
        let scene = scene();
        let consume = ["consume", "--framing", framing, "ring"];
        let output = scene.run(&consume, b"");
        assert_fails(&output, 1, &format!("the item at position 12: it contains a {byte}"));
        assert_fails(&output, 1, "--framing length");
        assert_fails(&output, 1, "--on-separator escape");
        assert_eq!(output.stdout, format!("first{separator}").as_bytes());
        let again = scene.run(&consume, b"");
        assert_fails(&again, 1, "position 12");
        assert!(again.stdout.is_empty());
        assert_eq!(scene.items(), [&b"a\n\0\\n\\0b"[..], b"last"], "nothing is lost");
    }
}

#[test]
fn escaped_item_is_one_record() {
    for (framing, expected) in [
        ("lines", &b"first\na\\n\0\\\\n\\\\0b\nlast\n"[..]),
        ("nul", b"first\0a\n\\0\\\\n\\\\0b\0last\0"),
        ("whole", b"firsta\n\0\\n\\0blast"),
        ("length", INPUT),
    ] {
        let scene = scene();
        let output =
            scene.run(&["consume", "--framing", framing, "--on-separator", "escape", "ring"], b"");
        assert_ok(&output);
        assert_eq!(output.stdout, expected, "{framing}");
    }
}

#[test]
fn journal_does_not_set_aside_an_item_as_two() {
    let scene = Scene::new();
    let journal = ["journal", "--size", "64K", "--retry", "0.01", "--timeout", "0.5"];
    let aside = ["--limit", "1", "--aside", "aside"];
    let push = [&journal[..], &["--framing", "whole", "--exec", "false", "journal"]].concat();
    assert_fails(&scene.run(&push, b"one\ntwo"), 3, "at the next start");
    let lines = [&journal[..], &aside, &["--exec", "false", "journal"]].concat();
    assert_fails(&scene.run(&lines, b""), 3, "it contains a line feed");
    assert!(scene.read("aside").is_empty());
    let length = [&["--framing", "length"], &aside[..], &["--exec", "false", "journal"]].concat();
    assert_ok(&scene.run(&[&journal[..], &length].concat(), b""));
    assert_eq!(scene.read("aside"), b"\x07\0\0\0one\ntwo");
}
