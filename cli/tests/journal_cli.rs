//! `blockring journal` as its users run it: every accepted item is performed.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, wait_for_words};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use ring_test_support::process::{finish, signal};
use ring_test_support::{assert_fails, assert_ok};
use std::io::Write;
use std::process::{Child, Output};

/// Starts a journal in the file `journal`, whose command is `exec`.
fn start(scene: &Scene, exec: &str, more: &[&str]) -> Child {
    let journal = ["journal", "--size", "64K", "--retry", "0.01", "--exec", exec];
    scene.spawn(&[&journal[..], more, &["journal"]].concat())
}

/// Runs a journal in the file `journal` to its end.
fn run(scene: &Scene, exec: &str, more: &[&str], input: &str) -> Output {
    finish(start(scene, exec, more), input.as_bytes())
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
    let output = run(&scene, "cat >> done; echo >> done", &["--json"], "1\n2\n3\n");
    assert_ok(&output);
    assert_eq!(scene.lines("done"), numbers(3));
    let counts: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&counts["accepted"], &counts["performed"]), (&3.into(), &3.into()));
}

#[test]
fn failing_command_is_run_again() {
    let scene = Scene::new();
    // The command fails the first time for each item.
    let exec = "item=$(cat); if [ -e seen-$item ]; then echo $item >> done; else touch seen-$item; exit 1; fi";
    let output = run(&scene, exec, &[], "1\n2\n3\n");
    assert_ok(&output);
    assert_eq!(scene.lines("done"), numbers(3));
    assert!(String::from_utf8(output.stderr).unwrap().contains("exit status: 1"));
}

#[test]
fn item_that_always_fails_is_set_aside() {
    let scene = Scene::new();
    let exec = "item=$(cat); [ $item != 2 ] && echo $item >> done";
    let output = run(&scene, exec, &["--limit", "3", "--aside", "failed"], "1\n2\n3\n");
    assert_ok(&output);
    assert_eq!(scene.lines("done"), ["1", "3"]);
    assert_eq!(scene.lines("failed"), ["2"]);
}

#[test]
fn killed_journal_goes_on_where_it_was() {
    // One write for each line: the command that runs at the kill goes on beside the next journal.
    const EXEC: &str = "item=$(cat); echo $item >> done";
    let scene = Scene::new();
    let mut child = start(&scene, EXEC, &[]);
    let input = numbers(60).join("\n");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    scene.wait_for_lines("done", 5);
    child.kill().unwrap();
    child.wait().unwrap();
    // Input that the killed journal had not read is gone with its pipe: only accepted items are
    // promised.
    let output = run(&scene, EXEC, &[], "");
    assert_ok(&output);
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
    let mut child = start(&scene, "sleep 0.05; cat >> done; echo >> done", &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n").unwrap();
    scene.wait_for_lines("done", 1);
    signal(&child, Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
    assert!(scene.lines("done").len() < 10);
    assert!(run(&scene, "cat >> done; echo >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), numbers(10));
}

#[test]
fn item_that_cannot_be_performed_in_time_stays() {
    let scene = Scene::new();
    let output = run(&scene, "exit 1", &["--timeout", "0.2"], "1\n");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(run(&scene, "cat >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), ["1"]);
}

#[test]
fn file_with_other_data_is_refused() {
    let scene = Scene::new();
    scene.write("journal", vec![b'x'; 65536]);
    assert_fails(&run(&scene, "true", &[], ""), 1, "not empty");
}

#[test]
fn command_killed_by_a_signal_has_failed() {
    let scene = Scene::new();
    let exec = "item=$(cat); [ -e seen ] && echo $item >> done || { touch seen; kill -9 $$; }";
    let output = run(&scene, exec, &["--json"], "1\n");
    assert_ok(&output);
    assert_eq!(scene.lines("done"), ["1"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("signal: 9"), "{words}");
    let counts: serde_json::Value = serde_json::from_str(words.lines().last().unwrap()).unwrap();
    assert_eq!(
        counts,
        serde_json::json!({
            "accepted": 1, "performed": 1, "failures": 1, "aside": 0,
            "too_large_dropped": 0, "too_large_split": 0, "exit_code": 0, "error": null
        })
    );
}

#[test]
fn running_command_is_not_interrupted_by_a_stop() {
    // As a service manager stops it, and as Ctrl-C does, which goes to the whole group.
    let signals: [fn(Pid); 2] =
        [|pid| kill(pid, Signal::SIGTERM).unwrap(), |group| killpg(group, Signal::SIGINT).unwrap()];
    for stop in signals {
        let scene = Scene::new();
        let exec = "echo >> begun; until [ -e go ]; do sleep 0.01; done; cat >> done; echo >> done";
        let mut child = start(&scene, exec, &["--limit", "1", "--aside", "failed"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"1\n2\n").unwrap();
        scene.wait_for_lines("begun", 1);
        stop(pid(&child));
        let errors = child.stderr.take().unwrap();
        // From here on nothing more is performed, however late the signal was seen.
        let _errors = wait_for_words(errors, "waiting for the command that is running");
        scene.write("go", "");
        assert!(child.wait().unwrap().success());
        assert_eq!(scene.lines("done"), ["1"]);
        assert!(!scene.path("failed").exists());
        assert!(run(&scene, exec, &[], "").status.success());
        let done = scene.lines("done");
        // The stop may have come before the second item was read.
        assert!(["1", "2"].starts_with(&done.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}

#[test]
fn second_journal_is_refused_with_the_process_of_the_first() {
    let scene = Scene::new();
    let mut child = start(&scene, "cat >> done; echo >> done", &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n").unwrap();
    scene.wait_for_lines("done", 1);
    assert_fails(&run(&scene, "true", &[], ""), 1, &format!("process {}", child.id()));
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn item_that_cannot_be_set_aside_stays_in_the_journal() {
    let scene = Scene::new();
    let more = ["--limit", "1", "--aside", "/dev/full", "--timeout", "0.2"];
    assert_fails(&run(&scene, "exit 1", &more, "1\n"), 3, "cannot be set aside");
    assert!(run(&scene, "cat >> done", &[], "").status.success());
    assert_eq!(scene.lines("done"), ["1"]);
}

#[test]
fn journal_refuses_damage_and_oversized_items_by_name() {
    let scene = Scene::new();
    let long = "x".repeat(70_000);
    assert_fails(
        &run(&scene, "true", &["--json"], &format!("1\n{long}\n")),
        1,
        "item 2 of the input",
    );
    assert_fails(&run(&scene, "exit 1", &["--timeout", "0.1"], "one\n"), 3, "at the next start");
    let mut bytes = scene.read("journal");
    let one = bytes.windows(3).position(|bytes| bytes == b"one").unwrap();
    bytes[one] ^= 1;
    scene.write("journal", bytes);
    assert_fails(&run(&scene, "cat >> done", &[], ""), 5, "are corrupt");
    assert!(!scene.path("done").exists());
    let output = scene.run(&["journal", "--exec", "true", "unix:/nowhere"], b"");
    assert_fails(&output, 1, "a journal is in a file");
}
