//! A child, and its pipes.

use super::super::super::super::journal::command::hint;
use super::super::RingFacts;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use ring_program::tie_to_parent;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
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
    /// The number of the child, and of its process group.
    group: Pid,
    /// Whether the child was waited for: its number can be another's then, unless others are in its
    /// group.
    is_reaped: bool,
    /// `None` once its input has ended.
    input: Option<PipeWriter>,
    /// The end of the same pipe that the child reads, to see what it has left in there; only where
    /// that counts, since a child that closes its input is not noticed then.
    unread: Option<PipeReader>,
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
    /// Starts a child. With `watches_input`, [`has_unread`](Self::has_unread) can tell what it has
    /// not read.
    pub fn start(command: &str, ring: &RingFacts, watches_input: bool) -> io::Result<Self> {
        let (reader, input) = pipe()?;
        let unread = watches_input.then(|| reader.try_clone()).transpose()?;
        let mut shell = Command::new("sh");
        // A process group of its own, so that all of what the command has started can be ended.
        shell
            .args(["-c", command])
            .env("BLOCKRING_RING", &ring.name)
            .env("BLOCKRING_UUID", ring.uuid.to_string())
            .stdin(reader)
            .stdout(Stdio::piped())
            .process_group(0);
        tie_to_parent(&mut shell);
        let mut process = shell.spawn()?;
        let output = process.stdout.take();
        let flags = OFlag::from_bits_retain(fcntl(&input, FcntlArg::F_GETFL)?);
        fcntl(&input, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let group = Pid::from_raw(process.id().cast_signed());
        let input = Some(input);
        Ok(Self { process, group, is_reaped: false, input, unread, output, line: Vec::new() })
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
    /// others have its output. What it has left behind in its process group is told to end.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if !self.is_reaped {
            if !self.has_ended()? {
                return Ok(None);
            }
            // Before its number can be another's.
            self.signal(Signal::SIGTERM);
            self.is_reaped = true;
        }
        self.process.try_wait()
    }

    /// Returns whether the child itself has ended. Its number stays its own meanwhile.
    fn has_ended(&self) -> io::Result<bool> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(self.is_reaped || waitid(Id::Pid(self.group), look)? != WaitStatus::StillAlive)
    }

    /// Returns whether the child has closed its output.
    pub fn is_silent(&self) -> bool {
        self.output.is_none()
    }

    /// Returns whether a child that has ended has left some of its input unread.
    pub fn has_unread(&self) -> bool {
        let Some(unread) = &self.unread else { return false };
        let mut polled = [PollFd::new(unread.as_fd(), PollFlags::POLLIN)];
        let is_readable = |polled: &PollFd<'_>| {
            polled.revents().is_some_and(|found| found.contains(PollFlags::POLLIN))
        };
        poll(&mut polled, PollTimeout::ZERO).is_ok() && is_readable(&polled[0])
    }

    fn signal(&self, signal: Signal) {
        // It has ended in between, or the signal arrives.
        let _ = killpg(self.group, signal);
    }

    /// Returns whether nothing is left of the child's process group.
    fn is_gone(&mut self) -> bool {
        matches!(self.ended(), Ok(Some(_))) && killpg(self.group, None) == Err(Errno::ESRCH)
    }

    /// Ends the child, and what it has started in its process group: by `deadline`, and within a
    /// bound in any case.
    pub fn end(mut self, deadline: Option<Instant>) {
        self.input = None;
        let now = Instant::now();
        let part = patience(deadline.map(|end| end.saturating_duration_since(now)));
        self.wait_until(now + part, |child| child.has_ended().unwrap_or(true));
        if !self.is_reaped {
            self.signal(Signal::SIGTERM);
        }
        if self.wait_until(Instant::now() + part, Self::is_gone) {
            return;
        }
        self.signal(Signal::SIGKILL);
        // Nothing outlives SIGKILL for long.
        let _ = self.process.wait();
    }

    /// Waits until something is so. Returns false if it is not so in time.
    fn wait_until(&mut self, end: Instant, is_so: impl Fn(&mut Self) -> bool) -> bool {
        loop {
            if is_so(self) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(LOOK.min(left));
        }
    }
}

/// Returns how long a child may take to end by itself, and again after SIGTERM, if all of it must
/// be over in the time that is left.
fn patience(left: Option<Duration>) -> Duration {
    left.map_or(LAST_TIME, |left| LAST_TIME.min(left / 2))
}

/// Returns the end of a child in words.
pub fn words(command: &str, status: ExitStatus) -> String {
    format!("{command}: {status}{}", hint(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_is_killed_before_the_grace_is_over() {
        assert_eq!(patience(None), LAST_TIME);
        for milliseconds in [0, 1, 100, 250, 999, 1000, 10_000] {
            let left = Duration::from_millis(milliseconds);
            let part = patience(Some(left));
            assert!(2 * part <= left && part <= LAST_TIME, "{part:?} of {left:?}");
        }
    }
}
