//! The log of a load: what it is about to do and what it was promised, a line each, outside the
//! ring.
//!
//! A line is handed to the operating system in one piece before the next thing happens, so that it
//! outlives the process. Only a last line without its end may be cut, and counts as not written.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::item::Stamp;
use crate::process::wait_until;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A process starts, and will attach.
    Run(u32),
    /// The process has attached.
    Attached,
    /// The producer is about to push a batch.
    Push {
        /// Number of the batch within the run.
        batch: u32,
        /// Number of items in the batch.
        size: u32,
        /// Number of its first item within the run.
        number: u32,
    },
    /// The producer's `advance` over this batch has returned.
    Done(u32),
    /// The consumer was given an item.
    Item {
        /// The item's stamp.
        stamp: Stamp,
        /// The item's length in bytes.
        length: usize,
        /// Checksum of the item's bytes.
        hash: u64,
    },
    /// The consumer was given something too short to be an item.
    Scrap(usize),
    /// The consumer is about to advance over this many of the items given in this run.
    Free(u64),
    /// The advance over this many items has returned.
    Freed(u64),
    /// The process gives up.
    Failed(String),
    /// The process has ended as it was asked to.
    End,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(run) => write!(f, "run {run}"),
            Self::Attached => f.write_str("attached"),
            Self::Push { batch, size, number } => write!(f, "push {batch} {size} {number}"),
            Self::Done(batch) => write!(f, "done {batch}"),
            Self::Item { stamp: Stamp { run, batch, index, size, number }, length, hash } => {
                write!(f, "item {run} {batch} {index} {size} {number} {length} {hash}")
            }
            Self::Scrap(length) => write!(f, "scrap {length}"),
            Self::Free(count) => write!(f, "free {count}"),
            Self::Freed(count) => write!(f, "freed {count}"),
            // One line, whatever the error's text is.
            Self::Failed(text) => write!(f, "failed {}", text.replace('\n', " ")),
            Self::End => f.write_str("end"),
        }
    }
}

/// A text that is no line of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct NoLine;

impl FromStr for Line {
    type Err = NoLine;

    fn from_str(line: &str) -> Result<Self, NoLine> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if verb == "failed" {
            return Ok(Self::Failed(rest.to_owned()));
        }
        let numbers: Result<Vec<u64>, _> = rest.split_whitespace().map(str::parse).collect();
        let numbers = numbers.map_err(|_| NoLine)?;
        let small = |number: u64| u32::try_from(number).map_err(|_| NoLine);
        let count = |number: u64| usize::try_from(number).map_err(|_| NoLine);
        Ok(match (verb, &numbers[..]) {
            ("run", &[run]) => Self::Run(small(run)?),
            ("attached", []) => Self::Attached,
            ("push", &[batch, size, number]) => {
                Self::Push { batch: small(batch)?, size: small(size)?, number: small(number)? }
            }
            ("done", &[batch]) => Self::Done(small(batch)?),
            ("item", &[run, batch, index, size, number, length, hash]) => Self::Item {
                stamp: Stamp {
                    run: small(run)?,
                    batch: small(batch)?,
                    index: small(index)?,
                    size: small(size)?,
                    number: small(number)?,
                },
                length: count(length)?,
                hash,
            },
            ("scrap", &[length]) => Self::Scrap(count(length)?),
            ("free", &[count]) => Self::Free(count),
            ("freed", &[count]) => Self::Freed(count),
            ("end", []) => Self::End,
            _ => return Err(NoLine),
        })
    }
}

/// Destination of a load's log.
#[derive(Debug)]
pub struct Log {
    file: File,
    text: String,
}

impl Log {
    /// Opens a file, or with `port:NAME` a virtio-serial port of the guest.
    pub fn open(address: &str) -> io::Result<Self> {
        let path = match address.strip_prefix("port:") {
            Some(name) => port(name)?,
            None => PathBuf::from(address),
        };
        Ok(Self::to(File::options().append(true).open(path)?))
    }

    /// Makes a log in an open file.
    pub fn to(file: File) -> Self {
        Self { file, text: String::new() }
    }

    /// Writes a line.
    pub fn write(&mut self, line: &Line) -> io::Result<()> {
        use fmt::Write as _;
        self.text.clear();
        // A string takes everything.
        let _ = writeln!(self.text, "{line}");
        self.file.write_all(self.text.as_bytes())
    }
}

/// Returns the device of a port, which appears when the host has said its name.
fn port(name: &str) -> io::Result<PathBuf> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut found = None;
    wait_until(PATIENCE, || {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        let is_it = |port: &fs::DirEntry| {
            fs::read_to_string(port.path().join("name")).is_ok_and(|text| text.trim() == name)
        };
        found = ports.into_iter().find(is_it).map(|port| Path::new("/dev").join(port.file_name()));
        found.as_ref().is_some_and(|path| path.exists())
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no port named {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_reads_what_was_written() {
        let stamp = Stamp { run: 1, batch: 2, index: 3, size: 4, number: 5 };
        for line in [
            Line::Run(7),
            Line::Attached,
            Line::Push { batch: 1, size: 2, number: 3 },
            Line::Done(9),
            Line::Item { stamp, length: 20, hash: u64::MAX },
            Line::Scrap(3),
            Line::Free(4),
            Line::Freed(4),
            Line::Failed("in words".to_owned()),
            Line::End,
        ] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert_eq!(Line::Failed("two\nlines".to_owned()).to_string(), "failed two lines");
        for text in ["", "push 1 2", "push 1 2 3 4", "done -1", "item 1 2 3 4 5 6", "dome 1"] {
            assert_eq!(text.parse::<Line>(), Err(NoLine), "{text}");
        }
    }
}
