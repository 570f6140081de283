//! Kinds of standard input; and the ring itself as standard input or output.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use ring_test_support::backend::{Backend, Word};
use ring_test_support::process::{ended, eventually, signal, state};
use ring_test_support::{RingFile, assert_fails, assert_ok};
use shared_block_ring::RingDevice;
use shared_block_ring::handover::Role;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

const PRODUCE: &str = "$RING produce --framing whole ring";
const JOURNAL: &str = "$RING journal --size 64K --framing whole --exec 'cat >> done' journal";

#[test]
fn unreadable_input_is_refused_before_anything_is_done() {
    for (redirection, why) in [
        ("<&-", "standard input: closed"),
        ("0> written", "standard input: open for writing only"),
        ("< .", "standard input is a folder"),
    ] {
        for program in [PRODUCE, JOURNAL] {
            let scene = Scene::with_ring("64K");
            assert_fails(&scene.shell(&format!("{program} {redirection}")), 1, why);
            assert!(scene.items().is_empty());
            assert!(!scene.path("journal").exists());
        }
    }
}

#[test]
fn empty_input_is_one_empty_item_with_framing_whole() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.shell(&format!("{PRODUCE} < /dev/null")));
    assert_eq!(scene.items(), [b""]);
    for framing in ["lines", "nul", "length"] {
        assert_ok(&scene.run(&["produce", "--framing", framing, "ring"], b""));
        assert!(scene.items().is_empty());
    }
}

#[test]
fn terminal_input_is_announced() {
    for program in ["produce ring", "journal --size 64K --exec true journal"] {
        let scene = Scene::with_ring("64K");
        let output =
            scene.shell(&format!("printf '\\004' | script -qec \"$RING {program}\" /dev/null"));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("reads items from this terminal"), "{text}");
        assert_ok(&output);
    }
}

#[test]
fn every_byte_comes_out_unchanged() {
    for (framing, input, output) in [
        ("lines", &b"a\r\nb\r\n"[..], &b"a\r\nb\r\n"[..]),
        ("lines", b"no end", b"no end\n"),
        ("lines", b"\0\n\xff\xfe\n\xc3\n", b"\0\n\xff\xfe\n\xc3\n"),
        ("lines", b"\n\n", b"\n\n"),
        ("nul", b"a\r\n\0\xff", b"a\r\n\0\xff\0"),
        ("nul", b"\0\0", b"\0\0"),
        ("length", b"\x03\0\0\0\0\xff\n", b"\x03\0\0\0\0\xff\n"),
        ("whole", b"a\r\n\0\xff", b"a\r\n\0\xff"),
    ] {
        let scene = Scene::with_ring("64K");
        assert_ok(&scene.run(&["produce", "--framing", framing, "ring"], input));
        let consumed = scene.run(&["consume", "--framing", framing, "ring"], b"");
        assert_ok(&consumed);
        assert_eq!(consumed.stdout, output, "{framing}");
        let exec = ["journal", "--size", "64K", "--exec", "cat >> done; printf '|' >> done"];
        let journal = [&exec[..], &["--framing", framing, "journal"]].concat();
        assert_ok(&scene.run(&journal, input));
        assert_ok(&scene.run(&["produce", "--framing", framing, "ring"], input));
        let items: Vec<_> =
            scene.items().iter().flat_map(|item| [item, &b"|"[..]].concat()).collect();
        assert_eq!(scene.read("done"), items, "{framing}");
    }
    let scene = Scene::with_ring("64K");
    let output = scene.run(&["produce", "--framing", "length", "ring"], b"\x03\0\0\0ab");
    assert_fails(&output, 1, "the input ends within an item; not accepted: item 1");
}

#[test]
fn non_blocking_input_is_waited_for() {
    for arguments in [
        &["produce", "ring"][..],
        &["journal", "--size", "64K", "--exec", "cat >> done; echo >> done", "journal"],
    ] {
        let scene = Scene::with_ring("64K");
        let (reader, mut writer) = std::io::pipe().unwrap();
        // The open file description is shared: the test is the process that sets the flag.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let child = scene.command(arguments).stdin(reader.try_clone().unwrap()).spawn().unwrap();
        for _ in 0..3 {
            // A sleeping program has read everything.
            eventually("the program sleeps", || state(child.id()) == 'S');
            writer.write_all(b"line\n").unwrap();
        }
        drop((writer, reader));
        assert_ok(&ended(child, "blockring"));
        if arguments[0] == "journal" {
            assert_eq!(scene.read("done"), b"line\nline\nline\n");
        } else {
            assert_eq!(scene.items(), [b"line"; 3]);
        }
    }
}

#[test]
fn input_shared_with_another_reader_does_not_delay_a_stop() {
    let scene = Scene::with_ring("64K");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child =
        scene.command(&["produce", "ring"]).stdin(reader.try_clone().unwrap()).spawn().unwrap();
    scene.wait_for_role("ring", "producer", &child);
    // The test and the program race for each byte. The second of them blocks in its read.
    for _ in 0..200 {
        (&writer).write_all(b"x").unwrap();
        let flags = OFlag::O_NONBLOCK;
        fcntl(&reader, FcntlArg::F_SETFL(flags)).unwrap();
        let _ = std::io::Read::read(&mut reader, &mut [0; 16]);
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    }
    signal(&child, Signal::SIGTERM);
    let output = ended(child, "blockring");
    assert!(output.status.code().is_some_and(|code| code <= 1), "{output:?}");
    drop(writer);
}

#[test]
fn input_file_is_read_to_its_end() {
    let scene = Scene::with_ring("64K");
    std::fs::write(scene.path("input"), "one\ntwo").unwrap();
    let input = File::open(scene.path("input")).unwrap();
    assert_ok(&scene.command(&["produce", "ring"]).stdin(input).output().unwrap());
    assert_eq!(scene.items(), [b"one", b"two"]);
}

#[test]
fn ring_that_is_also_standard_output_or_input_is_refused() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\n"));
    let before = scene.read("ring");
    std::fs::hard_link(scene.path("ring"), scene.path("other")).unwrap();
    let refused = |line: &str, standard: &str| {
        let output = scene.shell(&format!("$RING {line}"));
        assert_fails(&output, 1, &format!("ring: standard {standard} is the ring itself"));
        assert!(scene.read("ring") == before, "{line}");
    };
    for command in [
        "consume",
        "consume --json",
        "diagnostics",
        "inspect",
        "inspect --items --json",
        "inspect --svg -",
        "health",
        "health --json",
        "top --once --interval 0.01",
        "top --json",
        "export",
        "check",
        "repair",
        "repair --write",
        "suspend",
        "bench",
    ] {
        for file in [">> ring", "1<> ring", ">> other"] {
            refused(&format!("{command} ring {file}"), "output");
        }
    }
    refused("produce ring < ring", "input");
    refused("produce ring < other", "input");
    assert_eq!(scene.items(), [b"one"]);
}

#[test]
fn device_of_a_backend_knows_the_file_of_its_ring() {
    let ring = RingFile::new(16384, 512);
    let device = Backend::new(&ring, Word::Guarded).connect(Role::Control);
    assert!(device.is_stored_in(File::open(&ring.path).unwrap().as_fd()).unwrap());
    assert!(!device.is_stored_in(tempfile::tempfile().unwrap().as_fd()).unwrap());
}
