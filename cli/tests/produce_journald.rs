//! `blockring produce --journald`: entries that systemd's own programs have written and read.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{Guarded, ended, eventually_or, signal};
use ring_test_support::{assert_fails, assert_ok};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Times that the producer is killed.
const KILLS: u64 = 30;

const PRODUCE: &str = "produce --journald --journal-directory journal";

/// A journal whose entries a test writes, by `systemd-journal-remote`.
struct Journal<'a>(&'a Scene);

impl<'a> Journal<'a> {
    fn new(scene: &'a Scene) -> Self {
        std::fs::create_dir(scene.path("journal")).unwrap();
        Self(scene)
    }

    /// Appends entries of one boot, at these microseconds since that, to a file.
    fn write(&self, file: u8, boot: u8, entries: &[(u64, &str)]) {
        let mut bytes = Vec::new();
        for (monotonic, message) in entries {
            let realtime = 1_700_000_000_000_000 + u64::from(boot) * 1_000_000_000 + monotonic;
            write!(
                bytes,
                "__REALTIME_TIMESTAMP={realtime}\n__MONOTONIC_TIMESTAMP={monotonic}\n\
                 _BOOT_ID={boot:032x}\nMESSAGE\n"
            )
            .unwrap();
            bytes.extend_from_slice(&(message.len() as u64).to_le_bytes());
            write!(bytes, "{message}\n\n").unwrap();
        }
        let mut program = Command::new("/usr/lib/systemd/systemd-journal-remote")
            .args(["--output", &format!("journal/{file}.journal"), "-"])
            .current_dir(self.0.path("."))
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        program.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(program.wait().unwrap().success());
    }
}

/// Returns the messages of the entries that have arrived, and frees them.
fn arrived(scene: &Scene) -> Vec<String> {
    let text = scene.succeed("$RING consume --framing export ring");
    let begin = "MESSAGE";
    let message = |entry: &str| {
        let (_, rest) = entry.split_once(begin).unwrap();
        match rest.strip_prefix('=') {
            Some(rest) => rest.split_once('\n').unwrap().0.to_owned(),
            // Behind the length. The test's messages are longer than none.
            None => rest[9..].trim_end_matches('\n').to_owned(),
        }
    };
    text.split("__CURSOR=").skip(1).map(message).collect()
}

#[test]
fn entries_arrive_once_over_ends_of_boots_and_programs() {
    let scene = Scene::with_ring("1M");
    let journal = Journal::new(&scene);
    let output = scene.shell(&format!("$RING {PRODUCE} --no-follow ring"));
    assert_fails(&output, 1, "there is no journal there");
    let produce = || scene.succeed(&format!("$RING {PRODUCE} --no-follow ring"));
    journal.write(1, 1, &[(10, "one"), (20, "two\n\nlines"), (20, "twin"), (20, "twin")]);
    produce();
    assert_eq!(arrived(&scene), ["one", "two\n\nlines", "twin", "twin"]);
    produce();
    assert!(arrived(&scene).is_empty());
    journal.write(1, 1, &[(20, "twin"), (20, "late, of the same time")]);
    // In files whose sequence numbers begin anew, as those after a crash.
    journal.write(2, 1, &[(30, "later")]);
    journal.write(3, 2, &[(5, "next boot")]);
    produce();
    assert_eq!(arrived(&scene), ["twin", "late, of the same time", "later", "next boot"]);
    // The journal of the boot of which entries were sent last is lost.
    for number in 1..=3 {
        std::fs::remove_file(scene.path(&format!("journal/{number}.journal"))).unwrap();
    }
    journal.write(4, 1, &[(10, "sent long ago")]);
    journal.write(5, 3, &[(1, "new"), (2, "and last")]);
    produce();
    assert_eq!(arrived(&scene), ["new", "and last"]);
    // Another producer leaves no trace of the journal.
    scene.succeed("echo line | $RING produce ring; $RING consume ring");
    let output = scene.shell(&format!("$RING {PRODUCE} --no-follow ring"));
    assert_ok(&output);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("does not tell which entry of the journal was sent last"), "{errors}");
    assert_eq!(arrived(&scene), ["sent long ago", "new", "and last"]);
}

#[test]
fn killed_producers_send_each_entry_once() {
    let scene = Scene::with_ring("256K");
    let journal = Journal::new(&scene);
    let count = 10_000;
    let messages: Vec<_> = (0..count).map(|number| number.to_string()).collect();
    // Some of them of the same time.
    let entries: Vec<_> =
        messages.iter().enumerate().map(|(n, text)| (n as u64 / 3, &**text)).collect();
    for (boot, part) in (1..).zip(entries.chunks(count / 4)) {
        journal.write(boot, boot, part);
    }
    let follower = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        let mut command = scene.without_input(&words);
        Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
    };
    let mut consume = scene.without_input(&["consume", "--follow", "--framing", "export", "ring"]);
    let output = std::fs::File::create(scene.path("entries")).unwrap();
    let consumer = Guarded::start(consume.stdout(output));
    for kill in 0..KILLS {
        let mut producer = follower(&format!("{PRODUCE} ring"));
        // Any moment is as good as another.
        std::thread::sleep(Duration::from_millis(20 + kill * 37 % 200));
        producer.kill().unwrap();
        producer.wait().unwrap();
    }
    scene.succeed(&format!("$RING {PRODUCE} --no-follow ring"));
    let sent = || {
        let bytes = scene.read("entries");
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("MESSAGE=").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    eventually_or(|| sent() == messages, || format!("{:?}", sent().len()));
    signal(&consumer, Signal::SIGTERM);
    assert_ok(&ended(consumer, "consume"));
}

#[test]
fn journal_is_followed_and_a_stop_is_no_error() {
    let scene = Scene::with_ring("64K");
    let journal = Journal::new(&scene);
    let start = || {
        let words: Vec<_> = PRODUCE.split(' ').chain(["--json", "ring"]).collect();
        Guarded::start(&mut scene.without_input(&words))
    };
    journal.write(1, 1, &[(1, "first")]);
    let producer = start();
    let waiting = || scene.succeed("$RING diagnostics --json ring");
    let has_items = |count: u64| {
        let facts: serde_json::Value = serde_json::from_str(&waiting()).unwrap();
        facts["producer_items"] == count
    };
    eventually_or(|| has_items(1), waiting);
    journal.write(1, 1, &[(2, "second")]);
    eventually_or(|| has_items(2), waiting);
    signal(&producer, Signal::SIGTERM);
    assert_ok(&ended(producer, "produce"));
    // More than the ring takes.
    let long = "x".repeat(30_000);
    journal.write(1, 1, &[(3, &long), (4, &long), (5, &long)]);
    let producer = start();
    eventually_or(|| has_items(4), waiting);
    scene.succeed("$RING suspend ring");
    signal(&producer, Signal::SIGTERM);
    assert_ok(&ended(producer, "produce"));
    scene.succeed("$RING resume ring");
    assert_eq!(arrived(&scene), ["first", "second", &*long, &*long]);
    scene.succeed(&format!("$RING {PRODUCE} --no-follow ring"));
    assert_eq!(arrived(&scene), [long]);
}

#[test]
fn entries_that_are_copied_to_another_file_arrive_once() {
    let scene = Scene::with_ring("64K");
    let journal = Journal::new(&scene);
    // As journald does it once the disk can be written to. journalctl tells entries of one time by
    // their hashes, and prints those again that have a higher one than the last.
    let mut entries = vec![(10, "first")];
    entries.extend(["a", "b", "c", "d", "e", "f", "twin", "twin"].map(|text| (20, text)));
    journal.write(1, 1, &entries);
    let words: Vec<_> = PRODUCE.split(' ').chain(["ring"]).collect();
    let producer = Guarded::start(&mut scene.without_input(&words));
    let sent = || {
        let report = scene.succeed("$RING diagnostics --json ring");
        let facts: serde_json::Value = serde_json::from_str(&report).unwrap();
        facts["producer_items"].as_u64()
    };
    eventually_or(|| sent() == Some(9), || format!("{:?}", sent()));
    entries.push((30, "last"));
    journal.write(2, 1, &entries);
    eventually_or(|| sent() > Some(9), || format!("{:?}", sent()));
    signal(&producer, Signal::SIGTERM);
    assert_ok(&ended(producer, "produce"));
    scene.succeed(&format!("$RING {PRODUCE} --no-follow ring"));
    let expected: Vec<_> = entries.iter().map(|(_, message)| *message).collect();
    assert_eq!(arrived(&scene), expected);
}

#[test]
fn misuse_is_refused_by_name() {
    let scene = Scene::with_ring("64K");
    scene.succeed("echo line | $RING produce ring");
    let output = scene.shell("$RING consume --framing export ring");
    assert_fails(&output, 1, "in the ring (choose --framing length)");
    let usage = |words: &str, wanted: &str| {
        assert_fails(&scene.shell(&format!("$RING produce {words} ring")), 2, wanted);
    };
    usage("--journald --framing lines", "--framing");
    usage("--journald --on-too-large split", "a part of an entry is none");
    usage("--no-follow", "--journald");
    usage("--journal-directory .", "--journald");
    let output = scene.shell("PATH=/nowhere $RING produce --journald ring");
    assert_fails(&output, 1, "cannot run journalctl");
    let output = scene.shell(&format!("$RING {PRODUCE} ring"));
    assert_fails(&output, 1, "No such file or directory");
    assert_fails(&output, 1, "journalctl has failed");
}

#[test]
fn signal_ends_produce_while_journalctl_does_not_answer() {
    let scene = Scene::with_ring("64K");
    scene.succeed("mkdir bin; printf '#!/bin/sh\necho > asked; exec sleep 1000' > bin/journalctl; chmod +x bin/journalctl");
    let mut command = scene.without_input(&["produce", "--journald", "ring"]);
    let path = format!("{}:{}", scene.path("bin").display(), std::env::var("PATH").unwrap());
    let producer = Guarded::start(command.env("PATH", path));
    scene.wait_for("asked", |bytes| !bytes.is_empty());
    signal(&producer, Signal::SIGTERM);
    assert_ok(&ended(producer, "produce"));
}
