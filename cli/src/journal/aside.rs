//! The file for items that a journal sets aside. Each item is in it completely and durably, or not
//! at all.

use super::super::address::Address;
use super::super::failure::{Failure, Outcome};
use super::super::framing::{Framing, OnSeparator};
use super::super::output::{Halt, Sink};
use ring_program::Stop;
use shared_block_ring::device::shown;
use shared_block_ring::{RingDevice, make_empty, sync_name};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest time in which a pipe or terminal may accept nothing; then the item stays in the journal,
/// and is tried again.
const PATIENCE: Duration = Duration::from_secs(1);

/// The file that items are appended to, in the framing of the input. The thread of the journal and
/// the one that reads the input both use it.
pub struct AsideFile {
    path: PathBuf,
    framing: Framing,
    /// Locked while an item is appended.
    turn: Mutex<()>,
}

/// An item that is being appended. If it is dropped before its end, its part is removed from the
/// file.
pub struct Appending<'a> {
    aside: &'a AsideFile,
    sink: Sink<File>,
    accepted: usize,
    is_whole: bool,
    _turn: MutexGuard<'a, ()>,
}

impl AsideFile {
    /// Verifies that items can be appended, as far as that is possible without appending one.
    ///
    /// # Errors
    /// The file cannot be opened, or its folder does not exist.
    pub fn new(path: PathBuf, framing: Framing) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let has_folder = folder.is_none_or(Path::is_dir);
        let aside = Self { path, framing, turn: Mutex::new(()) };
        match aside.open() {
            Err(e) if e.kind() == ErrorKind::NotFound && has_folder => {
                if let Ok(target) = std::fs::read_link(&aside.path) {
                    let target = shown(&target);
                    let text = format!("it is a symbolic link to {target}, which does not exist");
                    return Err(io::Error::new(e.kind(), text));
                }
            }
            Err(e) => return Err(e),
            Ok(_) => {}
        }
        Ok(aside)
    }

    /// Refuses a file that is the ring of the journal, under any name.
    pub fn refuse_ring<D: RingDevice>(&self, address: &Address, device: &D) -> Outcome {
        let shown = shown(&self.path);
        match self.open() {
            Ok(file) => address.refuse_ring(device, file.as_fd(), &format!("--aside {shown}")),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Failure::io(format!("cannot append to {shown}"))(e)),
        }
    }

    fn open(&self) -> io::Result<File> {
        // A pipe without a reader is an error; the open does not wait for one.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        File::options().append(true).custom_flags(flags).open(&self.path)
    }

    /// Opens the file, and makes it if it does not exist.
    fn open_or_make(&self) -> io::Result<File> {
        match self.open() {
            Err(e) if e.kind() == ErrorKind::NotFound => match make_empty(&self.path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
                _ => self.open(),
            },
            opened => opened,
        }
    }

    /// Begins an item. The file may end with a part of `item` that a killed process has left.
    fn begin(&self, item: &[u8]) -> io::Result<Appending<'_>> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sink = Sink::new(self.open_or_make()?)?;
        take_back_part(&mut sink, self.framing, item)?;
        Ok(Appending { aside: self, sink, accepted: 0, is_whole: false, _turn: turn })
    }

    /// Begins an item of `length` bytes, which arrive in pieces. A framing with a delimiter does
    /// not use the length.
    pub fn begin_item(&self, length: u64, stop: &Stop) -> io::Result<Appending<'_>> {
        let mut appending = self.begin(&[])?;
        appending.put(&self.framing.head(length), stop)?;
        Ok(appending)
    }

    /// Appends an item.
    ///
    /// # Errors
    /// The operating system's. Nothing of the item is in the file then; where a part cannot be
    /// removed, the error gives its size.
    pub fn append(&self, item: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(item.len() + 4);
        self.framing.join(item, OnSeparator::Fail, &mut bytes).map_err(|e| {
            io::Error::other(format!("{e} (start again with --framing length, and another file)"))
        })?;
        let mut appending = self.begin(&bytes)?;
        let (accepted, outcome) = appending.sink.write(&bytes, &|_| 0, None, Some(PATIENCE));
        appending.accepted = accepted;
        outcome.map_err(|halt| appending.failed(halt.into_error()))?;
        appending.settle()
    }
}

impl Appending<'_> {
    /// Appends the next bytes of the item; `stop` ends the wait for the reader of a pipe.
    pub fn put(&mut self, bytes: &[u8], stop: &Stop) -> io::Result<()> {
        let (accepted, outcome) = self.sink.write(bytes, &|_| 0, Some(stop.fd()), None);
        self.accepted += accepted;
        outcome.map_err(|halt| self.failed(Halt::into_error(halt)))
    }

    /// Ends the item with its delimiter.
    pub fn finish(mut self, stop: &Stop) -> io::Result<()> {
        let delimiter = self.aside.framing.delimiter();
        self.put(delimiter.as_slice(), stop)?;
        self.settle()
    }

    /// Makes the item durable.
    fn settle(mut self) -> io::Result<()> {
        if self.sink.is_regular() {
            // A terminal or a pipe keeps no bytes that could be made durable.
            self.sink.descriptor().sync_data().map_err(|e| self.failed(e))?;
        }
        self.is_whole = true;
        let is_new = self.sink.is_regular()
            && self.sink.descriptor().metadata()?.len() == self.accepted as u64;
        if is_new { sync_name(&self.aside.path) } else { Ok(()) }
    }

    /// Removes the part of the item from the file; where that is impossible, adds its size to the
    /// error.
    fn failed(&mut self, error: io::Error) -> io::Error {
        let accepted = std::mem::take(&mut self.accepted);
        if self.sink.cut(accepted).unwrap_or(false) {
            return error;
        }
        let text = format!("{error}; the first {accepted} bytes of the item went out all the same");
        io::Error::new(error.kind(), text)
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            // The item is appended again later, and a part of it must not stay before that. Where
            // it cannot be removed, the next `begin` finds it.
            let _ = self.sink.cut(self.accepted);
        }
    }
}

/// Removes the part that a killed process has left of the same item. The journal starts with the
/// item that was not appended completely.
fn take_back_part<F: AsFd>(sink: &mut Sink<F>, framing: Framing, bytes: &[u8]) -> io::Result<()> {
    let Some(delimiter) = framing.delimiter() else { return Ok(()) };
    let part = sink.open_record(delimiter, bytes.len())?;
    if bytes.starts_with(&part) && sink.cut_found(part.len())? {
        return Ok(());
    }
    let text = "the file ends within an item that is not this one (complete it, or cut it off)";
    Err(io::Error::new(ErrorKind::InvalidData, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    fn file(path: &Path) -> AsideFile {
        AsideFile { path: path.to_owned(), framing: Framing::Lines, turn: Mutex::new(()) }
    }

    #[test]
    fn append_takes_back_the_part_that_a_killed_process_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aside");
        std::fs::write(&path, b"one\ntw").unwrap();
        file(&path).append(b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn append_refuses_a_file_that_ends_within_another_item() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aside");
        for before in [&b"one\nother"[..], b"a longer one than the item that comes"] {
            std::fs::write(&path, before).unwrap();
            let error = file(&path).append(b"two").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn append_does_not_wait_for_the_reader_of_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aside");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let error = file(&path).append(b"two").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let error = file(&path).append(&vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("the first 65536 bytes of the item"), "{error}");
        drop(reader);
    }
}
