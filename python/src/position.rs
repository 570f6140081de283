//! Positions as Python has them.

use pyo3::basic::CompareOp;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use shared_block_ring::Position as RingPosition;

/// Position(value)
/// --
///
/// A position in a ring's stream: the bytes since the ring was created, a multiple of 4.
///
/// It is made of a number or of its decimal text, and gives both back: ``int(position)``,
/// ``str(position)``. So a receiver can keep it with its results, in a database or a file.
/// Positions are ordered, and equal the numbers that they stand for.
#[pyclass(module = "blockring", frozen)]
pub struct Position(pub RingPosition);

/// Modulus of the hash of Python's integers, which equal positions must share.
const HASH_MODULUS: u64 = (1 << 61) - 1;

fn parsed(value: &Bound<'_, PyAny>) -> PyResult<RingPosition> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_cow()?.parse().map_err(invalid);
    }
    value.extract::<u64>()?.try_into().map_err(invalid)
}

fn invalid(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymethods]
impl Position {
    #[new]
    #[pyo3(signature = (value, /))]
    fn new(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        match value.cast::<Self>() {
            Ok(position) => Ok(Self(position.get().0)),
            Err(_) => parsed(value).map(Self),
        }
    }

    fn __int__(&self) -> u64 {
        self.0.get()
    }

    fn __index__(&self) -> u64 {
        self.0.get()
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("Position({})", self.0)
    }

    fn __hash__(&self) -> u64 {
        self.0.get() % HASH_MODULUS
    }

    fn __richcmp__(&self, other: &Bound<'_, PyAny>, op: CompareOp) -> PyResult<Py<PyAny>> {
        let py = other.py();
        let number = self.0.get().into_pyobject(py)?;
        match other.cast::<Self>() {
            Ok(position) => number.rich_compare(position.get().0.get(), op),
            // Python's numbers know what they can be compared with.
            Err(_) => number.rich_compare(other, op),
        }
        .map(Bound::unbind)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (u64,)) {
        (slf.get_type(), (slf.get().0.get(),))
    }
}

/// A position as an argument: a `Position`, or its number.
#[derive(Clone, Copy)]
pub struct Argument(pub RingPosition);

impl<'a, 'py> FromPyObject<'a, 'py> for Argument {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match value.cast::<Position>() {
            Ok(position) => Ok(Self(position.get().0)),
            Err(_) => Ok(Self(value.extract::<u64>()?.try_into().map_err(invalid)?)),
        }
    }
}
