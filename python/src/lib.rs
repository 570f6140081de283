//! The part of the Python package `blockring` that is in Rust: handles on rings over the library
//! `shared-block-ring`, and the conversion of what they take and return. What is in Python, beside
//! it in `package/`: exceptions, event loops, logging.
//!
//! There is no logic of rings here, and no `unsafe`. A call that may read or write the device, or
//! wait, gives up the interpreter's lock meanwhile.

mod consumer;
mod control;
mod errors;
mod handle;
mod info;
mod items;
mod opening;
mod position;
mod producer;

use pyo3::prelude::*;

#[pymodule]
mod _blockring {
    #[pymodule_export]
    use crate::consumer::ConsumerCore;
    #[pymodule_export]
    use crate::control::Control;
    #[pymodule_export]
    use crate::handle::forked;
    #[pymodule_export]
    use crate::items::{Item, Items};
    #[pymodule_export]
    use crate::opening::create;
    #[pymodule_export]
    use crate::position::Position;
    #[pymodule_export]
    use crate::producer::ProducerCore;
}
