//! The journal of this machine as the input of `produce`, read by `journalctl`. The text of the
//! ring's pointer sector says which entry was sent last: it is written together with the position.

mod boots;
mod cursor;
mod entry;
mod repeats;
mod reprints;

pub use cursor::{Cursor, Trail};
pub use entry::Scan;

use super::failure::{Failure, Outcome};
use super::input::Source;
use boots::{Part, listed, parts};
use repeats::Repeats;
use ring_program::{Stop, tie_to_parent};
use shared_block_ring::device::shown;
use shared_block_ring::wait::wait_readable;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const PROGRAM: &str = "journalctl";

/// Bytes that hold an entry's first line, which has its cursor.
const FIRST_LINE: u64 = 512;

/// The journal that is read.
#[derive(Clone, clap::Args)]
pub struct Options {
    /// Read the journal of this machine instead of standard input, and go on reading it: each entry
    /// is an item, in the journal export format
    #[arg(long, conflicts_with_all = ["framing", "listen"])]
    pub journald: bool,
    /// With --journald: read the journal files of this folder, and no others
    #[arg(long, value_name = "FOLDER", requires = "journald")]
    journal_directory: Option<PathBuf>,
    /// With --journald: end when everything has been read that the journal has
    #[arg(long, requires = "journald")]
    no_follow: bool,
}

/// The entries of the journal behind those that were sent.
pub struct Journal {
    options: Options,
    parts: VecDeque<Part>,
    child: Child,
    output: ChildStdout,
    repeats: Option<Repeats>,
    /// Bytes that were read ahead.
    ready: io::Cursor<Vec<u8>>,
}

impl Options {
    /// Starts to read behind the entry that was sent last. `stop` ends the looks that this takes.
    pub fn open(&self, sent: Option<&Cursor>, stop: &Stop) -> Result<Journal, Failure> {
        let current = match self.journal_directory {
            // Nobody knows which boots its files are of.
            Some(_) => None,
            None => Some(current_boot()?),
        };
        let list = self.output(&["--list-boots"], u64::MAX, stop)?;
        let boots = listed(&String::from_utf8_lossy(&list));
        let mut failure = None;
        let started = |boot: &str| {
            // The first line has all that is wanted, and the rest can be gigabytes.
            let entry = self.output(&[&format!("_BOOT_ID={boot}")], FIRST_LINE, stop);
            let entry = entry.map_err(|e| failure = Some(e)).ok()?;
            Cursor::of_entry(&entry).map(|cursor| cursor.realtime)
        };
        let parts = parts(boots, current.as_deref(), sent, started);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut parts = VecDeque::from(parts);
        let Some(first) = parts.pop_front() else {
            let folder = self.journal_directory.as_deref().unwrap_or(Path::new(""));
            return Err(Failure::Missing(format!("{}: there is no journal there", shown(folder))));
        };
        let (child, output) = self.start(&first)?;
        let repeats = first.after.map(Repeats::until);
        let options = self.clone();
        Ok(Journal { options, parts, child, output, repeats, ready: io::Cursor::default() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--quiet", "--no-pager", "--output=export", "--all"]);
        if let Some(folder) = &self.journal_directory {
            command.arg("--directory").arg(folder);
        }
        // A process group of its own: Ctrl-C is for this process.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        tie_to_parent(&mut command);
        command
    }

    /// Returns what a run prints until it ends by itself, or until there are `most` bytes.
    fn output(&self, arguments: &[&str], most: u64, stop: &Stop) -> Result<Vec<u8>, Failure> {
        let (mut child, mut output) = spawn(self.command().args(arguments))?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let outcome = loop {
            match wait_readable(&[stop.fd(), output.as_fd()], None) {
                Ok(Some(0)) => break Err(Failure::Stopped("asked to stop".to_owned())),
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(e) => break Err(reading()(e)),
            }
            match output.read(&mut chunk) {
                Ok(0) => break Ok(true),
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(reading()(e)),
            }
            if bytes.len() as u64 >= most {
                break Ok(false);
            }
        };
        if !matches!(outcome, Ok(true)) {
            end(&mut child);
        }
        if outcome? {
            expect_success(&mut child)?;
        }
        Ok(bytes)
    }

    fn start(&self, part: &Part) -> Result<(Child, ChildStdout), Failure> {
        let mut command = self.command();
        command.arg(format!("_BOOT_ID={}", part.boot));
        if let Some(after) = &part.after {
            command.arg(format!("--cursor={}", after.place()));
        }
        if part.follows && !self.no_follow {
            command.args(["--follow", "--no-tail"]);
        }
        spawn(&mut command)
    }
}

impl Journal {
    /// Goes on with the next part at the end of one, and returns whether there is one.
    fn next(&mut self) -> Result<bool, Failure> {
        expect_success(&mut self.child)?;
        if self.parts.is_empty() && !self.options.no_follow {
            return Err(Failure::Refused(format!("{PROGRAM} has ended by itself")));
        }
        if let Some(mut repeats) = self.repeats.take() {
            self.ready = io::Cursor::new(repeats.rest());
        }
        let Some(part) = self.parts.pop_front() else { return Ok(false) };
        (self.child, self.output) = self.options.start(&part)?;
        self.repeats = part.after.map(Repeats::until);
        Ok(true)
    }
}

impl Source for Journal {
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
        if self.has_read_ahead() {
            return self.ready.read(buffer).map(Some).map_err(reading());
        }
        let count = match self.output.read(buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(e) => return Err(reading()(e)),
        };
        if count == 0 {
            let goes_on = self.next()? || self.has_read_ahead();
            return Ok(if goes_on { None } else { Some(0) });
        }
        let Some(repeats) = &mut self.repeats else { return Ok(Some(count)) };
        if let Some(new) = repeats.feed(&buffer[..count]) {
            self.ready = io::Cursor::new(new);
            self.repeats = None;
        }
        Ok(None)
    }

    fn has_read_ahead(&self) -> bool {
        self.ready.position() < self.ready.get_ref().len() as u64
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Starts a child. Its messages go where this program's go.
fn spawn(command: &mut Command) -> Result<(Child, ChildStdout), Failure> {
    let mut child = command.spawn().map_err(starting())?;
    match child.stdout.take() {
        Some(output) => Ok((child, output)),
        None => Err(Failure::Refused(format!("{PROGRAM} has no output"))),
    }
}

/// Waits for a child that has closed its output.
fn expect_success(child: &mut Child) -> Outcome {
    let status = child.wait().map_err(reading())?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Refused(format!("{PROGRAM} has failed ({status}); its message is above")))
}

/// Ends a child that is no longer needed.
fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Returns the boot that this machine is in.
fn current_boot() -> Result<String, Failure> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(FILE).map_err(Failure::io(format!(
        "{FILE}: cannot read (mount -t proc proc /proc, if there is none)"
    )))?;
    Ok(id.trim_end().replace('-', ""))
}

fn starting() -> impl FnOnce(io::Error) -> Failure {
    Failure::io(format!("cannot run {PROGRAM}, which --journald needs (it comes with systemd)"))
}

fn reading() -> impl FnOnce(io::Error) -> Failure {
    Failure::io(format!("cannot read from {PROGRAM}"))
}
