//! The queues that are open during a turn.
//!
//! A queue is opened when it has something to do, and the others when the turn goes on: a turn for
//! one request costs the same beside any number of idle queues.

use super::step::Progress;
use crate::data_path::dirty::GuestMemory;
use crate::data_path::executor::Told;
use crate::data_path::queue::{Broken, SplitQueue};
use crate::data_path::queue_set::QueueSet;
use crate::data_path::shared_queue::{Memory, SharedQueue};
use smallvec::SmallVec;
use std::sync::MutexGuard;
use vhost_user_backend::VringState;

/// Open queues without an allocation: more vCPUs than most guests have.
const FEW: usize = 4;

/// One open queue.
pub(super) struct Open<'a> {
    pub number: usize,
    pub shared: &'a SharedQueue,
    /// The queue's lock. Its indices are current only after [`close`](Self::close).
    pub state: MutexGuard<'a, VringState<Memory>>,
    pub split: SplitQueue<'a>,
}

impl<'a> Open<'a> {
    /// Opens a running queue whose lock is `state`.
    ///
    /// # Errors
    ///
    /// It cannot be served.
    pub fn new(
        number: usize,
        shared: &'a SharedQueue,
        state: MutexGuard<'a, VringState<Memory>>,
        memory: &'a GuestMemory,
        progress: &mut Progress,
    ) -> Result<Self, (Broken, MutexGuard<'a, VringState<Memory>>)> {
        let opened = if shared.has_invalid_size() {
            Err(Broken::Size)
        } else {
            SplitQueue::open(state.get_queue(), memory, progress.signalled)
        };
        let ready = opened.and_then(|mut split| {
            if progress.signalled.is_none() {
                progress.told = Told::at_start(split.has_next()?);
            }
            split.suppress_kicks()?;
            Ok(split)
        });
        match ready {
            Ok(split) => Ok(Self { number, shared, state, split }),
            Err(broken) => Err((broken, state)),
        }
    }

    /// Ends the use of the queue in this turn.
    pub fn close(mut self, progress: &mut Progress) -> MutexGuard<'a, VringState<Memory>> {
        self.split.close(self.state.get_queue_mut());
        progress.signalled = self.split.signalled();
        self.state
    }
}

/// The open queues, and what the others can be opened with.
pub(super) struct Session<'a> {
    pub queues: &'a [SharedQueue],
    pub memory: &'a GuestMemory,
    pub open: SmallVec<[Open<'a>; FEW]>,
    /// The queues that were opened, or could not be.
    pub tried: QueueSet,
}
