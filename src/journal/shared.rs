//! What the worker, the pushers and the tickets know in common.

use super::JournalError;
use crate::format::Position;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Entries set aside that are remembered for whoever waits for them.
const REMEMBERED: usize = 1024;

/// The state, and who waits for it to change.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Everything before it is durable in the journal.
    pushed: Position,
    /// Everything before it has left the journal.
    performed: Position,
    /// Everything before it is to be performed without waiting for company.
    wanted: Position,
    /// When the oldest entry came that was not handed to `perform` yet.
    oldest: Option<Instant>,
    /// Ends of entries that were set aside.
    aside: VecDeque<Position>,
    shut_down: bool,
    failed: Option<String>,
}

/// What to do about a full journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    TryAgain,
    Answer,
}

/// Why a worker was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Work,
    ShutDown,
}

impl Shared {
    /// What lies between is left over from before: it is due at once.
    pub fn new(performed: Position, pushed: Position) -> Self {
        let state = State {
            pushed,
            performed,
            wanted: pushed,
            oldest: None,
            aside: VecDeque::new(),
            shut_down: false,
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        match deadline {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    pub fn alive(&self) -> Result<(), JournalError> {
        let state = self.state();
        match &state.failed {
            Some(why) => Err(JournalError::Failed(why.clone())),
            None if state.shut_down => Err(JournalError::ShutDown),
            None => Ok(()),
        }
    }

    pub fn pushed(&self, end: Position) {
        self.change(|state| {
            state.pushed = state.pushed.max(end);
            state.oldest.get_or_insert_with(Instant::now);
        });
    }

    pub fn last(&self) -> Position {
        self.state().pushed
    }

    /// Has everything performed at once, and waits (if so wished) until something has left.
    pub fn make_room(&self, pushed: Position, wait: bool) -> Full {
        let before = self.state().performed;
        self.change(|state| state.wanted = state.wanted.max(pushed));
        if !wait {
            return Full::Answer;
        }
        let mut state = self.state();
        while state.performed == before && !state.shut_down && state.failed.is_none() {
            state = self.wait(state, None);
        }
        Full::TryAgain
    }

    pub fn shut_down(&self) {
        self.change(|state| state.shut_down = true);
    }

    pub fn fail(&self, why: String) {
        self.change(|state| state.failed = Some(why));
    }

    /// Waits until there is something to perform: wanted, or `flush_interval` old.
    pub fn next_call(&self, flush_interval: Duration) -> Call {
        let mut state = self.state();
        loop {
            if state.shut_down {
                return Call::ShutDown;
            }
            let due = state.oldest.map(|oldest| oldest + flush_interval);
            let pending = state.performed < state.pushed;
            if pending
                && (state.performed < state.wanted || due.is_some_and(|due| due <= Instant::now()))
            {
                // What comes from here on starts a wait of its own.
                state.wanted = state.wanted.max(state.pushed);
                state.oldest = None;
                return Call::Work;
            }
            state = self.wait(state, due.filter(|_| pending));
        }
    }

    /// Waits out a pause, unless a shutdown ends it.
    pub fn pause(&self, pause: Duration) -> Call {
        let deadline = Instant::now() + pause;
        let mut state = self.state();
        while !state.shut_down && Instant::now() < deadline {
            state = self.wait(state, Some(deadline));
        }
        if state.shut_down { Call::ShutDown } else { Call::Work }
    }

    pub fn is_shut_down(&self) -> bool {
        self.state().shut_down
    }

    pub fn performed(&self, end: Position) {
        self.change(|state| state.performed = end);
    }

    pub fn set_aside(&self, end: Position) {
        self.change(|state| {
            if state.aside.len() == REMEMBERED {
                state.aside.pop_front();
            }
            state.aside.push_back(end);
            state.performed = end;
        });
    }
}

/// How an entry left the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// `perform` has returned `Ok` for it.
    Performed,
    /// It was set aside.
    Aside,
}

/// Why there is nothing to wait for any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The journal was shut down: the entry is performed after the next start.
    #[error("the journal was shut down; the entry is performed when it starts again")]
    ShutDown,
    /// The journal has failed.
    #[error("the journal has failed: {0}")]
    Failed(String),
    /// Not in time.
    #[error("the entry was not performed in time")]
    TimedOut,
}

/// An entry that is durable in the journal.
#[derive(Clone)]
pub struct Ticket {
    shared: Arc<Shared>,
    end: Position,
}

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>, end: Position) -> Self {
        Self { shared, end }
    }

    /// Where the entry ends in the journal.
    pub fn position(&self) -> Position {
        self.end
    }

    /// Asks that the entry, and all before it, be performed now rather than after the flush interval. Does not wait.
    pub fn flush(&self) {
        self.shared.change(|state| state.wanted = state.wanted.max(self.end));
    }

    /// Waits until the entry has left the journal. Does not hurry it; see [`flush`](Self::flush).
    pub fn sync(&self, timeout: Option<Duration>) -> Result<Synced, SyncError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.shared.state();
        loop {
            if state.performed >= self.end {
                let aside = state.aside.contains(&self.end);
                return Ok(if aside { Synced::Aside } else { Synced::Performed });
            }
            if let Some(why) = &state.failed {
                return Err(SyncError::Failed(why.clone()));
            }
            if state.shut_down {
                return Err(SyncError::ShutDown);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(SyncError::TimedOut);
            }
            state = self.shared.wait(state, deadline);
        }
    }
}
