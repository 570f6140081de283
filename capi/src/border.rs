//! The border to C: pointers that a caller passes, and panics that must not leave.

use crate::code::{Code, ErrorInfo, Fault};
use crate::table::Table;
use crate::types::{Slice, Text};
use shared_block_ring::Position;
use std::ffi::{CStr, OsStr, c_char, c_void};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub type Answer<T> = Result<T, Fault>;

/// The promise of the C program that calls: what the head of the header asks of pointers holds for
/// every pointer of this call. Its methods take only pointers of this call, for what the header
/// says that they are.
#[derive(Debug)]
pub struct Caller(());

#[allow(clippy::unused_self, reason = "having the promise is what the methods rest on")]
impl Caller {
    /// Takes the promise.
    ///
    /// # Safety
    /// The header's rules hold for the pointers that the methods are given.
    #[inline]
    pub unsafe fn promises() -> Self {
        Self(())
    }

    /// Makes the call's answer of what `work` returns, and tells `error`, if that is not NULL.
    #[inline]
    pub fn answer(&self, error: *mut ErrorInfo, work: impl FnOnce(&Self) -> Answer<()>) -> Code {
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        match done.unwrap_or_else(|panic| Err(Fault::Panicked(words(&*panic)))) {
            Ok(()) => {
                self.succeed(error);
                Code::BLOCKRING_OK
            }
            Err(fault) => {
                self.set(error, || ErrorInfo::of(&fault));
                fault.code()
            }
        }
    }

    /// Notes in `error` that there is none: without its whole text, which a program that pushes
    /// millions of items would pay for.
    #[inline]
    fn succeed(&self, error: *mut ErrorInfo) {
        if error.is_null() {
            return;
        }
        // SAFETY: the caller promises that it points to memory for an `ErrorInfo`.
        let code = unsafe { &raw mut (*error).code };
        // SAFETY: as above.
        unsafe { code.write(Code::BLOCKRING_OK) };
        // SAFETY: as above.
        let text = unsafe { &raw mut (*error).text };
        // SAFETY: as above; it is the first byte of the array.
        unsafe { text.cast::<c_char>().write(0) };
    }

    /// Stores a result, unless the caller does not want it (NULL).
    #[inline]
    pub fn set<T>(&self, to: *mut T, value: impl FnOnce() -> T) {
        if !to.is_null() {
            // SAFETY: the caller promises that it points to memory for a `T`.
            unsafe { to.write(value()) };
        }
    }

    /// Frees the object of the handle that the caller's variable has, and sets that to NULL. It
    /// stays as it is while the handle is in another call.
    pub fn free<H, T: Send>(&self, variable: *mut *mut H, table: &Table<H, T>) -> Code {
        self.answer(std::ptr::null_mut(), |caller| {
            let Some(handle) = caller.get(variable).filter(|handle| !handle.is_null()) else {
                return Ok(());
            };
            let removed = table.remove(handle);
            if !matches!(removed, Err(Fault::InUse)) {
                caller.set(variable, std::ptr::null_mut);
            }
            removed.map(drop)
        })
    }

    /// Returns a value that the caller has; `None` for NULL.
    pub fn get<T: Copy>(&self, from: *const T) -> Option<T> {
        // SAFETY: the caller promises that it is NULL or points to a `T`.
        unsafe { from.as_ref() }.copied()
    }

    /// Returns the bytes that the caller lends for this call. Without bytes the pointer may be
    /// NULL.
    #[inline]
    pub fn bytes(&self, at: *const c_void, length: usize) -> Answer<&[u8]> {
        if length == 0 {
            return Ok(&[]);
        }
        fits(at, length, 1)?;
        // SAFETY: the caller promises that so many bytes are there until the call returns.
        Ok(unsafe { std::slice::from_raw_parts(at.cast(), length) })
    }

    /// Returns the items that the caller lends for this call.
    #[inline]
    pub fn items(&self, at: *const Slice, count: usize) -> Answer<&[Slice]> {
        if count == 0 {
            return Ok(&[]);
        }
        fits(at.cast(), count, size_of::<Slice>())?;
        // SAFETY: the caller promises that so many are there until the call returns.
        let items = unsafe { std::slice::from_raw_parts(at, count) };
        for item in items {
            if item.length != 0 {
                fits(item.bytes, item.length, 1)?;
            }
        }
        Ok(items)
    }

    /// Returns the text that the caller lends for this call.
    pub fn text(&self, at: *const c_char, null: &'static str) -> Answer<&OsStr> {
        if at.is_null() {
            return Err(Fault::Argument(null));
        }
        // SAFETY: the caller promises that it points to a text with a zero at its end.
        let text = unsafe { CStr::from_ptr(at) };
        Ok(OsStr::from_bytes(text.to_bytes()))
    }

    /// Returns the text as names in a ring have it; it is empty for NULL.
    pub fn name(&self, at: *const c_char) -> Text<'_> {
        self.text(at, "").map(OsStr::to_string_lossy).unwrap_or_default()
    }

    /// Returns the descriptor that ends a wait; none for -1.
    pub fn descriptor(&self, number: i32) -> Answer<Option<BorrowedFd<'_>>> {
        match number {
            -1 => Ok(None),
            ..-1 => Err(Fault::Argument("the descriptor is negative, and not -1")),
            // SAFETY: the caller promises that it is open until the call returns.
            _ => Ok(Some(unsafe { BorrowedFd::borrow_raw(number) })),
        }
    }
}

/// Refuses a pointer to `count` things that cannot be one.
#[inline]
fn fits(at: *const c_void, count: usize, size: usize) -> Answer<()> {
    if at.is_null() {
        return Err(Fault::Argument("the bytes are NULL, and their number is not 0"));
    }
    match count.checked_mul(size) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => Err(Fault::Argument("a length is larger than any memory")),
    }
}

/// Returns a position that the caller names.
pub fn position(number: u64) -> Answer<Position> {
    Position::new(number).ok_or(Fault::Argument("the position is not a multiple of 4"))
}

/// Returns what a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.map(str::to_owned)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_becomes_a_code_and_its_words_the_text() {
        let caller = Caller(());
        let mut error = ErrorInfo::none();
        let code = caller.answer(&raw mut error, |_| panic!("as {}", "planned"));
        assert_eq!((code, error.code), (Code::BLOCKRING_PANIC, Code::BLOCKRING_PANIC));
        let text = error.text.map(|byte| byte.to_ne_bytes()[0]);
        assert!(text.starts_with(b"an error in the library: as planned\0"));
    }
}
