//! A child, and its pipes.

use super::super::super::super::journal::command::hint;
use super::super::RingFacts;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest time in which a child may end by itself once its input has ended and nobody waits
/// for what it does; and again after SIGTERM, before SIGKILL.
const LAST_TIME: Duration = Duration::from_millis(500);

/// Pause between two looks at whether a child has ended that has closed its output.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes read at once.
const PART: usize = 16 << 10;

/// The longest line of a child: a position has 19 digits.
const LONGEST_LINE: usize = 4096;

/// A child that runs the command.
pub struct Child {
    process: std::process::Child,
    /// `None` once its input has ended.
    input: Option<ChildStdin>,
    /// `None` once it has closed its output.
    output: Option<ChildStdout>,
    line: Vec<u8>,
}

/// What a wait for a child has found.
pub struct Ready {
    pub wake: bool,
    pub input: bool,
    pub output: bool,
}

impl Child {
    pub fn start(command: &str, ring: &RingFacts) -> io::Result<Self> {
        let mut shell = Command::new("sh");
        // A process group of its own, so that all of what the command has started can be ended.
        let shell = shell
            .args(["-c", command])
            .env("BLOCKRING_RING", &ring.name)
            .env("BLOCKRING_UUID", ring.uuid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut process = shell.spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let child = Self { process, input, output, line: Vec::new() };
        if let Some(input) = &child.input {
            let flags = OFlag::from_bits_retain(fcntl(input, FcntlArg::F_GETFL)?);
            fcntl(input, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(child)
    }

    /// Waits until the child can take or has given something, `wake` is readable, or `timeout` has
    /// passed.
    pub fn wait(
        &self,
        wake: BorrowedFd<'_>,
        wants_input: bool,
        timeout: Duration,
    ) -> io::Result<Ready> {
        let mut polled = vec![PollFd::new(wake, PollFlags::POLLIN)];
        let output = self.output.as_ref().map(|output| {
            polled.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
            polled.len() - 1
        });
        let input = self.input.as_ref().filter(|_| wants_input).map(|input| {
            polled.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
            polled.len() - 1
        });
        let timeout = if self.output.is_some() { timeout } else { timeout.min(LOOK) };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let is_ready = |at: usize| polled[at].any() == Some(true);
        Ok(Ready {
            wake: is_ready(0),
            input: input.is_some_and(is_ready),
            output: output.is_some_and(is_ready),
        })
    }

    /// Gives the child some of `bytes`, and takes that off. A child that takes no input any more
    /// gets the rest of it not.
    pub fn give(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        match input.write(bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Its end follows, or what it still has to say.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.input = None,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Ends the child's input.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    pub fn takes_input(&self) -> bool {
        self.input.is_some()
    }

    /// Takes what the child has printed, and calls `line` with each whole line.
    pub fn take_lines(&mut self, mut line: impl FnMut(&[u8])) -> io::Result<()> {
        let Some(output) = &mut self.output else { return Ok(()) };
        let mut part = [0; PART];
        let read = match output.read(&mut part) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            read => read?,
        };
        if read == 0 {
            self.output = None;
            return Ok(());
        }
        for piece in part[..read].split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.line.extend_from_slice(end);
                    line(&std::mem::take(&mut self.line));
                }
                None => self.line.extend_from_slice(piece),
            }
            if self.line.len() > LONGEST_LINE {
                return Err(io::Error::other("it prints a line that is no position"));
            }
        }
        Ok(())
    }

    /// Returns how the child has ended, if it has; never before all of its output was taken, unless
    /// others have its output.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Returns whether the child has closed its output.
    pub fn is_silent(&self) -> bool {
        self.output.is_none()
    }

    /// Ends the child, and what it has started, within a bound.
    pub fn end(mut self) {
        self.input = None;
        let group = i32::try_from(self.process.id()).ok().map(Pid::from_raw);
        for signal in [None, Some(Signal::SIGTERM)] {
            if let (Some(group), Some(signal)) = (group, signal) {
                // It has ended in between, or the signal arrives.
                let _ = killpg(group, signal);
            }
            let end = Instant::now() + LAST_TIME;
            while Instant::now() < end {
                if !matches!(self.process.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        }
        if let Some(group) = group {
            let _ = killpg(group, Signal::SIGKILL);
        }
        // Nothing outlives SIGKILL for long.
        let _ = self.process.wait();
    }
}

/// Returns the end of a child in words.
pub fn words(command: &str, status: ExitStatus) -> String {
    format!("{command}: {status}{}", hint(status))
}
