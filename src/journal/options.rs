//! Options of a journal.

use crate::format::Position;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

/// An entry that is set aside, and not performed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Aside {
    /// Its position in the journal.
    pub position: Position,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The last error of `perform`, or the decoder's, as text.
    pub reason: String,
}

/// What [`Journal::start`](super::Journal::start) does on a device that holds no journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WhenAbsent {
    /// Fails.
    Refuse,
    /// Makes a journal if the device holds nothing but zeros, and fails otherwise.
    #[default]
    CreateIfEmpty,
    /// Makes a journal over anything else that the device holds. A journal stays, with its entries.
    Overwrite,
}

/// What [`Journal::push`](super::Journal::push) does when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// Waits until there is, and while the journal is suspended from outside.
    #[default]
    Wait,
    /// Fails at once.
    Fail,
}

pub(super) type AsideFn = Box<dyn FnMut(&Aside) -> io::Result<()> + Send>;

/// Options of a [`Journal`](super::Journal), with their defaults in brackets.
///
/// ```
/// use shared_block_ring::JournalOptions;
/// use std::io::Write;
/// use std::num::NonZeroU32;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("aside");
///
/// let mut kept = std::fs::File::options().append(true).create(true).open(path)?;
/// let mut options = JournalOptions::new(move |aside| {
///     writeln!(kept, "{}: {}", aside.position, aside.reason)?;
///     kept.sync_data()
/// });
/// options.max_failures = NonZeroU32::new(10);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct JournalOptions {
    /// The longest time that an entry waits for others before it is handed to `perform` (100 ms).
    pub flush_interval: Duration,
    /// The pause before `perform` is tried again (1 s, at least 1 ms); it doubles from one failure
    /// of the same entry to the next.
    pub retry_interval: Duration,
    /// The longest pause, if `retry_interval` is not longer itself (1 min).
    pub max_retry_interval: Duration,
    /// The number of failures in a row after which an entry is set aside; `None` for no limit
    /// (`None`). Failures while the journal is shut down do not count.
    pub max_failures: Option<NonZeroU32>,
    /// The most entries that are handed to `perform` at a time (1024).
    pub max_batch: usize,
    /// What `push` does when there is no room ([`WhenFull::Wait`]).
    pub when_full: WhenFull,
    /// What `start` does on a device that holds no journal ([`WhenAbsent::CreateIfEmpty`]).
    pub when_absent: WhenAbsent,
    pub(super) aside: AsideFn,
}

impl JournalOptions {
    /// Makes the default options. `aside` keeps an entry that cannot be performed: one that does
    /// not decode, or has failed `max_failures` times. Such an entry leaves the journal only after
    /// `aside` has returned `Ok`; until then `aside` is tried again as `perform` is.
    pub fn new(aside: impl FnMut(&Aside) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            flush_interval: Duration::from_millis(100),
            retry_interval: Duration::from_secs(1),
            max_retry_interval: Duration::from_secs(60),
            max_failures: None,
            max_batch: 1024,
            when_full: WhenFull::default(),
            when_absent: WhenAbsent::default(),
            aside: Box::new(aside),
        }
    }
}

impl fmt::Debug for JournalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalOptions")
            .field("flush_interval", &self.flush_interval)
            .field("retry_interval", &self.retry_interval)
            .field("max_retry_interval", &self.max_retry_interval)
            .field("max_failures", &self.max_failures)
            .field("max_batch", &self.max_batch)
            .field("when_full", &self.when_full)
            .field("when_absent", &self.when_absent)
            .finish_non_exhaustive()
    }
}
