//! Items of the input that are larger than the ring: fail, drop or split.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, counts};
use ring_test_support::process::words;
use ring_test_support::{assert_fails, assert_ok};

/// The largest item of a ring of 8K.
const MAX: usize = 8192 - 3 * 512 - 4;

/// Returns the same input in every framing that separates items: a short item, one of `size` bytes,
/// and a last one.
fn inputs(size: usize) -> [(&'static str, Vec<u8>); 3] {
    let long = vec![b'x'; size];
    let framed = |item: &[u8]| [&u32::try_from(item.len()).unwrap().to_le_bytes(), item].concat();
    [
        ("lines", [b"one\n", &long[..], b"\nlast\n"].concat()),
        ("nul", [b"one\0", &long[..], b"\0last\0"].concat()),
        ("length", [framed(b"one"), framed(&long), framed(b"last")].concat()),
    ]
}

#[test]
fn item_that_never_fits_is_refused_with_its_size_and_place() {
    for size in [MAX + 1, 300_000] {
        for (framing, input) in inputs(size) {
            let scene = Scene::with_ring("8K");
            let output = scene.run(&["produce", "--framing", framing, "ring"], &input);
            assert_fails(
                &output,
                1,
                &format!("has {size} bytes, and the ring holds items of {MAX}"),
            );
            assert_fails(&output, 1, "--on-too-large drop or split");
            let byte = if framing == "length" { 7 } else { 4 };
            assert_fails(&output, 1, &format!("item 2 of the input (from byte {byte})"));
            assert_eq!(scene.items(), [b"one"], "what came before it is kept");
        }
    }
    let scene = Scene::with_ring("8K");
    let output = scene.run(&["produce", "--framing", "whole", "ring"], &vec![0; 300_000]);
    assert_fails(&output, 1, "has 300000 bytes");
    // The framing tells the size, and no more input is waited for.
    let mut child = scene.spawn(&["produce", "--framing", "length", "ring"]);
    let stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut &stdin, b"\xff\xff\xff\xff").unwrap();
    assert_fails(&child.wait_with_output().unwrap(), 1, "has 4294967295 bytes");
}

#[test]
fn timeout_ends_the_reading_of_an_item_that_never_fits() {
    let scene = Scene::with_ring("8K");
    for ring in ["ring", "journal"] {
        let command = match ring {
            "ring" => &["produce"][..],
            _ => &["journal", "--size", "8K", "--exec", "true"],
        };
        let with = |timeout| [command, &["--timeout", timeout, ring]].concat();
        // An item without an end, and then one with a pause instead.
        let line = format!("$RING {} < /dev/zero", with("0").join(" "));
        assert_fails(&scene.shell(&line), 1, "bytes or more");
        let mut child = scene.spawn(&with("0.1"));
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, &vec![0; 30_000]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_fails(&output, 1, "bytes or more");
        assert_fails(&output, 1, "not accepted: item 1 of the input");
        drop(input);
    }
}

#[test]
fn item_that_just_fits_is_accepted() {
    for (framing, input) in inputs(MAX) {
        let scene = Scene::with_ring("8K");
        let child = scene.spawn(&["consume", "--count", "3", "--timeout", "60", "ring"]);
        assert_ok(&scene.run(&["produce", "--framing", framing, "ring"], &input));
        let output = child.wait_with_output().unwrap();
        assert_ok(&output);
        assert_eq!(output.stdout.len(), "one\n".len() + MAX + "\nlast\n".len());
    }
}

#[test]
fn item_that_never_fits_is_dropped_and_counted() {
    for size in [MAX + 1, 300_000] {
        for (framing, input) in inputs(size) {
            let scene = Scene::with_ring("8K");
            let drop = ["produce", "--framing", framing, "--on-too-large", "drop"];
            let output = scene.run(&[&drop[..], &["--json", "ring"]].concat(), &input);
            assert_ok(&output);
            let counts = counts(&output);
            assert_eq!((&counts["items"], &counts["bytes"]), (&2.into(), &7.into()));
            assert_eq!(counts["too_large_dropped"], 1);
            assert_eq!((&counts["dropped"], &counts["too_large_split"]), (&0.into(), &0.into()));
            assert_eq!(scene.items(), [&b"one"[..], b"last"]);
            let output = scene.run(&[&drop[..], &["ring"]].concat(), &input);
            assert!(words(&output).contains("too large: 1 item dropped"), "{}", words(&output));
        }
    }
}

#[test]
fn item_that_never_fits_is_split_into_parts_that_concatenate_to_it() {
    for size in [MAX + 1, 3 * MAX, 3 * MAX + 1] {
        for (framing, input) in inputs(size) {
            let scene = Scene::with_ring("8K");
            let follow = ["consume", "--framing", "length", "--follow", "--timeout", "60"];
            let parts = size.div_ceil(MAX);
            let count = (2 + parts).to_string();
            let consumer = scene.spawn(&[&follow[..], &["--count", &count, "ring"]].concat());
            let split = ["produce", "--json", "--framing", framing, "--on-too-large", "split"];
            let output = scene.run(&[&split[..], &["ring"]].concat(), &input);
            assert_ok(&output);
            let counts = counts(&output);
            assert_eq!(counts["too_large_split"], 1);
            assert_eq!(
                (&counts["items"], &counts["bytes"]),
                (&(2 + parts).into(), &(size + 7).into())
            );
            let output = consumer.wait_with_output().unwrap();
            assert_ok(&output);
            let mut expected = vec![3];
            expected.extend((0..parts).map(|part| (size - part * MAX).min(MAX)));
            expected.push(4);
            assert_eq!(lengths(&output.stdout), expected, "{framing} {size}");
        }
    }
    let scene = Scene::with_ring("8K");
    let consume = ["consume", "--framing", "whole", "--count", "5", "--timeout", "60", "ring"];
    let consumer = scene.spawn(&consume);
    let input: Vec<u8> = (0..=4 * MAX).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let split = ["produce", "--framing", "whole", "--on-too-large", "split", "ring"];
    assert_ok(&scene.run(&split, &input));
    assert_eq!(consumer.wait_with_output().unwrap().stdout, input);
}

fn lengths(mut framed: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some((head, rest)) = framed.split_first_chunk::<4>() {
        lengths.push(u32::from_le_bytes(*head) as usize);
        framed = &rest[*lengths.last().unwrap()..];
    }
    lengths
}

#[test]
fn split_that_fails_halfway_names_the_byte_to_go_on_from() {
    let scene = Scene::with_ring("8K");
    let input = [b"one\n", &vec![b'x'; 2 * MAX][..], b"\n"].concat();
    let split = ["produce", "--on-too-large", "split", "--on-full", "fail", "ring"];
    // The first part does not fit behind the first item.
    assert_fails(&scene.run(&split, &input), 1, "not accepted: item 2 of the input (from byte 4)");
    assert_eq!(scene.items(), [b"one"]);
    let output = scene.run(&split, &input[4..]);
    let rest = format!("not accepted: the rest of item 1 of the input (from byte {MAX})");
    assert_fails(&output, 1, &rest);
    assert_eq!(scene.items(), [vec![b'x'; MAX]]);
    assert_ok(&scene.run(&split, &input[4 + MAX..]));
    assert_eq!(scene.items(), [vec![b'x'; MAX]]);
}

/// The journal's own size is 64K.
const JOURNAL: [&str; 5] = ["journal", "--size", "8K", "--exec", "cat >> done; echo >> done"];

#[test]
fn journal_fails_drops_or_splits_items_that_never_fit() {
    let run = |more: &[&str], input: &[u8]| {
        let scene = Scene::new();
        let output = scene.run(&[&JOURNAL[..], more, &["--json", "journal"]].concat(), input);
        (output, scene)
    };
    for (framing, input) in inputs(300_000) {
        let (output, scene) = run(&["--framing", framing], &input);
        assert_fails(
            &output,
            1,
            &format!("has 300000 bytes, and the journal holds items of {MAX}"),
        );
        assert_fails(&output, 1, "not accepted: item 2 of the input");
        // Items before it are performed now or at the next start.
        assert_ok(&scene.run(&[&JOURNAL[..], &["journal"]].concat(), b""));
        assert_eq!(scene.read("done"), b"one\n");
        let (output, scene) = run(&["--framing", framing, "--on-too-large", "drop"], &input);
        assert_ok(&output);
        assert_eq!(scene.read("done"), b"one\nlast\n");
        let counts = counts(&output);
        assert_eq!((&counts["accepted"], &counts["too_large_dropped"]), (&2.into(), &1.into()));
    }
    for (framing, input) in inputs(2 * MAX + 1) {
        let (output, scene) = run(&["--framing", framing, "--on-too-large", "split"], &input);
        assert_ok(&output);
        let lines: Vec<_> =
            scene.read("done").split(|byte| *byte == b'\n').map(<[u8]>::len).collect();
        assert_eq!(lines, [3, MAX, MAX, 1, 4, 0]);
        let counts = counts(&output);
        assert_eq!((&counts["accepted"], &counts["too_large_split"]), (&5.into(), &1.into()));
    }
}

#[test]
fn journal_sets_aside_items_that_never_fit() {
    for (framing, input) in inputs(300_000) {
        let scene = Scene::new();
        let more = ["--framing", framing, "--limit", "1", "--aside", "aside", "--json", "journal"];
        let output = scene.run(&[&JOURNAL[..], &more].concat(), &input);
        assert_ok(&output);
        assert_eq!(scene.read("done"), b"one\nlast\n");
        let counts = counts(&output);
        assert_eq!((&counts["accepted"], &counts["aside"]), (&2.into(), &1.into()));
        let start = if framing == "length" { 7 } else { 4 };
        let framed = 300_000 + if framing == "length" { 4 } else { 1 };
        assert!(scene.read("aside") == input[start..][..framed], "{framing}");
    }
}

#[test]
fn journal_leaves_no_partial_item_on_a_full_disk() {
    let scene = Scene::new();
    std::fs::write(scene.path("aside"), b"before\n").unwrap();
    std::fs::write(scene.path("input"), [b"one\n", &vec![b'x'; 300_000][..], b"\n"].concat())
        .unwrap();
    // Blocks of 512 bytes: the journal's own file fits, the item does not.
    let output = scene.shell(
        "ulimit -f 64; trap '' XFSZ; $RING journal --size 8K --exec 'cat >> done' --limit 1 --aside aside journal < input",
    );
    assert_fails(&output, 1, "cannot set aside an item that is too large: File too large");
    assert_fails(&output, 1, "not accepted: item 2 of the input");
    assert_eq!(scene.read("aside"), b"before\n");
}
