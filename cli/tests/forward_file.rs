//! `blockring forward --to file:`: each item is in the file once, whatever ends the forwarder.
#![allow(clippy::unwrap_used)]

use crate::common::machine;
use crate::common::scene::{Scene, counts};
use nix::sys::signal::Signal;
use ring_test_support::process::{Guarded, ended, eventually, signal};
use ring_test_support::{assert_fails, assert_ok};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

/// Times that the forwarder is killed.
const KILLS: u64 = 30;

/// Lines as `seq` prints them.
fn lines(count: usize) -> String {
    (1..=count).fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

/// Makes rings of those names.
fn with_rings(names: &[&str]) -> Scene {
    let scene = Scene::new();
    for name in names {
        assert_ok(&scene.run(&["create", "--size", "64K", name], b""));
    }
    scene
}

/// Forwards all that is in the rings.
fn drain(scene: &Scene, arguments: &str) -> Value {
    let script = format!("$RING forward --drain --json {arguments}");
    let output = scene.shell(&script);
    assert_ok(&output);
    counts(&output)
}

/// Kills forwarders at odd moments while producers push numbered lines, and drains the rest.
fn survive(scene: &Scene, rings: &[&str], count: usize, arguments: &str) {
    let mut producers: Vec<_> = rings
        .iter()
        .map(|ring| {
            let script =
                format!("seq {count} | {} produce {ring}", env!("CARGO_BIN_EXE_blockring"));
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &script]).current_dir(scene.path(".")).stdout(Stdio::null());
            Guarded::start(&mut command)
        })
        .collect();
    for kill in 0..KILLS {
        let mut words = vec!["forward"];
        words.extend_from_slice(rings);
        words.extend(arguments.split(' '));
        let mut command = scene.without_input(&words);
        let mut forwarder = Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        // Any moment is as good as another.
        std::thread::sleep(Duration::from_millis(5 + kill * 17 % 60));
        forwarder.kill().unwrap();
        forwarder.wait().unwrap();
    }
    // The rings are full, or the producers have ended.
    let mut words = vec!["forward"];
    words.extend_from_slice(rings);
    words.extend(arguments.split(' '));
    let mut forwarder = Guarded::start(&mut scene.without_input(&words));
    for producer in &mut producers {
        assert!(producer.wait().unwrap().success());
    }
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
    drain(scene, &format!("{} {}", rings.join(" "), arguments));
}

#[test]
fn killed_forwarders_leave_each_item_once_in_a_file_for_each_ring() {
    let scene = with_rings(&["a", "b"]);
    survive(&scene, &["a", "b"], 20_000, "--to file:{ring}.log");
    for name in ["a.log", "b.log"] {
        assert!(scene.read(name) == lines(20_000).as_bytes(), "{name}");
    }
}

/// Returns what is in a file that is kept, compressed or not.
fn kept(scene: &Scene, name: &str, number: u64) -> Option<Vec<u8>> {
    let (plain, packed) = (format!("{name}.{number}"), format!("{name}.{number}.zst"));
    if scene.path(&packed).is_file() {
        return Some(zstd::decode_all(&scene.read(&packed)[..]).unwrap());
    }
    scene.path(&plain).is_file().then(|| scene.read(&plain))
}

#[test]
fn killed_forwarders_leave_each_item_once_in_files_that_are_kept() {
    let scene = with_rings(&["a"]);
    survive(&scene, &["a"], 30_000, "--to file:a.log --rotate-size 10K --compress zstd");
    let mut all = String::new();
    for number in 1.. {
        let Some(bytes) = kept(&scene, "a.log", number) else { break };
        all.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    assert!(!all.is_empty());
    all.push_str(std::str::from_utf8(&scene.read("a.log")).unwrap());
    assert!(all == lines(30_000));
}

#[test]
fn killed_forwarders_leave_each_item_once_in_a_file_that_rings_share() {
    let scene = with_rings(&["a", "b"]);
    let count = 10_000;
    survive(&scene, &["a", "b"], count, "--to file:both");
    let mut found = scene.lines("both");
    assert_eq!(found.len(), 2 * count);
    let order = |line: &String| line.parse::<usize>().unwrap();
    found.sort_by_key(order);
    let expected = (1..=count).flat_map(|line| [line, line]);
    assert!(found.iter().map(order).eq(expected));
}

#[test]
fn full_disk_keeps_items_in_the_ring_until_there_is_room() {
    machine::succeed(
        r#"
        mkdir small && mount -t tmpfs -o size=64k small small
        $RING create --size 1M ring
        seq 20000 | $RING produce --no-flush ring
        must 1 'make room' "$RING" forward --drain ring --to file:small/out
        $RING forward ring --to file:small/out 2> errors &
        forwarder=$!
        trap 'kill -9 $forwarder' EXIT
        timeout 60 sh -c "until grep -q 'make room' errors; do sleep 0.1; done"
        mount -o remount,size=4M small
        timeout 60 sh -c 'until [ "$(wc -l < small/out)" = 20000 ]; do sleep 0.1; done'
        trap - EXIT
        kill $forwarder
        wait $forwarder
        seq 20000 | cmp - small/out
        grep 'items arrive again' errors
        "#,
    );
}

#[test]
fn items_that_the_file_has_are_not_written_again() {
    let scene = with_rings(&["ring"]);
    scene.succeed("seq 100 | $RING produce ring; cp ring older");
    assert_eq!(drain(&scene, "ring --to file:out")["items"], 100);
    // The consumer's pointer is lost, as by a crash behind the file's flush.
    scene.succeed("cp older ring; seq 101 200 | $RING produce ring");
    let report = drain(&scene, "ring --to file:out");
    assert_eq!(report["items"], 100, "{report}");
    assert_eq!(scene.read("out"), lines(200).as_bytes());
    // Another ring of the same name is another ring.
    scene.succeed("rm ring; $RING create --size 1M ring; seq 201 300 | $RING produce ring");
    drain(&scene, "ring --to file:out");
    assert_eq!(scene.read("out"), lines(300).as_bytes());
}

#[test]
fn ring_that_is_older_than_the_file_is_refused_with_both_positions() {
    let scene = with_rings(&["ring"]);
    scene.succeed("cp ring older; seq 100 | $RING produce ring");
    let report = drain(&scene, "ring --to file:out");
    let position = report["rings"]["ring"]["position"].to_string();
    scene.succeed("cp older ring; echo x | $RING produce ring");
    // Without --drain, too: it is not tried again.
    let output = scene.shell("$RING forward ring --to file:out");
    assert_fails(&output, 1, "older copy");
    assert_fails(&output, 1, &format!("before position {position}"));
    assert_eq!(scene.read("out"), lines(100).as_bytes());
}

#[test]
fn restored_ring_whose_guest_has_gone_on_is_refused_by_its_items() {
    let scene = with_rings(&["ring"]);
    scene.succeed("cp ring older; seq 10 99 | sed s/^/a/ | $RING produce ring");
    drain(&scene, "ring --to file:out");
    let before = scene.read("out");
    // Items of the same sizes, so that one ends where the file's last one does, and more of them.
    scene.succeed("cp older ring; seq 10 150 | sed s/^/b/ | $RING produce ring");
    let output = scene.shell("$RING forward ring --to file:out");
    assert_fails(&output, 1, "the ring has another item there");
    assert_eq!(scene.read("out"), before);
    assert_eq!(scene.succeed("$RING consume ring | wc -l"), "141\n");
}

#[test]
fn file_is_cut_behind_what_its_record_has_and_keeps_what_was_there_first() {
    let scene = with_rings(&["ring"]);
    scene.write("out", "of others\n");
    scene.succeed("seq 10 | $RING produce ring");
    drain(&scene, "ring --to file:out");
    // As a crash between file and record leaves it.
    scene.succeed("printf '11\n1' >> out; seq 11 20 | $RING produce ring");
    drain(&scene, "ring --to file:out");
    assert_eq!(scene.read("out"), format!("of others\n{}", lines(20)).as_bytes());
}

#[test]
fn file_that_others_move_is_begun_anew() {
    let scene = with_rings(&["ring"]);
    let forwarder =
        Guarded::start(&mut scene.without_input(&["forward", "ring", "--to", "file:out"]));
    scene.succeed("seq 10 | $RING produce ring");
    scene.wait_for_lines("out", 10);
    scene.succeed("mv out moved; seq 11 20 | $RING produce ring");
    scene.wait_for_lines("out", 10);
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "forward"));
    assert_eq!([scene.read("moved"), scene.read("out")].concat(), lines(20).as_bytes());
}

#[test]
fn only_the_last_files_are_kept() {
    let scene = with_rings(&["ring"]);
    for round in 0..6 {
        let (from, to) = (round * 10 + 1, round * 10 + 10);
        scene.succeed(&format!("seq {from} {to} | $RING produce ring"));
        drain(&scene, "ring --to file:out --rotate-size 10 --keep 2");
    }
    let exists = |name: &str| scene.path(name).exists();
    assert!(exists("out.4") && exists("out.5") && exists("out"));
    assert!((1..=3).all(|number| !exists(&format!("out.{number}"))));
    assert_eq!(scene.lines("out.5").first().map(String::as_str), Some("41"));
}

#[test]
fn old_file_is_kept_when_the_next_item_comes() {
    let scene = with_rings(&["ring"]);
    for number in 1..=2 {
        scene.succeed(&format!("echo {number} | $RING produce ring"));
        drain(&scene, "ring --to file:out --rotate-age 1");
        // Its age is in whole seconds.
        let begun = std::time::Instant::now();
        eventually("a second passes", || begun.elapsed() > Duration::from_millis(1100));
    }
    assert_eq!((scene.lines("out.1"), scene.lines("out")), (vec!["1".into()], vec!["2".into()]));
}

#[test]
fn second_forwarder_of_a_file_waits_for_the_first() {
    let scene = with_rings(&["a", "b"]);
    scene.succeed("echo a | $RING produce a; echo b | $RING produce b");
    let first = Guarded::start(&mut scene.without_input(&["forward", "a", "--to", "file:out"]));
    scene.wait_for_lines("out", 1);
    let output = scene.shell("$RING forward --drain b --to file:out");
    assert_fails(&output, 1, "another process writes it");
    signal(&first, Signal::SIGTERM);
    assert_ok(&ended(first, "forward"));
    drain(&scene, "b --to file:out");
    assert_eq!(scene.lines("out"), ["a", "b"]);
}

#[test]
fn item_with_the_separator_stays_in_its_ring_and_stops_no_other() {
    let scene = with_rings(&["bad", "good"]);
    assert_ok(&scene.run(&["produce", "--framing", "nul", "bad"], b"one\0t\nwo\0"));
    scene.succeed("seq 3 | $RING produce good");
    let output = scene.shell("$RING forward --drain bad good --to file:{ring}.log");
    assert_fails(&output, 1, "contains a line feed");
    assert_fails(&output, 1, "--on-separator escape");
    assert_eq!((scene.lines("bad.log"), scene.lines("good.log").len()), (vec!["one".into()], 3));
    drain(&scene, "bad --to file:bad.log --on-separator escape");
    assert_eq!(scene.lines("bad.log"), ["one", "t\\nwo"]);
}

#[test]
fn path_that_is_no_file_is_refused_in_words() {
    let scene = with_rings(&["ring"]);
    assert_fails(&scene.shell("$RING forward ring --to file:."), 1, "is a folder");
    let output = scene.shell("$RING forward --drain ring --to file:none/out");
    assert_fails(&output, 1, "is there such a folder?");
    assert_fails(&scene.shell("$RING forward --drain ring --to file:/dev/null"), 1, "regular file");
}

#[test]
fn error_of_the_record_names_the_record() {
    let scene = with_rings(&["ring"]);
    scene.succeed("echo x | $RING produce ring; mkdir out.positions");
    for (words, wanted) in [
        ("--drain ring --to file:out", "out.positions: cannot open the record of positions"),
        ("--check-config ring --to file:out", "out.positions: cannot write the file: it is not"),
        ("--check-config ring --to file:new/x", "new/x"),
    ] {
        assert_fails(&scene.shell(&format!("$RING forward {words}")), 1, wanted);
    }
    scene.succeed("rmdir out.positions");
    drain(&scene, "ring --to file:out");
    assert_eq!(scene.lines("out"), ["x"]);
}

#[test]
fn folders_with_the_names_of_files_that_are_kept_stay_and_lose_nothing() {
    let scene = with_rings(&["ring"]);
    scene.succeed("mkdir out.1 out.3 out.3.zst");
    for round in 0..6 {
        let (from, to) = (round * 10 + 1, round * 10 + 10);
        scene.succeed(&format!("seq {from} {to} | $RING produce ring"));
        drain(&scene, "ring --to file:out --rotate-size 10 --keep 2 --compress zstd");
    }
    assert!(["out.1", "out.3", "out.3.zst"].iter().all(|name| scene.path(name).is_dir()));
    assert!(!scene.path("out.1.zst.partial").exists());
    let kept = [7, 8].map(|number| kept(&scene, "out", number).unwrap());
    assert_eq!(
        [&kept[0][..], &kept[1], &scene.read("out")].concat(),
        &lines(60).as_bytes()[lines(30).len()..]
    );
}

#[test]
fn name_that_is_taken_while_a_file_is_renamed_stops_the_file_and_loses_nothing() {
    let scene = with_rings(&["ring"]);
    scene.succeed("seq 10 | $RING produce ring");
    drain(&scene, "ring --to file:out");
    // As a crash before the renaming leaves it, and then somebody takes the name.
    let line = scene.lines("out.positions").pop().unwrap();
    let mut line: Value = serde_json::from_str(&line).unwrap();
    line["rotate"] = 1.into();
    line["last"] = 1.into();
    scene.write("line", format!("{line}\n"));
    scene.succeed("cat line >> out.positions; mkdir out.1; seq 11 20 | $RING produce ring");
    let output = scene.shell("$RING forward --drain ring --to file:out");
    assert_fails(&output, 1, "out.1, which is there already (move that away)");
    assert_eq!(scene.read("out"), lines(10).as_bytes());
    scene.succeed("rmdir out.1");
    drain(&scene, "ring --to file:out");
    scene.succeed("seq 10 | cmp - out.1; seq 11 20 | cmp - out");
}

#[test]
fn file_that_holds_a_ring_is_refused_and_stays_as_it_was() {
    let scene = with_rings(&["ring", "other"]);
    scene.succeed("echo x | $RING produce ring");
    let other = scene.read("other");
    for file in ["ring", "other"] {
        let output = scene.shell(&format!("$RING forward --drain ring --to file:{file}"));
        assert_fails(&output, 1, &format!("{file}: cannot open the file: it holds a ring"));
    }
    assert_eq!(scene.read("other"), other);
    let output = scene.shell("$RING forward --drain ring --to file:/dev/shm.log");
    assert_fails(&output, 1, "file system of device nodes");
    assert_eq!(scene.succeed("$RING consume ring"), "x\n");
}

#[test]
fn file_with_two_names_is_refused_and_nothing_is_lost() {
    let scene = with_rings(&["a.img", "b.img"]);
    scene.succeed(
        "seq 1 3 | $RING produce a.img; seq 11 13 | $RING produce b.img; ln -s b.log a.log",
    );
    let output = scene.shell("$RING forward --drain a.img b.img --to file:{ring}.log");
    assert_fails(&output, 1, "by another name already");
    scene.succeed("$RING consume a.img > rest; $RING consume b.img >> rest; cat b.log >> rest");
    scene.succeed("sort -n rest > sorted; { seq 1 3; seq 11 13; } | cmp - sorted");
}

#[test]
fn name_of_a_file_that_is_kept_is_refused() {
    let scene = with_rings(&["x.1.img", "x.positions.img"]);
    scene.succeed("for r in x.1 x.positions; do echo $r | $RING produce $r.img; done");
    for ring in ["x.1", "x.positions"] {
        let output = scene.shell(&format!("$RING forward --drain {ring}.img --to file:{{ring}}"));
        assert_fails(&output, 1, "names that end so");
        assert_eq!(scene.succeed(&format!("$RING consume {ring}.img")), format!("{ring}\n"));
    }
}

#[test]
fn file_and_record_that_others_change_lose_and_repeat_nothing() {
    let scene = with_rings(&["ring"]);
    let mut forwarder =
        Guarded::start(&mut scene.without_input(&["forward", "ring", "--to", "file:out"]));
    let pass = |lines: &str| {
        scene.succeed(&format!("{lines} | $RING produce ring"));
        scene.wait_for_facts("ring", |facts| facts["used"] == 0);
    };
    pass("seq 1 5");
    scene.succeed("echo foreign >> out");
    pass("seq 6 10");
    scene.succeed("{ seq 1 5; echo foreign; seq 6 10; } | cmp - out; : > out");
    pass("seq 11 15");
    scene.succeed("seq 11 15 | cmp - out; rm out.positions");
    pass("seq 16 20");
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
    scene.succeed("seq 21 25 | $RING produce ring");
    drain(&scene, "ring --to file:out");
    scene.succeed("seq 11 25 | cmp - out");
}
