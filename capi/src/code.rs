//! What a call answers: a code, and on request the error's text and details.

use shared_block_ring::Error;
use shared_block_ring::format::FormatError;
use std::ffi::{CStr, c_char};
use std::fmt::Write;

/// The answer of a call. Their numbers stay.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "they are the names of the header")]
pub enum Code {
    /// The call has done its work.
    BLOCKRING_OK = 0,
    /// No item to pop, no room to push, or a suspend or resume that still waits for its
    /// acknowledgement: ask again later. blockring_consumer_wait, blockring_producer_wait.
    BLOCKRING_RETRY = 1,
    /// The consumer has suspended the ring.
    BLOCKRING_SUSPENDED = 2,
    /// The handle was detached.
    BLOCKRING_DETACHED = 3,
    /// A flush or the write of a pointer has failed through this handle, and it accepts nothing
    /// more. See to the device, then attach again.
    BLOCKRING_FAILED = 4,
    /// Another instance of this process moved the ring, as after the restore of an older snapshot.
    /// The handle goes on at the ring's position; positions from before are not its own.
    BLOCKRING_SUPERSEDED = 5,
    /// An item, or a batch, that is larger than an empty ring.
    BLOCKRING_TOO_LARGE = 6,
    /// A position to advance to that no push returned, or that lies outside of what is published
    /// and not consumed.
    BLOCKRING_INVALID_ADVANCE = 7,
    /// A position to pop or fold from that is consumed already, or not published yet.
    BLOCKRING_INVALID_START = 8,
    /// Another handle has the role.
    BLOCKRING_ROLE_TAKEN = 9,
    /// The device holds no ring, or a damaged one.
    BLOCKRING_FORMAT = 10,
    /// An operation of the device failed.
    BLOCKRING_DEVICE = 11,
    /// An error that this version of the C library has no code for.
    BLOCKRING_OTHER = 12,
    /// The wait's time has passed.
    BLOCKRING_TIMED_OUT = 20,
    /// The descriptor that ends the wait is readable.
    BLOCKRING_INTERRUPTED = 21,
    /// An argument that is not as documented, a handle that was freed, or one of another kind.
    BLOCKRING_INVALID_ARGUMENT = 30,
    /// The handle is in another call: of another thread, or of the callback that it is calling.
    BLOCKRING_BUSY = 31,
    /// An error in the library itself. The handle can only be freed. Please report it.
    BLOCKRING_PANIC = 32,
}

impl Code {
    /// Every code, with its name and its text.
    const ALL: [(Self, &'static CStr, &'static CStr); 18] = [
        (Self::BLOCKRING_OK, c"ok", c"no error"),
        (Self::BLOCKRING_RETRY, c"retry", c"not now: the other side has to move first"),
        (Self::BLOCKRING_SUSPENDED, c"suspended", c"the ring is suspended by its consumer"),
        (
            Self::BLOCKRING_DETACHED,
            c"detached",
            c"detached: this handle is no longer attached to a ring",
        ),
        (
            Self::BLOCKRING_FAILED,
            c"failed",
            c"a flush or a pointer's write has failed: nothing more is accepted",
        ),
        (
            Self::BLOCKRING_SUPERSEDED,
            c"superseded",
            c"another instance of this process moved the ring",
        ),
        (Self::BLOCKRING_TOO_LARGE, c"too_large", c"larger than an empty ring"),
        (Self::BLOCKRING_INVALID_ADVANCE, c"invalid_advance", c"cannot advance to this position"),
        (Self::BLOCKRING_INVALID_START, c"invalid_start", c"cannot read at this position"),
        (Self::BLOCKRING_ROLE_TAKEN, c"role_taken", c"another handle has the role"),
        (Self::BLOCKRING_FORMAT, c"format", c"no ring, or a damaged one"),
        (Self::BLOCKRING_DEVICE, c"device", c"an operation of the device failed"),
        (Self::BLOCKRING_OTHER, c"other", c"an error without a code"),
        (Self::BLOCKRING_TIMED_OUT, c"timed_out", c"the time of the wait has passed"),
        (Self::BLOCKRING_INTERRUPTED, c"interrupted", c"the wait was ended by its descriptor"),
        (Self::BLOCKRING_INVALID_ARGUMENT, c"invalid_argument", c"an argument is not valid"),
        (Self::BLOCKRING_BUSY, c"busy", c"the handle is in another call"),
        (Self::BLOCKRING_PANIC, c"panic", c"an error in the library: the handle can only be freed"),
    ];

    /// Returns the code of the library's errors that has this name.
    fn named(name: &str) -> Self {
        let mut all = Self::ALL.iter();
        let found = all.find(|(_, of, _)| of.to_bytes() == name.as_bytes());
        found.map_or(Self::BLOCKRING_OTHER, |(code, ..)| *code)
    }

    fn texts(number: i32) -> (&'static CStr, &'static CStr) {
        let unknown = (c"unknown", c"not a code of this library");
        let mut all = Self::ALL.iter();
        all.find(|(code, ..)| *code as i32 == number)
            .map_or(unknown, |(_, name, text)| (name, text))
    }
}

/// Bytes of an error's text, with the zero at its end.
pub const BLOCKRING_TEXT_BYTES: usize = 960;

/// The details of a call's error. The caller owns the structure and passes its address, or NULL;
/// the call writes it. After success `code` is BLOCKRING_OK, the text is empty, and the other
/// fields mean nothing. It may be read later, by any thread.
#[repr(C)]
#[derive(Debug)]
pub struct ErrorInfo {
    /// What the call returned.
    pub code: Code,
    /// The operating system's error (errno), or 0.
    pub os_error: i32,
    /// The first sector of the transfer that failed, or BLOCKRING_UNKNOWN.
    pub sector: u64,
    /// BLOCKRING_SUPERSEDED: the position of the ring, and of this handle now. Otherwise
    /// BLOCKRING_UNKNOWN.
    pub position: u64,
    /// The start of a range, or BLOCKRING_UNKNOWN. BLOCKRING_SUPERSEDED: of what cannot be
    /// accounted for. BLOCKRING_FORMAT: of damaged items. BLOCKRING_INVALID_ADVANCE: of the
    /// positions to advance to. BLOCKRING_INVALID_START: of the items that are there.
    pub from: u64,
    /// The end of that range, or BLOCKRING_UNKNOWN. A consumer that advances to the end of damaged
    /// items skips them.
    pub to: u64,
    /// BLOCKRING_ROLE_TAKEN: the process that has the role, or 0.
    pub process: i64,
    /// Zero.
    pub reserved: [u64; 2],
    /// What failed, on what, and why, in UTF-8, without a line break. The middle of a longer text
    /// is replaced by "...".
    pub text: [c_char; BLOCKRING_TEXT_BYTES],
}

/// A number that is not known, such as the count of items in a plain ring.
pub const BLOCKRING_UNKNOWN: u64 = u64::MAX;

/// What a call failed with, before it is an answer.
#[derive(Debug)]
pub enum Fault {
    /// The ring's error.
    Ring(Error),
    /// An argument is not as documented: which, and how.
    Argument(&'static str),
    /// A handle that was freed, or is none of its kind.
    Stale,
    /// The handle is that of the process that has forked this one.
    Foreign,
    /// The handle is in another call.
    InUse,
    /// An earlier call with the handle has panicked.
    Broken,
    /// This call has panicked.
    Panicked(String),
    /// The wait's time has passed.
    TimedOut,
    /// The wait was ended by its descriptor.
    Interrupted,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ring(error)
    }
}

impl From<shared_block_ring::device::DeviceError> for Fault {
    fn from(error: shared_block_ring::device::DeviceError) -> Self {
        Self::Ring(error.into())
    }
}

impl Fault {
    pub fn code(&self) -> Code {
        match self {
            Self::Ring(error) => Code::named(error.name()),
            Self::Argument(_) | Self::Stale => Code::BLOCKRING_INVALID_ARGUMENT,
            Self::Foreign => Code::BLOCKRING_DETACHED,
            Self::InUse => Code::BLOCKRING_BUSY,
            Self::Broken | Self::Panicked(_) => Code::BLOCKRING_PANIC,
            Self::TimedOut => Code::BLOCKRING_TIMED_OUT,
            Self::Interrupted => Code::BLOCKRING_INTERRUPTED,
        }
    }
}

impl ErrorInfo {
    /// Makes the answer of a call that has succeeded.
    pub fn none() -> Self {
        Self {
            code: Code::BLOCKRING_OK,
            os_error: 0,
            sector: BLOCKRING_UNKNOWN,
            position: BLOCKRING_UNKNOWN,
            from: BLOCKRING_UNKNOWN,
            to: BLOCKRING_UNKNOWN,
            process: 0,
            reserved: [0; 2],
            text: [0; BLOCKRING_TEXT_BYTES],
        }
    }

    /// Tells all of `fault`.
    pub fn of(fault: &Fault) -> Self {
        let code = fault.code();
        let mut info = Self { code, ..Self::none() };
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = match fault {
            Fault::Ring(error) => {
                info.explain(error);
                write!(text, "{error}")
            }
            Fault::Argument(what) => text.write_str(what),
            Fault::Foreign => {
                text.write_str("the handle is that of the process that has forked this one")
            }
            Fault::Stale => text.write_str("the handle was freed, or is none of this kind"),
            Fault::Panicked(what) => write!(text, "an error in the library: {what}"),
            Fault::InUse | Fault::Broken | Fault::TimedOut | Fault::Interrupted => {
                write!(text, "{}", Code::texts(code as i32).1.to_string_lossy())
            }
        };
        put_text(&mut info.text, &text);
        info
    }

    fn explain(&mut self, error: &Error) {
        match error {
            Error::Device(error) => {
                self.os_error = error.os_error().unwrap_or(0);
                self.sector = error.sector.unwrap_or(BLOCKRING_UNKNOWN);
            }
            Error::Superseded { ring, from, to, .. } => {
                (self.position, self.from, self.to) = (ring.get(), from.get(), to.get());
            }
            Error::InvalidAdvance { from, limit, .. } => {
                (self.from, self.to) = (from.get(), limit.get());
            }
            Error::InvalidStart { consumer, producer, .. } => {
                (self.from, self.to) = (consumer.get(), producer.get());
            }
            Error::Format(FormatError::Span { from, to, .. }) => {
                (self.from, self.to) = (from.get(), to.get());
            }
            Error::RoleTaken { holder, .. } => self.process = holder.unwrap_or(0).into(),
            _ => {}
        }
    }
}

/// Writes `text` into an array of C, with a zero at its end. What does not fit is left out in the
/// middle: a message has its subject in front, and the reason at the end.
pub fn put_text(to: &mut [c_char], text: &str) {
    const GAP: &str = "...";
    let room = to.len() - 1;
    let (head, gap, tail) = if text.len() <= room {
        (text, "", "")
    } else {
        let half = (room - GAP.len()) / 2;
        let head = (0..=half).rev().find(|&end| text.is_char_boundary(end));
        let tail = (text.len() - half..text.len()).find(|&start| text.is_char_boundary(start));
        (&text[..head.unwrap_or(0)], GAP, &text[tail.unwrap_or(text.len())..])
    };
    let bytes = [head, gap, tail].into_iter().flat_map(str::bytes);
    // A zero or a line break within would end the text early.
    let printable = bytes.map(|byte| if byte == 0 || byte == b'\n' { b' ' } else { byte });
    let mut places = to.iter_mut();
    for (byte, place) in printable.zip(&mut places) {
        *place = c_char::from_ne_bytes([byte]);
    }
    if let Some(end) = places.next() {
        *end = 0;
    }
}

/// Returns what a code means, as a text that stays; never NULL, for no number.
#[unsafe(no_mangle)]
pub extern "C" fn blockring_strerror(code: i32) -> *const c_char {
    Code::texts(code).1.as_ptr()
}

/// Returns the name of a code, such as "role_taken", the same in every language of the library;
/// never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn blockring_code_name(code: i32) -> *const c_char {
    Code::texts(code).0.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(array: &[c_char]) -> String {
        let bytes = array.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0);
        String::from_utf8(bytes.collect()).unwrap_or_default()
    }

    #[test]
    fn long_text_loses_its_middle_between_characters() {
        let mut array = [1; 32];
        put_text(&mut array, "short");
        assert_eq!(text_of(&array), "short");
        put_text(&mut array, "31 bytes are as many as fit in!");
        assert_eq!(text_of(&array), "31 bytes are as many as fit in!");
        put_text(&mut array, "/ä/ä/ä/ä/ä/ä/ä/ä/ä/ä/ä/ä: no such file");
        assert_eq!(text_of(&array), "/ä/ä/ä/ä/...: no such file");
    }

    #[test]
    fn every_code_is_listed_once() {
        for (index, (code, name, _)) in Code::ALL.iter().enumerate() {
            let same = |(other, of, _): &(Code, &CStr, &CStr)| other == code || of == name;
            assert_eq!(Code::ALL.iter().position(same), Some(index));
        }
    }
}
