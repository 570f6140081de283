//! The record of positions beside a file: how much of the file counts, and up to which position it
//! has each ring.
//!
//! It is text, a JSON object a line, and the last line counts. A line is one write, followed by a
//! flush; what a crash leaves of it does not parse, and is cut off.

use super::super::Arrived;
use super::locked::Locked;
use super::log::sync_folder;
use serde::{Deserialize, Serialize};
use shared_block_ring::Position;
use shared_block_ring::device::shown;
use std::collections::BTreeMap;
use std::fs::{OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Bytes from which the record is written anew, with one line.
const LONG: u64 = 256 << 10;

/// Attempts to lock a record that is being replaced by its holder.
const ATTEMPTS: u32 = 10;

/// A line: the state of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Bytes of the file that count.
    pub length: u64,
    /// Seconds since 1970 when the file was begun.
    #[serde(default)]
    pub begun: u64,
    /// The rings that this line is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<Entry>,
    /// The number with which the file is kept: it is being renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<u64>,
    /// The last number that was given.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A ring in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub ring: String,
    pub uuid: Uuid,
    /// The position behind the last item of the ring in the file.
    pub position: Position,
    /// The checksum of that item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u32>,
}

/// An open record, which no other process has.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: Locked,
    bytes: u64,
    /// The last line, without its rings.
    pub state: Line,
    rings: BTreeMap<Uuid, Entry>,
}

/// An error of the record itself, and not of the file that it is about.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", shown(path))]
pub struct RecordError {
    pub path: PathBuf,
    pub source: io::Error,
}

impl RecordError {
    /// Returns an error of the same kind that names the record.
    fn of(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
        let path = path.to_owned();
        move |source| io::Error::new(source.kind(), Self { path, source })
    }
}

impl Record {
    /// Opens the record, and returns whether it is new. A new one is empty.
    ///
    /// # Errors
    /// Those of the record name it: see [`RecordError`].
    pub fn open(path: &Path) -> io::Result<(Self, bool)> {
        Self::read(path).map_err(RecordError::of(path))
    }

    fn read(path: &Path) -> io::Result<(Self, bool)> {
        let file = lock(path)?;
        let mut record = Self {
            path: path.to_owned(),
            file,
            bytes: 0,
            state: Line::default(),
            rings: BTreeMap::new(),
        };
        let mut text = Vec::new();
        (&*record.file).read_to_end(&mut text)?;
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            let whole = part.strip_suffix(b"\n");
            let Some(Ok(line)) = whole.map(serde_json::from_slice::<Line>) else { break };
            record.bytes += part.len() as u64;
            record.note(&line);
        }
        if record.bytes < text.len() as u64 {
            log::warn!("{}: the last line is not whole, as after a crash", path.display());
            record.file.set_len(record.bytes)?;
        }
        let is_new = record.bytes == 0;
        Ok((record, is_new))
    }

    fn note(&mut self, line: &Line) {
        for entry in &line.rings {
            self.rings.insert(entry.uuid, entry.clone());
        }
        self.state = Line { rings: Vec::new(), ..*line };
    }

    /// Returns the last item of a ring.
    pub fn last(&self, uuid: Uuid) -> Option<Arrived> {
        let Entry { position, checksum, .. } = *self.rings.get(&uuid)?;
        Some(Arrived { position, checksum })
    }

    /// Writes a line, durably.
    pub fn write(&mut self, line: &Line) -> io::Result<()> {
        self.append(line).map_err(RecordError::of(&self.path))
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        if self.bytes > LONG {
            self.shorten()?;
        }
        let text = text(line)?;
        self.file.write_all_at(&text, self.bytes)?;
        self.file.sync_data()?;
        self.bytes += text.len() as u64;
        self.note(line);
        Ok(())
    }

    /// Writes the record anew if others have moved or removed it: without it a restart would not
    /// know what the file has.
    pub fn follow_name(&mut self) -> io::Result<()> {
        self.restore_name().map_err(RecordError::of(&self.path))
    }

    fn restore_name(&mut self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, std::fs::metadata(&self.path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(());
        }
        log::warn!("{}: others have moved or removed it: written anew", self.path.display());
        self.shorten()
    }

    /// Replaces the record by one with a single line that says the same.
    fn shorten(&mut self) -> io::Result<()> {
        let line = Line { rings: self.rings.values().cloned().collect(), ..self.state.clone() };
        let text = text(&line)?;
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let path = PathBuf::from(path);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        // Before it has the name by which others look for it.
        let file = Locked::try_new(file).map_err(io::Error::from)?;
        file.write_all_at(&text, 0)?;
        file.sync_all()?;
        std::fs::rename(&path, &self.path)?;
        sync_folder(&self.path)?;
        self.file = file;
        self.bytes = text.len() as u64;
        Ok(())
    }
}

fn text(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

/// Opens and locks the file with that name.
fn lock(path: &Path) -> io::Result<Locked> {
    for _ in 0..ATTEMPTS {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let file = Locked::try_new(file).map_err(|e| match e {
            TryLockError::WouldBlock => {
                let text = "another process writes it (only one forwarder can)";
                io::Error::new(ErrorKind::ResourceBusy, text)
            }
            TryLockError::Error(e) => e,
        })?;
        // Its holder may have replaced it in between.
        let (ours, there) = (file.metadata()?, std::fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    Err(io::Error::new(ErrorKind::ResourceBusy, "it is replaced again and again"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(number: u64) -> Entry {
        let position = Position::new(number * 4).unwrap();
        Entry {
            ring: format!("ring-{number}"),
            uuid: Uuid::from_u128(u128::from(number)),
            position,
            checksum: None,
        }
    }

    fn line(length: u64, entries: &[Entry]) -> Line {
        Line { length, rings: entries.to_vec(), ..Line::default() }
    }

    #[test]
    fn record_has_what_was_written_whatever_a_crash_left_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("positions");
        let (mut record, is_new) = Record::open(&path).unwrap();
        assert!(is_new);
        record.write(&line(10, &[entry(1)])).unwrap();
        record.write(&line(20, &[entry(2)])).unwrap();
        drop(record);
        let whole = std::fs::read(&path).unwrap();
        let third = text(&line(30, &[entry(3)])).unwrap();
        for cut in 0..third.len() {
            for hole in [false, true] {
                let mut bytes = [&whole[..], &third[..cut]].concat();
                if hole {
                    bytes.extend_from_slice(b"\0\0\0\n");
                }
                std::fs::write(&path, bytes).unwrap();
                let (record, is_new) = Record::open(&path).unwrap();
                assert!(!is_new && record.state.length == 20, "cut at {cut}");
                let position = |n| record.last(entry(n).uuid).map(|last| last.position);
                assert_eq!(position(1), Some(entry(1).position));
                assert_eq!(position(2), Some(entry(2).position));
                assert_eq!(position(3), None);
            }
        }
    }

    #[test]
    fn long_record_is_written_anew_and_stays_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("positions");
        let (mut record, _) = Record::open(&path).unwrap();
        for number in 1..=100 {
            record.write(&line(number, &[entry(number)])).unwrap();
        }
        record.bytes = LONG + 1;
        record.write(&Line { last: 7, ..line(101, &[entry(101)]) }).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert_eq!(Record::open(&path).unwrap_err().kind(), ErrorKind::ResourceBusy);
        drop(record);
        let (record, _) = Record::open(&path).unwrap();
        assert_eq!((record.state.length, record.state.last), (101, 7));
        let position = |n| record.last(entry(n).uuid).map(|last| last.position);
        assert!((1..=101).all(|n| position(n) == Some(entry(n).position)));
    }
}
