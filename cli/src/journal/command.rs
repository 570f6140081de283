//! The command that performs an item.

use super::super::failure::Failure;
use super::Counters;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;

/// Exit codes of `sh` for a command that it cannot execute, and for one that it does not find.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Verifies that there is a shell and that the command of `option` has no syntax error. The command
/// is not run.
pub fn verify(option: &str, command: &str) -> Result<(), Failure> {
    let mut shell = Command::new("sh");
    let status = shell.args(["-n", "-c", command]).stdin(Stdio::null()).status();
    let what = format!("cannot run sh, which is to run the command of {option}");
    match status.map_err(Failure::io(what))? {
        status if status.success() => Ok(()),
        _ => Err(Failure::Refused(format!(
            "sh does not understand the command of {option}: {command}"
        ))),
    }
}

/// Runs the command with an item on its standard input.
pub(super) fn run(command: &str, item: &[u8], counters: &Counters) -> io::Result<()> {
    let started = start(command, item);
    counters.unable.store(started.is_err(), Ordering::Relaxed);
    let mut child = started.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot run sh ({e}); the item is not to blame"))
    })?;
    counters.running.store(child.id(), Ordering::Relaxed);
    let status = child.wait();
    counters.running.store(0, Ordering::Relaxed);
    let status = status?;
    if status.success() {
        return Ok(());
    }
    counters.failures.fetch_add(1, Ordering::Relaxed);
    Err(io::Error::other(format!("{command}: {status}{}", hint(status))))
}

fn start(command: &str, item: &[u8]) -> io::Result<Child> {
    // The item is complete before the command starts. From a pipe, the command would perform a part
    // of the item if this process died while it writes.
    let mut input = File::from(memfd_create("item", MFdFlags::MFD_CLOEXEC)?);
    input.write_all(item)?;
    input.rewind()?;
    let mut shell = Command::new("sh");
    // A process group of its own: Ctrl-C on the terminal signals this process only, which then
    // waits for the command.
    shell.args(["-c", command]).stdin(input).process_group(0).spawn()
}

pub fn hint(status: ExitStatus) -> &'static str {
    match status.code() {
        Some(NOT_FOUND) => " (a command was not found)",
        Some(NOT_EXECUTABLE) => " (a command is not executable)",
        _ => "",
    }
}
