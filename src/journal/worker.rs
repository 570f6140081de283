//! The thread that performs entries.

use super::options::{Aside, JournalOptions};
use super::shared::{Call, Shared};
use super::ticket::Synced;
use crate::consumer::Consumer;
use crate::device::{DeviceError, Operation, RingDevice};
use crate::error::{Error, Result};
use crate::format::Position;
use crate::item::Decode;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// The shortest pause before a failed entry is tried again: without one, an entry that fails at
/// once would take the whole of a processor.
const SHORTEST_RETRY: Duration = Duration::from_millis(1);

/// The caller's function, its errors as texts. Boxed, so that the worker is compiled once for each
/// type of entry, and not once for each function: that costs an indirect call for each batch.
pub(super) type PerformFn<T> = Box<dyn FnMut(&[T]) -> std::result::Result<(), String> + Send>;

/// The worker of a journal.
pub(super) struct Worker<T> {
    consumer: Consumer<Arc<dyn RingDevice + Sync>>,
    shared: Arc<Shared>,
    options: JournalOptions,
    perform: PerformFn<T>,
    /// Failures in a row of the oldest entry by itself.
    failures: u32,
    /// The end of a batch that has failed: its entries are tried one by one, so that none counts
    /// the failures of another.
    alone_to: Position,
}

/// The entries at the front of the journal.
enum Front<T> {
    Nothing,
    Entries(Vec<T>, Position),
    Undecodable(Aside, Position),
}

impl<T: for<'a> Decode<'a>> Worker<T> {
    pub fn new(
        consumer: Consumer<Arc<dyn RingDevice + Sync>>,
        shared: Arc<Shared>,
        options: JournalOptions,
        perform: PerformFn<T>,
    ) -> Self {
        let alone_to = consumer.position();
        Self { consumer, shared, options, perform, failures: 0, alone_to }
    }

    pub fn run(mut self) {
        self.shared.set_worker();
        let shared = Arc::clone(&self.shared);
        let name = self.consumer.device().name().to_owned();
        // Panics of the caller's code are caught where it is called. This one is a fault of the
        // library itself, after which no wait may last for ever.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve())).unwrap_or_else(|panic| {
            let source = io::Error::other(format!("panicked: {}", words(panic.as_ref())));
            Err(DeviceError::new(name, Operation::Perform, source).into())
        });
        if let Err(e) = ended {
            // Another ring that was written over this one looks like a corrupt one.
            let e = self.consumer.check_presence().err().unwrap_or(e);
            log::error!("the journal has failed: {e}");
            shared.fail(e);
        }
    }

    fn serve(&mut self) -> Result<()> {
        while self.shared.next_call(self.options.flush_interval) == Call::Work {
            self.empty()?;
        }
        Ok(())
    }

    /// Performs until the journal is empty or ends, also after another instance has moved it.
    fn empty(&mut self) -> Result<()> {
        loop {
            match self.perform_all() {
                Err(e @ Error::Superseded { ring, .. }) => {
                    // Another ring that was written over this one stands elsewhere, too.
                    self.consumer.check_presence()?;
                    log::error!("{e}");
                    self.failures = 0;
                    self.shared.leave(ring, None);
                }
                other => return other,
            }
        }
    }

    fn perform_all(&mut self) -> Result<()> {
        while !self.shared.is_over() {
            let failed = match self.front()? {
                Front::Nothing => return Ok(()),
                Front::Entries(entries, end) => {
                    let count = entries.len();
                    match self.attempt(entries) {
                        Ok(()) => {
                            self.leave(end, Synced::Performed)?;
                            continue;
                        }
                        // The shutdown may be the cause: it does not count as the entry's failure.
                        Err(_) if self.shared.is_over() => return Ok(()),
                        Err(reason) if count > 1 => {
                            log::warn!("{count} entries before {end}: {reason}");
                            self.alone_to = end;
                            true
                        }
                        Err(reason) => self.failed(&reason)?,
                    }
                }
                Front::Undecodable(aside, end) => self.set_aside(&aside, end)?,
            };
            if failed && self.shared.pause(self.back_off()) == Call::End {
                return Ok(());
            }
        }
        Ok(())
    }

    fn leave(&mut self, end: Position, how: Synced) -> Result<()> {
        self.consumer.advance(end)?;
        self.failures = 0;
        self.shared.leave(end, Some(how));
        Ok(())
    }

    /// Decodes the next batch.
    fn front(&mut self) -> Result<Front<T>> {
        let mut at = self.consumer.position();
        let most = if at < self.alone_to { 1 } else { self.options.max_batch.max(1) };
        let mut entries = Vec::new();
        while entries.len() < most {
            match self.decode(at) {
                Ok((next, entry)) => {
                    entries.push(entry);
                    at = next;
                }
                Err(Error::Retry) => break,
                Err(Error::Undecodable { .. }) if !entries.is_empty() => break,
                Err(Error::Undecodable { next, reason, .. }) => {
                    return Ok(Front::Undecodable(self.aside(at, reason)?, next));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(if entries.is_empty() { Front::Nothing } else { Front::Entries(entries, at) })
    }

    /// Decodes the entry at `at`. A panic of the decoder counts as an error.
    fn decode(&mut self, at: Position) -> Result<(Position, T)> {
        // Unwind-safe: of the consumer, the decoder sees only bytes.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.consumer.pop_as::<T>(at)));
        match decoded {
            Ok(decoded) => decoded,
            Err(panic) => {
                let reason = format!("panicked: {}", words(panic.as_ref()));
                Err(Error::Undecodable { at, next: self.consumer.pop(at)?.next, reason })
            }
        }
    }

    fn aside(&mut self, position: Position, reason: String) -> Result<Aside> {
        let bytes = self.consumer.pop(position)?.bytes.to_vec();
        Ok(Aside { position, bytes, reason })
    }

    fn attempt(&mut self, entries: Vec<T>) -> std::result::Result<(), String> {
        // Unwind-safe in effect: `perform` must be able to take up what it has left half done, as
        // after a crash.
        caught(|| {
            let performed = (self.perform)(&entries);
            // Within, because this calls the user's code, too.
            drop(entries);
            performed
        })
    }

    /// Counts a failure, and returns whether to pause before the next attempt.
    fn failed(&mut self, reason: &str) -> Result<bool> {
        let at = self.consumer.position();
        self.failures = self.failures.saturating_add(1);
        log::warn!("entry at {at}: failure {}: {reason}", self.failures);
        match self.options.max_failures {
            Some(limit) if self.failures >= limit.get() => {
                let next = self.consumer.pop(at)?.next;
                let aside = self.aside(at, reason.to_owned())?;
                self.set_aside(&aside, next)
            }
            _ => Ok(true),
        }
    }

    /// Sets an entry aside, and returns whether to pause, since that has failed.
    fn set_aside(&mut self, aside: &Aside, next: Position) -> Result<bool> {
        match caught(|| (self.options.aside)(aside).map_err(|e| e.to_string())) {
            Ok(()) => {
                log::error!("entry at {} is set aside: {}", aside.position, aside.reason);
                self.leave(next, Synced::Aside)?;
                Ok(false)
            }
            Err(refused) => {
                log::error!("entry at {} cannot be set aside: {refused}", aside.position);
                self.failures = self.failures.saturating_add(1);
                Ok(true)
            }
        }
    }

    /// Returns the pause before the next attempt: it doubles from one failure to the next.
    fn back_off(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        let first = self.options.retry_interval.max(SHORTEST_RETRY);
        first.saturating_mul(1 << doublings).min(self.options.max_retry_interval.max(first))
    }
}

/// Calls the user's code. A panic counts as an error.
fn caught(
    call: impl FnOnce() -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", words(panic.as_ref()))))
}

/// Returns the message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
