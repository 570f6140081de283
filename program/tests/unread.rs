//! A process whose standard error is not read: this program starts itself as that process, and is
//! its reader. There is no test harness, which would use standard error itself.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};

const INSIDE: &str = "RING_PROGRAM_UNREAD";

/// Several times what the queue and a pipe hold.
const LINES: usize = 20_000;

fn main() -> ExitCode {
    match std::env::var(INSIDE).as_deref() {
        Ok("panic") => ring_program::run("unread", "info", || panic!("with\nwords")),
        Ok(_) => ring_program::run("unread", "info", talk),
        Err(_) => {
            lost_lines_are_counted_and_nobody_waits();
            panic_is_one_line_and_exit_code_1();
            println!("test unread ... ok");
            ExitCode::SUCCESS
        }
    }
}

fn child(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(INSIDE, case).env_remove("RUST_BACKTRACE").stderr(Stdio::piped());
    command
}

fn talk() -> ExitCode {
    for number in 0..LINES {
        ring_program::say!("line {number} {}", "x".repeat(100));
    }
    // The reader waits for this before it reads standard error.
    std::io::stdout().write_all(b"!\n").unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    ring_program::say!("last");
    ExitCode::SUCCESS
}

fn lost_lines_are_counted_and_nobody_waits() {
    let mut child = child("talk").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    drop(child.stdin.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let arrived = text.lines().filter(|line| line.starts_with("unread: line ")).count();
    let lost = text.lines().filter_map(|line| {
        let (count, _) =
            line.strip_prefix("unread: ")?.split_once(" lines of this log are lost")?;
        count.parse::<usize>().ok()
    });
    assert_eq!(arrived + lost.sum::<usize>(), LINES);
    assert!(arrived < LINES, "some were lost");
    assert!(text.contains("unread: last\n"));
}

fn panic_is_one_line_and_exit_code_1() {
    let output = child("panic").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("panicked at") && text.contains("with\\nwords"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
