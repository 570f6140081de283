//! The `blockring` program as its users run it.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{finish, signal};
use ring_test_support::{assert_fails, assert_ok};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::Child;
use std::time::Duration;

#[test]
fn lines_come_out_unchanged() {
    let scene = Scene::with_ring("64K");
    let input = b"one\n\nthree, without a line feed";
    assert_ok(&scene.run(&["produce", "ring"], input));
    let output = scene.run(&["consume", "ring"], b"");
    assert_ok(&output);
    assert_eq!(output.stdout, [&input[..], b"\n"].concat());
    assert!(scene.run(&["consume", "ring"], b"").stdout.is_empty(), "delivered twice");
}

#[test]
fn lazy_spinning_consumer_leaves_nothing_behind() {
    let scene = Scene::with_ring("64K");
    let input = "a line\n".repeat(100);
    assert_ok(&scene.run(&["produce", "ring"], input.as_bytes()));
    let lazily = ["consume", "--advance-every", "16K", "--spin-us", "300", "ring"];
    let first = scene.run(&[&lazily[..], &["--count", "60"]].concat(), b"");
    assert_ok(&first);
    let rest = scene.run(&[&lazily[..], &["--follow", "--count", "40"]].concat(), b"");
    assert_eq!([first.stdout, rest.stdout].concat(), input.as_bytes());
    assert_eq!(scene.facts("ring")["used"], 0);
    let more = scene.run(&[&lazily[..], &["--timeout", "0.01"]].concat(), b"");
    assert_fails(&more, 3, "no item");
    assert_fails(&scene.run(&["consume", "--advance-every", "x", "ring"], b""), 2, "not a size");
}

#[test]
fn every_framing_round_trips() {
    for (framing, bytes) in [
        ("lines", &b"a\nb\n"[..]),
        ("nul", b"a\nb\0\0"),
        ("length", b"\x02\0\0\0a\n\0\0\0\0"),
        ("whole", b"a\nb\0\xff"),
    ] {
        let scene = Scene::with_ring("64K");
        assert_ok(&scene.run(&["produce", "--framing", framing, "ring"], bytes));
        assert_eq!(
            scene.run(&["consume", "--framing", framing, "ring"], b"").stdout,
            bytes,
            "{framing}"
        );
    }
}

#[test]
fn stream_larger_than_the_ring_passes_through() {
    let scene = Scene::with_ring("8K");
    let input: String = (0..3000).fold(String::new(), |all, i| all + &format!("line {i}\n"));
    let consumer =
        scene.spawn(&["consume", "--count", "3000", "--timeout", "20", "--no-flush", "ring"]);
    let produced = scene.run(&["produce", "--json", "--no-flush", "ring"], input.as_bytes());
    assert_ok(&produced);
    let counts: serde_json::Value = serde_json::from_slice(&produced.stderr).unwrap();
    assert_eq!(counts["items"], 3000);
    assert!(counts["full_waits"].as_u64().unwrap() > 0, "{counts}");
    let output = consumer.wait_with_output().unwrap();
    assert_ok(&output);
    assert_eq!(output.stdout, input.as_bytes());
}

#[test]
fn full_or_closed_output_loses_no_item() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = scene.command(&["consume", "ring"]).stdout(full).output().unwrap();
    assert_fails(&output, 1, "still in the ring");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = scene.command(&["consume", "ring"]).stdout(writer).output().unwrap();
    assert_fails(&output, 1, "Broken pipe");
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"one\ntwo\n");
}

#[test]
fn produce_names_the_item_that_does_not_fit_and_keeps_those_before() {
    let scene = Scene::with_ring("8K");
    let input = format!("short\n{}\nnever read\n", "x".repeat(9000));
    let output = scene.run(&["produce", "ring"], input.as_bytes());
    assert_fails(&output, 1, "not accepted: item 2 of the input (from byte 6");
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"short\n");
}

#[test]
fn full_ring_times_out_fails_or_drops() {
    let scene = Scene::with_ring("2K");
    let input = "x".repeat(300) + "\n" + &"y".repeat(300) + "\n";
    assert_fails(
        &scene.run(&["produce", "--timeout", "0.2", "ring"], input.as_bytes()),
        3,
        "item 2",
    );
    assert_fails(
        &scene.run(&["produce", "--on-full", "fail", "ring"], input.as_bytes()),
        1,
        "full",
    );
    let dropped = scene.run(&["produce", "--on-full", "drop", "ring"], input.as_bytes());
    assert_ok(&dropped);
    assert!(String::from_utf8_lossy(&dropped.stderr).contains("2 items dropped"));
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, &input.as_bytes()[..301]);
}

#[test]
fn empty_ring_times_out() {
    let scene = Scene::with_ring("8K");
    assert_fails(&scene.run(&["consume", "--timeout", "0.1", "ring"], b""), 3, "no item");
}

#[test]
fn line_does_not_wait_for_the_next_and_sigterm_loses_none() {
    let scene = Scene::with_ring("64K");
    let mut producer = scene.spawn(&["produce", "ring"]);
    let mut consumer = scene.spawn(&["consume", "--follow", "ring"]);
    let mut input = producer.stdin.take().unwrap();
    let mut output = BufReader::new(consumer.stdout.take().unwrap());
    for i in 0..5 {
        let sent = format!("line {i}\n");
        input.write_all(sent.as_bytes()).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, sent);
    }
    signal(&consumer, Signal::SIGTERM);
    assert!(consumer.wait().unwrap().success());
    input.write_all(b"last\n").unwrap();
    scene.wait_for_facts("ring", |facts| facts["used"].as_u64() > Some(0));
    signal(&producer, Signal::SIGTERM);
    assert!(producer.wait().unwrap().success());
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"last\n");
}

#[test]
fn suspended_producer_stops_and_goes_on() {
    let scene = Scene::with_ring("64K");
    let mut producer = scene.spawn(&["produce", "ring"]);
    let mut input = producer.stdin.take().unwrap();
    scene.wait_for_facts("ring", |facts| facts["holders"]["producer"] == producer.id());
    assert_ok(&scene.run(&["suspend", "--wait", "--timeout", "20", "ring"], b""));
    input.write_all(b"held back\n").unwrap();
    assert_fails(&scene.run(&["consume", "--timeout", "0.3", "ring"], b""), 3, "no item");
    assert_fails(
        &scene.run(&["produce", "--timeout", "0.1", "ring"], b"x\n"),
        1,
        "already has a producer",
    );
    assert_ok(&scene.run(&["resume", "ring"], b""));
    drop(input);
    assert!(producer.wait().unwrap().success());
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"held back\n");
    assert_ok(&scene.run(&["suspend", "ring"], b""));
    assert_fails(&scene.run(&["produce", "--timeout", "0.1", "ring"], b"x\n"), 4, "suspended");
}

#[test]
fn create_refuses_to_overwrite_a_ring_or_data() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"item\n"));
    let uuid = scene.facts("ring")["uuid"].clone();
    assert_fails(&scene.run(&["create", "ring"], b""), 1, "--force");
    assert_fails(&scene.run(&["create", "--size", "1M", "ring"], b""), 1, "not 1048576");
    assert_eq!(scene.facts("ring")["uuid"], uuid);
    assert_ok(&scene.run(&["create", "--force", "ring"], b""));
    assert_ne!(scene.facts("ring")["uuid"], uuid);
    assert_eq!(scene.facts("ring")["used"], 0);
    scene.write("other", [&vec![0; 60000][..], b"data", &[0; 5532]].concat());
    assert_fails(&scene.run(&["create", "other"], b""), 1, "byte 60000");
    assert_fails(&scene.run(&["create", "--size", "1536", "small"], b""), 1, "too small");
    assert!(!scene.path("small").exists());
}

#[test]
fn check_tells_sound_rings_from_damaged_ones() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let verdict: serde_json::Value =
        serde_json::from_slice(&scene.run(&["check", "--json", "ring"], b"").stdout).unwrap();
    assert_eq!((&verdict["sound"], &verdict["items"]), (&true.into(), &2.into()));
    let before = scene.read("ring");
    let mut damaged = before.clone();
    damaged[1536 + 8] = 0xff;
    scene.write("ring", &damaged);
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "item at position 8");
    assert_fails(&scene.run(&["consume", "ring"], b""), 5, "items from position 0 to 16");
    damaged[1536 + 8..1536 + 13].copy_from_slice(&before[1536 + 8..1536 + 13]);
    damaged[1536 + 5] ^= 1;
    scene.write("ring", &damaged);
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "items from position 0 to 16");
    scene.write("ring", vec![0; 65536]);
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "not a ring");
}

#[test]
fn repair_is_shown_first_and_can_be_taken_back() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\n"));
    assert_ok(&scene.run(&["repair", "ring"], b""));
    let mut damaged = scene.read("ring");
    damaged[8..30].fill(0);
    scene.write("ring", &damaged);
    assert_fails(&scene.run(&["repair", "ring"], b""), 5, "--write");
    assert!(scene.read("ring") == damaged, "a dry run changes nothing");
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    assert!(scene.read("ring.before-repair") == damaged[..1536]);
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"one\n");
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    scene.write("ring", &damaged);
    // The copy of the first repair is not overwritten, and does not prevent a second one: a kill
    // may have ended the first.
    damaged[7] = 0;
    scene.write("ring", &damaged);
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    let kept = |name: &str| scene.read(name);
    assert!(kept("ring.before-repair-2") == damaged[..1536]);
    assert!(kept("ring.before-repair") != damaged[..1536]);
    scene.write("ring", &damaged);
    let named = ["repair", "--write", "--keep", "ring.before-repair", "ring"];
    assert_fails(&scene.run(&named, b""), 1, "nothing was repaired");
}

#[test]
fn check_names_what_is_unusual_and_what_to_do() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\n"));
    let output = scene.run(&["check", "ring"], b"");
    assert_ok(&output);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("note"));
    assert_ok(&scene.run(&["suspend", "ring"], b""));
    let mut ahead = scene.read("ring");
    ahead[1024..1032].copy_from_slice(&64_u64.to_le_bytes());
    ahead[1033..1152].fill(0);
    scene.write("ring", &ahead);
    let output = scene.run(&["check", "ring"], b"");
    assert_ok(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("note: the consumer is 56 bytes ahead"), "{text}");
    assert!(text.contains("note: suspended, and no producer has acknowledged it"), "{text}");
    let verdict = scene.run(&["check", "--json", "ring"], b"").stdout;
    let verdict: serde_json::Value = serde_json::from_slice(&verdict).unwrap();
    assert_eq!(verdict["notices"].as_array().unwrap().len(), 2);
    // A ring that can take no item is not sound.
    ahead[512..520].copy_from_slice(&(u64::MAX - 511).to_le_bytes());
    ahead[1024..1032].copy_from_slice(&(u64::MAX - 511).to_le_bytes());
    ahead[521..640].fill(0);
    scene.write("ring", &ahead);
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "blockring repair");
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    assert_ok(&scene.run(&["check", "ring"], b""));
}

#[test]
fn damaged_span_stops_the_consumer_or_is_skipped_and_counted() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let mut damaged = scene.read("ring");
    damaged[1536 + 12] ^= 1;
    scene.write("ring", &damaged);
    assert_ok(&scene.run(&["produce", "ring"], b"three\n"));
    // One span: a consumer that looks only now sees no border between them.
    assert_fails(&scene.run(&["consume", "ring"], b""), 5, "from position 0 to 28");
    let skipped = scene.run(&["consume", "--on-corrupt", "skip", "--json", "ring"], b"");
    assert_ok(&skipped);
    let text = String::from_utf8(skipped.stderr).unwrap();
    assert!(text.contains("skipped 28 bytes"), "{text}");
    let counts: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&counts["skipped_spans"], &counts["items"]), (&1.into(), &0.into()));
    assert_ok(&scene.run(&["produce", "ring"], b"four\n"));
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"four\n");
}

#[test]
fn bench_reports_what_it_pushed() {
    let scene = Scene::with_ring("1M");
    let bench = |more: &[&str]| {
        let arguments = [&["bench", "--json", "--seconds", "0.2"], more, &["ring"]].concat();
        scene.run(&arguments, b"")
    };
    let output = bench(&["--bytes", "1K", "--batch", "4", "--durability", "ordered"]);
    assert_ok(&output);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = report["items"].as_u64().unwrap();
    assert!(items > 0 && items.is_multiple_of(4) && report["batch_p50_us"].as_f64().unwrap() > 0.0);
    let consumed = scene.run(&["consume", "--framing", "length", "ring"], b"");
    assert_ok(&consumed);
    assert_eq!(consumed.stdout.len() as u64, items * (4 + 1024));
    // Without a consumer the bench ends with an error.
    assert_ok(&bench(&["--bytes", "60K", "--batch", "17"]));
    assert_fails(&bench(&["--bytes", "60K", "--batch", "17"]), 1, "the ring is full");
    assert_fails(&bench(&["--bytes", "1M"]), 1, "can never fit");
}

#[test]
fn misuse_is_refused_with_what_to_do() {
    let scene = Scene::with_ring("64K");
    assert_fails(&scene.run(&["consume", "missing"], b""), 1, "missing: cannot open: No such file");
    assert_fails(&scene.run(&["produce", "missing"], b""), 1, "create --size 8M missing");
    assert_fails(&scene.run(&["create", "missing"], b""), 1, "missing: cannot open: No such file");
    assert_fails(&scene.run(&["create", "missing"], b""), 1, "--size 8M makes a file");
    assert_fails(&scene.run(&["consume", "serial:nothing-has-this"], b""), 1, "serial number");
    assert_fails(
        &scene.run(&["consume", "--sector-size", "4096", "ring"], b""),
        5,
        "--sector-size 512",
    );
    assert_fails(&scene.run(&["consume", "--sector-size", "100", "ring"], b""), 2, "power of two");
    assert_fails(&scene.run(&["consume"], b""), 2, "Usage");
    for address in ["unix:missing", "vhost-user:missing"] {
        assert_fails(&scene.run(&["consume", address], b""), 1, "is its backend running?");
    }
    let _socket = UnixListener::bind(scene.path("socket")).unwrap();
    assert_fails(&scene.run(&["produce", "socket"], b""), 1, "named unix:PATH");
}

#[test]
fn waiting_consumer_uses_hardly_any_processor_time() {
    let scene = Scene::with_ring("64K");
    let mut consumer = scene.spawn(&["consume", "--follow", "ring"]);
    scene.wait_for_facts("ring", |facts| facts["holders"]["consumer"] == consumer.id());
    let ticks = |child: &Child| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        // User and system time.
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    let before = ticks(&consumer);
    std::thread::sleep(Duration::from_secs(2));
    // 200 ticks would be a busy core; polling may take a few hundredths of one.
    assert!(ticks(&consumer) - before <= 10);
    signal(&consumer, Signal::SIGTERM);
    consumer.wait().unwrap();
}

#[test]
fn failed_flush_ends_each_command_and_names_what_was_not_done() {
    let scene = Scene::with_ring("64K");
    let failing = |arguments: &[&str], input: &[u8]| {
        let mut command = scene.command(arguments);
        finish(ring_simulation::fail_flushes(&mut command).spawn().unwrap(), input)
    };
    assert_fails(&failing(&["produce", "ring"], b"one\ntwo\n"), 1, "cannot flush");
    assert_eq!(scene.facts("ring")["producer"], 0, "nothing was made visible");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let output = failing(&["consume", "ring"], b"");
    assert_fails(&output, 1, "cannot flush");
    assert_eq!(output.stdout, b"one\ntwo\n");
    assert_eq!(scene.facts("ring")["consumer"], 0, "nothing was freed: it comes again");
    assert_fails(&failing(&["suspend", "ring"], b""), 1, "cannot flush");
}
