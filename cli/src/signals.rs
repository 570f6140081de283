//! The signals that ask a command to end.

use super::failure::Failure;
use ring_program::Stop;

/// Has the first SIGTERM, SIGINT or SIGHUP end every wait, and every system call of the main thread
/// that blocks.
pub fn stop_on_signal() -> Result<Stop, Failure> {
    let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
    let thread = "cannot start a thread (a limit on processes or on memory?)";
    stop.interrupt_calls().map_err(Failure::io(thread))?;
    Ok(stop)
}
