//! Kicks of a queue in which nothing was ever offered: a driver kicks after it has offered
//! something, so the memory that the front end shares may not be the guest's.

use std::time::{Duration, Instant};

/// How long a guest may kick an empty queue before that is logged. VMMs kick once by themselves; a
/// driver has its first request within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How VMMs share a guest's memory.
pub const HOW_TO_SHARE: &str = "QEMU: -object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem; libvirt: \
                                <memoryBacking> with <source type='memfd'/> and <access mode='shared'/>";

/// Whether the guest kicks an empty queue.
#[derive(Debug, Clone, Copy)]
pub enum EmptyKicks {
    /// It does not.
    None,
    /// It has kicked one. That is logged at this time, unless something is offered before.
    LogAt(Instant),
    /// It was logged.
    Logged,
}

impl EmptyKicks {
    /// Returns the state after a turn; `kicked` says whether a kick has led to it. `is_untouched`
    /// tells whether the queue runs and nothing was ever offered in it: it is called only where
    /// that matters.
    #[must_use]
    pub fn after_turn(self, kicked: bool, is_untouched: impl Fn() -> bool) -> Self {
        match self {
            Self::None if kicked && is_untouched() => Self::LogAt(Instant::now() + PATIENCE),
            Self::None => Self::None,
            Self::LogAt(_) | Self::Logged if !is_untouched() => Self::None,
            Self::LogAt(at) if Instant::now() >= at => {
                log::warn!(
                    "the guest kicks its queue, and nothing is in it: if it hangs, its memory is not what is shared ({HOW_TO_SHARE})"
                );
                Self::Logged
            }
            state => state,
        }
    }

    /// When the state has to be looked at again, if nothing happens.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Self::LogAt(at) => Some(at),
            Self::None | Self::Logged => None,
        }
    }
}
