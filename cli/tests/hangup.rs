//! A terminal that is closed under a program: SIGHUP stops it as SIGTERM does, unless SIGHUP is
//! ignored (`nohup`).
#![allow(clippy::unwrap_used)]

use nix::sys::signal::Signal;
use ring_test_support::process::signal;
use ring_test_support::{RingFile, assert_fails};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

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
