//! `blockring journal` as its users meet it: nothing that was accepted goes unperformed.
#![allow(clippy::unwrap_used)]

use std::io::Write;
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
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, exec: &str, more: &[&str], input: &str) -> Output {
        let mut child = self.start(exec, more);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
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
    let scene = Scene::new();
    let last = 60;
    let mut child = scene.start("cat >> done; echo >> done", &[]);
    let input = numbers(last).join("\n");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    scene.wait_for_lines("done", 5);
    child.kill().unwrap();
    child.wait().unwrap();
    // What the killed one had not read is gone with its pipe: only what it accepted is promised.
    let output = scene.run("cat >> done; echo >> done", &[], "");
    assert!(output.status.success(), "{output:?}");
    let mut done = scene.lines("done");
    done.dedup();
    assert_eq!(done, numbers(done.len()), "in order, and only the one that was under way twice");
    assert!(done.len() >= 5);
}

#[test]
fn sigterm_leaves_the_rest_for_the_next_start() {
    let scene = Scene::new();
    let mut child = scene.start("sleep 0.05; cat >> done; echo >> done", &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n").unwrap();
    scene.wait_for_lines("done", 1);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
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
    let output = scene.run("true", &[], "1\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("not empty"));
}
