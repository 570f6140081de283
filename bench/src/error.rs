//! Why there is no figure.

use shared_block_ring::device::DeviceError;
use shared_block_ring::virtqueue::Broken;
use std::io;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's refusal.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A daemon that does not start, or does not answer.
    #[error(transparent)]
    Daemon(#[from] qemu_tests::Error),
    /// A ring's refusal.
    #[error(transparent)]
    Ring(#[from] shared_block_ring::Error),
    /// A device's.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A plot that cannot be drawn.
    #[error("cannot draw {what}: {reason}")]
    Plot {
        /// The plot.
        what: String,
        /// In the drawing library's words.
        reason: String,
    },
    /// A device against the rules.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A request that was not carried out: the time it took says nothing.
    #[error("{who} answers a request at sector {sector} with status {status}")]
    Refused {
        /// The backend.
        who: &'static str,
        /// In units of 512 bytes.
        sector: u64,
        /// `VIRTIO_BLK_S_*`.
        status: u8,
    },
    /// No answer to a request, or the backend is gone.
    #[error("{0} has stopped answering requests")]
    Stalled(&'static str),
    /// Arguments that read well and make no sense.
    #[error("{0}")]
    Usage(String),
}

/// The bench's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What was tried, for an error of the system.
pub fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}
