//! The producer.

use crate::errors::raise;
use crate::handle::{Deadline, Shared};
use crate::info;
use crate::items::{Payloads, payload};
use crate::opening::{durability as named, open};
use crate::position::{Argument, Position};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use ring_address::AnyDevice;
use shared_block_ring::{Error, Position as RingPosition, Producer, Role};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// What ``Producer`` has from Rust.
#[pyclass(module = "blockring._blockring", frozen, subclass)]
pub struct ProducerCore {
    shared: Shared<Producer<AnyDevice>>,
}

/// Publishes what was pushed before `end`, unless another thread has done so.
fn publish(producer: &mut Producer<AnyDevice>, end: RingPosition) -> Result<(), Error> {
    if end <= producer.in_doubt().start { Ok(()) } else { producer.advance(end) }
}

#[pymethods]
impl ProducerCore {
    /// Makes a handle that is not open yet: a subclass has arguments of its own.
    #[new]
    #[pyo3(signature = (*_arguments, **_keywords))]
    fn new(_arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>) -> Self {
        Self { shared: Shared::closed() }
    }

    /// Opens the ring.
    #[pyo3(signature = (address, queue, client, durability, sector_size, timeout))]
    #[expect(clippy::needless_pass_by_value)] // It is converted from a Python object.
    #[expect(clippy::too_many_arguments)] // Python's have names.
    fn _open(
        &self,
        py: Python<'_>,
        address: PathBuf,
        queue: &str,
        client: &str,
        durability: &str,
        sector_size: Option<u32>,
        timeout: f64,
    ) -> PyResult<()> {
        let durability = named(durability)?;
        self.shared.open(py, || {
            let device = open(py, &address, Role::Producer, sector_size, timeout)?;
            let attached = py.detach(|| Producer::attach(device, queue, client));
            let mut producer = attached.map_err(|error| raise(py, error))?;
            producer.set_durability(durability);
            Ok(producer)
        })
    }

    /// Adds an item behind those pushed before, and returns the position to advance to. The
    /// consumer does not see the item before ``advance``.
    ///
    /// ``item`` is ``bytes``, or anything else with a buffer (``bytearray``, ``memoryview``, …),
    /// which is copied first.
    #[pyo3(signature = (item, /))]
    fn push(&self, item: &Bound<'_, PyAny>) -> PyResult<Position> {
        let py = item.py();
        let payload = payload(item)?;
        let items = [payload.as_bytes()];
        self.push_slices(py, &items)
    }

    /// Pushes items, all or none of them, and returns the position to advance to.
    #[pyo3(signature = (items, /))]
    fn push_batch(&self, items: &Bound<'_, PyAny>) -> PyResult<Position> {
        let payloads = Payloads::of(items)?;
        self.push_slices(items.py(), &payloads.slices())
    }

    /// Pushes as many of the items as there is room for, at least one. Returns how many, and the
    /// position to advance to.
    #[pyo3(signature = (items, /))]
    fn push_some(&self, items: &Bound<'_, PyAny>) -> PyResult<(usize, Position)> {
        let payloads = Payloads::of(items)?;
        let slices = payloads.slices();
        let (pushed, end) = self.shared.detached(items.py(), |p| p.push_some(&slices))?;
        Ok((pushed, Position(end)))
    }

    /// Publishes everything pushed before ``position``, or all that was pushed: from then on it
    /// survives any crash, and the consumer sees it.
    ///
    /// While the ring is suspended this raises ``Suspended``; what was pushed stays, and can be
    /// advanced over after the resume.
    #[pyo3(signature = (position=None, /))]
    fn advance(&self, py: Python<'_>, position: Option<Argument>) -> PyResult<()> {
        self.shared.detached(py, |producer| {
            let to = position.map_or(producer.position(), |to| to.0);
            producer.advance(to)
        })
    }

    /// Pushes one item, or an iterable of them as one batch, and publishes it; waits as long as
    /// there is no room or the ring is suspended, ``timeout`` seconds at most. Returns the
    /// position behind the batch.
    ///
    /// If it raises (``TimeoutError``, ``KeyboardInterrupt``, …), nothing was published and nothing
    /// was pushed, with one exception: where the consumer has suspended the ring in between, the
    /// batch is pushed, and ``unpublished`` says so. To send it again would double it;
    /// ``advance()`` publishes it.
    #[pyo3(signature = (items, timeout=None))]
    fn send(&self, items: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<Position> {
        let deadline = Deadline::after(timeout)?;
        let payloads = Payloads::of_one_or_more(items)?;
        let slices = payloads.slices();
        let mut pushed = None;
        let sent = self.shared.wait(items.py(), &deadline, |producer| {
            let end = match pushed {
                Some(end) => end,
                None => *pushed.insert(producer.push_batch(&slices)?),
            };
            publish(producer, end).map(|()| end)
        })?;
        let late = || PyTimeoutError::new_err("the ring has stayed full or suspended");
        sent.map(Position).ok_or_else(late)
    }

    /// Publishes what was pushed before ``position``, unless that is published already.
    #[pyo3(signature = (position, /))]
    fn _publish(&self, py: Python<'_>, position: Argument) -> PyResult<()> {
        self.shared.detached(py, |producer| publish(producer, position.0))
    }

    /// Waits until there is room for an item of ``size`` bytes and the ring is not suspended, and
    /// returns true; false after ``timeout`` seconds without that.
    #[pyo3(signature = (timeout=None, size=0))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>, size: usize) -> PyResult<bool> {
        let deadline = Deadline::after(timeout)?;
        let ready = self.shared.wait(py, &deadline, |producer| {
            // Room that is not committed to stays free.
            producer.reserve(size).map(drop)
        })?;
        Ok(ready.is_some())
    }

    /// Makes durable what was advanced over and, still unpublished, what was pushed beyond that.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, Producer::flush)
    }

    /// Looks at the ring, acknowledges a suspend or resume, and returns whether the ring is
    /// suspended.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::state(py, self.shared.detached(py, Producer::state)?)
    }

    /// Reads the ring's state from its sectors.
    fn debug_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::debug_info(py, self.shared.detached(py, |producer| producer.debug_info())?)
    }

    /// Raises ``DeviceError`` if the ring is no longer the one that was opened: removed, replaced,
    /// moved, resized or overwritten.
    fn check_presence(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, |producer| producer.check_presence())
    }

    /// The position of the next item to be pushed.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<Position> {
        self.shared.attached(py, |producer| Ok(Position(producer.position())))
    }

    /// Bytes that were pushed, framing included, and are not published.
    #[getter]
    fn unpublished(&self, py: Python<'_>) -> PyResult<u64> {
        self.shared.attached(py, |producer| {
            let published = producer.in_doubt().start;
            Ok(producer.position().since(published).unwrap_or(0))
        })
    }

    /// The two positions between which an ``advance`` that has failed may have published items all
    /// the same. They are equal if it has not.
    #[getter]
    fn in_doubt(&self, py: Python<'_>) -> PyResult<(Position, Position)> {
        self.shared.attached(py, |producer| {
            let range = producer.in_doubt();
            Ok((Position(range.start), Position(range.end)))
        })
    }

    /// A descriptor for event loops, readable when it is time to look at the ring again. See
    /// ``arm``.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.shared.fileno(py)
    }

    /// Prepares the descriptor of ``fileno``, after a call has raised ``Retry`` or ``Suspended``.
    /// Returns true if that call is to be made again at once; otherwise the descriptor becomes
    /// readable when it is time.
    fn arm(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared.arm(py)
    }

    /// Gives up the role, and closes the ring. What was pushed and not advanced over is gone.
    /// Every later call raises ``Detached``, but another ``close``.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.close(py, |_| Ok(()))
    }

    /// Whether the handle was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.shared.is_closed(py)
    }
}

impl ProducerCore {
    fn push_slices(&self, py: Python<'_>, items: &[&[u8]]) -> PyResult<Position> {
        // Usually this is a copy in memory, which takes less time than to give up the lock.
        let pushed = self.shared.attached(py, |producer| Ok(producer.push_in_memory(items)))?;
        let end = match pushed {
            Some(end) => end,
            None => self.shared.detached(py, |producer| producer.push_batch(items))?,
        };
        Ok(Position(end))
    }
}
