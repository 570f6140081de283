//! What the worker, the pushers and the tickets know in common.

use super::JournalError;
use super::ticket::{Outcome, Synced, Ticket};
use crate::error::Error;
use crate::format::Position;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// The state, and who waits for it to change.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// The thread that performs: nothing that it does may wait for itself.
    worker: OnceLock<ThreadId>,
}

pub(super) struct State {
    /// Everything before it is durable in the journal.
    pushed: Position,
    /// Everything before it has left the journal.
    left: Position,
    /// Everything before it is to be performed without waiting for company.
    wanted: Position,
    /// When the oldest entry came that was not handed to `perform` yet.
    oldest: Option<Instant>,
    /// By the ends of entries: who wants to know how they leave. No more than there are entries.
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

    fn expect(&mut self, end: Position) -> Arc<Outcome> {
        let there = self.expected.get(&end).and_then(Weak::upgrade);
        there.unwrap_or_else(|| {
            let outcome = Arc::new(Outcome::new());
            self.expected.insert(end, Arc::downgrade(&outcome));
            outcome
        })
    }
}

/// Whether the worker is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Work,
    End,
}

/// The moment that `after` from now is, unless that is beyond all time.
pub(super) fn deadline(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}

impl Shared {
    /// What lies between is left over from before: it is due at once.
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
        // Nothing in here panics between two changes that belong together.
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

    /// The calling thread is the one that performs.
    pub fn i_am_the_worker(&self) {
        let me = std::thread::current().id();
        // A journal has one worker, which says so once.
        let _ = self.worker.set(me);
    }

    pub fn am_i_the_worker(&self) -> bool {
        self.worker.get() == Some(&std::thread::current().id())
    }

    pub fn alive(&self) -> Result<(), JournalError> {
        let state = self.state();
        match &state.failed {
            Some(why) => Err(JournalError::Failed(Arc::clone(why))),
            None if state.shut_down => Err(JournalError::ShutDown),
            None => Ok(()),
        }
    }

    /// A ticket for an entry that is about to become visible: the worker may be done with it before the pusher knows that it is.
    pub fn expect(self: &Arc<Self>, end: Position) -> Ticket {
        let outcome = self.state().expect(end);
        Ticket::new(Arc::clone(self), end, outcome)
    }

    /// It did not become visible.
    pub fn withdraw(&self, end: Position) {
        self.state().expected.remove(&end);
    }

    pub fn pushed(&self, end: Position) {
        self.change(|state| {
            state.pushed = state.pushed.max(end);
            state.oldest.get_or_insert_with(Instant::now);
        });
    }

    /// A ticket for the last entry.
    pub fn everything(self: &Arc<Self>) -> Ticket {
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

    /// Everything before it has left the journal.
    pub fn left(&self) -> Position {
        self.state().left
    }

    /// Has everything before `end` performed without waiting for company.
    pub fn want(&self, end: Position) {
        self.change(|state| state.wanted = state.wanted.max(end));
    }

    /// Waits until more has left than `left`, or nothing will. `left` is from before the look at the ring that found it full: what
    /// left since then has made room already, and may have been the last.
    pub fn wait_for_room(&self, left: Position) {
        let mut state = self.state();
        while state.left == left && !state.is_over() {
            state = self.wait(state, None);
        }
    }

    pub fn shut_down(&self) {
        self.change(|state| state.shut_down = true);
    }

    /// Ends the journal; the first reason stays.
    pub fn fail(&self, why: Error) -> Arc<Error> {
        let mut why = Arc::new(why);
        self.change(|state| why = Arc::clone(state.failed.get_or_insert(Arc::clone(&why))));
        why
    }

    /// Waits until there is something to perform: wanted, or `flush_interval` old.
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
                // What comes from here on starts a wait of its own.
                state.wanted = state.wanted.max(state.pushed);
                state.oldest = None;
                return Call::Work;
            }
            state = self.wait(state, due.filter(|_| pending));
        }
    }

    /// Waits out a pause, unless the journal's end ends it.
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

    /// Everything before `end` has left the journal, this way; `None`: elsewhere.
    pub fn leave(&self, end: Position, how: Option<Synced>) {
        self.change(|state| {
            while let Some(first) = state.expected.first_entry().filter(|e| *e.key() <= end) {
                if let Some(outcome) = first.remove().upgrade() {
                    // Nobody else sets it: entries leave once.
                    let _ = outcome.set(how);
                }
            }
            state.left = end;
            state.pushed = state.pushed.max(end);
        });
    }
}
