//! The consumer.

use crate::errors::raise;
use crate::handle::{Deadline, Shared};
use crate::info;
use crate::items::{Copies, Item, Items, Limits};
use crate::opening::{durability as named, open};
use crate::position::{Argument, Position};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use ring_address::AnyDevice;
use shared_block_ring::{Consumer, Error, Role};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// What ``Consumer`` has from Rust.
#[pyclass(module = "blockring._blockring", frozen, subclass)]
pub struct ConsumerCore {
    pub shared: Shared<Consumer<AnyDevice>>,
}

impl ConsumerCore {
    /// Reads items from `start` on, or from the first that was not advanced over.
    fn read(&self, py: Python<'_>, start: Option<Argument>, limits: Limits) -> PyResult<Copies> {
        self.shared.detached(py, |consumer| {
            let from = start.map_or(consumer.position(), |start| start.0);
            let mut copies = Copies::default();
            copies.read(consumer, from, limits).map(|()| copies)
        })
    }
}

#[pymethods]
impl ConsumerCore {
    /// Makes a handle that is not open yet: a subclass has arguments of its own.
    #[new]
    #[pyo3(signature = (*_arguments, **_keywords))]
    fn new(_arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>) -> Self {
        Self { shared: Shared::closed() }
    }

    /// Opens the ring.
    #[pyo3(signature = (
        address, queue, client, durability, sector_size, timeout, advance_every
    ))]
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
        advance_every: u64,
    ) -> PyResult<()> {
        let durability = named(durability)?;
        self.shared.open(py, || {
            let device = open(py, &address, Role::Consumer, sector_size, timeout)?;
            let attached = py.detach(|| Consumer::attach(device, queue, client));
            let mut consumer = attached.map_err(|error| raise(py, error))?;
            consumer.set_durability(durability);
            consumer.advance_every(advance_every);
            Ok(consumer)
        })
    }

    /// Returns the item at ``start``, or the first that was not advanced over: the same one every
    /// time. Raises ``Retry`` where none is published.
    #[pyo3(signature = (start=None, /))]
    fn pop(&self, py: Python<'_>, start: Option<Argument>) -> PyResult<Item> {
        let mut copies = self.read(py, start, Limits { items: 1, bytes: 0 })?;
        copies.next(py).ok_or_else(|| raise(py, Error::Retry))
    }

    /// Returns the published items from ``start`` on, or from the first that was not advanced
    /// over, as a list: at most ``max_items`` of them, with at most ``max_bytes`` of payload, but
    /// one item whatever its size. The list is empty where none is published.
    ///
    /// This is the fastest way to read many items. ``advance(items[-1].next)`` frees them.
    #[pyo3(signature = (max_items=1024, max_bytes=1_048_576, *, start=None))]
    fn take<'py>(
        &self,
        py: Python<'py>,
        max_items: usize,
        max_bytes: usize,
        start: Option<Argument>,
    ) -> PyResult<Bound<'py, PyList>> {
        self.read(py, start, Limits { items: max_items, bytes: max_bytes })?.into_list(py)
    }

    /// Frees everything before ``position``: those items are not delivered again. The position may
    /// come from an earlier consumer of the ring, such as one that a receiver has kept with its
    /// results.
    #[pyo3(signature = (position, /))]
    fn advance(&self, py: Python<'_>, position: Argument) -> PyResult<()> {
        self.shared.detached(py, |consumer| consumer.advance(position.0))
    }

    /// Waits until there is an item at ``start``, or behind all that was advanced over, and returns
    /// true; false after ``timeout`` seconds without one.
    #[pyo3(signature = (timeout=None, *, start=None))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        start: Option<Argument>,
    ) -> PyResult<bool> {
        let (deadline, start) = (Deadline::after(timeout)?, start.map(|start| start.0));
        let ready = self.shared.wait(py, &deadline, |consumer| {
            let from = start.unwrap_or(consumer.position());
            consumer.pop(from).map(drop)
        })?;
        Ok(ready.is_some())
    }

    /// Returns an iterator over the items that are published, from the first that was not advanced
    /// over on. It ends where the ring is empty.
    ///
    /// Iterating frees nothing: ``advance(item.next)`` does, for one item or many.
    fn pending(slf: &Bound<'_, Self>) -> PyResult<Items> {
        Self::items(slf, false)
    }

    /// Returns an iterator over all items, from the first that was not advanced over on. Where the
    /// ring is empty it waits, for ever.
    fn __iter__(slf: &Bound<'_, Self>) -> PyResult<Items> {
        Self::items(slf, true)
    }

    /// Writes the pointer that ``advance_every`` has kept back.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, Consumer::flush)
    }

    /// Asks the producer to stop. Raises ``Retry`` while it has not acknowledged the previous
    /// change.
    fn suspend(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, Consumer::suspend)
    }

    /// Lets the producer go on. Raises ``Retry`` as ``suspend`` does.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, Consumer::resume)
    }

    /// Returns whether the producer has acknowledged a suspend.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::state(py, self.shared.detached(py, Consumer::state)?)
    }

    /// Reads the ring's state from its sectors.
    fn debug_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::debug_info(py, self.shared.detached(py, |consumer| consumer.debug_info())?)
    }

    /// Raises ``DeviceError`` if the ring is no longer the one that was opened: removed, replaced,
    /// moved, resized or overwritten.
    fn check_presence(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, |consumer| consumer.check_presence())
    }

    /// The position of the first item that was not advanced over.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<Position> {
        self.shared.attached(py, |consumer| Ok(Position(consumer.position())))
    }

    /// The time of the last publication that this handle has seen, in nanoseconds since 1970 by the
    /// producer's clock; ``None`` before the first item, and where the producer writes no times.
    #[getter]
    fn published_ns(&self, py: Python<'_>) -> PyResult<Option<u128>> {
        self.shared.attached(py, |consumer| {
            let since = |at: std::time::SystemTime| at.duration_since(UNIX_EPOCH).ok();
            Ok(consumer.published_at().and_then(since).map(|since| since.as_nanos()))
        })
    }

    /// The bytes looked at so far that no checksum covers: a peer published them that writes none.
    #[getter]
    fn unchecked_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.shared.attached(py, |consumer| Ok(consumer.unchecked_bytes()))
    }

    /// A descriptor for event loops, readable when it is time to look at the ring again. See
    /// ``arm``.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.shared.fileno(py)
    }

    /// Prepares the descriptor of ``fileno``, after a look has found no item. Returns true if the
    /// ring is to be looked at again at once; otherwise the descriptor becomes readable when it is
    /// time.
    fn arm(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared.arm(py)
    }

    /// Writes the pointer that was kept back, gives up the role, and closes the ring. Every later
    /// call raises ``Detached``, but another ``close``.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.close(py, Consumer::flush)
    }

    /// Whether the handle was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.shared.is_closed(py)
    }
}

impl ConsumerCore {
    fn items(slf: &Bound<'_, Self>, waits: bool) -> PyResult<Items> {
        let from = slf.get().shared.attached(slf.py(), |consumer| Ok(consumer.position()))?;
        Ok(Items::new(slf.clone().unbind(), from, waits))
    }
}
