//! Waiting for an entry to leave the journal.

use super::shared::{Shared, deadline};
use crate::error::Error;
use crate::format::Position;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How an entry left the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// `perform` has returned `Ok` for it.
    Performed,
    /// It was set aside.
    Aside,
}

/// Set when it has left; nothing when another life of the journal has taken it.
pub(super) type Outcome = OnceLock<Option<Synced>>;

/// Why there is nothing to wait for any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SyncError {
    /// The journal was shut down: the entry is performed after the next start.
    #[error("the journal was shut down; the entry is performed when it starts again")]
    ShutDown,
    /// The journal has failed.
    #[error("the journal has failed: {0}")]
    Failed(Arc<Error>),
    /// Another life of this process has taken the entry out of the journal, as after the restore of an older snapshot: it has performed it
    /// or set it aside, and nobody here can say which. The journal goes on.
    #[error("superseded: another life of this process has taken the entry out of the journal")]
    Superseded,
    /// Not in time.
    #[error("the entry was not performed in time")]
    TimedOut,
    /// `perform` or `aside` has asked: while it waits nothing is performed.
    #[error("the entry cannot be waited for by what performs it")]
    WithinPerform,
}

/// An entry that is durable in the journal.
#[derive(Clone)]
pub struct Ticket {
    shared: Arc<Shared>,
    end: Position,
    outcome: Arc<Outcome>,
}

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>, end: Position, outcome: Arc<Outcome>) -> Self {
        Self { shared, end, outcome }
    }

    /// Where the entry ends in the journal.
    pub fn position(&self) -> Position {
        self.end
    }

    /// Asks that the entry, and all before it, be performed now rather than after the flush interval. Does not wait.
    pub fn flush(&self) {
        self.shared.want(self.end);
    }

    /// Waits until the entry has left the journal. Does not hurry it; see [`flush`](Self::flush).
    pub fn sync(&self, timeout: Option<Duration>) -> Result<Synced, SyncError> {
        let deadline = timeout.and_then(deadline);
        let mut state = self.shared.state();
        loop {
            if let Some(how) = self.outcome.get() {
                return how.ok_or(SyncError::Superseded);
            }
            if let Some(why) = state.failed() {
                return Err(SyncError::Failed(Arc::clone(why)));
            }
            if state.is_shut_down() {
                return Err(SyncError::ShutDown);
            }
            if self.shared.am_i_the_worker() {
                return Err(SyncError::WithinPerform);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(SyncError::TimedOut);
            }
            state = self.shared.wait(state, deadline);
        }
    }
}
