//! How a journal is to behave.

use crate::format::Position;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

/// An entry that is not going to be performed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Where it starts in the journal.
    pub position: Position,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Why: what `perform` said the last time, or what the decoder said.
    pub reason: String,
}

/// What to do with a device that holds no journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Refuse.
    Never,
    /// Make one if nothing else is there.
    #[default]
    IfEmpty,
    /// Make one over whatever else is there. A journal that is there stays, with its entries.
    Always,
}

/// What `push` does when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// Wait until there is. (A journal that was suspended from outside makes it wait too.)
    #[default]
    Wait,
    /// Say so.
    Answer,
}

pub(super) type AsideFn = Box<dyn FnMut(&Aside) -> io::Result<()> + Send>;

/// How a journal is to behave.
pub struct JournalOptions {
    /// An entry waits at most this long before it is handed to `perform`, however many follow it (100 ms).
    pub flush_interval: Duration,
    /// The pause before `perform` is tried again; it doubles from one failure of the same entry to the next (1 s).
    pub retry_interval: Duration,
    /// The longest that the pause gets (1 min), if `retry_interval` is not longer by itself.
    pub longest_retry: Duration,
    /// After as many failures in a row an entry is set aside; `None`: never. What fails while the journal is being shut down does not count.
    pub limit: Option<NonZeroU32>,
    /// Entries handed to `perform` at a time, at most (1024).
    pub batch: usize,
    /// What `push` does when there is no room.
    pub when_full: WhenFull,
    /// What `start` does with a device that holds no journal.
    pub format: Format,
    pub(super) aside: AsideFn,
}

impl JournalOptions {
    /// `aside` keeps what cannot be performed: an entry that does not decode, or has failed `limit` times. Such an entry
    /// leaves the journal only after `aside` has returned `Ok`; until then it is retried like `perform`.
    pub fn new(aside: impl FnMut(&Aside) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            flush_interval: Duration::from_millis(100),
            retry_interval: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            limit: None,
            batch: 1024,
            when_full: WhenFull::default(),
            format: Format::default(),
            aside: Box::new(aside),
        }
    }
}
