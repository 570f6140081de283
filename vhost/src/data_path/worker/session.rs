//! The queues that are open during a turn.
//!
//! A queue is opened when it has something to do, and the others when the turn goes on: a turn for
//! one request costs the same beside any number of idle queues.

use super::step::Progress;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::executor::Replay;
use crate::data_path::queue::{Broken, SplitQueue};
use crate::data_path::queue_set::QueueSet;
use crate::data_path::shared_queue::{Memory, SharedQueue};
use std::sync::MutexGuard;
use vhost_user_backend::VringState;

/// One open queue.
pub(super) struct Open<'a> {
    pub number: usize,
    pub shared: &'a SharedQueue,
    /// The queue's lock. Its indices are current only after [`close`](Self::close).
    pub state: MutexGuard<'a, VringState<Memory>>,
    pub split: SplitQueue<'a>,
}

/// Opens a running queue.
///
/// # Errors
///
/// It cannot be served.
#[inline]
pub(super) fn open<'a>(
    shared: &SharedQueue,
    state: &VringState<Memory>,
    memory: &'a GuestMemory,
    progress: &mut Progress,
) -> Result<SplitQueue<'a>, Broken> {
    if shared.has_invalid_size() {
        return Err(Broken::Size);
    }
    let mut split = SplitQueue::open(state.get_queue(), memory, progress.signalled)?;
    if progress.signalled.is_none() {
        progress.replay = Replay::at_start(split.has_next()?);
    }
    split.suppress_kicks()?;
    Ok(split)
}

impl Open<'_> {
    /// Ends the use of the queue in this turn.
    pub fn close(&mut self, progress: &mut Progress) {
        self.split.close(self.state.get_queue_mut());
        progress.signalled = self.split.signalled();
    }
}

/// The open queues, and what the others can be opened with.
pub(super) struct Session<'a> {
    pub queues: &'a [SharedQueue],
    pub memory: &'a GuestMemory,
    /// The queues that were opened, or could not be.
    pub tried: QueueSet,
    /// Alone in most turns, which then allocate nothing and end with one comparison.
    first: Option<Open<'a>>,
    others: Option<Box<Others<'a>>>,
    len: usize,
}

/// The open queues but the first one.
#[derive(Default)]
struct Others<'a>(Vec<Open<'a>>);

impl<'a> Session<'a> {
    /// Without an open queue.
    pub fn new(queues: &'a [SharedQueue], memory: &'a GuestMemory) -> Self {
        let (tried, first, others) = (QueueSet::EMPTY, None, None);
        Self { queues, memory, tried, first, others, len: 0 }
    }

    /// The number of open queues.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds an open queue in the last place.
    #[inline]
    pub fn push(&mut self, open: Open<'a>) {
        if self.first.is_none() {
            self.first = Some(open);
        } else {
            self.others.get_or_insert_default().0.push(open);
        }
        self.len += 1;
    }

    /// The open queue in a place, if it has one.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut Open<'a>> {
        match place.checked_sub(1) {
            None => self.first.as_mut(),
            Some(place) => self.others.as_mut()?.0.get_mut(place),
        }
    }

    /// Takes out the open queue in a place, which the last one then has.
    pub fn take(&mut self, place: usize) -> Option<Open<'a>> {
        if place >= self.len {
            return None;
        }
        self.len -= 1;
        let last = self.others.as_mut().and_then(|others| others.0.pop());
        match self.get_mut(place) {
            Some(open) => match last {
                Some(last) => Some(std::mem::replace(open, last)),
                None => self.first.take(),
            },
            None => last,
        }
    }

    /// Ends the use of the open queues.
    #[inline]
    pub fn close(&mut self, progress: &mut [Progress]) {
        if let Some(open) = &mut self.first {
            open.close(&mut progress[open.number]);
        }
        if let Some(others) = &mut self.others {
            others.close(progress);
        }
    }
}

impl Others<'_> {
    fn close(&mut self, progress: &mut [Progress]) {
        for open in &mut self.0 {
            open.close(&mut progress[open.number]);
        }
    }
}
