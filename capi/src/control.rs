//! The functions of a control.

use crate::border::Caller;
use crate::code::{Code, ErrorInfo, Fault};
use crate::ring::open;
use crate::table::Table;
use crate::types::{BLOCKRING_DRIVE_PCI, BLOCKRING_READ_ONLY, ControlHandle, Info, Options};
use crate::waiting::{expect_state, timeout, wait_until};
use ring_address::AnyDevice;
use shared_block_ring::format::Side;
use shared_block_ring::wait::Wait;
use shared_block_ring::{Control, Role, State};
use std::ffi::c_char;

static CONTROLS: Table<ControlHandle, Control<AnyDevice>> = Table::new(0xb10e);

/// Opens the ring with this address beside its producer and consumer: to look at it, to suspend and
/// to resume it. `options`: NULL for the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_open(
    address: *const c_char,
    options: *const Options,
    control: *mut *mut ControlHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        if control.is_null() {
            return Err(Fault::Argument("the place for the handle is NULL"));
        }
        let options = caller.get(options).unwrap_or_default();
        let allowed = BLOCKRING_READ_ONLY | BLOCKRING_DRIVE_PCI;
        let device = open(caller, address, &options, Role::Control, allowed)?;
        let handle = CONTROLS.insert(Control::open(device)?)?;
        caller.set(control, || handle);
        Ok(())
    })
}

/// Reads the state of the ring from its sectors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_debug_info(
    control: *mut ControlHandle,
    info: *mut Info,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let found = CONTROLS.with(control, |control| Ok(control.debug_info()?))?;
        caller.set(info, || found.into());
        Ok(())
    })
}

/// Tells whether the producer has acknowledged a suspend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_state(
    control: *mut ControlHandle,
    suspended: *mut bool,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let state = CONTROLS.with(control, |control| Ok(control.state()?))?;
        caller.set(suspended, || state == State::Suspended);
        Ok(())
    })
}

/// Asks the producer to stop. BLOCKRING_RETRY while it has not acknowledged the previous change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_suspend(
    control: *mut ControlHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| CONTROLS.with(control, |control| Ok(control.suspend()?)))
}

/// Lets the producer go on; as blockring_control_suspend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_resume(
    control: *mut ControlHandle,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |_| CONTROLS.with(control, |control| Ok(control.resume()?)))
}

/// Waits until the producer has acknowledged a suspend (`suspended`) or a resume. Time and
/// descriptor are as in blockring_consumer_wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_wait_state(
    control: *mut ControlHandle,
    suspended: bool,
    timeout_ms: i64,
    interrupt_fd: i32,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let interrupt = caller.descriptor(interrupt_fd)?;
        CONTROLS.with(control, |control| {
            let wait = Wait::new(Side::Producer, timeout(timeout_ms));
            wait_until(control, wait, interrupt, Control::device, |control| {
                expect_state(control.state()?, suspended)
            })
        })
    })
}

/// Frees a control, and sets the handle to NULL; nothing happens if it is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_control_free(control: *mut *mut ControlHandle) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.free(control, &CONTROLS)
}
