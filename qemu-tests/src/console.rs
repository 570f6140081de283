//! The guest's serial console: its whole output, and waits for words in it.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::error::tail;

/// Bytes that are kept: more than any test prints. Output beyond that is dropped.
const LOG_LIMIT: usize = 256 << 20;

/// Reason of a wait that ended without the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFound {
    TimedOut,
    Ended,
}

#[derive(Debug, Default)]
struct Log {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Debug)]
pub(crate) struct Console {
    log: Mutex<Log>,
    grown: Condvar,
    /// The file that takes QEMU's standard error.
    qemu_log: PathBuf,
}

impl Console {
    /// Reads `source` in a thread until it ends, which it does when QEMU does.
    pub(crate) fn follow(mut source: impl Read + Send + 'static, qemu_log: PathBuf) -> Arc<Self> {
        let (log, grown) = Default::default();
        let console = Arc::new(Self { log, grown, qemu_log });
        let writer = Arc::clone(&console);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                // An error of the pipe means its end.
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut log = writer.lock();
                log.bytes.extend_from_slice(&buffer[..count]);
                log.ended = count == 0 || log.bytes.len() > LOG_LIMIT;
                let ended = log.ended;
                drop(log);
                writer.grown.notify_all();
                if ended {
                    return;
                }
            }
        });
        console
    }

    // A panic of another thread leaves the log whole: it is only appended to.
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the output has ended, as it does with QEMU.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Returns the length of the output so far.
    pub(crate) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Returns the output in `range`, which a wait has found to exist.
    pub(crate) fn text(&self, range: Range<usize>) -> String {
        String::from_utf8_lossy(self.lock().bytes.get(range).unwrap_or_default()).into_owned()
    }

    /// Returns the last lines, and after them QEMU's own messages.
    pub(crate) fn tail(&self) -> String {
        let mut text = tail(&self.lock().bytes);
        let complaints = fs::read(&self.qemu_log).unwrap_or_default();
        if !complaints.is_empty() {
            text.push_str("\nQEMU's standard error:\n");
            text.push_str(&tail(&complaints));
        }
        text
    }

    /// Waits for `word` at or after `from`, and answers where it is.
    pub(crate) fn wait_for(
        &self,
        word: &str,
        from: usize,
        deadline: Instant,
    ) -> Result<Range<usize>, NotFound> {
        let word = word.as_bytes();
        let mut log = self.lock();
        let mut searched = from;
        loop {
            if let Some(rest) = log.bytes.get(searched..) {
                if let Some(at) = find(rest, word) {
                    return Ok(searched + at..searched + at + word.len());
                }
                // The word may be incomplete.
                searched = searched.max((log.bytes.len() + 1).saturating_sub(word.len()));
            }
            log = self.wait_for_more(log, deadline)?;
        }
    }

    /// Waits until there are more than `from` bytes, and returns those from `from` on.
    pub(crate) fn wait_past(&self, from: usize, deadline: Instant) -> Result<Vec<u8>, NotFound> {
        let mut log = self.lock();
        loop {
            match log.bytes.get(from..) {
                Some(rest) if !rest.is_empty() => return Ok(rest.to_vec()),
                _ => log = self.wait_for_more(log, deadline)?,
            }
        }
    }

    fn wait_for_more<'a>(
        &'a self,
        log: MutexGuard<'a, Log>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Log>, NotFound> {
        if log.ended {
            return Err(NotFound::Ended);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NotFound::TimedOut);
        }
        Ok(self.grown.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// Returns the first place of `word` in `bytes`.
pub(crate) fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}
