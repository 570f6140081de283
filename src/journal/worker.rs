//! The thread that performs.

use super::options::{Aside, JournalOptions};
use super::shared::{Call, Shared};
use crate::consumer::Consumer;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::Position;
use crate::item::Decode;
use std::any::Any;
use std::fmt::Display;
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
        while self.shared.next_call(self.options.flush_interval) == Call::Work {
            if let Err(e) = self.empty() {
                log::error!("the journal has failed: {e}");
                self.shared.fail(e.to_string());
                return;
            }
        }
    }

    /// Performs until the journal is empty or shut down.
    fn empty(&mut self) -> Result<()> {
        while !self.shared.is_shut_down() {
            let failed = match self.front()? {
                Front::Nothing => return Ok(()),
                Front::Entries(entries, end) => match self.attempt(&entries) {
                    Ok(()) => {
                        self.consumer.advance(end)?;
                        self.failures = 0;
                        self.shared.performed(end);
                        continue;
                    }
                    Err(reason) if entries.len() > 1 => {
                        log::warn!("{} entries before {end}: {reason}", entries.len());
                        self.alone_to = end;
                        true
                    }
                    Err(reason) => self.failed(&reason)?,
                },
                Front::Undecodable(aside, end) => self.set_aside(&aside, end)?,
            };
            if failed && self.shared.pause(self.back_off()) == Call::ShutDown {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next batch.
    fn front(&mut self) -> Result<Front<T>> {
        let mut at = self.consumer.position();
        let most = if at < self.alone_to { 1 } else { self.options.batch.max(1) };
        let mut entries = Vec::new();
        while entries.len() < most {
            match self.consumer.pop_as::<T>(at) {
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

    fn aside(&mut self, position: Position, reason: String) -> Result<Aside> {
        let bytes = self.consumer.pop(position)?.bytes.to_vec();
        Ok(Aside { position, bytes, reason })
    }

    fn attempt(&mut self, entries: &[T]) -> std::result::Result<(), String> {
        // Unwind-safe in effect: whatever `perform` has left half done, it must be able to take up again, as after a crash.
        match catch_unwind(AssertUnwindSafe(|| (self.perform)(entries))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(panic) => Err(format!("panicked: {}", words(panic.as_ref()))),
        }
    }

    /// Whether to pause before the next attempt.
    fn failed(&mut self, reason: &str) -> Result<bool> {
        let at = self.consumer.position();
        self.failures += 1;
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
        let accepted = catch_unwind(AssertUnwindSafe(|| (self.options.aside)(aside)));
        let refused = match accepted {
            Ok(Ok(())) => {
                log::error!("entry at {} is set aside: {}", aside.position, aside.reason);
                self.consumer.advance(next)?;
                self.failures = 0;
                self.shared.set_aside(next);
                return Ok(false);
            }
            Ok(Err(e)) => e.to_string(),
            Err(panic) => format!("panicked: {}", words(panic.as_ref())),
        };
        log::error!("entry at {} cannot be set aside: {refused}", aside.position);
        self.failures = self.failures.saturating_add(1);
        Ok(true)
    }

    /// Doubles from one failure to the next.
    fn back_off(&self) -> std::time::Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        let pause = self.options.retry_interval.saturating_mul(1 << doublings);
        pause.min(self.options.longest_retry)
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
