//! The signals that ask a command to end.

use super::failure::Failure;
use ring_program::Stop;
use std::io;

/// Has the first SIGTERM, SIGINT or SIGHUP end every wait, and every system call of the main thread
/// that blocks.
pub fn stop_on_signal() -> Result<Stop, Failure> {
    interrupting(Stop::on_signal())
}

/// Does the same for SIGTERM and SIGINT alone.
pub fn stop_except_on_hangup() -> Result<Stop, Failure> {
    interrupting(Stop::except_on_hangup())
}

fn interrupting(stop: io::Result<Stop>) -> Result<Stop, Failure> {
    let stop = stop.map_err(Failure::io("cannot set up signals"))?;
    let thread = "cannot start a thread (a limit on processes or on memory?)";
    stop.interrupt_calls().map_err(Failure::io(thread))?;
    Ok(stop)
}
