//! Compression of the files that are kept, on a thread of its own.

use super::log::sync_folder;
use super::rotation::beside;
use shared_block_ring::device::shown;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// The level of compression: zstd's default.
const LEVEL: i32 = 3;

/// Bytes that are compressed between two looks at whether to end.
const PART: usize = 256 << 10;

/// The thread, which starts with the first file.
#[derive(Default)]
pub struct Compressor {
    thread: Mutex<Option<(Sender<PathBuf>, JoinHandle<()>)>>,
    is_ending: Arc<AtomicBool>,
}

impl Compressor {
    /// Compresses a file some time later. Nothing waits; one that is compressed already, or gone,
    /// is left alone.
    pub fn compress(&self, path: PathBuf) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (sender, paths) = channel::<PathBuf>();
            let is_ending = Arc::clone(&self.is_ending);
            let work = move || {
                for path in paths {
                    if is_ending.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(e) = compress(&path, &is_ending) {
                        log::warn!("{}: cannot compress: {e} (it stays as it is)", shown(&path));
                    }
                }
            };
            match std::thread::Builder::new().name("compress".to_owned()).spawn(work) {
                Ok(handle) => *thread = Some((sender, handle)),
                Err(e) => log::warn!("cannot start a thread to compress files: {e}"),
            }
        }
        if let Some((sender, _)) = &*thread {
            // The thread lives until the end.
            let _ = sender.send(path);
        }
    }

    /// Ends the thread. A file that is not done is compressed by the next forwarder.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            // A panic has ended the process.
            let _ = handle.join();
        }
    }
}

/// Replaces a file by its compressed form. A crash leaves one of the two, or both of them.
fn compress(path: &Path, is_ending: &AtomicBool) -> io::Result<()> {
    // A folder that only has such a name.
    if path.is_dir() {
        return Ok(());
    }
    let mut source = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        source => source?,
    };
    let (partial, whole) = (beside(path, "zst.partial"), beside(path, "zst"));
    let mut encoder = zstd::Encoder::new(File::create(&partial)?, LEVEL)?;
    encoder.include_checksum(true)?;
    let mut part = vec![0; PART];
    loop {
        if is_ending.load(Ordering::Relaxed) {
            return std::fs::remove_file(&partial);
        }
        match source.read(&mut part)? {
            0 => break,
            read => encoder.write_all(&part[..read])?,
        }
    }
    encoder.finish()?.sync_all()?;
    std::fs::rename(&partial, &whole)?;
    sync_folder(&whole)?;
    std::fs::remove_file(path)
}
