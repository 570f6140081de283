//! Messages on standard error. The program never waits for their reader: see
//! [`ring_program::stderr`].

use std::fmt::Display;

/// Writes a line that begins with the program's name.
pub fn say(text: impl Display) {
    ring_program::say!("{text}");
}

/// Writes `text` without changes.
pub fn message(text: &str) {
    ring_program::stderr::block(text);
}
