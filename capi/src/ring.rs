//! What takes no handle: making files and rings, and the library's version.

use crate::border::{Answer, Caller};
use crate::code::{Code, ErrorInfo};
use crate::types::{BLOCKRING_DRIVE_PCI, BLOCKRING_PLAIN, Options};
use ring_address::{Address, AnyDevice};
use shared_block_ring::device::{DeviceError, Operation, shown};
use shared_block_ring::wait::Limits;
use shared_block_ring::{CreateOptions, Created, Error, Role, create, make_file};
use std::ffi::{CStr, c_char};

/// Opens the device of an address.
pub fn open(
    caller: &Caller,
    address: *const c_char,
    options: &Options,
    role: Role,
    allowed: u32,
) -> Answer<AnyDevice> {
    let address = Address::from(caller.text(address, "the address is NULL")?);
    let how = options.for_address(role, allowed)?;
    Ok(address.open(how, &Limits::within(options.patience()))?)
}

/// Returns the version of the library that is running, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn blockring_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// Makes a new file of `bytes` zero bytes for a ring, for this user only, with all of its space
/// allocated. The smallest ring takes 4 sectors: 2048 bytes. An existing file is an error
/// (BLOCKRING_DEVICE with EEXIST).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_make_file(
    path: *const c_char,
    bytes: u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let path = caller.text(path, "the path is NULL")?;
        let failed = |e| DeviceError::new(shown(path), Operation::Create, e);
        make_file(path, bytes).map_err(|e| Error::from(failed(e)))?;
        Ok(())
    })
}

/// Makes an empty ring on the device with this address, unless a ring is there already, which
/// stays as it is. Anything else on the device is overwritten.
///
/// `created` (may be NULL): whether a ring was made. `options`: NULL for the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_create(
    address: *const c_char,
    options: *const Options,
    created: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let options = caller.get(options).unwrap_or_default();
        let allowed = BLOCKRING_PLAIN | BLOCKRING_DRIVE_PCI;
        let device = open(caller, address, &options, Role::Control, allowed)?;
        let plain = CreateOptions::new().plain(options.has(BLOCKRING_PLAIN));
        let made = create(&device, plain)?;
        caller.set(created, || made == Created::New);
        Ok(())
    })
}
