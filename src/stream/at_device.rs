//! A handle of a ring and its calls, which run where the runtime runs blocking calls.

use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::wait::Readiness;
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, spawn_blocking};

/// A handle with its wait, which are used together.
pub(super) struct Attached<H> {
    pub handle: H,
    readiness: AsyncFd<Readiness>,
}

impl<H> Attached<H> {
    /// Prepares the wait on the handle's device. Returns whether the ring is to be looked at again
    /// first.
    pub fn arm<D: RingDevice>(&mut self, device: impl FnOnce(&H) -> &D) -> Result<bool> {
        Ok(self.readiness.get_mut().arm(device(&self.handle))?)
    }
}

/// Where the handle is.
enum Place<H, T> {
    Here(Box<Attached<H>>),
    /// In a call, which gives it back with its result.
    AtDevice(JoinHandle<(Box<Attached<H>>, T)>),
    /// Nowhere: the runtime was shut down before the call began.
    Gone,
}

/// A handle, of which at most one call is under way.
pub(super) struct AtDevice<H, T> {
    place: Place<H, T>,
}

/// Nothing is pinned in it: a handle moves to the device and back.
impl<H, T> Unpin for AtDevice<H, T> {}

impl<H: fmt::Debug, T> fmt::Debug for AtDevice<H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Here(attached) => attached.handle.fmt(f),
            Place::AtDevice(_) => f.write_str("(at the device)"),
            Place::Gone => f.write_str("(gone)"),
        }
    }
}

impl<H: Send + 'static, T: Send + 'static> AtDevice<H, T> {
    pub fn new(handle: H, readiness: Readiness) -> io::Result<Self> {
        // SAFETY: the readiness owns its descriptor, which is the same one until the readiness is
        // dropped, by the `AsyncFd` that owns it. Nobody puts another one in its place: `arm` alone
        // borrows it.
        let readiness = unsafe { AsyncFd::register(readiness) }?;
        Ok(Self { place: Place::Here(Box::new(Attached { handle, readiness })) })
    }

    /// Begins a call. There is none under way: [`poll_result`](Self::poll_result) has said so.
    pub fn begin(&mut self, call: impl FnOnce(&mut Attached<H>) -> T + Send + 'static) {
        match std::mem::replace(&mut self.place, Place::Gone) {
            Place::Here(mut attached) => {
                self.place = Place::AtDevice(spawn_blocking(move || {
                    let result = call(&mut attached);
                    (attached, result)
                }));
            }
            other => self.place = other,
        }
    }

    /// Waits for the call that is under way, and returns its result; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Detached`] if the handle is gone.
    pub fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>>> {
        let call = match &mut self.place {
            Place::Here(_) => return Poll::Ready(Ok(None)),
            Place::Gone => return Poll::Ready(Err(Error::Detached)),
            Place::AtDevice(call) => call,
        };
        match ready!(Pin::new(call).poll(cx)) {
            Ok((attached, result)) => {
                self.place = Place::Here(attached);
                Poll::Ready(Ok(Some(result)))
            }
            Err(e) => {
                self.place = Place::Gone;
                match e.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_) => Poll::Ready(Err(Error::Detached)),
                }
            }
        }
    }

    /// Waits until it is time to look at the ring again, after [`Attached::arm`] has prepared for
    /// it and while no call is under way.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Place::Here(attached) = &mut self.place else { return Poll::Ready(Ok(())) };
        // What becomes readable from here on is seen by the next look, or by the wait behind it.
        ready!(attached.readiness.poll_read_ready_mut(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Takes the handle, if no call is under way.
    pub fn take(&mut self) -> Option<H> {
        match std::mem::replace(&mut self.place, Place::Gone) {
            Place::Here(attached) => Some(attached.handle),
            other => {
                self.place = other;
                None
            }
        }
    }
}
