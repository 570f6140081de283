//! What producer, consumer and control have in common: one handle that threads share, that a forked
//! child refuses, and that is waited with.

use crate::errors::raise;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use ring_address::AnyDevice;
use shared_block_ring::device::{DeviceError, Operation};
use shared_block_ring::format::Side;
use shared_block_ring::wait::Readiness;
use shared_block_ring::{Consumer, Control, Error, Producer};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Forks that lie between the first process with this module and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Counts a fork, in the child: its copies of handles are not its own.
#[pyfunction]
#[pyo3(name = "_forked")]
pub fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The longest sleep of a wait. A handle that another thread closes wakes nobody.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A handle of the library.
pub trait Handle: Send {
    /// The side that this one waits for.
    const PEER: Side;

    fn device(&self) -> &AnyDevice;
}

impl Handle for Producer<AnyDevice> {
    const PEER: Side = Side::Consumer;

    fn device(&self) -> &AnyDevice {
        self.device()
    }
}

impl Handle for Consumer<AnyDevice> {
    const PEER: Side = Side::Producer;

    fn device(&self) -> &AnyDevice {
        self.device()
    }
}

impl Handle for Control<AnyDevice> {
    /// The producer acknowledges what a control asks for.
    const PEER: Side = Side::Producer;

    fn device(&self) -> &AnyDevice {
        self.device()
    }
}

/// A handle, and the descriptor that it is waited with.
pub struct Open<H> {
    pub handle: H,
    /// Made when it is first asked for.
    readiness: Option<Readiness>,
}

impl<H: Handle> Open<H> {
    fn readiness(&mut self) -> Result<(&H, &mut Readiness), Error> {
        let readiness = match self.readiness.take() {
            Some(readiness) => readiness,
            None => Readiness::new(H::PEER).map_err(|e| wait_failed(&self.handle, e))?,
        };
        Ok((&self.handle, self.readiness.insert(readiness)))
    }

    fn arm(&mut self) -> Result<bool, Error> {
        let (handle, readiness) = self.readiness()?;
        Ok(readiness.arm(handle.device())?)
    }

    /// Returns a duplicate of the descriptor, which another thread cannot close.
    fn descriptor(&mut self) -> Result<OwnedFd, Error> {
        let (handle, readiness) = self.readiness()?;
        readiness.as_fd().try_clone_to_owned().map_err(|e| wait_failed(handle, e))
    }
}

fn wait_failed<H: Handle>(handle: &H, error: io::Error) -> Error {
    DeviceError::new(handle.device().name(), Operation::Wait, error).into()
}

/// A handle that the threads of a process share: one call at a time.
pub struct Shared<H> {
    /// `None` when it was closed.
    open: Mutex<Option<Open<H>>>,
    /// The value of [`FORKS`] in the process that has opened it.
    forks: AtomicU64,
    /// Times that the handle was superseded, or closed: positions from before are not its own.
    lives: AtomicU64,
}

/// The end of a wait.
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Makes the end of a wait of so many seconds; without them it has none.
    pub fn after(seconds: Option<f64>) -> PyResult<Self> {
        let Some(seconds) = seconds else { return Ok(Self(None)) };
        if seconds.is_nan() {
            return Err(PyValueError::new_err("a timeout is a number of seconds, or None"));
        }
        // A time that no clock can count is none.
        let timeout = Duration::try_from_secs_f64(seconds.max(0.0)).ok();
        Ok(Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout))))
    }

    pub fn never() -> Self {
        Self(None)
    }

    /// Makes the end of a wait that only looks at the ring once.
    pub fn now() -> Self {
        Self(Some(Instant::now()))
    }

    fn is_over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    fn left(&self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(Instant::now()))
    }
}

/// What a look at the ring has found.
enum Look<T> {
    Done(T),
    /// Look again at once.
    Again,
    /// Look again when the descriptor is readable.
    Later,
    /// The time is over.
    Over,
}

impl<H: Handle> Shared<H> {
    pub fn new(handle: H) -> Self {
        let shared = Self::closed();
        *shared.open.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Open { handle, readiness: None });
        shared
    }

    /// Makes one that is not open yet.
    pub fn closed() -> Self {
        let forks = AtomicU64::new(FORKS.load(Ordering::Relaxed));
        Self { open: Mutex::new(None), forks, lives: AtomicU64::new(0) }
    }

    /// Opens what was made [closed](Self::closed), with what `attach` returns.
    pub fn open(&self, py: Python<'_>, attach: impl FnOnce() -> Result<H, PyErr>) -> PyResult<()> {
        let is_open = || PyRuntimeError::new_err("it is open already: close it, and make another");
        if !self.is_closed(py) {
            return Err(is_open());
        }
        let handle = attach()?;
        let open = self.open.lock_py_attached(py);
        let mut open = open.map_err(|_| raise(py, Error::Failed))?;
        if open.is_some() {
            return Err(is_open());
        }
        self.forks.store(FORKS.load(Ordering::Relaxed), Ordering::Relaxed);
        *open = Some(Open { handle, readiness: None });
        Ok(())
    }

    /// Calls `f` on the handle, with the interpreter's lock held throughout: `f` must not call into
    /// Python, which could come back to this handle.
    pub fn attached<T>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut H) -> Result<T, Error>,
    ) -> PyResult<T> {
        self.with(py, |open| f(&mut open.handle))
    }

    /// Calls `f` on the handle, without the interpreter's lock.
    pub fn detached<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut H) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.with(py, |open| py.detach(|| f(&mut open.handle)))
    }

    fn with<T>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Open<H>) -> Result<T, Error>,
    ) -> PyResult<T> {
        if self.is_foreign() {
            // The lock may be held for ever, by a thread that the child has not got.
            return Err(raise(py, Error::Detached));
        }
        let outcome = match self.open.lock_py_attached(py) {
            Ok(mut open) => open.as_mut().ok_or(Error::Detached).and_then(f),
            // A call has panicked: nobody knows what it has left.
            Err(_) => Err(Error::Failed),
        };
        outcome.map_err(|error| {
            if matches!(error, Error::Superseded { .. }) {
                self.lives.fetch_add(1, Ordering::Relaxed);
            }
            raise(py, error)
        })
    }

    /// Returns how often the handle was superseded.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::Relaxed)
    }

    /// Returns whether this process is a forked child of the one that has opened the handle.
    fn is_foreign(&self) -> bool {
        self.forks.load(Ordering::Relaxed) != FORKS.load(Ordering::Relaxed)
    }

    /// Closes the handle, by `last` first. A second time there is nothing to do.
    pub fn close(
        &self,
        py: Python<'_>,
        last: impl FnOnce(&mut H) -> Result<(), Error> + Send,
    ) -> PyResult<()> {
        if self.is_foreign() {
            return Ok(());
        }
        let Ok(mut open) = self.open.lock_py_attached(py) else { return Ok(()) };
        let Some(mut open) = open.take() else { return Ok(()) };
        // What an iterator has read ahead ends with the handle, too.
        self.lives.fetch_add(1, Ordering::Relaxed);
        let outcome = py.detach(move || {
            let outcome = last(&mut open.handle);
            drop(open);
            outcome
        });
        outcome.map_err(|error| raise(py, error))
    }

    pub fn is_closed(&self, py: Python<'_>) -> bool {
        self.is_foreign() || self.open.lock_py_attached(py).is_ok_and(|open| open.is_none())
    }

    /// Calls `look` until it does not answer that the other side has to move first, and sleeps in
    /// between, without the interpreter's lock and without the handle's. Returns `None` when the
    /// time is over.
    ///
    /// A signal ends the sleep: Python's handler runs, and what it raises ends the wait.
    pub fn wait<T: Send>(
        &self,
        py: Python<'_>,
        deadline: &Deadline,
        mut look: impl FnMut(&mut H) -> Result<T, Error> + Send,
    ) -> PyResult<Option<T>> {
        let mut descriptor = None;
        loop {
            let (look, fd) = (&mut look, &mut descriptor);
            let found = self.with(py, |open| {
                py.detach(|| match look(&mut open.handle) {
                    Ok(value) => Ok(Look::Done(value)),
                    Err(e) if e.is_transient() => {
                        // Not armed before the last look: the answer to that is another look.
                        if deadline.is_over() {
                            return Ok(Look::Over);
                        }
                        if open.arm()? {
                            return Ok(Look::Again);
                        }
                        if fd.is_none() {
                            *fd = Some(open.descriptor()?);
                        }
                        Ok(Look::Later)
                    }
                    Err(e) => Err(e),
                })
            })?;
            match found {
                Look::Done(value) => return Ok(Some(value)),
                Look::Over => return Ok(None),
                Look::Again => {}
                Look::Later => {
                    let left = deadline.left();
                    let sleep = left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP));
                    let descriptor = &descriptor;
                    py.detach(|| pause(descriptor.as_ref(), sleep))?;
                }
            }
            py.check_signals()?;
        }
    }

    /// Prepares the descriptor for the next look: see `Readiness::arm`.
    pub fn arm(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |open| py.detach(|| open.arm()))
    }

    pub fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, |open| open.readiness().map(|(_, readiness)| readiness.as_raw_fd()))
    }
}

/// Sleeps until the descriptor is readable, a signal comes, or the time is over.
fn pause(descriptor: Option<&OwnedFd>, sleep: Duration) -> io::Result<()> {
    let Some(descriptor) = descriptor else { return Ok(()) };
    // Rounded up: a wait for less than a millisecond would be none.
    let sleep = u16::try_from(sleep.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::from(sleep)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A forked child's copy is left as it is: to give up its role would be to give up its parent's.
impl<H> Drop for Shared<H> {
    fn drop(&mut self) {
        if *self.forks.get_mut() != FORKS.load(Ordering::Relaxed) {
            let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(open.take());
        }
    }
}
