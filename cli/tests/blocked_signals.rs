//! Signals that a parent blocks, as a supervisor's thread may: a child inherits the mask.
#![allow(clippy::unwrap_used)]

use nix::sys::signal::{SigSet, Signal};
use ring_test_support::{RingFile, process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Starts `blockring` with all signals blocked.
fn start(arguments: &[&str], ring: &RingFile) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockring"));
    command.args(arguments).arg(&ring.path).stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: the closure makes one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(|| Ok(SigSet::all().thread_block()?)) };
    command.spawn().unwrap()
}

#[test]
fn signal_ends_consume_whose_parent_blocks_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let ring = RingFile::new(64 * 1024, 512);
        let mut consuming = start(&["consume", "--follow"], &ring);
        let mut producing = start(&["produce"], &ring);
        producing.stdin.take().unwrap().write_all(b"item\n").unwrap();
        assert!(producing.wait().unwrap().success());
        let mut line = String::new();
        BufReader::new(consuming.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "item\n");
        process::signal(&consuming, signal);
        assert_eq!(consuming.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[test]
fn command_of_a_journal_gets_its_signals() {
    let ring = RingFile::blank(1 << 20, 512);
    let script = "cat > /dev/null; kill -TERM $$; echo blocked";
    let aside = ring.path.with_extension("aside");
    let limits = ["journal", "--limit", "1", "--aside", aside.to_str().unwrap()];
    let mut journal = start(&[&limits[..], &["--exec", script]].concat(), &ring);
    journal.stdin.take().unwrap().write_all(b"item\n").unwrap();
    let output = journal.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "item\n");
}
