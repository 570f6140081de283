//! Processes that a test starts, and the pipes between it and them. Every wait has a bound.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::borrow::{Borrow, BorrowMut};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

/// Bound on a wait for what does happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `is_so` returns true.
///
/// # Panics
/// After [`PATIENCE`], with `what` in the message.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_or(is_so, || what.to_owned());
}

/// Waits until `is_so` returns true; `found` words the panic after [`PATIENCE`].
pub fn eventually_or(mut is_so: impl FnMut() -> bool, found: impl Fn() -> String) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {}", found());
        thread::sleep(PAUSE);
    }
}

/// Returns an example of the library, built. `cargo test --test` builds no examples; where they are
/// built already this takes no time.
///
/// # Panics
/// If it does not build.
pub fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().nth(3).unwrap();
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--profile", "test", "--example", name, "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .unwrap();
    assert!(status.success());
    target.join("debug/examples").join(name)
}

/// Writes the input, waits for the end of the process, and returns what it wrote.
pub fn finish(mut child: Child, input: &[u8]) -> Output {
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // A program that refuses its arguments does not read: the broken pipe is no failure.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        ended(child, "the process")
    })
}

/// A process that does not outlive its test: it is killed when this is dropped, with what it has
/// started in its process group.
#[derive(Debug)]
pub struct Guarded(Child);

impl Guarded {
    /// Starts a command in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().unwrap())
    }
}

impl Deref for Guarded {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Borrow<Child> for Guarded {
    fn borrow(&self) -> &Child {
        &self.0
    }
}

impl BorrowMut<Child> for Guarded {
    fn borrow_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The number of a process that was waited for can be another's.
        if matches!(self.0.try_wait(), Ok(None)) {
            // It ends in between, or the signal arrives.
            let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// Waits for the end of a process, and returns what it wrote.
pub fn ended(mut child: impl BorrowMut<Child>, what: &str) -> Output {
    let child = child.borrow_mut();
    let stdout = read_beside(child.stdout.take());
    let stderr = read_beside(child.stderr.take());
    let status = status_of(child, what);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Reads a stream to its end on a thread of its own, so that its writer never waits.
fn read_beside(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.map(|mut stream| stream.read_to_end(&mut bytes).unwrap());
        bytes
    })
}

/// Waits for the end of a process; kills it after [`PATIENCE`], and panics.
pub fn status_of(child: &mut Child, what: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what} does not end");
        }
        thread::sleep(PAUSE);
    }
}

/// Sends a signal to a process.
pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Returns the state of a process, as `ps` shows it: `S` for one that sleeps.
pub fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

/// Returns whether a process is there, and not only its exit code.
pub fn is_alive(pid: u32) -> bool {
    // One look: it can go away between two.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until a process stays asleep: it waits for another process.
pub fn until_asleep(child: &Child) {
    let mut asleep = 0;
    // A process also sleeps for moments on its way to the wait that is meant.
    eventually("the process waits", || {
        asleep = if state(child.id()) == 'S' { asleep + 1 } else { 0 };
        asleep >= 20
    });
}

/// Returns a pipe of 4096 bytes, so that little makes its writer wait.
pub fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (reader, writer)
}

/// Returns a small pipe that is full to its last byte.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = small_pipe();
    set_blocking(&writer, false);
    for piece in [&[b'.'; 4096][..], b"."] {
        while writer.write(piece).is_ok() {}
    }
    set_blocking(&writer, true);
    (reader, writer)
}

/// Sets whether writes to a pipe wait for room.
pub fn set_blocking(pipe: &PipeWriter, blocking: bool) {
    let flags = if blocking { OFlag::empty() } else { OFlag::O_NONBLOCK };
    fcntl(pipe, FcntlArg::F_SETFL(flags)).unwrap();
}

/// Returns everything up to the end of a pipe.
pub fn drain(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// Returns the standard error of a process that has ended.
pub fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The process must have ended with 0.
pub fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, words(output));
}

/// The process must have ended with that code, and with `wanted` on standard error.
pub fn assert_fails(output: &Output, code: i32, wanted: &str) {
    let text = words(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(wanted), "{text:?} lacks {wanted:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::Stdio;

    #[test]
    fn guarded_process_and_its_children_end_with_a_test_that_fails() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo; wait"]).stdout(Stdio::piped());
        let mut output = None;
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let mut process = Guarded::start(&mut shell);
            let mut started = process.stdout.take().unwrap();
            started.read_exact(&mut [0]).unwrap();
            output = Some(started);
            panic!("a test fails");
        }));
        assert!(failed.is_err());
        // The end of the output is that of both processes.
        output.unwrap().read_to_end(&mut Vec::new()).unwrap();
    }
}
