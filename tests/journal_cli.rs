//! `blockring journal` as its users meet it: nothing that was accepted goes unperformed.
#![allow(clippy::unwrap_used)]

mod common;

use common::assert_fails;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn start(&self, exec: &str, more: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_blockring"))
            .args(["journal", "--size", "64K", "--retry", "0.01", "--exec", exec])
            .args(more)
            .arg("journal")
            .current_dir(self.dir.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, exec: &str, more: &[&str], input: &str) -> Output {
        let mut child = self.start(exec, more);
        // One that refuses does not read: that is no failure of the test's.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    }

    fn wait_for_lines(&self, name: &str, count: usize) {
        let start = Instant::now();
        while self.lines(name).len() < count {
            assert!(start.elapsed() < SOON, "{:?}", self.lines(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn numbers(last: usize) -> Vec<String> {
    (1..=last).map(|number| number.to_string()).collect()
}

#[test]
fn each_line_is_performed_once_where_nothing_fails() {
    let scene = Scene::new();
    let output = scene.run("cat >> done; echo >> done", &["--json"], "1\n2\n3\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.lines("done"), numbers(3));
    let counts: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&counts["accepted"], &counts["performed"]), (&3.into(), &3.into()));
}

#[test]
fn a_command_that_fails_now_and_then_is_run_again() {
    let scene = Scene::new();
    // Fails the first time for each item.
    let exec = "item=$(cat); if [ -e seen-$item ]; then echo $item >> done; else touch seen-$item; exit 1; fi";
    let output = scene.run(exec, &[], "1\n2\n3\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.lines("done"), numbers(3));
    assert!(String::from_utf8(output.stderr).unwrap().contains("exit status: 1"));
}

#[test]
fn an_item_that_never_works_is_kept_in_a_file() {
    let scene = Scene::new();
    let exec = "item=$(cat); [ $item != 2 ] && echo $item >> done";
    let output = scene.run(exec, &["--limit", "3", "--aside", "failed"], "1\n2\n3\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.lines("done"), ["1", "3"]);
    assert_eq!(scene.lines("failed"), ["2"]);
}

#[test]
fn a_killed_journal_goes_on_where_it_was() {
    // One write, so that a line is whole: what was running at the kill goes on beside the next run.
    const EXEC: &str = "item=$(cat); echo $item >> done";
    let scene = Scene::new();
    let mut child = scene.start(EXEC, &[]);
    let input = numbers(60).join("\n");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    scene.wait_for_lines("done", 5);
    child.kill().unwrap();
    child.wait().unwrap();
    // What the killed one had not read is gone with its pipe: only what it accepted is promised.
    let output = scene.run(EXEC, &[], "");
    assert!(output.status.success(), "{output:?}");
    let done = scene.lines("done");
    let mut first = Vec::new();
    for line in &done {
        if !first.contains(line) {
            first.push(line.clone());
        }
    }
    assert_eq!(first, numbers(first.len()), "in order");
    assert!(first.len() >= 5 && done.len() <= first.len() + 1, "only the one under way twice");
}

#[test]
fn sigterm_leaves_the_rest_for_the_next_start() {
    let scene = Scene::new();
    let mut child = scene.start("sleep 0.05; cat >> done; echo >> done", &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n").unwrap();
    scene.wait_for_lines("done", 1);
    kill(pid(&child), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(scene.lines("done").len() < 10);
    assert!(scene.run("cat >> done; echo >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), numbers(10));
}

#[test]
fn what_cannot_be_performed_in_time_stays() {
    let scene = Scene::new();
    let output = scene.run("exit 1", &["--timeout", "0.2"], "1\n");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(scene.run("cat >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), ["1"]);
}

#[test]
fn a_file_with_something_else_in_it_is_refused() {
    let scene = Scene::new();
    std::fs::write(scene.path("journal"), vec![b'x'; 65536]).unwrap();
    assert_fails(&scene.run("true", &[], ""), 1, "not empty");
}

#[test]
fn a_command_that_dies_of_a_signal_has_failed() {
    let scene = Scene::new();
    let exec = "item=$(cat); [ -e seen ] && echo $item >> done || { touch seen; kill -9 $$; }";
    let output = scene.run(exec, &["--json"], "1\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.lines("done"), ["1"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("signal: 9"), "{words}");
    let counts: serde_json::Value = serde_json::from_str(words.lines().last().unwrap()).unwrap();
    assert_eq!(
        counts,
        serde_json::json!({"accepted": 1, "performed": 1, "failures": 1, "aside": 0})
    );
}

#[test]
fn a_command_that_runs_is_not_interrupted_by_a_stop() {
    // By a service manager, and by Ctrl-C, which goes to the whole group.
    let signals: [fn(Pid); 2] =
        [|pid| kill(pid, Signal::SIGTERM).unwrap(), |group| killpg(group, Signal::SIGINT).unwrap()];
    for signal in signals {
        let scene = Scene::new();
        let exec = "echo >> begun; until [ -e go ]; do sleep 0.01; done; cat >> done; echo >> done";
        let mut child = scene.start(exec, &["--limit", "1", "--aside", "failed"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"1\n2\n").unwrap();
        scene.wait_for_lines("begun", 1);
        signal(pid(&child));
        assert!(child.try_wait().unwrap().is_none(), "it waits for the command");
        std::fs::write(scene.path("go"), "").unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(scene.lines("done"), ["1"]);
        assert!(!scene.path("failed").exists());
        assert!(scene.run(exec, &[], "").status.success());
        let done = scene.lines("done");
        // The stop may have come before the second was read.
        assert!(["1", "2"].starts_with(&done.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}

#[test]
fn a_second_one_is_refused_with_the_first_one_s_process() {
    let scene = Scene::new();
    let mut child = scene.start("cat >> done; echo >> done", &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n").unwrap();
    scene.wait_for_lines("done", 1);
    assert_fails(&scene.run("true", &[], ""), 1, &format!("process {}", child.id()));
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_set_aside_stays_in_the_journal() {
    let scene = Scene::new();
    let more = ["--limit", "1", "--aside", "/dev/full", "--timeout", "0.2"];
    assert_fails(&scene.run("exit 1", &more, "1\n"), 3, "cannot be set aside");
    assert!(scene.run("cat >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), ["1"]);
}

#[test]
fn damage_and_what_does_not_fit_are_refused_by_name() {
    let scene = Scene::new();
    let long = "x".repeat(70_000);
    assert_fails(
        &scene.run("true", &["--json"], &format!("1\n{long}\n")),
        1,
        "item 2 of the input",
    );
    assert_fails(&scene.run("exit 1", &["--timeout", "0.1"], "one\n"), 3, "at the next start");
    let mut bytes = std::fs::read(scene.path("journal")).unwrap();
    let one = bytes.windows(3).position(|bytes| bytes == b"one").unwrap();
    bytes[one] ^= 1;
    std::fs::write(scene.path("journal"), bytes).unwrap();
    assert_fails(&scene.run("cat >> done", &[], ""), 5, "are corrupt");
    assert!(!scene.path("done").exists());
    let output = Command::new(env!("CARGO_BIN_EXE_blockring"))
        .args(["journal", "--exec", "true", "unix:/nowhere"])
        .output()
        .unwrap();
    assert_fails(&output, 1, "a journal is in a file");
}
