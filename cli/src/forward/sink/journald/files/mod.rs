//! `journald:DIRECTORY`: a journal file for each ring, written by the host's
//! `systemd-journal-remote`, each item once.
//!
//! A chunk of records is one run of the program, which flushes the file at its end; then the last
//! record is read again, and acknowledged is what that says. After a crash the last record tells
//! where to go on.

mod arrived;
mod pool;
mod program;
mod ring;

use self::arrived::Archive;
use self::pool::Pool;
use self::program::Program;
use self::ring::Ring;
use super::super::super::super::failure::Failure;
use super::super::{Batch, Event, Lane, Reporter, RingFacts, Sink, SinkError, SinkErrorKind};
use super::JournaldOptions;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Folders in which distributions have the program.
const FOLDERS: [&str; 2] = ["/usr/lib/systemd", "/lib/systemd"];

/// Name of the program that writes journal files.
const REMOTE: &str = "systemd-journal-remote";

/// Name of the program that reads them.
const JOURNALCTL: &str = "journalctl";

/// The longest beginning of a journal file's name in bytes: `@`, two numbers, an identity and
/// `.journal~` take 76 of 255.
const LONGEST_STEM: usize = 179;

/// What all rings share.
struct Tools {
    archive: Archive,
    remote: Program,
    gather: Duration,
}

/// The sink `journald:DIRECTORY`.
pub struct Files {
    tools: Arc<Tools>,
    pool: Pool,
}

impl Files {
    pub fn new(folder: &Path, options: &JournaldOptions) -> Result<Self, Failure> {
        let shown = format!("journald:{}", folder.display());
        if !folder.is_dir() {
            return Err(Failure::Refused(format!(
                "{shown}: there is no such folder (make it first)"
            )));
        }
        let refused =
            |what: &'static str| move |e| Failure::Io { what: what.to_owned(), source: e };
        let folder = folder.canonicalize().map_err(Failure::io(shown.clone()))?;
        let remote = options.journal_remote.clone().or_else(find_remote).ok_or_else(|| {
            Failure::Refused(format!(
                "{shown}: {REMOTE} is missing in {} (install Debian's package systemd-journal-remote, or name the program with --journal-remote)",
                FOLDERS.join(" and ")
            ))
        })?;
        let journalctl = find_in_path(JOURNALCTL).ok_or_else(|| {
            Failure::Refused(format!(
                "{shown}: {JOURNALCTL} is missing (install Debian's package systemd)"
            ))
        })?;
        let host_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(refused("cannot read this boot's id"))?
            .trim()
            .replace('-', "");
        let archive = Archive { folder, journalctl: Program::new(journalctl), host_boot };
        let tools = Tools { archive, remote: Program::new(remote), gather: options.gather() };
        Ok(Self { tools: Arc::new(tools), pool: Pool::new() })
    }
}

/// Returns the program that writes journal files, if it is installed.
pub fn find_remote() -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(REMOTE)).find(|path| path.is_file())
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    // Relative ones would lead elsewhere from the journal's folder.
    let mut folders = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

/// Returns the beginning of the names of a ring's files: its name after `remote-`, as
/// `systemd-journal-remote` names its files by host. What is not a letter, a digit, a dot, a dash
/// or an underscore is written as its bytes, so that no name is a pattern or another ring's.
fn stem(name: &str) -> String {
    let mut stem = "remote-".to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            stem.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(stem, "%{byte:02X}");
        }
    }
    stem
}

impl Sink for Files {
    fn descriptors(&self) -> u64 {
        // The ring's lock; programs run a few at a time.
        2
    }

    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        let stem = stem(&ring.name);
        if stem.len() > LONGEST_STEM {
            let message =
                format!("the ring's name is too long for the name of a journal file: {stem}");
            events.report(Event::Failed(SinkError { message, kind: SinkErrorKind::Stop }));
        }
        let ring = Ring::new(Arc::clone(&self.tools), ring.clone(), stem, events);
        let lane = FileLane { ring: Arc::new(ring), pool: self.pool.share() };
        lane.pool.schedule(&lane.ring, Instant::now());
        Box::new(lane)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.pool.end();
    }
}

struct FileLane {
    ring: Arc<Ring>,
    pool: Pool,
}

impl Lane for FileLane {
    fn send(&mut self, batch: Batch) {
        if self.ring.add(batch) {
            self.pool.schedule(&self.ring, self.ring.due());
        }
    }
}

impl Drop for FileLane {
    fn drop(&mut self) {
        self.ring.close();
    }
}

#[cfg(test)]
mod tests;
