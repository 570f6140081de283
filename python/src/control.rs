//! A handle beside producer and consumer.

use crate::errors::raise;
use crate::handle::Shared;
use crate::info;
use crate::opening::open;
use pyo3::prelude::*;
use ring_address::AnyDevice;
use shared_block_ring::{Control as RingControl, Role};
use std::path::PathBuf;

/// A handle on a ring beside its producer and consumer, to look at it, to suspend and to resume it.
/// It takes no role, so there can be any number of them.
#[pyclass(module = "blockring", frozen)]
pub struct Control {
    shared: Shared<RingControl<AnyDevice>>,
}

#[pymethods]
impl Control {
    #[new]
    #[pyo3(signature = (address, *, sector_size=None, timeout=5.0))]
    #[expect(clippy::needless_pass_by_value)] // It is converted from a Python object.
    fn new(
        py: Python<'_>,
        address: PathBuf,
        sector_size: Option<u32>,
        timeout: f64,
    ) -> PyResult<Self> {
        let device = open(py, &address, Role::Control, sector_size, timeout)?;
        let opened = py.detach(|| RingControl::open(device));
        Ok(Self { shared: Shared::new(opened.map_err(|error| raise(py, error))?) })
    }

    /// Asks the producer to stop. Raises ``Retry`` while it has not acknowledged the previous
    /// change.
    fn suspend(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, RingControl::suspend)
    }

    /// Lets the producer go on. Raises ``Retry`` as ``suspend`` does.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.detached(py, RingControl::resume)
    }

    /// Returns whether the producer has acknowledged a suspend.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::state(py, self.shared.detached(py, RingControl::state)?)
    }

    /// Reads the ring's state from its sectors.
    fn debug_info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        info::debug_info(py, self.shared.detached(py, |control| control.debug_info())?)
    }

    /// Closes the ring. Every later call raises ``Detached``, but another ``close``.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.close(py, |_| Ok(()))
    }

    /// Whether the handle was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.shared.is_closed(py)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py)
    }
}
