//! SIGTERM and SIGINT as a readable descriptor, so that every wait ends with them and every batch is finished first.

use super::failure::Failure;
use shared_block_ring::wait::wait_readable;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Readable once the process was asked to stop.
pub struct Stop(UnixStream);

impl Stop {
    pub fn on_signal() -> Result<Self, Failure> {
        let failed = || Failure::io("cannot set up signals");
        let (reader, writer) = UnixStream::pair().map_err(failed())?;
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let writer = writer.try_clone().map_err(failed())?;
            signal_hook::low_level::pipe::register(signal, writer).map_err(failed())?;
        }
        Ok(Self(reader))
    }

    /// Whether it was asked. Stays true, so that a wait that follows ends at once.
    pub fn requested(&self) -> bool {
        matches!(wait_readable(&[self.fd()], Some(Duration::ZERO)), Ok(Some(_)))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
