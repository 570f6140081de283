//! SIGTERM and SIGINT as a readable descriptor, so that every wait ends with them and every batch is finished first.

use crate::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Readable once the process was asked to stop.
#[derive(Debug)]
pub struct Stop(UnixStream);

impl Stop {
    /// From now on SIGTERM and SIGINT do not end the process, but make this readable.
    pub fn on_signal() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let writer = writer.try_clone()?;
            signal_hook::low_level::pipe::register(signal, writer)?;
        }
        Ok(Self(reader))
    }

    /// Whether it was asked. Stays true, so that a wait that follows ends at once.
    pub fn requested(&self) -> bool {
        matches!(wait_readable(&[self.fd()], Some(Duration::ZERO)), Ok(Some(_)))
    }

    /// To wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
