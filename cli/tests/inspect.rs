//! `inspect`: what lies where, beside a live producer and consumer, as lines and as a picture.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::process::{signal, status_of};
use ring_test_support::{assert_fails, assert_ok};
use roxmltree::{Document, Node};
use serde_json::Value;
use std::process::Stdio;

/// Returns the lines of `--json`.
fn objects(scene: &Scene, arguments: &[&str], code: i32) -> Vec<Value> {
    let output = scene.run(&[&["inspect", "--json"], arguments].concat(), b"");
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Asserts that the extents cover the data area of a file of that size, and returns the bytes of a
/// state.
fn bytes_of(objects: &[Value], file: u64, state: &str) -> u64 {
    let mut at = 1536;
    let mut found = 0;
    for extent in of_kind(objects, "extent") {
        assert_eq!(extent["offset"], at, "{extent}");
        let bytes = extent["bytes"].as_u64().unwrap();
        at += bytes;
        found += if extent["state"] == state { bytes } else { 0 };
    }
    assert_eq!(at, file);
    found
}

/// A ring of 64 KiB whose published bytes wrap.
fn wrapped() -> Scene {
    let scene = Scene::with_ring("64K");
    scene.succeed("seq 4001 | $RING produce ring; $RING consume ring > /dev/null");
    scene.succeed("yes abcdefghijklmno | head -n 2000 | $RING produce ring");
    scene
}

#[test]
fn inspect_finds_reserved_bytes_that_are_not_zero_as_check_does() {
    let scene = Scene::with_lines(100);
    let mut bytes = scene.read("ring");
    let last = 512 + shared_block_ring::format::EXTENSION.end - 1;
    assert_eq!(std::mem::replace(&mut bytes[last], 7), 0);
    scene.write("ring", bytes);
    for command in ["check", "inspect"] {
        let words = "producer sector: bytes that are reserved are not zero";
        assert_fails(&scene.run(&[command, "ring"], b""), 5, words);
    }
    let found = objects(&scene, &["--items", "ring"], 5);
    assert_eq!(of_kind(&found, "item").len(), 100, "the items are shown all the same");
    assert!(bytes_of(&found, scene.read("ring").len() as u64, "published") > 0);
    assert!(of_kind(&found, "sector")[1]["damage"].as_str().unwrap().contains("reserved"));
    assert_eq!(of_kind(&found, "ring")[0]["damage"].as_array().unwrap().len(), 1);
}

#[test]
fn inspect_lists_what_lies_where_and_changes_nothing() {
    let scene = wrapped();
    let before = scene.read("ring");
    let found = objects(&scene, &["--items", "ring"], 0);
    let facts = scene.facts("ring");
    assert_eq!(scene.read("ring"), before);
    let sectors = of_kind(&found, "sector");
    assert_eq!(sectors.len(), 3);
    assert!(sectors[1]["holds"].as_str().unwrap().contains(&facts["producer"].to_string()));
    let items = of_kind(&found, "item");
    assert_eq!(items.len(), 2000);
    let mut at = facts["consumer"].as_u64().unwrap();
    for item in &items {
        assert_eq!(item["position"], at);
        at = item["next"].as_u64().unwrap();
    }
    assert_eq!(facts["producer"], at);
    assert_eq!(items.iter().filter(|item| item["wraps"] == true).count(), 1);
    assert_eq!(items[0]["preview"], "abcdefghijklmno");
    assert_eq!(bytes_of(&found, 65536, "published"), facts["used"].as_u64().unwrap());
    let whole = found.last().unwrap();
    assert_eq!((&whole["items"], &whole["exit_code"]), (&2000.into(), &0.into()));
    assert_eq!(whole["verified_bytes"], facts["used"]);
    let text = scene.succeed("$RING inspect ring");
    assert!(text.contains("2,000 items, which are what the producer wrote"), "{text}");
}

#[test]
fn inspect_lists_items_from_a_position_and_up_to_a_limit() {
    let scene = Scene::with_lines(1000);
    let found = objects(&scene, &["--items", "--from", "80", "--limit", "2", "ring"], 0);
    let items = of_kind(&found, "item");
    assert_eq!(
        items.iter().map(|item| item["preview"].as_str().unwrap()).collect::<Vec<_>>(),
        ["11", "12"]
    );
    assert_eq!(found.last().unwrap()["items"], 1000, "everything is counted");
    // A position within an item stands for the next one.
    let found = objects(&scene, &["--items", "--from", "84", "--limit", "1", "ring"], 0);
    assert_eq!(of_kind(&found, "item")[0]["preview"], "12");
    let beyond = scene.run(&["inspect", "--items", "--from", "4000000", "ring"], b"");
    assert_fails(&beyond, 1, "position 4000000 is not published: the items lie from position 0 to");
    assert_fails(&scene.run(&["inspect", "--from", "81", "ring"], b""), 2, "multiple of 4");
    assert_fails(&scene.run(&["inspect", "--limit", "1", "ring"], b""), 2, "--items");
}

#[test]
fn inspect_prints_no_control_characters() {
    let scene = Scene::with_ring("64K");
    scene.succeed("printf '\\033[2J\\007\\303\\244\\0\\377 end\\n' | $RING produce ring");
    let text = scene.succeed("$RING inspect --items ring");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains("1b5b324a07c3a400ff20656e64"), "{text}");
    assert!(text.contains(r"\u{1b}[2J\u{7}ä\u{0}"), "{text}");
}

#[test]
fn inspect_shows_damage_and_ends_with_its_code() {
    let scene = wrapped();
    let used = scene.facts("ring")["used"].as_u64().unwrap();
    let sound = scene.read("ring");
    // A byte of a payload: the checksum covers all that is published.
    scene.succeed("printf X | dd of=ring bs=1 seek=2000 conv=notrunc status=none");
    let found = objects(&scene, &["ring"], 5);
    assert_eq!(bytes_of(&found, 65536, "damaged"), used);
    assert!(found.last().unwrap()["error"].as_str().unwrap().contains("are corrupt"));
    // The framing of an item: those before it are found.
    scene.write("ring", &sound);
    let item = &objects(&scene, &["--items", "--limit", "101", "ring"], 0);
    let offset = of_kind(item, "item")[100]["offset"].as_u64().unwrap();
    scene.succeed(&format!(
        "printf '\\377' | dd of=ring bs=1 seek={} conv=notrunc status=none",
        offset + 3
    ));
    let found = objects(&scene, &["--items", "ring"], 5);
    assert_eq!(of_kind(&found, "item").len(), 100);
    assert_eq!(bytes_of(&found, 65536, "damaged"), used - 100 * 20);
    // A pointer: nothing is known of the data area.
    scene.write("ring", &sound);
    scene.succeed("printf X | dd of=ring bs=1 seek=520 conv=notrunc status=none");
    let found = objects(&scene, &["ring"], 5);
    assert_eq!(bytes_of(&found, 65536, "unknown"), 64000);
    assert!(of_kind(&found, "sector")[1]["damage"].as_str().unwrap().contains("flag byte"));
    let text = scene.shell("$RING inspect ring");
    assert!(String::from_utf8(text.stdout).unwrap().contains("damaged: producer sector"));
    scene.write("ring", &sound);
    scene.succeed("printf X | dd of=ring bs=1 seek=1032 conv=notrunc status=none");
    let output = scene.run(&["inspect", "--items", "--from", "80", "ring"], b"");
    assert_fails(&output, 5, "consumer sector: flag byte");
    scene.write("text", "hello".repeat(1000));
    assert_fails(&scene.run(&["inspect", "text"], b""), 5, "not a ring");
}

#[test]
fn inspect_works_beside_a_live_producer_and_consumer() {
    let scene = Scene::with_ring("256K");
    let mut producer = scene.command(&["produce", "--no-flush", "ring"]);
    let mut yes = std::process::Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let mut producer =
        producer.stdin(yes.stdout.take().unwrap()).stdout(Stdio::null()).spawn().unwrap();
    let mut consumer = scene
        .without_input(&["consume", "--follow", "--no-flush", "ring"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    scene.wait_for_facts("ring", |facts| facts["consumer"].as_u64() > Some(1 << 20));
    for _ in 0..20 {
        let found = objects(&scene, &["--items", "ring"], 0);
        bytes_of(&found, 256 << 10, "published");
        for item in of_kind(&found, "item") {
            assert_eq!((&item["length"], &item["preview"]), (&1.into(), &"y".into()));
        }
    }
    let position = scene.facts("ring")["consumer"].as_u64();
    scene.wait_for_facts("ring", |facts| facts["consumer"].as_u64() > position);
    for child in [&mut yes, &mut producer, &mut consumer] {
        signal(child, nix::sys::signal::Signal::SIGTERM);
        status_of(child, "after SIGTERM");
    }
}

/// Width of a character in relation to the font's size, at most.
const CHARACTER: f64 = 0.64;

/// A text of the picture, as the box that it fills.
struct Text {
    words: String,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

/// Returns the box that a text fills.
fn text_of(node: &Node<'_, '_>) -> Text {
    let words = node.text().unwrap().to_owned();
    let size = number(node, "font-size");
    #[expect(clippy::cast_precision_loss, reason = "texts are short")]
    let width = words.chars().count() as f64 * size * CHARACTER;
    let (x, y) = (number(node, "x"), number(node, "y"));
    let left = if node.attribute("text-anchor") == Some("end") { x - width } else { x };
    Text { words, left, right: left + width, top: y - size * 0.8, bottom: y + size * 0.25 }
}

/// The sums that a picture shows.
#[derive(Debug, PartialEq)]
struct Sums {
    /// Bytes of the data area.
    capacity: u64,
    /// Bytes in the bar of items.
    published: u64,
    items: u64,
}

/// Reads a picture, and asserts what holds for each: the bars are covered without gaps, no text is
/// cut or covers another one, and there are fewer elements than columns of pixels.
fn examine(svg: &str) -> Sums {
    let document = Document::parse(svg).unwrap();
    let root = document.root_element();
    let view: Vec<f64> =
        root.attribute("viewBox").unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    assert!((view[2] - 900.0).abs() < f64::EPSILON);
    let elements = document.descendants().filter(Node::is_element).count();
    assert!(elements < 900, "{elements}");
    let texts: Vec<Text> = document
        .descendants()
        .filter(|node| node.has_tag_name("text"))
        .map(|node| text_of(&node))
        .collect();
    for (index, one) in texts.iter().enumerate() {
        let inside =
            one.left >= 0.0 && one.right <= view[2] && one.top >= 0.0 && one.bottom <= view[3];
        assert!(inside, "{:?} leaves the picture: {} to {}", one.words, one.left, one.right);
        for other in &texts[index + 1..] {
            let apart = one.right <= other.left
                || other.right <= one.left
                || one.bottom <= other.top
                || other.bottom <= one.top;
            assert!(apart, "{:?} covers {:?}", one.words, other.words);
        }
    }
    let bar = |kinds: &[&str], left: f64| {
        let parts = document
            .descendants()
            .filter(|node| node.attribute("data-kind").is_some_and(|kind| kinds.contains(&kind)));
        let (mut at, mut bytes, mut items) = (left, 0, 0);
        for part in parts {
            assert!((number(&part, "x") - at).abs() < 0.02, "a gap before {part:?}");
            at = number(&part, "x") + number(&part, "width");
            let count = |name| part.attribute(name).map_or(0, |n| n.parse::<u64>().unwrap());
            bytes += count("data-bytes");
            items += count("data-items");
        }
        assert!(bytes == 0 || (at - 880.0).abs() < 0.02, "the bar ends at {at}");
        (bytes, items)
    };
    let (capacity, _) = bar(&["extent"], 170.0);
    let (published, items) = bar(&["item", "group"], 20.0);
    Sums { capacity, published, items }
}

/// Draws the ring, and examines the picture.
fn drawn(scene: &Scene, code: i32) -> (String, Sums) {
    let output = scene.run(&["inspect", "--svg", "-", "ring"], b"");
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let svg = String::from_utf8(output.stdout).unwrap();
    let sums = examine(&svg);
    (svg, sums)
}

#[test]
fn picture_of_an_empty_a_full_and_a_suspended_ring_adds_up() {
    let scene = Scene::with_ring("64K");
    let (svg, sums) = drawn(&scene, 0);
    assert!(svg.contains("the ring is empty"));
    assert_eq!(sums, Sums { capacity: 64000, published: 0, items: 0 });
    scene.succeed("head -c 31996 /dev/zero | tr '\\0' a > item; for n in 1 2; do $RING produce --framing whole ring < item; done");
    let (_, sums) = drawn(&scene, 0);
    assert_eq!(sums, Sums { capacity: 64000, published: 64000, items: 2 });
    scene.succeed("$RING suspend ring");
    let (svg, _) = drawn(&scene, 0);
    assert!(svg.contains("suspended, and no producer has acknowledged it"), "{svg}");
}

#[test]
fn bytes_of_a_writer_that_died_before_it_moved_its_pointer_are_pending() {
    let scene = Scene::with_ring("64K");
    scene.succeed("echo 1 | $RING produce ring");
    let position = scene.read("ring")[512..520].to_vec();
    scene.succeed("head -c 16000 /dev/zero | $RING produce --framing whole ring");
    let mut bytes = scene.read("ring");
    bytes[512..520].copy_from_slice(&position);
    scene.write("ring", bytes);
    let found = objects(&scene, &["ring"], 0);
    assert_eq!(bytes_of(&found, 65536, "published"), 8);
    assert_eq!(bytes_of(&found, 65536, "pending"), 16004);
    let (svg, sums) = drawn(&scene, 0);
    assert!(svg.contains(r#"<rect class="pending" x="170.09""#), "{svg}");
    assert_eq!(sums, Sums { capacity: 64000, published: 8, items: 1 });
}

#[test]
fn picture_of_a_wrapped_and_of_a_damaged_ring_adds_up() {
    let scene = wrapped();
    let used = scene.facts("ring")["used"].as_u64().unwrap();
    let (svg, sums) = drawn(&scene, 0);
    assert!(svg.contains(r#"class="published""#) && !svg.contains(r#"data-kind="item""#));
    assert_eq!(sums, Sums { capacity: 64000, published: used, items: 2000 });
    scene.succeed("printf X | dd of=ring bs=1 seek=2000 conv=notrunc status=none");
    let (svg, sums) = drawn(&scene, 5);
    assert!(svg.contains("Damaged: items from position") && svg.contains(r#"class="damaged""#));
    assert_eq!(sums, Sums { capacity: 64000, published: used, items: 2000 });
    scene.succeed("printf X | dd of=ring bs=1 seek=520 conv=notrunc status=none");
    let (svg, sums) = drawn(&scene, 5);
    assert!(svg.contains(r#"class="head bad""#) && svg.contains(r#"class="unknown""#));
    assert_eq!(sums, Sums { capacity: 64000, published: 0, items: 0 });
}

#[test]
fn picture_of_five_million_items_has_as_many_elements_as_pixels() {
    let scene = Scene::with_ring("80M");
    scene.succeed("yes 12345678901 | head -n 5000000 | $RING produce --no-flush ring");
    let (svg, sums) = drawn(&scene, 0);
    assert!(svg.contains("5,000,000 items, about 11,628 in each of 430 strips"), "{svg}");
    assert_eq!((sums.published, sums.items), (80_000_000, 5_000_000));
    let text = scene.succeed("$RING inspect --items --from 79999984 ring");
    assert!(text.contains("5,000,000 items, which are what the producer wrote"), "{text}");
}

#[test]
fn picture_replaces_a_file_in_one_step_and_never_the_ring() {
    let scene = Scene::with_ring("64K");
    let before = scene.read("ring");
    assert_ok(&scene.run(&["inspect", "--svg", "ring.svg", "ring"], b""));
    examine(&String::from_utf8(scene.read("ring.svg")).unwrap());
    scene.write("ring.svg", "old");
    assert_ok(&scene.run(&["inspect", "--svg", "ring.svg", "ring"], b""));
    examine(&String::from_utf8(scene.read("ring.svg")).unwrap());
    scene.succeed("ln -s ring other");
    for path in ["ring", "other"] {
        let output = scene.run(&["inspect", "--svg", path, "ring"], b"");
        assert_fails(&output, 1, "the file of the picture is the ring itself");
    }
    assert_fails(&scene.run(&["inspect", "--svg", "/dev/null", "ring"], b""), 1, "it is no file");
    assert_fails(&scene.run(&["inspect", "--svg", "missing/a", "ring"], b""), 1, "cannot write");
    assert_eq!(scene.read("ring"), before);
    assert_eq!(scene.succeed("ls -A").lines().count(), 3, "nothing is left behind");
    assert_fails(&scene.run(&["inspect", "--svg", "-", "--items", "ring"], b""), 2, "--items");
}
