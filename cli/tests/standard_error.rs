//! `blockring` with a standard error that is unread, without a reader, or full.
#![allow(clippy::unwrap_used)]

use ring_test_support::process::{drain, full_pipe, set_blocking, words};
use ring_test_support::{RingFile, assert_fails};
use std::process::{Command, Stdio};

fn blockring(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockring"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Commands that print messages, and the exit code of each.
fn talkative(ring: &str) -> Vec<(Vec<&str>, i32)> {
    vec![
        (vec!["--no-such-option"], 2),
        (vec!["check", "/nowhere"], 1),
        (vec!["consume", "--timeout", "0", "--follow", ring], 3),
        (vec!["produce", "--json", ring], 0),
        (vec!["consume", "--json", "--progress", ring], 0),
    ]
}

#[test]
fn exit_code_holds_though_nobody_reads_the_messages() {
    let ring = RingFile::new(64 << 10, 512);
    for (arguments, code) in talkative(ring.path.to_str().unwrap()) {
        let (_reader, writer) = full_pipe();
        let status = blockring(&arguments).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = blockring(&arguments).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}, without a reader");
    }
}

#[test]
fn message_arrives_through_a_non_blocking_pipe() {
    let (reader, writer) = full_pipe();
    set_blocking(&writer, false);
    let child = blockring(&["check", "/nowhere"]).stderr(writer).spawn().unwrap();
    let text = drain(reader);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
    assert!(text.contains("/nowhere: cannot open"), "{}", text.trim_start_matches('.'));
}

/// Under a limit of this size all later allocations are refused.
#[test]
fn refused_memory_is_an_error_and_no_panic() {
    let ring = RingFile::new(64 << 10, 512);
    let script = format!(
        "ulimit -v 60000; head -c 100000000 /dev/zero | exec {} produce --framing whole {}",
        env!("CARGO_BIN_EXE_blockring"),
        ring.path.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_fails(&output, 1, "blockring: ");
    assert!(!words(&output).contains("panicked"), "{}", words(&output));
}
