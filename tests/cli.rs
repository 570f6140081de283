//! The `blockring` program as a user meets it.
#![allow(clippy::unwrap_used)]

mod common;

use common::assert_fails;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn with_ring(size: &str) -> Self {
        let scene = Self::new();
        assert_ok(&scene.run(&["create", "--size", size, "ring"], b""));
        scene
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ring")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockring"));
        command.args(arguments).current_dir(self.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(arguments);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A program that refuses does not read: that is no failure of the test's.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    fn facts(&self) -> serde_json::Value {
        serde_json::from_slice(&self.run(&["diagnostics", "--json", "ring"], b"").stdout).unwrap()
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&serde_json::Value) -> bool) {
        let start = Instant::now();
        while !condition(&self.facts()) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{what} never came: {}",
                self.facts()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn terminate(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

#[test]
fn lines_come_out_as_they_went_in() {
    let scene = Scene::with_ring("64K");
    let input = b"one\n\nthree, without a line feed";
    assert_ok(&scene.run(&["produce", "ring"], input));
    let output = scene.run(&["consume", "ring"], b"");
    assert_ok(&output);
    assert_eq!(output.stdout, [&input[..], b"\n"].concat());
    assert!(scene.run(&["consume", "ring"], b"").stdout.is_empty(), "delivered twice");
}

#[test]
fn a_consumer_that_frees_lazily_and_spins_leaves_nothing_behind() {
    let scene = Scene::with_ring("64K");
    let input = "a line\n".repeat(100);
    assert_ok(&scene.run(&["produce", "ring"], input.as_bytes()));
    let lazily = ["consume", "--advance-every", "16K", "--spin-us", "300", "ring"];
    let first = scene.run(&[&lazily[..], &["--count", "60"]].concat(), b"");
    assert_ok(&first);
    let rest = scene.run(&[&lazily[..], &["--follow", "--count", "40"]].concat(), b"");
    assert_eq!([first.stdout, rest.stdout].concat(), input.as_bytes());
    assert_eq!(scene.facts()["used"], 0);
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
fn more_than_a_ring_passes_through_it() {
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
fn an_output_that_is_full_or_closed_loses_nothing() {
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
fn what_does_not_fit_is_named_and_what_came_before_is_kept() {
    let scene = Scene::with_ring("8K");
    let input = format!("short\n{}\nnever read\n", "x".repeat(9000));
    let output = scene.run(&["produce", "ring"], input.as_bytes());
    assert_fails(&output, 1, "not accepted: item 2 of the input (from byte 6");
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"short\n");
}

#[test]
fn a_full_ring_times_out_fails_or_drops() {
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
fn an_empty_ring_times_out() {
    let scene = Scene::with_ring("8K");
    assert_fails(&scene.run(&["consume", "--timeout", "0.1", "ring"], b""), 3, "no item");
}

#[test]
fn a_line_does_not_wait_for_the_next_and_sigterm_loses_none() {
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
    terminate(&consumer);
    assert!(consumer.wait().unwrap().success());
    input.write_all(b"last\n").unwrap();
    scene.wait_for("the last line", |facts| facts["used"].as_u64() > Some(0));
    terminate(&producer);
    assert!(producer.wait().unwrap().success());
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"last\n");
}

#[test]
fn a_suspended_producer_stops_and_goes_on() {
    let scene = Scene::with_ring("64K");
    let mut producer = scene.spawn(&["produce", "ring"]);
    let mut input = producer.stdin.take().unwrap();
    scene.wait_for("the producer", |facts| facts["holders"]["producer"] == producer.id());
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
fn create_refuses_what_it_would_destroy() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"item\n"));
    let uuid = scene.facts()["uuid"].clone();
    assert_fails(&scene.run(&["create", "ring"], b""), 1, "--force");
    assert_fails(&scene.run(&["create", "--size", "1M", "ring"], b""), 1, "not a file of");
    assert_eq!(scene.facts()["uuid"], uuid);
    assert_ok(&scene.run(&["create", "--force", "ring"], b""));
    assert_ne!(scene.facts()["uuid"], uuid);
    assert_eq!(scene.facts()["used"], 0);
    std::fs::write(
        scene.dir.path().join("other"),
        [&vec![0; 60000][..], b"data", &[0; 5532]].concat(),
    )
    .unwrap();
    assert_fails(&scene.run(&["create", "other"], b""), 1, "byte 60000");
    assert_fails(&scene.run(&["create", "--size", "1536", "small"], b""), 5, "too small");
    assert!(!scene.dir.path().join("small").exists());
}

#[test]
fn check_gives_a_verdict() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let verdict: serde_json::Value =
        serde_json::from_slice(&scene.run(&["check", "--json", "ring"], b"").stdout).unwrap();
    assert_eq!((&verdict["sound"], &verdict["items"]), (&true.into(), &2.into()));
    let before = std::fs::read(scene.path()).unwrap();
    let mut damaged = before.clone();
    damaged[1536 + 8] = 0xff;
    std::fs::write(scene.path(), &damaged).unwrap();
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "item at position 8");
    assert_fails(&scene.run(&["consume", "ring"], b""), 5, "items from position 0 to 16");
    damaged[1536 + 8..1536 + 13].copy_from_slice(&before[1536 + 8..1536 + 13]);
    damaged[1536 + 5] ^= 1;
    std::fs::write(scene.path(), &damaged).unwrap();
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "items from position 0 to 16");
    std::fs::write(scene.path(), vec![0; 65536]).unwrap();
    assert_fails(&scene.run(&["check", "ring"], b""), 5, "not a ring");
}

#[test]
fn a_repair_is_shown_first_and_can_be_taken_back() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\n"));
    assert_ok(&scene.run(&["repair", "ring"], b""));
    let mut damaged = std::fs::read(scene.path()).unwrap();
    damaged[8..30].fill(0);
    std::fs::write(scene.path(), &damaged).unwrap();
    assert_fails(&scene.run(&["repair", "ring"], b""), 5, "--write");
    assert!(std::fs::read(scene.path()).unwrap() == damaged, "a dry run changes nothing");
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    assert!(std::fs::read(scene.dir.path().join("ring.before-repair")).unwrap() == damaged[..1536]);
    assert_eq!(scene.run(&["consume", "ring"], b"").stdout, b"one\n");
    assert_ok(&scene.run(&["repair", "--write", "ring"], b""));
    std::fs::write(scene.path(), &damaged).unwrap();
    // What was kept of the first one is not overwritten.
    assert_fails(&scene.run(&["repair", "--write", "ring"], b""), 1, "nothing was repaired");
}

#[test]
fn a_damaged_span_stops_the_consumer_or_is_skipped_and_counted() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let mut damaged = std::fs::read(scene.path()).unwrap();
    damaged[1536 + 12] ^= 1;
    std::fs::write(scene.path(), &damaged).unwrap();
    assert_ok(&scene.run(&["produce", "ring"], b"three\n"));
    // One span: whoever looks only now sees no border between them.
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
fn a_bench_says_what_it_has_pushed() {
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
    // Nobody consumes: it ends, and says so.
    assert_ok(&bench(&["--bytes", "60K", "--batch", "17"]));
    assert_fails(&bench(&["--bytes", "60K", "--batch", "17"]), 1, "the ring is full");
    assert_fails(&bench(&["--bytes", "1M"]), 1, "can never fit");
}

#[test]
fn wrong_use_answers_in_words() {
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
    let _socket = UnixListener::bind(scene.dir.path().join("socket")).unwrap();
    assert_fails(&scene.run(&["produce", "socket"], b""), 1, "named unix:PATH");
}

#[test]
fn a_waiting_consumer_leaves_the_core_alone() {
    let scene = Scene::with_ring("64K");
    let mut consumer = scene.spawn(&["consume", "--follow", "ring"]);
    scene.wait_for("the consumer", |facts| facts["holders"]["consumer"] == consumer.id());
    let ticks = |child: &Child| {
        let mut stat = String::new();
        File::open(format!("/proc/{}/stat", child.id()))
            .unwrap()
            .read_to_string(&mut stat)
            .unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|n| n.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let before = ticks(&consumer);
    std::thread::sleep(Duration::from_secs(2));
    // 200 ticks would be a busy core; polling may take a few hundredths of one.
    assert!(ticks(&consumer) - before <= 10);
    terminate(&consumer);
    consumer.wait().unwrap();
}

#[test]
fn a_flush_that_fails_ends_a_command_with_what_it_did_not_do() {
    let scene = Scene::with_ring("64K");
    let failing = |arguments: &[&str], input: &[u8]| {
        let mut child =
            ring_simulation::fail_flushes(&mut scene.command(arguments)).spawn().unwrap();
        // It may have ended before it read.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    };
    assert_fails(&failing(&["produce", "ring"], b"one\ntwo\n"), 1, "cannot flush");
    assert_eq!(scene.facts()["producer"], 0, "nothing was made visible");
    assert_ok(&scene.run(&["produce", "ring"], b"one\ntwo\n"));
    let output = failing(&["consume", "ring"], b"");
    assert_fails(&output, 1, "cannot flush");
    assert_eq!(output.stdout, b"one\ntwo\n");
    assert_eq!(scene.facts()["consumer"], 0, "nothing was freed: it comes again");
    assert_fails(&failing(&["suspend", "ring"], b""), 1, "cannot flush");
}
