//! A cell of the matrix, and its run.

use super::program::Program;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use qemu_tests::{binaries, wait_until};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Bound on a program's run, on a busy machine, too.
const BOUND: Duration = Duration::from_secs(120);

/// Functions for every script.
const PRELUDE: &str = r#"
# A pipe that is full, and that nobody reads.
full_pipe() {
    mkfifo full
    exec 7<>full 8<&0
    dd if=/dev/zero of=full bs=65536 count=1 oflag=nonblock 2>/dev/null
}
# With standard output to such a pipe; the program gets a SIGTERM when it waits.
stalled() {
    full_pipe
    "$@" <&8 >full &
    program=$!
    until waits_or_ended $program; do sleep 0.05; done
    kill -TERM $program 2>/dev/null
    wait $program
}
waits_or_ended() {
    case $(sed -n 's/^State:.\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) in
        # A shell may have taken note of the end already.
        Z | "") return 0 ;;
        # In write, poll or ppoll.
        S) case $(cut -d ' ' -f 1 "/proc/$1/syscall") in 1 | 7 | 271) return 0 ;; esac ;;
    esac
    return 1
}
# The least limit, in steps, under which the program can begin: hardly_enough OPTION STEP PROGRAM.
hardly_enough() {
    limit=$2
    # The example has no such option.
    case $3 in
        *blockring)
            until (ulimit "$1" "$limit" && exec "$3" --version) >/dev/null 2>&1 || [ "$limit" -gt 100000 ]; do
                limit=$((limit + $2))
            done ;;
        *) limit=9000 ;;
    esac
    echo "$limit"
}
# Mounts that are the program's own.
private() { exec unshare --mount --propagation private sh -c "$@"; }
"#;

/// The outcome that a program must have under a kind of trouble.
#[derive(Debug, Clone, Copy)]
pub enum Cell {
    /// An end with this exit code and these words.
    Ends(i32, &'static str),
    /// The same, and this shell script then succeeds in its folder.
    Then(i32, &'static str, &'static str),
    /// An end with any documented exit code, which depends on the machine.
    Documented,
    /// The test of this name in this file of the repository shows it.
    Tested(&'static str, &'static str),
    /// The kind cannot affect the program; the reason.
    Not(&'static str),
}

/// A kind of trouble.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The kind's family.
    pub field: &'static str,
    pub kind: &'static str,
    /// A shell script that brings it about, and runs the program: `"$@"`.
    script: &'static str,
    cells: fn(Program) -> Cell,
    address: Option<&'static str>,
    size: &'static str,
}

impl Row {
    pub const fn new(
        field: &'static str,
        kind: &'static str,
        script: &'static str,
        cells: fn(Program) -> Cell,
    ) -> Self {
        Self { field, kind, script, cells, address: None, size: "64K" }
    }

    /// Sets the ring's address, instead of a file in the folder.
    pub const fn at(mut self, address: &'static str) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets the size of what the program creates.
    pub const fn size(mut self, size: &'static str) -> Self {
        self.size = size;
        self
    }

    pub fn cell(&self, program: Program) -> Cell {
        (self.cells)(program)
    }

    /// Runs the program in a folder of its own, which has a ring with the items `one` and `two` in
    /// the file `ring`. `code` is the exit code it must end with; without one any that is
    /// documented will do.
    pub fn run(
        &self,
        program: Program,
        code: Option<i32>,
        words: &str,
        check: &str,
    ) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        succeed(
            folder,
            "$RING create --size 64K ring && printf 'one\\ntwo\\n' | $RING produce ring",
        )?;
        if program == Program::Resume {
            // There is a suspend to resume, which the producer has acknowledged.
            succeed(
                folder,
                "$RING suspend ring && { $RING produce ring </dev/null || [ $? = 4 ]; }",
            )?;
        }
        let (status, said) = self.end(program, folder)?;
        let error = |why: &str| Err(format!("{why}; it ended with {status} and said: {said}"));
        if said.contains("panicked at") {
            return error("it panicked");
        }
        match (status.code(), code) {
            (None, _) => return error("it was ended by a signal"),
            (Some(code), Some(wanted)) if code != wanted => {
                return error(&format!("exit code {wanted} wanted"));
            }
            (Some(code), None) if code > 6 => return error("no documented exit code"),
            _ => {}
        }
        if !said.contains(words) {
            return error(&format!("it does not say {words:?}"));
        }
        if check.is_empty() { Ok(()) } else { succeed(folder, check) }
    }

    /// Runs the program to its end. Returns its status and output.
    fn end(&self, program: Program, folder: &Path) -> Result<(ExitStatus, String), String> {
        let arguments = program.arguments(self.address.unwrap_or(program.file()), self.size);
        let mut command = shell(folder, &format!("{PRELUDE}{}", self.script));
        command.arg("sh").arg(program.path()).args(arguments);
        let input = folder.join("input");
        fs::write(&input, program.input()).unwrap();
        let output = File::options().create(true).append(true).open(folder.join("output")).unwrap();
        // The program and all that its script starts are ended as one group.
        command.stdin(File::open(&input).unwrap()).process_group(0);
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut child = command.spawn().unwrap();
        if program == Program::Backend {
            stop_when_it_serves(&mut child, folder);
        }
        let mut status = None;
        wait_until(BOUND, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let group = Pid::from_raw(child.id().cast_signed());
        // This fails where no process is left, as is usual.
        let _ = killpg(group, Signal::SIGKILL);
        let said =
            || String::from_utf8_lossy(&fs::read(folder.join("output")).unwrap()).into_owned();
        let Some(status) = status else {
            let _ = child.wait();
            return Err(format!("it has not ended within {BOUND:?}; it said: {}", said()));
        };
        Ok((status, said()))
    }
}

/// Stops a backend once it answers, unless it has ended by itself.
fn stop_when_it_serves(child: &mut Child, folder: &Path) {
    let serves = || succeed(folder, "$RING diagnostics unix:c >/dev/null 2>&1").is_ok();
    let mut ended = false;
    wait_until(BOUND, || {
        ended = child.try_wait().unwrap().is_some();
        ended || (folder.join("c").exists() && serves())
    });
    if !ended {
        // It has not been reaped: the process id is its own.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    }
}

fn shell(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(folder);
    command.env("RING", Program::Create.path()).env("BACKEND", Program::Backend.path());
    command
}

/// Runs a script that prepares or checks.
fn succeed(folder: &Path, script: &str) -> Result<(), String> {
    let output = shell(folder, script).stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    let signal = output.status.signal();
    Err(format!("'{script}' failed ({}, signal {signal:?}): {said}", output.status))
}

/// Checks that the repository has that test.
pub fn expect_test(file: &str, test: &str) -> Result<(), String> {
    let path = binaries::workspace().join(file);
    let source = fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"))?;
    let head = format!("fn {test}(");
    if source.lines().any(|line| line.trim_start().starts_with(&head)) {
        return Ok(());
    }
    Err(format!("{file} has no test {test}"))
}
