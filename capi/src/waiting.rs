//! Waits of the handles: the library's `Wait` and `Readiness`, and a look at the ring between two
//! pauses.

use crate::border::Answer;
use crate::code::Fault;
use ring_address::AnyDevice;
use shared_block_ring::device::{DeviceError, Operation};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Readiness, Wait, Woken};
use shared_block_ring::{BlockDevice, Error, State};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Returns the timeout of a wait; none for a negative number.
pub fn timeout(milliseconds: i64) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// Looks at the ring until that is no longer answered by a transient error, and pauses in between.
pub fn wait_until<H>(
    handle: &mut H,
    mut wait: Wait,
    interrupt: Option<BorrowedFd<'_>>,
    device: impl Fn(&H) -> &AnyDevice,
    mut look: impl FnMut(&mut H) -> shared_block_ring::Result<()>,
) -> Answer<()> {
    loop {
        match look(handle) {
            Err(e) if e.is_transient() => {}
            other => return Ok(other?),
        }
        match wait.pause(device(handle), interrupt.as_slice())? {
            Woken::Elapsed => {}
            Woken::TimedOut => return Err(Fault::TimedOut),
            Woken::Readable(_) => return Err(Fault::Interrupted),
        }
    }
}

/// Returns the error of a look that has not found the state that it waits for.
pub fn expect_state(state: State, suspended: bool) -> shared_block_ring::Result<()> {
    if (state == State::Suspended) == suspended { Ok(()) } else { Err(Error::Retry) }
}

/// The descriptor of a handle, from the first call that asks for it.
#[derive(Debug, Default)]
pub struct Descriptor(Option<Readiness>);

impl Descriptor {
    /// Returns the descriptor, which becomes readable when `peer` moves.
    pub fn number(&mut self, peer: Side, device: &AnyDevice) -> Answer<i32> {
        if let Some(readiness) = &self.0 {
            return Ok(readiness.as_raw_fd());
        }
        let failed = |e| DeviceError::new(device.name(), Operation::Wait, e);
        let readiness = Readiness::new(peer).map_err(failed)?;
        Ok(self.0.insert(readiness).as_raw_fd())
    }

    /// Prepares the descriptor, and returns whether to look at the ring again at once.
    pub fn arm(&mut self, device: &AnyDevice) -> Answer<bool> {
        let none = "there is no descriptor to prepare: ask for it first";
        Ok(self.0.as_mut().ok_or(Fault::Argument(none))?.arm(device)?)
    }

    /// Refuses a wait beside the descriptor: the wait could connect to another backend unseen.
    pub fn refuse_wait(&self) -> Answer<()> {
        match self.0 {
            None => Ok(()),
            Some(_) => Err(Fault::Argument("the handle has a descriptor: wait for that")),
        }
    }
}
