//! Output that takes a part of a write: no file ends with a part of a record, and no item is lost.
#![allow(clippy::unwrap_used)]

use crate::common::machine;
use crate::common::scene::Scene;
use ring_test_support::assert_fails;
use ring_test_support::process::{PATIENCE, ended, set_blocking, small_pipe};
use std::io::Read;
use std::time::Instant;

/// Lines as `seq` prints them.
fn lines(count: usize) -> String {
    (1..=count).fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

#[test]
fn consume_leaves_whole_lines_in_a_file_at_its_size_limit() {
    for redirect in [">", ">>"] {
        let scene = Scene::with_lines(2000);
        // The limit is within a line, and behind the ring's sector that the consumer writes.
        let failed =
            scene.shell(&format!("prlimit --fsize=2000 $RING consume ring {redirect} out"));
        assert_fails(&failed, 1, "File too large");
        let out = String::from_utf8(scene.read("out")).unwrap();
        assert!(out.len() > 1900 && out.ends_with('\n'), "{} bytes", out.len());
        scene.succeed("$RING consume ring >> out");
        assert!(scene.read("out") == lines(2000).as_bytes(), "{redirect}");
    }
}

#[test]
fn consume_leaves_whole_lines_on_a_full_file_system() {
    let script = r#"
        mkdir small && mount -t tmpfs -o size=8k small small
        $RING create --size 1M ring
        seq 5000 | $RING produce --no-flush ring
        for redirect in '>' '>>'; do
            must 1 'No space left' sh -c "$RING consume ring $redirect small/out"
            must 1 'No space left' sh -c "$RING consume ring >> small/out"
            [ -s small/out ]
            tail -c 1 small/out | cmp - newline
            cat small/out >> all
            : > small/out
        done
        $RING consume ring >> all
        seq 5000 | cmp - all
    "#;
    machine::succeed(&format!("echo > newline\n{script}"));
}

#[test]
fn consume_leaves_no_hole_in_an_output_that_it_shares() {
    let scene = Scene::with_lines(2000);
    // The limit is the consumer's alone: the next command writes behind it.
    scene.shell("{ prlimit --fsize=2000 $RING consume ring; echo behind; } > out");
    let out = String::from_utf8(scene.read("out")).unwrap();
    let before = out.strip_suffix("behind\n").unwrap();
    assert_eq!(before, &lines(2000)[..before.len()]);
    assert!(before.ends_with('\n'), "{before:?}");
}

#[test]
fn consume_says_how_much_of_an_item_went_into_a_pipe() {
    let scene = Scene::with_ring("1M");
    scene.succeed("head -c 100000 /dev/zero | tr '\\0' x | $RING produce ring");
    let (reader, writer) = small_pipe();
    let stalled =
        scene.without_input(&["consume", "--timeout", "0.2", "ring"]).stdout(writer).spawn();
    let output = ended(stalled.unwrap(), "consume");
    assert_fails(&output, 3, "the first 4096 bytes of the next item went out all the same");
    drop(reader);
    assert_eq!(scene.rest().len(), 100_001);
}

#[test]
fn consume_waits_for_a_non_blocking_output() {
    let scene = Scene::with_lines(20_000);
    let (mut reader, writer) = small_pipe();
    set_blocking(&writer, false);
    let mut child = scene.without_input(&["consume", "ring"]).stdout(writer).spawn().unwrap();
    let (mut out, mut chunk, start) = (Vec::new(), [0; 512], Instant::now());
    loop {
        match reader.read(&mut chunk).unwrap() {
            0 => break,
            count => out.extend_from_slice(&chunk[..count]),
        }
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(child.wait().unwrap().success());
    assert!(out == lines(20_000).as_bytes());
}

#[test]
fn consume_warns_of_a_part_of_a_line_that_a_killed_process_left() {
    let scene = Scene::with_lines(2);
    scene.write("out", "1\n12");
    let output = scene.shell("$RING consume ring >> out");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("ends within an item"), "{said}");
    let quiet = scene.shell("seq 2 | $RING produce ring; $RING consume ring >> out");
    assert!(quiet.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&quiet.stderr));
}

#[test]
fn report_is_whole_or_absent_in_a_file() {
    let scene = Scene::with_lines(3);
    scene.succeed("head -c 1000 /dev/zero > out");
    let failed = scene.shell("prlimit --fsize=1024 $RING diagnostics --json ring >> out");
    assert_fails(&failed, 1, "cannot write the report to standard output: File too large");
    assert!(scene.read("out") == [0; 1000]);
}

#[test]
fn repair_leaves_no_partial_copy_of_the_old_sectors() {
    let scene = Scene::with_lines(3);
    let mut damaged = scene.read("ring");
    damaged[8..30].fill(0);
    scene.write("ring", &damaged);
    let failed = scene.shell("prlimit --fsize=512 $RING repair --write --keep kept ring");
    assert_fails(&failed, 1, "nothing was repaired");
    assert!(!scene.path("kept").exists());
    assert!(scene.read("ring") == damaged);
    scene.succeed("$RING repair --write --keep kept ring");
    assert_eq!(scene.rest(), "1\n2\n3\n");
}

#[test]
fn journal_sets_an_item_aside_whole_or_not_at_all() {
    let scene = Scene::with_ring("64K");
    let journal = "$RING journal --exec 'exit 1' --retry 0.01 --limit 1 --aside aside";
    scene.succeed("head -c 300 /dev/zero | tr '\\0' x > item; echo >> item");
    // The limit applies to the journal's own file, too, so the aside file is filled beyond its size
    // first.
    scene.succeed("i=0; while [ $i -lt 218 ]; do cat item; i=$((i + 1)); done > aside");
    let script = "cat item item item | prlimit --fsize=66200";
    let failed = scene.shell(&format!("{script} {journal} --timeout 0.3 ring"));
    assert_fails(&failed, 3, "File too large");
    assert!(scene.read("aside") == scene.read("item").repeat(219));
    scene.succeed(&format!("{journal} ring < /dev/null"));
    assert!(scene.read("aside") == scene.read("item").repeat(221));
}

#[test]
fn create_and_produce_report_a_file_size_limit() {
    let scene = Scene::with_lines(3);
    let failed = scene.shell("prlimit --fsize=1024 $RING create --size 1M new");
    assert_fails(&failed, 1, "File too large");
    assert!(!scene.path("new").exists());
    let failed = scene.shell("echo 4 | prlimit --fsize=1024 $RING produce ring");
    assert_fails(&failed, 1, "File too large");
}
