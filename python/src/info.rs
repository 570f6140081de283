//! The state of a ring as Python has it: the classes are in `package/blockring/_state.py`.

use crate::position::Position;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use shared_block_ring::{DebugInfo, State};

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("blockring._state")?.getattr(name)
}

pub fn state(py: Python<'_>, state: State) -> PyResult<Bound<'_, PyAny>> {
    class(py, "State")?.getattr(match state {
        State::Running => "RUNNING",
        State::Suspended => "SUSPENDED",
    })
}

pub fn debug_info(py: Python<'_>, info: DebugInfo) -> PyResult<Bound<'_, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("sector_size", info.sector_size)?;
    fields.set_item("total_sectors", info.total_sectors)?;
    fields.set_item("capacity", info.capacity)?;
    fields.set_item("producer", Position(info.producer))?;
    fields.set_item("consumer", Position(info.consumer))?;
    fields.set_item("used", info.used)?;
    fields.set_item("suspend", info.suspend)?;
    fields.set_item("suspend_ack", info.suspend_ack)?;
    fields.set_item("producer_items", info.producer_items)?;
    fields.set_item("consumer_items", info.consumer_items)?;
    fields.set_item("producer_time_ns", info.producer_time_ns)?;
    fields.set_item("consumer_time_ns", info.consumer_time_ns)?;
    fields.set_item("producer_text", info.producer_text)?;
    fields.set_item("consumer_text", info.consumer_text)?;
    fields.set_item("uuid", info.uuid)?;
    class(py, "DebugInfo")?.call((), Some(&fields))
}
