//! State that the worker, the pushes and the tickets of a journal share.

use super::JournalError;
use super::ticket::{Outcome, Synced, Ticket};
use crate::error::Error;
use crate::format::Position;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// The state of a journal, with waits for its changes.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// The thread that performs: nothing on it may wait for itself.
    worker: OnceLock<ThreadId>,
}

pub(super) struct State {
    /// The end of the entries that are durable in the journal.
    pushed: Position,
    /// The end of the entries that have left the journal.
    left: Position,
    /// The end of the entries that are to be performed without a wait for others.
    wanted: Position,
    /// The time of the oldest push whose entry was not handed to `perform` yet.
    oldest: Option<Instant>,
    /// The outcomes that tickets wait for, by the ends of their entries: no more than there are
    /// entries.
    expected: BTreeMap<Position, Weak<Outcome>>,
    shut_down: bool,
    failed: Option<Arc<Error>>,
}

impl State {
    fn is_over(&self) -> bool {
        self.shut_down || self.failed.is_some()
    }

    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    pub fn failed(&self) -> Option<&Arc<Error>> {
        self.failed.as_ref()
    }

    /// Returns the outcome of the entry that ends at `end`.
    fn expect(&mut self, end: Position) -> Arc<Outcome> {
        let there = self.expected.get(&end).and_then(Weak::upgrade);
        there.unwrap_or_else(|| {
            let outcome = Arc::new(Outcome::new());
            self.expected.insert(end, Arc::downgrade(&outcome));
            outcome
        })
    }
}

/// What the worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// Perform entries.
    Work,
    /// End.
    End,
}

/// Returns the time `after` from now; `None` if no clock reaches it.
pub(super) fn deadline(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}

impl Shared {
    /// Makes the state of a journal whose entries between `left` and `pushed` are left from an
    /// earlier run: they are due at once.
    pub fn new(left: Position, pushed: Position) -> Self {
        let state = State {
            pushed,
            left,
            wanted: pushed,
            oldest: None,
            expected: BTreeMap::new(),
            shut_down: false,
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), worker: OnceLock::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    pub fn wait<'a>(
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

    /// Notes that the calling thread is the one that performs.
    pub fn set_worker(&self) {
        let me = std::thread::current().id();
        // A journal has one worker, which calls this once.
        let _ = self.worker.set(me);
    }

    /// Returns whether the calling thread is the one that performs.
    pub fn is_worker(&self) -> bool {
        self.worker.get() == Some(&std::thread::current().id())
    }

    /// Refuses if the journal has failed or was shut down.
    pub fn alive(&self) -> Result<(), JournalError> {
        let state = self.state();
        match &state.failed {
            Some(why) => Err(JournalError::Failed(Arc::clone(why))),
            None if state.shut_down => Err(JournalError::ShutDown),
            None => Ok(()),
        }
    }

    /// Returns a ticket for an entry that is about to be published: the worker may have performed
    /// it before the push returns.
    pub fn expect(self: &Arc<Self>, end: Position) -> Ticket {
        let outcome = self.state().expect(end);
        Ticket::new(Arc::clone(self), end, outcome)
    }

    /// Forgets the ticket of an entry that was not published.
    pub fn withdraw(&self, end: Position) {
        self.state().expected.remove(&end);
    }

    /// Notes that everything before `end` is durable in the journal.
    pub fn pushed(&self, end: Position) {
        self.change(|state| {
            state.pushed = state.pushed.max(end);
            state.oldest.get_or_insert_with(Instant::now);
        });
    }

    /// Returns a ticket for the last entry.
    pub fn ticket_for_all(self: &Arc<Self>) -> Ticket {
        let mut state = self.state();
        let end = state.pushed;
        let outcome = if state.left < end {
            state.expect(end)
        } else {
            Arc::new(Outcome::from(Some(Synced::Performed)))
        };
        drop(state);
        Ticket::new(Arc::clone(self), end, outcome)
    }

    /// Returns the end of the entries that have left the journal.
    pub fn left(&self) -> Position {
        self.state().left
    }

    /// Has everything before `end` performed without a wait for others.
    pub fn want(&self, end: Position) {
        self.change(|state| state.wanted = state.wanted.max(end));
    }

    /// Waits until more entries have left than `left`, or none will. `left` is from before the look
    /// at the ring that found it full: an entry that left since then has made room, and may have
    /// been the last.
    pub fn wait_for_room(&self, left: Position) {
        let mut state = self.state();
        while state.left == left && !state.is_over() {
            state = self.wait(state, None);
        }
    }

    /// Asks for the end of the journal.
    pub fn shut_down(&self) {
        self.change(|state| state.shut_down = true);
    }

    /// Ends the journal because of an error, and returns the first such error.
    pub fn fail(&self, why: Error) -> Arc<Error> {
        let mut why = Arc::new(why);
        self.change(|state| why = Arc::clone(state.failed.get_or_insert(Arc::clone(&why))));
        why
    }

    /// Waits until entries are to be performed: because they are wanted, or `flush_interval` old.
    pub fn next_call(&self, flush_interval: Duration) -> Call {
        let mut state = self.state();
        loop {
            if state.is_over() {
                return Call::End;
            }
            let due = state.oldest.and_then(|oldest| oldest.checked_add(flush_interval));
            let pending = state.left < state.pushed;
            if pending
                && (state.left < state.wanted || due.is_some_and(|due| due <= Instant::now()))
            {
                // Later entries start a wait of their own.
                state.wanted = state.wanted.max(state.pushed);
                state.oldest = None;
                return Call::Work;
            }
            state = self.wait(state, due.filter(|_| pending));
        }
    }

    /// Waits for `pause`, or until the journal ends.
    pub fn pause(&self, pause: Duration) -> Call {
        let deadline = deadline(pause);
        let mut state = self.state();
        while !state.is_over() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            state = self.wait(state, deadline);
        }
        if state.is_over() { Call::End } else { Call::Work }
    }

    pub fn is_over(&self) -> bool {
        self.state().is_over()
    }

    /// Notes that everything before `end` has left the journal: `how`, or by another instance
    /// (`None`).
    pub fn leave(&self, end: Position, how: Option<Synced>) {
        self.change(|state| {
            while let Some(first) = state.expected.first_entry().filter(|e| *e.key() <= end) {
                if let Some(outcome) = first.remove().upgrade() {
                    // It is set once, since an entry leaves once.
                    let _ = outcome.set(how);
                }
            }
            state.left = end;
            state.pushed = state.pushed.max(end);
        });
    }
}
