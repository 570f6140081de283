//! Runs of systemd's programs, each with a bound of time.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_program::restore_limits;
use ring_program::text::one_line;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest time in which a program may do its work: it writes a few megabytes or reads one
/// record, so a disk that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest part of a program's messages that is shown, in bytes.
const LONGEST_WORDS: usize = 300;

/// Bytes of messages that are read at once.
const PART: usize = 4096;

/// A program of systemd's.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
}

impl Program {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Runs the program in `folder` and returns when it has ended with success.
    ///
    /// # Errors
    ///
    /// Words with the program's messages if it cannot be started, fails, or takes too long; then it
    /// is killed.
    pub fn run(
        &self,
        folder: &Path,
        arguments: &[&str],
        input: Stdio,
        output: Stdio,
    ) -> Result<(), String> {
        let failed = |what: &str| format!("{}: {what}", self.path.display());
        // Nothing of the forwarder's service is the program's: neither its descriptors nor its
        // readiness. In a process group of its own it ends with its input, and not by Ctrl-C.
        let mut command = Command::new(&self.path);
        command
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("SYSTEMD_LOG_TARGET", "console")
            .env("SYSTEMD_LOG_LEVEL", "notice")
            .env("SYSTEMD_LOG_COLOR", "0")
            .process_group(0)
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped());
        restore_limits(&mut command);
        let mut child = command.spawn().map_err(|e| failed(&format!("cannot be started: {e}")))?;
        let mut words = Vec::new();
        // The end of its messages is its own end.
        let waited = child.stderr.take().map_or(Ok(()), |messages| drain(messages, &mut words));
        if waited.is_err() {
            // Fails only where it has ended meanwhile.
            let _ = child.kill();
        }
        let ended = child.wait().map_err(|e| failed(&format!("cannot be waited for: {e}")))?;
        let words = String::from_utf8_lossy(&words);
        let words = one_line(format_args!("{}", words.trim().replace('\n', "; ")), LONGEST_WORDS);
        waited.map_err(|e| failed(&format!("{e} {words}")))?;
        if ended.success() {
            log::debug!("{}: {words}", self.path.display());
            return Ok(());
        }
        Err(failed(&format!("{ended} {words}")))
    }

    /// Runs the program in `folder`, and returns what it has printed.
    pub fn ask(&self, folder: &Path, arguments: &[&str]) -> Result<String, String> {
        let failed = |e| format!("{}: cannot take its output: {e}", self.path.display());
        let mut output = memory("output").map_err(failed)?;
        let theirs = output.try_clone().map_err(failed)?;
        self.run(folder, arguments, Stdio::null(), theirs.into())?;
        let mut text = String::new();
        output.rewind().and_then(|()| output.read_to_string(&mut text)).map_err(failed)?;
        Ok(text)
    }
}

/// Returns an empty file in memory.
pub fn memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

/// Reads to the end, and keeps the last part.
fn drain(mut messages: impl Read + AsFd, words: &mut Vec<u8>) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut part = [0; PART];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(messages.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                let seconds = PATIENCE.as_secs();
                return Err(io::Error::other(format!("no end within {seconds} s (a slow disk?)")));
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        match messages.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(read) => words.extend_from_slice(&part[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        let surplus = words.len().saturating_sub(LONGEST_WORDS);
        words.drain(..surplus);
    }
}
