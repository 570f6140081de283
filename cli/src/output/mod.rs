//! The output of the program: reports and items on standard output, messages on standard error, and
//! items that are set aside.
//!
//! The macros of the standard library panic if the reader is gone, and block if it stalls. Here
//! every write has a bound, returns how much was accepted, and leaves no part of a record at the
//! end of a file.

mod message;
mod sink;
#[cfg(test)]
mod tests;

pub use message::{message, say};
pub use sink::{Halt, Sink};

use super::failure::{Failure, Outcome};
use ring_program::Stop;
use ring_program::standard::Standard;

/// Verifies that standard output can be written. Called before anything else is done.
pub fn require_output() -> Outcome {
    Standard::Output.check().map_err(Failure::io("standard output cannot be written"))
}

/// Verifies that standard error can be written, if a report there is `wanted`.
pub fn require_messages(wanted: bool) -> Outcome {
    if !wanted {
        return Ok(());
    }
    Standard::Error.check().map_err(Failure::io("standard error cannot be written"))
}

/// Writes a report and a line feed to standard output. Standard output that is a file gets all of
/// it, or nothing.
pub fn print(text: &str, stop: Option<&Stop>) -> Outcome {
    let fail = || Failure::io("cannot write the report to standard output");
    let mut sink = Sink::new(Standard::Output.fd()).map_err(fail())?;
    let bytes = format!("{text}\n").into_bytes();
    let (accepted, outcome) = sink.write(&bytes, &|at| at, stop.map(Stop::fd), None);
    let Err(halt) = outcome else { return Ok(()) };
    // The next report must not follow a part of this one.
    let _ = sink.cut(accepted);
    Err(fail()(halt.into_error()))
}
