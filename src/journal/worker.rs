//! The thread that performs.

use super::options::{Aside, JournalOptions};
use super::shared::{Call, Shared};
use super::ticket::Synced;
use crate::consumer::Consumer;
use crate::device::{BlockDevice, DeviceError};
use crate::error::{Error, Result};
use crate::format::Position;
use crate::item::Decode;
use std::any::Any;
use std::fmt::Display;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(super) struct Worker<T, F, E> {
    consumer: Consumer<Arc<dyn BlockDevice + Sync>>,
    shared: Arc<Shared>,
    options: JournalOptions,
    perform: F,
    /// Of the oldest entry by itself, in a row.
    failures: u32,
    /// A batch that ends here has failed: its entries are tried one by one, so that none is held responsible for another.
    alone_to: Position,
    types: PhantomData<fn(T) -> E>,
}

/// What lies at the front of the journal.
enum Front<T> {
    Nothing,
    Entries(Vec<T>, Position),
    Undecodable(Aside, Position),
}

impl<T, F, E> Worker<T, F, E>
where
    T: for<'a> Decode<'a>,
    F: FnMut(&[T]) -> std::result::Result<(), E>,
    E: Display,
{
    pub fn new(
        consumer: Consumer<Arc<dyn BlockDevice + Sync>>,
        shared: Arc<Shared>,
        options: JournalOptions,
        perform: F,
    ) -> Self {
        let alone_to = consumer.position();
        Self { consumer, shared, options, perform, failures: 0, alone_to, types: PhantomData }
    }

    pub fn run(mut self) {
        self.shared.i_am_the_worker();
        let shared = Arc::clone(&self.shared);
        let name = self.consumer.device().name().to_owned();
        // All that is the user's is caught where it is called: this is for a fault of ours, after which nobody may wait for ever.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve())).unwrap_or_else(|panic| {
            let source = io::Error::other(format!("panicked: {}", words(panic.as_ref())));
            Err(DeviceError { name, operation: "perform", sector: None, source }.into())
        });
        if let Err(e) = ended {
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

    /// Performs until the journal is empty or over, wherever another life of ours has moved it meanwhile.
    fn empty(&mut self) -> Result<()> {
        loop {
            match self.perform_all() {
                Err(e @ Error::Superseded { ring, .. }) => {
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
                        // It may be the shutdown that has made it fail: nothing to hold against an entry.
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

    /// The next batch.
    fn front(&mut self) -> Result<Front<T>> {
        let mut at = self.consumer.position();
        let most = if at < self.alone_to { 1 } else { self.options.batch.max(1) };
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

    /// The entry at `at`; a panic of its decoder is an error of its.
    fn decode(&mut self, at: Position) -> Result<(Position, T)> {
        // Unwind-safe: the decoder has nothing of the consumer's but the bytes.
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
        // Unwind-safe in effect: whatever `perform` has left half done, it must be able to take up again, as after a crash.
        caught(|| {
            let performed = (self.perform)(&entries).map_err(|e| e.to_string());
            // In here, because this is the user's code too.
            drop(entries);
            performed
        })
    }

    /// Whether to pause before the next attempt.
    fn failed(&mut self, reason: &str) -> Result<bool> {
        let at = self.consumer.position();
        self.failures = self.failures.saturating_add(1);
        log::warn!("entry at {at}: failure {}: {reason}", self.failures);
        match self.options.limit {
            Some(limit) if self.failures >= limit.get() => {
                let next = self.consumer.pop(at)?.next;
                let aside = self.aside(at, reason.to_owned())?;
                self.set_aside(&aside, next)
            }
            _ => Ok(true),
        }
    }

    /// Whether to pause, since it was not accepted.
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

    /// Doubles from one failure to the next.
    fn back_off(&self) -> std::time::Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        let pause = self.options.retry_interval.saturating_mul(1 << doublings);
        pause.min(self.options.longest_retry.max(self.options.retry_interval))
    }
}

/// What the user's code says; a panic is an error too.
fn caught(
    call: impl FnOnce() -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", words(panic.as_ref()))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
