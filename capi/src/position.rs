//! Positions as text.

use crate::border::{Caller, position};
use crate::code::{Code, ErrorInfo, Fault, put_text};
use shared_block_ring::Position;
use std::ffi::c_char;

/// Bytes that hold any position as text, with the zero at its end.
pub const BLOCKRING_POSITION_BYTES: usize = 24;

/// Writes a position as text, for a log or a database: a decimal number, in an array of
/// BLOCKRING_POSITION_BYTES.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_position_to_text(
    at: u64,
    text: *mut c_char,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        if text.is_null() {
            return Err(Fault::Argument("the place for the text is NULL"));
        }
        let mut array = [0; BLOCKRING_POSITION_BYTES];
        put_text(&mut array, &position(at)?.to_string());
        caller.set(text.cast(), || array);
        Ok(())
    })
}

/// Reads a position from the text that blockring_position_to_text wrote, and from no other:
/// BLOCKRING_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blockring_position_from_text(
    text: *const c_char,
    at: *mut u64,
    error: *mut ErrorInfo,
) -> Code {
    // SAFETY: the header asks it of the caller.
    let caller = unsafe { Caller::promises() };
    caller.answer(error, |caller| {
        let text = caller.text(text, "the text is NULL")?;
        let position = text.to_str().unwrap_or_default().parse::<Position>();
        let position = position.map_err(|_| {
            Fault::Argument("the text is not a position: a decimal multiple of 4 is")
        })?;
        caller.set(at, || position.get());
        Ok(())
    })
}
