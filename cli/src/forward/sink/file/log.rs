//! One file that items are appended to, with its record of positions.

use super::super::super::super::framing::{Framing, OnSeparator};
use super::super::{Arrived, Batch, RingFacts, checksum};
use super::FileOptions;
use super::compress::Compressor;
use super::locked::Locked;
use super::record::{Entry, Line, Record, RecordError};
use super::rotation::{beside, kept, numbered, remove_old};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess};
use shared_block_ring::device::shown;
use shared_block_ring::format::SIGNATURE;
use shared_block_ring::refuse_among_devices;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How items are written, and files kept.
#[derive(Debug, Clone)]
pub struct Style {
    pub framing: Framing,
    pub on_separator: OnSeparator,
    pub options: FileOptions,
}

/// Outcome of writing one batch.
#[derive(Debug, Default)]
pub struct BatchOutcome {
    /// The last item that has arrived.
    pub arrived: Option<Arrived>,
    /// The reason why an item cannot be written, in words.
    pub refused: Option<String>,
}

/// An open file.
pub struct Log {
    path: PathBuf,
    style: Style,
    file: Locked,
    record: Record,
    compressor: Arc<Compressor>,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the file, and cuts off what was not acknowledged.
    pub fn open(path: &Path, style: Style, compressor: Arc<Compressor>) -> Result<Self, String> {
        let opened = Self::recover(path, style, compressor);
        opened.map_err(|e| words(path, "open", &e))
    }

    fn recover(path: &Path, style: Style, compressor: Arc<Compressor>) -> io::Result<Self> {
        refuse_unsuitable(path)?;
        let (record, is_new) = Record::open(&beside(path, "positions"))?;
        finish_rotation(path, &record.state)?;
        let file = open_data(path)?;
        let mut log =
            Self { path: path.to_owned(), style, file, record, compressor, buffer: Vec::new() };
        let bytes = log.file.metadata()?.len();
        let state = log.record.state.clone();
        let length = if state.rotate.is_some() { 0 } else { state.length };
        if is_new {
            // What others have written stays in front.
            log.begin(bytes, 0)?;
            sync_folder(path)?;
        } else if state.rotate.is_some() || bytes < length {
            if bytes < length {
                log::warn!(
                    "{}: the file has {bytes} of {length} bytes: somebody else has cut or moved it",
                    shown(path)
                );
            }
            let bytes = bytes.min(length);
            log.file.set_len(bytes)?;
            log.begin(bytes, state.rotate.unwrap_or(state.last))?;
        } else if bytes > length {
            log::info!("{}: cut off {} bytes behind the last item", shown(path), bytes - length);
            log.file.set_len(length)?;
        }
        if log.style.options.compress.is_some() {
            for number in kept(path)? {
                log.compressor.compress(numbered(path, number));
            }
        }
        Ok(log)
    }

    /// Records a file that begins with `length` bytes.
    fn begin(&mut self, length: u64, last: u64) -> io::Result<()> {
        self.record.write(&Line { length, begun: now(), last, ..Line::default() })
    }

    /// Returns the last item of a ring that the file has.
    pub fn arrived(&self, uuid: Uuid) -> Option<Arrived> {
        self.record.last(uuid)
    }

    /// Appends the batches, durably. Returns the outcome of each.
    ///
    /// # Errors
    /// After an error, in words, the file has to be opened again.
    pub fn append<'a>(
        &mut self,
        batches: impl Iterator<Item = (&'a RingFacts, &'a Batch)>,
    ) -> Result<Vec<BatchOutcome>, String> {
        let written = self.append_all(batches);
        written.map_err(|e| words(&self.path, "write", &e))
    }

    fn append_all<'a>(
        &mut self,
        batches: impl Iterator<Item = (&'a RingFacts, &'a Batch)>,
    ) -> io::Result<Vec<BatchOutcome>> {
        let mut outcomes = Vec::new();
        let mut entries = BTreeMap::new();
        self.buffer.clear();
        for (ring, batch) in batches {
            let known = entries.get(&ring.uuid).map(|entry: &Entry| Arrived {
                position: entry.position,
                checksum: entry.checksum,
            });
            let known = known.or_else(|| self.record.last(ring.uuid));
            let outcome = self.add(known, batch);
            if let Some(Arrived { position, checksum }) = outcome.arrived {
                let entry = Entry { ring: ring.name.clone(), uuid: ring.uuid, position, checksum };
                entries.insert(ring.uuid, entry);
            }
            outcomes.push(outcome);
        }
        if !entries.is_empty() {
            self.store(entries.into_values().collect())?;
        }
        // A long item's memory is not kept for good.
        self.buffer.shrink_to(1 << 20);
        Ok(outcomes)
    }

    /// Puts the items of a batch behind `known` into the buffer: the others are in the file.
    fn add(&mut self, known: Option<Arrived>, batch: &Batch) -> BatchOutcome {
        let Style { framing, on_separator, .. } = self.style;
        let mut outcome = BatchOutcome { arrived: known, refused: None };
        let mut last = None;
        for item in &batch.items {
            if known.is_some_and(|known| item.next <= known.position) {
                continue;
            }
            let bytes = batch.bytes.get(item.range.clone()).unwrap_or_default();
            if let Err(e) = framing.join(bytes, on_separator, &mut self.buffer) {
                outcome.refused = Some(format!(
                    "cannot write the item at position {}: {e}; it is still in the ring ({})",
                    item.position,
                    e.remedy()
                ));
                break;
            }
            last = Some((item.next, bytes));
        }
        if let Some((position, bytes)) = last {
            outcome.arrived = Some(Arrived { position, checksum: Some(checksum(bytes)) });
        }
        outcome
    }

    /// Writes the buffer, and then the record. A crash in between leaves bytes behind the length
    /// that is recorded, which are cut off.
    fn store(&mut self, rings: Vec<Entry>) -> io::Result<()> {
        self.follow_name()?;
        self.follow_length()?;
        self.record.follow_name()?;
        if self.is_due() {
            self.rotate()?;
        }
        let Line { length, begun, last, .. } = self.record.state;
        self.file.write_all_at(&self.buffer, length)?;
        // The record counts these bytes: they have to be there first.
        self.file.sync_data()?;
        let length = length + self.buffer.len() as u64;
        self.record.write(&Line { length, begun, rings, rotate: None, last })
    }

    /// Begins a new file if somebody has moved or removed this one, as other tools that rotate
    /// files do.
    fn follow_name(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        log::info!("{}: the file was moved by others: beginning a new one", shown(&self.path));
        self.file = open_data(&self.path)?;
        sync_folder(&self.path)?;
        self.begin(self.file.metadata()?.len(), self.record.state.last)
    }

    /// Begins behind what others have written, or where they have cut the file off.
    fn follow_length(&mut self) -> io::Result<()> {
        let (bytes, length) = (self.file.metadata()?.len(), self.record.state.length);
        if bytes == length {
            return Ok(());
        }
        log::warn!(
            "{}: the file has {bytes} of {length} bytes: somebody else has written to it or cut it",
            shown(&self.path)
        );
        let Line { begun, last, .. } = self.record.state;
        self.record.write(&Line { length: bytes, begun, last, ..Line::default() })
    }

    /// Returns whether the file is to be kept, and another one begun, before the buffer is written.
    fn is_due(&self) -> bool {
        let FileOptions { rotate_size, rotate_age, .. } = &self.style.options;
        let Line { length, begun, .. } = self.record.state;
        let age = Duration::from_secs(now().saturating_sub(begun));
        length > 0
            && (rotate_size.is_some_and(|size| length + self.buffer.len() as u64 > size)
                || rotate_age.is_some_and(|limit| age >= limit))
    }

    /// Keeps the file by a number, and begins another one. The record says so first: a crash
    /// anywhere is finished by [`recover`](Self::recover).
    fn rotate(&mut self) -> io::Result<()> {
        let highest = kept(&self.path)?.into_iter().max().unwrap_or(0);
        let number = highest.max(self.record.state.last).saturating_add(1);
        let state = Line { rotate: Some(number), last: number, ..self.record.state.clone() };
        self.record.write(&state)?;
        finish_rotation(&self.path, &self.record.state)?;
        self.file = open_data(&self.path)?;
        sync_folder(&self.path)?;
        self.begin(0, number)?;
        if self.style.options.compress.is_some() {
            self.compressor.compress(numbered(&self.path, number));
        }
        if let Some(keep) = self.style.options.keep {
            remove_old(&self.path, number.saturating_sub(keep))?;
        }
        Ok(())
    }
}

/// Returns why the file at a path could not be written, as far as a look tells that changes
/// nothing.
pub fn examine(path: &Path) -> Result<(), String> {
    refuse_unsuitable(path).map_err(|e| words(path, "write", &e))?;
    let is_allowed = eaccess(folder_of(path), AccessFlags::W_OK | AccessFlags::X_OK);
    is_allowed.map_err(|e| words(path, "write", &e.into()))?;
    for file in [path, &beside(path, "positions")] {
        refuse_irregular(file).map_err(|e| words(file, "write", &e))?;
        match eaccess(file, AccessFlags::R_OK | AccessFlags::W_OK) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(words(file, "write", &e.into())),
        }
    }
    Ok(())
}

fn refuse_unsuitable(path: &Path) -> io::Result<()> {
    refuse_irregular(path)?;
    refuse_among_devices(path)?;
    refuse_reserved(path)?;
    refuse_ring(path)
}

fn refuse_irregular(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(())
}

/// Gives the file the number by which it is kept, if it does not have it yet.
fn finish_rotation(path: &Path, state: &Line) -> io::Result<()> {
    let Some(number) = state.rotate else { return Ok(()) };
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        // It has its number, or somebody has removed it.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match file.metadata()?.len() {
        // The new file has been made already: nothing is written to it before the next record.
        0 => return Ok(()),
        bytes if bytes > state.length => {
            file.set_len(state.length)?;
            file.sync_all()?;
        }
        _ => {}
    }
    let target = numbered(path, number);
    // A file that others have put there would be lost, and a folder stays where it is.
    for taken in [&target, &beside(&target, "zst")] {
        if taken.symlink_metadata().is_ok() {
            let text = format!(
                "it is to be kept as {}, which is there already (move that away)",
                shown(taken)
            );
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
    }
    std::fs::rename(path, &target)?;
    sync_folder(path)
}

/// Refuses a file that holds a ring, one that is forwarded here perhaps.
fn refuse_ring(path: &Path) -> io::Result<()> {
    let mut start = [0; SIGNATURE.len()];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut start, 0));
    if read.is_ok() && start == *SIGNATURE {
        let text = "it holds a ring, which the items would overwrite (name another file)";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// Refuses a name that a file which is kept beside another can get, or that other's record.
fn refuse_reserved(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = |name: &str| name.rsplit_once('.').map(|(_, end)| end.to_owned()).unwrap_or_default();
    let last = end(name.strip_suffix(".zst").unwrap_or(&name));
    let is_number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || ["positions", "new", "partial"].contains(&last.as_str()) {
        let text = "names that end so are those of files that forward keeps beside others (choose another end, such as {ring}.log)";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// Opens the file, which nobody else may write to by this or another name.
fn open_data(path: &Path) -> io::Result<Locked> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    Locked::try_new(file).map_err(|e| match e {
        TryLockError::WouldBlock => {
            let text = "it is written to by another name already (is there a link?)";
            io::Error::new(ErrorKind::ResourceBusy, text)
        }
        TryLockError::Error(e) => e,
    })
}

/// Makes the names in the folder of `path` durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Returns an error in words. Those of the record of positions name it.
fn words(path: &Path, action: &str, error: &io::Error) -> String {
    let record = error.get_ref().and_then(|inner| inner.downcast_ref::<RecordError>());
    match record {
        Some(RecordError { path, source }) => format!(
            "{}: cannot {action} the record of positions: {source}{}",
            shown(path),
            remedy(error)
        ),
        None => format!("{}: cannot {action} the file: {error}{}", shown(path), remedy(error)),
    }
}

/// Returns what can be done about an error.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => " (is there such a folder?)",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            " (make room: the items wait in their rings)"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            " (may this user write files there? a service of systemd needs ReadWritePaths= for that)"
        }
        _ => "",
    }
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
