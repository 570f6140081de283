//! Faults of the command that a journal runs, of the file that it sets items aside in, and of the
//! waits for them.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, rest, wait_for_words};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use ring_test_support::process::{ended, signal, words};
use ring_test_support::{assert_fails, assert_ok};
use std::io::Write;

const JOURNAL: [&str; 5] = ["journal", "--size", "8K", "--retry", "0.01"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&JOURNAL[..], more, &["journal"]].concat()
}

#[test]
fn command_that_cannot_run_is_refused_before_input_is_read() {
    let scene = Scene::new();
    let output =
        scene.command(&with(&["--exec", "true"])).env("PATH", "/nowhere").output().unwrap();
    assert_fails(&output, 1, "cannot run sh");
    let output = scene.run(&with(&["--exec", "if"]), b"1\n");
    assert_fails(&output, 1, "sh does not understand the command of --exec: if");
    assert!(!scene.path("journal").exists());
}

#[test]
fn missing_or_non_executable_command_is_named_and_retried() {
    let scene = Scene::new();
    std::fs::write(scene.path("there"), "#!/bin/sh\ncat >> done\n").unwrap();
    for (exec, hint) in
        [("./missing", "(a command was not found)"), ("./there", "(a command is not executable)")]
    {
        let output = scene.run(&with(&["--exec", exec, "--timeout", "0.2"]), b"1\n");
        assert_fails(&output, 3, hint);
        assert_fails(&output, 3, "at the next start");
    }
    assert_ok(&scene.run(&with(&["--exec", "cat >> done"]), b""));
    assert_eq!(scene.read("done"), b"11");
}

#[test]
fn command_that_fails_at_once_is_run_again_at_a_pace_whatever_retry_says() {
    let scene = Scene::new();
    for retry in ["0", "1e-9"] {
        let exec = "echo >> runs; exit 1";
        let journal = ["journal", "--size", "8K", "--retry", retry, "--exec", exec];
        let output = scene.run(&[&journal[..], &["--timeout", "1", "journal"]].concat(), b"1\n");
        assert_fails(&output, 3, "at the next start");
        // After pauses of 10 ms, 20 ms, 40 ms and so on: six within the second, and one when it
        // ends.
        let runs = scene.read("runs").len();
        assert!((2..=8).contains(&runs), "{runs} runs");
        std::fs::remove_file(scene.path("runs")).unwrap();
    }
}

#[test]
fn failure_to_start_a_shell_is_no_failure_of_the_item() {
    let scene = Scene::new();
    let sh = scene.path("sh");
    std::os::unix::fs::symlink("/bin/sh", &sh).unwrap();
    let exec = "read -r item || :; echo \"$item\" >> done";
    let limited = with(&["--exec", exec, "--limit", "1", "--aside", "aside"]);
    let mut command = scene.command(&limited);
    let mut child = command.env("PATH", scene.path("")).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n").unwrap();
    scene.wait_for("done", |done| done == b"1\n");
    std::fs::remove_file(&sh).unwrap();
    stdin.write_all(b"2\n").unwrap();
    let errors = wait_for_words(child.stderr.take().unwrap(), "cannot run sh");
    let errors = wait_for_words(errors.into_inner(), "cannot be set aside");
    std::os::unix::fs::symlink("/bin/sh", &sh).unwrap();
    drop(stdin);
    drop(errors);
    assert_ok(&ended(child, "blockring"));
    assert_eq!(scene.read("done"), b"1\n2\n");
    assert!(!scene.path("aside").exists());
}

#[test]
fn command_that_does_not_read_its_item_has_performed_it() {
    let scene = Scene::new();
    let item = vec![b'x'; 5000];
    assert_ok(
        &scene.run(&with(&["--exec", "exec <&-; echo >> done", "--framing", "whole"]), &item),
    );
    assert_eq!(scene.read("done"), b"\n");
}

#[test]
fn second_signal_ends_the_wait_for_a_command() {
    let scene = Scene::new();
    let exec = "echo $$ >> begun; until [ -e go ]; do sleep 0.01; done; cat >> done";
    let mut child = scene.spawn(&with(&["--exec", exec]));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n").unwrap();
    scene.wait_for("begun", |begun| begun.ends_with(b"\n"));
    signal(&child, Signal::SIGTERM);
    let errors = wait_for_words(child.stderr.take().unwrap(), "waiting for the command");
    assert!(child.try_wait().unwrap().is_none(), "the first one waits");
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // The command goes on, and the journal is free for the next process, which performs the item
    // again.
    std::fs::write(scene.path("go"), "").unwrap();
    // The command has standard error, too.
    let text = rest(errors);
    assert!(text.contains("goes on alone") && text.contains("at the next start"), "{text}");
    scene.wait_for("done", |done| done == b"1");
    assert_ok(&scene.run(&with(&["--exec", "cat >> done"]), b""));
    assert_eq!(scene.read("done"), b"11");
}

#[test]
fn full_journal_is_given_up_after_the_timeout() {
    let scene = Scene::new();
    let input = "x".repeat(2000) + "\n";
    let output =
        scene.run(&with(&["--exec", "false", "--timeout", "0.2"]), input.repeat(6).as_bytes());
    assert_fails(&output, 3, "the journal stayed full; not accepted: item 4 of the input");
    let output = scene.run(&with(&["--exec", "cat >> done; echo >> done"]), b"");
    assert_ok(&output);
    assert_eq!(scene.read("done"), input.repeat(3).as_bytes());
}

#[test]
fn full_or_idle_journal_ends_at_the_first_signal() {
    let scene = Scene::new();
    let mut child = scene.spawn(&with(&["--exec", "false"]));
    let mut stdin = child.stdin.take().unwrap();
    let input = ("x".repeat(2000) + "\n").repeat(40);
    // More than a pipe and the journal's buffer take: the journal reads no more.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.repeat(3).as_bytes())));
    let errors = wait_for_words(child.stderr.take().unwrap(), "false: exit status: 1");
    signal(&child, Signal::SIGTERM);
    let code = child.wait().unwrap().code();
    let text = rest(errors);
    assert!(code == Some(1) && text.contains("asked to stop while the journal was full"), "{text}");
    writer.join().unwrap();
    let child = scene.spawn(&with(&["--exec", "true"]));
    scene.wait_for_role("journal", "consumer", &child);
    signal(&child, Signal::SIGINT);
    assert_ok(&ended(child, "blockring"));
}

#[test]
fn aside_file_that_cannot_be_appended_to_is_refused_at_the_start() {
    let scene = Scene::new();
    nix::unistd::mkfifo(&scene.path("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    for (aside, why) in [
        ("pipe", "No such device or address"),
        ("missing/aside", "No such file"),
        (".", "Is a directory"),
    ] {
        let limited = with(&["--exec", "false", "--limit", "1", "--aside", aside]);
        let output = scene.run(&limited, b"1\n");
        assert_fails(&output, 1, &format!("cannot append to {aside}: {why}"));
        assert!(!scene.path("journal").exists());
    }
}

#[test]
fn journal_that_is_its_own_aside_file_input_or_output_is_refused() {
    let scene = Scene::new();
    assert_ok(&scene.run(&with(&["--exec", "true"]), b""));
    std::os::unix::fs::symlink("journal", scene.path("link")).unwrap();
    let before = scene.read("journal");
    for aside in ["journal", "link"] {
        let limited = with(&["--exec", "false", "--limit", "1", "--aside", aside]);
        let words = format!("journal: --aside {aside} is the ring itself");
        assert_fails(&scene.run(&limited, b"1\n"), 1, &words);
        assert!(scene.read("journal") == before, "{aside}");
    }
    for (streams, words) in [
        (">> journal < /dev/null", "standard output is the ring itself"),
        ("< journal", "standard input is the ring itself"),
    ] {
        let output = scene.shell(&format!("$RING journal --exec cat journal {streams}"));
        assert_fails(&output, 1, words);
        assert!(scene.read("journal") == before, "{streams}");
    }
    // A journal that the same command creates.
    std::fs::remove_file(scene.path("journal")).unwrap();
    let limited = with(&["--exec", "false", "--limit", "1", "--aside", "journal"]);
    assert_fails(&scene.run(&limited, b"1\n"), 1, "--aside journal is the ring itself");
}

#[test]
fn unread_aside_pipe_does_not_delay_a_stop() {
    let scene = Scene::new();
    let path = scene.path("pipe");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    let reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let size = ["journal", "--size", "1M", "--retry", "0.01", "--exec", "false"];
    let aside = ["--framing", "whole", "--limit", "1", "--aside", "pipe", "journal"];
    let mut child = scene.spawn(&[&size[..], &aside].concat());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 500_000]).unwrap();
    drop(stdin);
    let errors = wait_for_words(child.stderr.take().unwrap(), "false: exit status: 1");
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", rest(errors));
    drop(reader);
    assert!(words(&scene.run(&["check", "journal"], b"")).is_empty());
}
