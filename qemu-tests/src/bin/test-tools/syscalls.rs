//! Runs a program, and says on standard error how many system calls it has made: all of its
//! threads, from its first instruction on.

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use qemu_tests::program;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

pub fn main(words: Vec<OsString>) -> ExitCode {
    match count(words) {
        Ok((calls, true)) => {
            eprintln!("{calls}");
            ExitCode::SUCCESS
        }
        Ok((_, false)) => program::failed("syscalls", "the program has failed"),
        Err(e) => program::failed("syscalls", e),
    }
}

/// Returns the number of system calls, and whether the program has ended with 0.
fn count(words: Vec<OsString>) -> io::Result<(u64, bool)> {
    let mut words = words.into_iter().skip(1);
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(words);
    // SAFETY: between fork and exec this makes one system call and touches no memory.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = Pid::from_raw(command.spawn()?.id().cast_signed());
    // The program stops at its first instruction.
    waitpid(child, None)?;
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options)?;
    ptrace::syscall(child, None)?;
    let mut stops = 0_u64;
    loop {
        let (stopped, signal) = match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok((stops / 2, code == 0)),
            WaitStatus::Signaled(pid, ..) if pid == child => return Ok((stops / 2, false)),
            WaitStatus::PtraceSyscall(pid) => {
                // One stop on entry to the kernel, and one on return.
                stops += 1;
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => {
                (pid, Some(signal).filter(|&signal| signal != Signal::SIGSTOP))
            }
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            _ => continue,
        };
        ptrace::syscall(stopped, signal)?;
    }
}
