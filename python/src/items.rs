//! Items as Python has them: the conversion of what is pushed, copies of what is read, and the
//! iteration over them.

use crate::consumer::ConsumerCore;
use crate::handle::Deadline;
use crate::position::Position;
use pyo3::PyTraverseError;
use pyo3::exceptions::PyTypeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMemoryView, PyTuple};
use ring_address::AnyDevice;
use shared_block_ring::{Consumer, Error, Position as RingPosition};

/// An item of a ring: its payload, its position and that of the next item.
///
/// The payload is a copy, which stays as it is after the consumer has advanced.
#[pyclass(module = "blockring", frozen)]
pub struct Item {
    /// The payload.
    #[pyo3(get)]
    data: Py<PyBytes>,
    at: RingPosition,
    end: RingPosition,
}

#[pymethods]
impl Item {
    /// The item's position.
    #[getter]
    fn position(&self) -> Position {
        Position(self.at)
    }

    /// The position of the next item: to advance to once this one has been dealt with.
    #[getter]
    fn next(&self) -> Position {
        Position(self.end)
    }

    fn __bytes__(&self, py: Python<'_>) -> Py<PyBytes> {
        self.data.clone_ref(py)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.data.as_bytes(py).len()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let data = self.data.bind(py).repr()?;
        Ok(format!("Item(position={}, next={}, data={data})", self.at, self.end))
    }
}

/// Payloads that are to be pushed. `bytes` are borrowed, as nobody can change them; anything else
/// is copied.
pub struct Payloads<'py>(Vec<Bound<'py, PyBytes>>);

impl<'py> Payloads<'py> {
    /// Takes an iterable of payloads.
    pub fn of(items: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(list) = items.cast::<PyList>() {
            return list.iter().map(|item| payload(&item)).collect::<PyResult<_>>().map(Self);
        }
        if let Ok(tuple) = items.cast::<PyTuple>() {
            return tuple.iter().map(|item| payload(&item)).collect::<PyResult<_>>().map(Self);
        }
        if is_payload(items) {
            let text = "one item where an iterable of items is expected";
            return Err(PyTypeError::new_err(text));
        }
        items.try_iter()?.map(|item| payload(&item?)).collect::<PyResult<_>>().map(Self)
    }

    /// Takes one payload, or an iterable of them.
    pub fn of_one_or_more(items: &Bound<'py, PyAny>) -> PyResult<Self> {
        if is_payload(items) { Ok(Self(vec![payload(items)?])) } else { Self::of(items) }
    }

    pub fn slices(&self) -> Vec<&[u8]> {
        self.0.iter().map(PyBytesMethods::as_bytes).collect()
    }
}

fn is_payload(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyBytes>() || PyMemoryView::from(value).is_ok()
}

/// Returns the payload that `value` is.
pub fn payload<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    let Ok(view) = PyMemoryView::from(value) else {
        let text = format!("an item is bytes-like, not {}", value.get_type().name()?);
        return Err(PyTypeError::new_err(text));
    };
    // A copy: another thread can change the object's buffer (a bytearray, say) while this call has
    // released the interpreter's lock.
    Ok(view.call_method0("tobytes")?.cast_into()?)
}

/// Limits of what is read at once. One item is read whatever its size.
#[derive(Clone, Copy)]
pub struct Limits {
    pub items: usize,
    pub bytes: usize,
}

/// Payloads that an iterator reads ahead: enough to make a call into the ring cheap, few enough to
/// stay in the processor's cache.
const AHEAD: Limits = Limits { items: 256, bytes: 64 * 1024 };

/// Copies of items, read without the interpreter's lock.
#[derive(Default)]
pub struct Copies {
    bytes: Vec<u8>,
    /// The position behind each item, and the end of its bytes.
    ends: Vec<(RingPosition, usize)>,
    /// The number, the position and the start of the first item that was not handed out.
    first: (usize, RingPosition, usize),
}

impl Copies {
    /// Reads items from `from` on, in the place of those here before. There are none where none is
    /// published. An error behind an item is left for the next call, which starts there.
    pub fn read(
        &mut self,
        consumer: &mut Consumer<AnyDevice>,
        from: RingPosition,
        limits: Limits,
    ) -> Result<(), Error> {
        self.bytes.clear();
        self.ends.clear();
        self.first = (0, from, 0);
        let mut at = from;
        while self.ends.len() < limits.items {
            let item = match consumer.pop(at) {
                Ok(item) => item,
                Err(Error::Retry) => break,
                // The handle is at another position now, and what was read may not be its own.
                Err(e @ Error::Superseded { .. }) => {
                    self.ends.clear();
                    return Err(e);
                }
                Err(_) if !self.ends.is_empty() => break,
                Err(e) => return Err(e),
            };
            if !self.ends.is_empty() && self.bytes.len() + item.bytes.len() > limits.bytes {
                break;
            }
            self.bytes.extend_from_slice(item.bytes);
            at = item.next;
            self.ends.push((at, self.bytes.len()));
        }
        Ok(())
    }

    /// Hands out the next item.
    pub fn next(&mut self, py: Python<'_>) -> Option<Item> {
        let (number, at, start) = self.first;
        let (end, stop) = *self.ends.get(number)?;
        self.first = (number + 1, end, stop);
        let data = PyBytes::new(py, &self.bytes[start..stop]).unbind();
        Some(Item { data, at, end })
    }

    /// Returns all items.
    pub fn into_list(mut self, py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
        let mut items = Vec::with_capacity(self.ends.len());
        while let Some(item) = self.next(py) {
            items.push(Bound::new(py, item)?);
        }
        PyList::new(py, items)
    }

    /// Returns the position of the next item to be handed out.
    fn position(&self) -> RingPosition {
        self.first.1
    }

    fn is_empty(&self) -> bool {
        self.first.0 == self.ends.len()
    }
}

/// Iterator over the items of a ring, from ``iter(consumer)`` and ``consumer.pending()``.
#[pyclass(module = "blockring")]
pub struct Items {
    consumer: Py<ConsumerCore>,
    copies: Copies,
    /// The life of the consumer that the copies are from.
    life: u64,
    /// Whether it waits where the ring is empty.
    waits: bool,
}

impl Items {
    pub fn new(consumer: Py<ConsumerCore>, from: RingPosition, waits: bool) -> Self {
        let copies = Copies { first: (0, from, 0), ..Copies::default() };
        let life = consumer.get().shared.lives();
        Self { consumer, copies, life, waits }
    }
}

#[pymethods]
impl Items {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Item>> {
        let life = self.consumer.get().shared.lives();
        if life != self.life {
            // The consumer is at another position now, where all of this starts again.
            (self.life, self.copies) = (life, Copies::default());
        }
        if let Some(item) = self.copies.next(py) {
            return Ok(Some(item));
        }
        let Self { consumer, copies, waits, .. } = self;
        let read = |consumer: &mut Consumer<AnyDevice>| {
            // The consumer may have advanced further.
            let from = copies.position().max(consumer.position());
            match copies.read(consumer, from, AHEAD) {
                Ok(()) if copies.is_empty() => Err(Error::Retry),
                outcome => outcome,
            }
        };
        let deadline = if *waits { Deadline::never() } else { Deadline::now() };
        consumer.get().shared.wait(py, &deadline, read)?;
        Ok(self.copies.next(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.consumer)
    }
}
