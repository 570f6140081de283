//! The library's errors as exceptions.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};
use shared_block_ring::Error;
use shared_block_ring::format::FormatError;

use crate::position::Position;

/// Returns the exception for `error`.
#[expect(clippy::needless_pass_by_value)] // For `map_err`.
pub fn raise(py: Python<'_>, error: Error) -> PyErr {
    exception(py, &error).unwrap_or_else(|failure| failure)
}

/// Name of the class in `package/blockring/_errors.py`. Errors of the library that it lacks have
/// the base class.
fn class_of(error: &Error) -> &'static str {
    match error {
        Error::Retry => "Retry",
        Error::Suspended => "Suspended",
        Error::Detached => "Detached",
        Error::Failed => "Failed",
        Error::Superseded { .. } => "Superseded",
        Error::TooLarge { .. } => "TooLarge",
        Error::InvalidAdvance { .. } => "InvalidAdvance",
        Error::InvalidStart { .. } => "InvalidStart",
        Error::RoleTaken { .. } => "RoleTaken",
        Error::Format(_) => "FormatError",
        Error::Device(_) => "DeviceError",
        _ => "Error",
    }
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let errors =
        ERRORS.get_or_try_init(py, || py.import("blockring._errors").map(Bound::unbind))?.bind(py);
    let class = errors.getattr(class_of(error))?;
    let attributes = PyDict::new(py);
    fill(&attributes, error)?;
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&attributes))?))
}

/// Sets the attributes that the class takes.
fn fill(attributes: &Bound<'_, PyDict>, error: &Error) -> PyResult<()> {
    match error {
        Error::Superseded { side, ring, from, to, items } => {
            attributes.set_item("side", side.to_string())?;
            attributes.set_item("ring", Position(*ring))?;
            attributes.set_item("start", Position(*from))?;
            attributes.set_item("end", Position(*to))?;
            attributes.set_item("items", *items)
        }
        Error::TooLarge { needed, capacity } => {
            attributes.set_item("needed", *needed)?;
            attributes.set_item("capacity", *capacity)
        }
        Error::InvalidAdvance { to, from, limit } => {
            attributes.set_item("to", Position(*to))?;
            attributes.set_item("start", Position(*from))?;
            attributes.set_item("limit", Position(*limit))
        }
        Error::InvalidStart { from, consumer, producer } => {
            attributes.set_item("start", Position(*from))?;
            attributes.set_item("consumer", Position(*consumer))?;
            attributes.set_item("producer", Position(*producer))
        }
        Error::RoleTaken { role, holder } => {
            attributes.set_item("role", role.to_string())?;
            attributes.set_item("holder", *holder)
        }
        Error::Format(FormatError::Span { from, to, .. }) => {
            attributes.set_item("start", Position(*from))?;
            attributes.set_item("end", Position(*to))
        }
        Error::Device(error) => {
            attributes.set_item("errno", error.os_error())?;
            attributes.set_item("device", &error.name)?;
            attributes.set_item("operation", error.operation.as_str())?;
            attributes.set_item("sector", error.sector)
        }
        _ => Ok(()),
    }
}
