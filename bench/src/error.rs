//! Errors of the bench.

use shared_block_ring::device::DeviceError;
use std::io::{self, Write};
use virtio_blk_driver::Broken;

/// An error of the bench.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A daemon that does not start, or does not answer.
    #[error(transparent)]
    Daemon(#[from] qemu_tests::Error),
    /// An error of a ring.
    #[error(transparent)]
    Ring(#[from] shared_block_ring::Error),
    /// An error of a device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A plot that cannot be drawn.
    #[error("cannot draw {what}: {reason}")]
    Plot {
        /// The plot.
        what: String,
        /// The drawing library's message.
        reason: String,
    },
    /// A device that broke the queue's rules.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A request that was not carried out: its time means nothing.
    #[error("{who} answers a request at sector {sector} with status {status}")]
    Refused {
        /// The backend.
        who: &'static str,
        /// The request's start, in units of 512 bytes.
        sector: u64,
        /// The status, `VIRTIO_BLK_S_*`.
        status: u8,
    },
    /// No answer to a request, or the backend is gone.
    #[error("{0} has stopped answering requests")]
    Stalled(&'static str),
    /// Arguments that are well formed and contradict each other.
    #[error("{0}")]
    Usage(String),
}

/// The bench's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns a function that adds `what` to an error of the operating system.
pub fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// Writes figures to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(doing("printing"))
}
