//! Opening and making rings.

use crate::errors::raise;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use ring_address::{Address, AnyDevice, Options};
use shared_block_ring::device::{DeviceError, Operation, shown};
use shared_block_ring::format::SectorSize;
use shared_block_ring::wait::Limits;
use shared_block_ring::{
    CreateOptions, DebugInfo, Durability, Error, OpenOptions, Role, first_used_byte, make_file,
};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Opens the device of `address` for `role`, without the interpreter's lock. A backend has
/// `timeout` seconds to answer.
pub fn open(
    py: Python<'_>,
    address: &Path,
    role: Role,
    sector_size: Option<u32>,
    timeout: f64,
) -> PyResult<AnyDevice> {
    let patience = Duration::try_from_secs_f64(timeout)
        .map_err(|_| PyValueError::new_err("timeout: a number of seconds"))?;
    let open = || {
        let mut options = Options::new(role);
        if let Some(size) = sector_size {
            options = options.sector_size(SectorSize::new(size)?);
        }
        Address::from(address).open(options, &Limits::within(patience))
    };
    py.detach(open).map_err(|error| raise(py, error))
}

/// Returns the durability of that name, the same as in configuration files.
pub fn durability(name: &str) -> PyResult<Durability> {
    match name {
        "flush" => Ok(Durability::Flush),
        "ordered" => Ok(Durability::Ordered),
        "page-cache" => Ok(Durability::PageCache),
        _ => {
            let text = format!("durability {name:?}: \"flush\", \"ordered\" or \"page-cache\"");
            Err(PyValueError::new_err(text))
        }
    }
}

/// Makes an empty ring.
///
/// With ``size``, makes a file of so many bytes, with all of its space allocated, for this user
/// only. Without it ``path`` is a block device, or a file that has its size already, and has to be
/// empty: all zeros.
///
/// With ``exist_ok``, a ring that is there already is left as it is; without, it is a
/// ``DeviceError`` with the number ``errno.EEXIST``. What is there and is no ring is never
/// overwritten. ``sector_size`` is for a file that a device of other sectors will hold or show;
/// ``plain`` makes the same bytes as the OCaml library, without identity and checksums.
#[pyfunction]
#[pyo3(signature = (path, size=None, *, sector_size=None, plain=false, exist_ok=false))]
// By value: it is converted from a Python object.
#[expect(clippy::needless_pass_by_value)]
pub fn create(
    py: Python<'_>,
    path: PathBuf,
    size: Option<u64>,
    sector_size: Option<u32>,
    plain: bool,
    exist_ok: bool,
) -> PyResult<()> {
    let mut options = OpenOptions::new().exclusive(true);
    if let Some(size) = sector_size {
        let size = SectorSize::new(size).map_err(|error| raise(py, error.into()))?;
        options = options.sector_size(size);
    }
    let create_options = CreateOptions::new().plain(plain);
    let made = py.detach(|| make(&path, size, options, create_options, exist_ok));
    made.map_err(|error| raise(py, error))
}

fn make(
    path: &Path,
    size: Option<u64>,
    options: OpenOptions,
    create_options: CreateOptions,
    exist_ok: bool,
) -> Result<(), Error> {
    let new = size.filter(|_| !(exist_ok && path.exists()));
    if let Some(bytes) = new {
        make_file(path, bytes).map_err(|e| failed(path, e))?;
    }
    let new = new.is_some();
    let fill = || {
        let device = options.open(path)?;
        match if new { None } else { first_used_byte(&device)? } {
            None => shared_block_ring::create(&device, create_options).map(drop),
            Some(0) if DebugInfo::read(&device).is_ok() => {
                let there = Err(in_use(path, "there is a ring already"));
                if exist_ok { Ok(()) } else { there }
            }
            Some(byte) => Err(in_use(path, &format!("it is in use: byte {byte} is not zero"))),
        }
    };
    let filled = fill();
    if filled.is_err() && new {
        // This call has made the file, and it holds no ring.
        let _ = std::fs::remove_file(path);
    }
    filled
}

fn in_use(path: &Path, text: &str) -> Error {
    failed(path, io::Error::new(ErrorKind::AlreadyExists, text))
}

fn failed(path: &Path, error: io::Error) -> Error {
    DeviceError::new(shown(path), Operation::Create, error).into()
}
