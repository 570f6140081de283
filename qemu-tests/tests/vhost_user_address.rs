//! `blockring` as the front end of a backend, whose disk it drives itself: there is no guest.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{SOON, Scene};
use qemu_tests::{Daemon, binaries, wait_until};
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the standard output of `blockring`, which must succeed.
fn blockring(dir: &Path, arguments: &[&str], input: &str) -> String {
    let output = outcome(dir, arguments, input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn outcome(dir: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(binaries::programs().unwrap().blockring());
    command.args(arguments).current_dir(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines() -> String {
    (0..20_000).fold(String::new(), |text, number| text + &format!("line {number}\n"))
}

/// Starts a backend without rings, which serves `disk` at `s`.
fn storage(dir: &Path) -> Daemon {
    let mut command = Command::new("qemu-storage-daemon");
    command.current_dir(dir).args(["--blockdev", "driver=file,node-name=f,filename=disk"]);
    command.args(["--blockdev", "driver=raw,node-name=r,file=f", "--export"]);
    command.arg("type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path=s,writable=on");
    Daemon::spawn("storage", command, dir).unwrap()
}

#[test]
fn ring_works_on_the_disk_of_any_backend() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let mut daemon = storage(dir.path());
    daemon.wait_for_path(&dir.path().join("s"), PATIENCE).unwrap();
    let run = |arguments: &[&str], input: &str| blockring(dir.path(), arguments, input);
    run(&["create", "vhost-user:s"], "");
    run(&["produce", "vhost-user:s"], &lines());
    assert!(run(&["check", "vhost-user:s"], "").starts_with("sound: 20000 items"));
    assert!(run(&["diagnostics", "vhost-user:s"], "").contains("20000 produced"));
    assert_eq!(run(&["consume", "vhost-user:s"], ""), lines());
    daemon.kill().unwrap();
    assert!(run(&["check", "disk"], "").starts_with("sound: 0 items"), "it is a ring like any");
}

#[test]
fn producer_outlives_any_backend() {
    const PARTS: usize = 10;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    blockring(dir.path(), &["create", "disk"], "");
    let mut daemon = storage(dir.path());
    daemon.wait_for_path(&dir.path().join("s"), PATIENCE).unwrap();
    let mut command = Command::new(binaries::programs().unwrap().blockring());
    command.current_dir(dir.path()).args(["produce", "vhost-user:s"]);
    let (mut producer, mut feed) = Daemon::spawn_fed("producer", command, dir.path()).unwrap();
    let lines = lines();
    for (number, part) in lines.as_bytes().chunks(lines.len() / PARTS).enumerate() {
        let published = || {
            let facts = blockring(dir.path(), &["diagnostics", "--json", "disk"], "");
            serde_json::from_str::<Value>(&facts).unwrap()["producer"].as_u64().unwrap()
        };
        let before = published();
        feed.write_all(part).unwrap();
        // Some are killed while the part is on its way.
        if number % 2 == 0 {
            assert!(wait_until(SOON, || published() > before), "{}", producer.stderr());
        }
        daemon.kill().unwrap();
        daemon = storage(dir.path());
    }
    drop(feed);
    assert!(producer.wait(SOON).unwrap().success(), "{}", producer.stderr());
    daemon.kill().unwrap();
    assert!(producer.stderr().contains("the backend is back"), "{}", producer.stderr());
    assert_eq!(blockring(dir.path(), &["consume", "disk"], ""), lines);
}

#[test]
fn producer_without_a_guest_feeds_a_consumer_at_the_hand_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binaries::programs().unwrap().vhost_device_blockring());
    command.current_dir(dir.path()).args(["--socket-path", "s", "--blk-file", "ring"]);
    command.args(["--size", "1M", "--consumer-socket", "c"]);
    let mut daemon = Daemon::spawn("backend", command, dir.path()).unwrap();
    daemon.wait_for_path(&dir.path().join("c"), PATIENCE).unwrap();
    blockring(dir.path(), &["produce", "vhost-user:s"], &lines());
    // The producer has the guest's side.
    let wrong = outcome(dir.path(), &["consume", "vhost-user:s"], "");
    let words = String::from_utf8(wrong.stderr).unwrap();
    assert!(!wrong.status.success() && words.contains("or the guest's role"), "{words}");
    assert_eq!(blockring(dir.path(), &["consume", "unix:c"], ""), lines());
}

#[test]
fn producer_ends_by_a_signal_while_its_backend_is_gone() {
    for (left, code, words) in [
        ("", 0, ""),
        (
            "half a li",
            1,
            "not accepted: item 2 of the input (from byte 10) and everything behind it",
        ),
    ] {
        let scene = Scene::new(&["--size", "1M"]);
        let mut backend = scene.backend().unwrap();
        let command = scene.command("blockring", &["produce", "vhost-user:s"]).unwrap();
        let (mut producer, mut feed) = Daemon::spawn_fed("producer", command, scene.dir()).unwrap();
        // One write, which is read as one piece.
        feed.write_all(format!("published\n{left}").as_bytes()).unwrap();
        assert!(wait_until(SOON, || scene.diagnostics()["producer_items"] == 1));
        // When the producer looks for a suspend, the advance before it is done.
        let reads = || scene.diagnostics()["backend"]["reads"].as_u64().unwrap();
        let before = reads();
        assert!(wait_until(SOON, || reads() > before));
        backend.kill().unwrap();
        let misses = |producer: &Daemon| producer.stderr().contains("the backend is gone, looking");
        producer.wait_for("missing its backend", SOON, misses).unwrap();
        let status = producer.terminate(SOON).unwrap();
        let said = producer.stderr();
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
