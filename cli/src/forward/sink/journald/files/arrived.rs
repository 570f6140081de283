//! What of a ring is in its journal files.
//!
//! The last record of a ring tells how far the ring has arrived: each record has the position
//! behind its item, and the files are written in order. A file that was not closed, as after a
//! kill, may not be on disk yet: while the host has not been booted since, its pages are there to
//! be flushed; after that its last records prove nothing, since earlier ones can be lost.

use super::super::record;
use super::program::Program;
use serde::Deserialize;
use shared_block_ring::Position;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The beginning of a journal file: signature, and two sets of flags.
const SIGNATURE: &[u8; 8] = b"LPKSHHRH";
/// Place of the byte in the file that tells whether it was closed.
const STATE: usize = 16;
/// Its value while the file is written, and after a crash.
const ONLINE: u8 = 1;

/// The journal files of rings in a folder.
#[derive(Debug)]
pub struct Archive {
    pub folder: PathBuf,
    pub journalctl: Program,
    /// This boot of the host, as 32 hexadecimal digits.
    pub host_boot: String,
}

/// The fields of a record that tell how far a ring has arrived.
#[derive(Deserialize)]
struct Last {
    #[serde(rename = "BLOCKRING_UUID", default)]
    uuid: String,
    #[serde(rename = "BLOCKRING_NEXT", default)]
    next: String,
    #[serde(rename = "BLOCKRING_HOST_BOOT", default)]
    host_boot: String,
}

impl Archive {
    /// Returns the position behind the last item of the ring that is in its files, and makes that
    /// durable. `stem` begins the names of the ring's files.
    pub fn durable(&self, stem: &str, uuid: Uuid) -> Result<Option<Position>, String> {
        let shown = |name: &str| self.folder.join(name).display().to_string();
        let files = self.files(stem).map_err(|e| format!("{}: {e}", self.folder.display()))?;
        let mut arrived = None;
        for name in files {
            // A file that cannot be read has nothing that counts: at worst an item comes twice.
            let (last, is_closed) = match self.last(&name, uuid) {
                Ok((Some(last), is_closed)) => (last, is_closed),
                Ok((None, _)) => continue,
                Err(e) => {
                    log::warn!(
                        "{}: cannot be read, so its last items may come again: {e}",
                        shown(&name)
                    );
                    continue;
                }
            };
            let next = last.next.parse().map_err(|e| format!("{}: {e}", shown(&name)))?;
            if !is_closed && last.host_boot != self.host_boot {
                log::warn!(
                    "{}: was not closed before this host was booted, so its last items may come again",
                    shown(&name)
                );
                continue;
            }
            if !is_closed {
                let synced = File::open(self.folder.join(&name)).and_then(|file| file.sync_all());
                synced.map_err(|e| format!("{}: cannot be flushed: {e}", shown(&name)))?;
            }
            arrived = arrived.max(Some(next));
        }
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| format!("{}: cannot be flushed: {e}", self.folder.display()))?;
        Ok(arrived)
    }

    /// Returns the position behind the last item of the ring in the file that is written now, or in
    /// the others of the ring if that has none yet.
    pub fn seen(&self, stem: &str, uuid: Uuid) -> Result<Option<Position>, String> {
        let current = current(stem);
        if self.folder.join(&current).exists()
            && let (Some(last), _) = self.last(&current, uuid)?
        {
            return last.next.parse().map(Some).map_err(|e| format!("{current}: {e}"));
        }
        self.durable(stem, uuid)
    }

    /// Returns the names of the ring's files.
    fn files(&self, stem: &str) -> io::Result<Vec<String>> {
        let (current, older) = (current(stem), format!("{stem}@"));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            // The ring's files have no other characters than these.
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let is_older = name
                .strip_prefix(&older)
                .is_some_and(|rest| rest.ends_with(".journal") || rest.ends_with(".journal~"));
            if name == current || is_older {
                files.push(name);
            }
        }
        Ok(files)
    }

    /// Returns the last record of the ring in a file, and whether the file was closed.
    fn last(&self, name: &str, uuid: Uuid) -> Result<(Option<Last>, bool), String> {
        let is_closed = is_closed(&self.folder.join(name)).map_err(|e| e.to_string())?;
        let uuid = uuid.simple().to_string();
        // A program that is killed can have written its last record without having listed it with
        // all its fields' values. So that record is looked at first, without asking by a field. One
        // of another ring, which had the name later, is no such case.
        let last = self.query(name, None)?;
        if last.as_ref().is_none_or(|last| last.uuid == uuid) {
            return Ok((last, is_closed));
        }
        Ok((self.query(name, Some(&format!("{}={uuid}", record::UUID)))?, is_closed))
    }

    /// Returns the last record of a file, or the last one that has the field.
    fn query(&self, name: &str, field: Option<&str>) -> Result<Option<Last>, String> {
        let file = format!("--file={name}");
        let fields =
            format!("--output-fields={},{},{}", record::UUID, record::NEXT, record::HOST_BOOT);
        let mut arguments = vec![
            &*file,
            "--no-pager",
            "--quiet",
            "--reverse",
            "--lines=1",
            "--output=json",
            &fields,
        ];
        arguments.extend(field);
        let text = self.journalctl.ask(&self.folder, &arguments)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).map_err(|e| e.to_string())
    }
}

/// Returns the name of the file that is written now.
pub fn current(stem: &str) -> String {
    format!("{stem}.journal")
}

fn is_closed(path: &Path) -> io::Result<bool> {
    let mut head = [0; STATE + 1];
    File::open(path)?.read_exact(&mut head)?;
    if !head.starts_with(SIGNATURE) {
        return Err(io::Error::other("it is no journal file"));
    }
    Ok(head[STATE] != ONLINE)
}
