//! A ring that is overwritten in place, or whose disk shrinks, under a running program.
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;
use crate::common::scene::Scene;
use ring_test_support::assert_ok;
use ring_test_support::process::ended;
use ring_test_support::{RingFile, assert_fails};
use shared_block_ring::device::Displaced;
use shared_block_ring::{CreateOptions, Error, Journal, JournalError, JournalOptions, create};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;

/// Writes all of `bytes` into the file, whose inode and size stay as they are.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn displaced(asked: Result<(), Error>) -> Option<Displaced> {
    match asked {
        Ok(()) => None,
        Err(Error::Device(error)) => Some(Displaced::of(&error).expect("another error").clone()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn producer_and_consumer_tell_that_another_ring_was_written_over_theirs() {
    let (ring, other) = (RingFile::new(16384, 512), RingFile::new(16384, 512));
    let (producer, consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let own = ring.bytes();
    for (bytes, expected) in [
        (other.bytes(), Some(Displaced::Overwritten { is_ring: true })),
        (vec![0; 16384], Some(Displaced::Overwritten { is_ring: false })),
        (own, None),
    ] {
        overwrite(&ring.path, &bytes);
        assert_eq!(displaced(producer.check_presence()), expected);
        assert_eq!(displaced(consumer.check_presence()), expected);
    }
}

#[test]
fn plain_ring_tells_that_a_ring_with_an_identity_was_written_over_it() {
    let (ring, other) = (RingFile::blank(16384, 512), RingFile::new(16384, 512));
    create(&ring.open(), CreateOptions::default().plain(true)).unwrap();
    let producer = ring.producer().unwrap();
    assert_eq!(displaced(producer.check_presence()), None);
    overwrite(&ring.path, &other.bytes());
    let expected = Displaced::Overwritten { is_ring: true };
    assert_eq!(displaced(producer.check_presence()), Some(expected));
}

#[test]
fn journal_fails_when_another_ring_is_written_over_its_own() {
    let (ring, other) = (RingFile::new(65536, 512), RingFile::new(65536, 512));
    let options = JournalOptions::new(|_| Ok(()));
    let perform = |_: &[String]| Ok::<(), String>(());
    let journal = Journal::start(ring.open(), options, perform).unwrap();
    journal.check_presence().unwrap();
    overwrite(&ring.path, &other.bytes());
    let error = journal.check_presence().unwrap_err();
    assert!(error.to_string().contains("sector 0 holds another ring now"), "{error}");
    let later = journal.push(&"entry".to_owned()).err();
    assert!(matches!(later, Some(JournalError::Failed(_))), "{later:?}");
}

/// A scene with the rings `ring` and `other`, which have the same size and positions.
fn two_rings() -> Scene {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["create", "--size", "64K", "other"], b""));
    scene
}

fn put_other_over_ring(scene: &Scene) {
    overwrite(&scene.path("ring"), &scene.read("other"));
}

/// Asserts that the program ends since its ring was overwritten, and leaves the other ring sound.
fn assert_noticed(scene: &Scene, child: Child, words: &str) {
    let output = ended(child, "the program");
    for words in ["sector 0 holds another ring now", "blockring check", words] {
        assert_fails(&output, 1, words);
    }
    assert_ok(&scene.run(&["check", "ring"], b""));
}

#[test]
fn idle_programs_end_when_another_ring_is_written_over_theirs() {
    for (arguments, role, words) in [
        (&["produce", "ring"][..], "producer", "item 1 of the input (from byte 0)"),
        (&["consume", "--follow", "ring"], "consumer", ""),
        (&["journal", "--exec", "cat >&2", "ring"], "producer", ""),
    ] {
        let scene = two_rings();
        let mut child = scene.spawn(arguments);
        let input = child.stdin.take();
        scene.wait_for_role("ring", role, &child);
        put_other_over_ring(&scene);
        assert_noticed(&scene, child, words);
        drop(input);
    }
}

#[test]
fn produce_into_a_ring_that_was_overwritten_does_not_end_well() {
    let scene = two_rings();
    let mut child = scene.spawn(&["produce", "ring"]);
    let mut input = child.stdin.take().unwrap();
    scene.wait_for_role("ring", "producer", &child);
    put_other_over_ring(&scene);
    // At once, before anything looks because of the time.
    input.write_all(b"one\n").unwrap();
    drop(input);
    let output = ended(child, "produce");
    for words in ["sector 0 holds another ring now", "item 1 of the input (from byte 0)"] {
        assert_fails(&output, 1, words);
    }
}

#[test]
fn overwritten_ring_with_other_positions_is_told_as_that() {
    let scene = two_rings();
    assert_ok(&scene.run(&["produce", "other"], b"of the other ring\n"));
    assert_ok(&scene.run(&["consume", "other"], b""));
    for (arguments, role) in [
        (&["produce", "ring"][..], "producer"),
        (&["consume", "--follow", "ring"], "consumer"),
        (&["journal", "--exec", "cat >&2", "ring"], "producer"),
    ] {
        let ring = scene.read("ring");
        let mut child = scene.spawn(arguments);
        let mut input = child.stdin.take().unwrap();
        scene.wait_for_role("ring", role, &child);
        put_other_over_ring(&scene);
        // A program that has noticed already does not read.
        let _ = input.write_all(b"one\n");
        drop(input);
        let output = ended(child, "the program");
        assert_fails(&output, 1, "sector 0 holds another ring now");
        overwrite(&scene.path("ring"), &ring);
    }
}

/// A loop device `$L` with a ring, and `produce` that waits for input at descriptor 3. (As root.)
const PRODUCER_ON_LOOP: &str = r#"truncate -s 1M image
L=$(loop image)
"$RING" create "$L"
mkfifo input
"$RING" produce --json "$L" < input 2> said & produce=$!
exec 3> input
echo one >&3
until "$RING" diagnostics --json "$L" | grep -q '"producer":[1-9]'; do :; done
ends() {
    code=0
    wait "$produce" || code=$?
    cat said
    test "$code" = 1
    grep -q "$1" said
    grep -q "see what blockring check says" said
    tail -n 1 said | grep -q '"exit_code":1'
}
"#;

#[test]
fn block_device_that_shrinks_ends_produce() {
    succeed(&format!(
        r#"{PRODUCER_ON_LOOP}
        truncate -s 512K image
        losetup -c "$L"
        ends "its size changed from 1048576 to 524288 bytes""#
    ));
}

#[test]
fn loop_device_whose_file_is_cut_ends_produce() {
    succeed(&format!(
        r#"{PRODUCER_ON_LOOP}
        truncate -s 512K image
        ends "image, was truncated to 524288 bytes""#
    ));
}

#[test]
fn block_device_that_grows_ends_produce() {
    succeed(&format!(
        r#"{PRODUCER_ON_LOOP}
        truncate -s 2M image
        losetup -c "$L"
        ends "its size changed from 1048576 to 2097152 bytes""#
    ));
}
