//! Tickets: waits for an entry to leave the journal.

use super::shared::{Shared, deadline};
use crate::error::Error;
use crate::format::Position;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How an entry left the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Synced {
    /// `perform` has returned `Ok` for it.
    Performed,
    /// The entry was set aside, after too many failures.
    Aside,
}

/// Set when the entry has left; `None` in it when another instance of the journal has taken the
/// entry.
pub(super) type Outcome = OnceLock<Option<Synced>>;

/// The error of a wait for an entry that was not performed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The journal was shut down: the entry is performed after the next start.
    #[error("the journal was shut down; the entry is performed when it starts again")]
    ShutDown,
    /// The journal has failed.
    #[error("the journal has failed: {0}")]
    Failed(Arc<Error>),
    /// Another instance of this process has taken the entry out of the journal, as after the
    /// restore of an older snapshot. It has performed the entry or set it aside; which is not known
    /// here. The journal goes on.
    #[error("superseded: another instance of this process has taken the entry out of the journal")]
    Superseded,
    /// The entry was not performed within the timeout.
    #[error("the entry was not performed in time")]
    TimedOut,
    /// `perform` or `aside` made the call: while they wait nothing is performed.
    #[error("the entry cannot be waited for by what performs it")]
    WithinPerform,
}

/// A ticket for an entry that is durable in the journal: to wait until it is performed.
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

    /// Returns the position at which the entry ends in the journal.
    pub fn position(&self) -> Position {
        self.end
    }

    /// Has the entry, and all before it, performed now rather than after the flush interval. Does
    /// not wait.
    pub fn flush(&self) {
        self.shared.want(self.end);
    }

    /// Waits until the entry has left the journal, for `timeout` at most. [`flush`](Self::flush)
    /// hastens that.
    ///
    /// # Errors
    /// [`SyncError`] says why the wait has ended.
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
            if self.shared.is_worker() {
                return Err(SyncError::WithinPerform);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(SyncError::TimedOut);
            }
            state = self.shared.wait(state, deadline);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { end, outcome, .. } = self;
        f.debug_struct("Ticket").field("end", end).field("outcome", outcome).finish_non_exhaustive()
    }
}
