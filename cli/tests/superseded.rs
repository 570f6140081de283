//! Another instance of the same virtual machine state has moved the producer's pointer.
#![allow(clippy::unwrap_used)]

use ring_simulation::unlocked;
use ring_test_support::RingFile;
use ring_test_support::process::eventually;
use shared_block_ring::{Control, Position, Producer};
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn superseded_produce_ends_with_its_own_code_and_names_the_input_in_doubt() {
    let ring = RingFile::new(64 * 512, 512);
    let program = env!("CARGO_BIN_EXE_blockring");
    let mut produce = Command::new(program)
        .args(["produce", ring.path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = produce.stdin.take().unwrap();
    input.write_all(b"first\n").unwrap();
    let position = || Control::open(ring.open()).unwrap().debug_info().unwrap().producer;
    eventually("the first line is published", || position() > Position::ZERO);
    // Past the locks, as a restored guest is.
    let mut other = Producer::attach(unlocked(ring.open()), "q", "other").unwrap();
    let end = other.push("of the other life").unwrap();
    other.advance(end).unwrap();
    // The pipe may be closed by then.
    let _ = input.write_all(b"second\n");
    let output = produce.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{words}");
    assert!(words.contains("superseded") && words.contains("item 2 of the input"), "{words}");
    let left = Command::new(program).arg("consume").arg(&ring.path).output().unwrap();
    assert_eq!(left.stdout, b"first\nof the other life\n");
}
