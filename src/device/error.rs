//! Errors of devices: which operation failed, on what, and why.

use std::fmt;
use std::io;

/// The operation that a device, or a function about one, could not carry out.
///
/// Its text completes the sentence "cannot …", as in [`DeviceError`]'s message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A transfer of sectors from the device.
    Read,
    /// A transfer of sectors to the device.
    Write,
    /// Making durable what was written before.
    Flush,
    /// Opening a file or a block device.
    Open,
    /// Making a file.
    Create,
    /// Reserving a file's space on its file system.
    Allocate,
    /// Giving a file to another user.
    ChangeOwner,
    /// Taking a lock of the ring.
    Lock,
    /// Mapping a file into memory.
    Map,
    /// Waiting for the other side of the ring, or for an interrupt of the caller's.
    Wait,
    /// Connecting to the socket of a backend.
    Connect,
    /// Connecting to the next backend after one has ended.
    Reconnect,
    /// Asking a backend for its ring.
    RequestHandover,
    /// Receiving the ring that a backend hands over.
    ReceiveHandover,
    /// Taking a role from a backend.
    Attach,
    /// Having a backend suspend or resume the ring.
    SetSuspend,
    /// Going on with a ring that was removed, replaced, moved or resized: see
    /// [`Displaced`](super::Displaced).
    Continue,
    /// Taking a PCI device for this process.
    Take,
    /// Starting the virtqueue of a disk that this process drives itself.
    StartQueue,
    /// Duplicating the descriptors that report a disk's interrupts.
    Watch,
    /// Performing the entries of a [`Journal`](crate::Journal).
    Perform,
}

impl Operation {
    /// Returns the words that complete "cannot …".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Open => "open",
            Self::Create => "create",
            Self::Allocate => "allocate space",
            Self::ChangeOwner => "change the owner",
            Self::Lock => "lock",
            Self::Map => "map",
            Self::Wait => "wait",
            Self::Connect => "connect",
            Self::Reconnect => "reconnect",
            Self::RequestHandover => "request the ring",
            Self::ReceiveHandover => "receive the ring",
            Self::Attach => "attach",
            Self::SetSuspend => "have the backend suspend or resume the ring",
            Self::Continue => "go on with the ring",
            Self::Take => "take the device",
            Self::StartQueue => "start the queue",
            Self::Watch => "watch for interrupts",
            Self::Perform => "perform entries",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed operation of a device, with the operating system's error.
///
/// ```
/// use shared_block_ring::device::{DeviceError, Operation};
/// use std::io;
///
/// let full = io::Error::from(io::ErrorKind::StorageFull);
/// let error = DeviceError::new("/dev/vdb", Operation::Write, full).at_sector(7);
/// assert_eq!(error.to_string(), "/dev/vdb: cannot write sector 7: no storage space");
/// assert_eq!(error.operation, Operation::Write);
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot {operation}{}: {source}", sector.map(|s| format!(" sector {s}")).unwrap_or_default())]
#[non_exhaustive]
pub struct DeviceError {
    /// The device, as the user named it.
    pub name: String,
    /// The operation that failed.
    pub operation: Operation,
    /// The first sector of the transfer, if it was one.
    pub sector: Option<u64>,
    /// The operating system's error.
    pub source: io::Error,
}

impl DeviceError {
    /// Makes the error of an `operation` on the device that the user calls `name`.
    pub fn new(
        name: impl Into<String>,
        operation: Operation,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { name: name.into(), operation, sector: None, source: source.into() }
    }

    /// Returns the operating system's number of the error; for one that the library has found
    /// itself, such as a full file system before it wrote there, the number that stands for its
    /// kind.
    ///
    /// ```
    /// use shared_block_ring::device::{DeviceError, Operation};
    ///
    /// let full = std::io::Error::new(std::io::ErrorKind::StorageFull, "too little room");
    /// assert_eq!(DeviceError::new("ring", Operation::Create, full).os_error(), Some(libc::ENOSPC));
    /// ```
    pub fn os_error(&self) -> Option<i32> {
        self.source.raw_os_error().or_else(|| {
            Some(match self.source.kind() {
                io::ErrorKind::AlreadyExists => libc::EEXIST,
                io::ErrorKind::InvalidInput => libc::EINVAL,
                io::ErrorKind::NotFound => libc::ENOENT,
                io::ErrorKind::PermissionDenied => libc::EACCES,
                io::ErrorKind::StaleNetworkFileHandle => libc::ESTALE,
                io::ErrorKind::StorageFull => libc::ENOSPC,
                io::ErrorKind::TimedOut => libc::ETIMEDOUT,
                io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
                _ => return None,
            })
        })
    }

    /// Names the first sector of the transfer that failed.
    #[must_use]
    pub fn at_sector(self, sector: u64) -> Self {
        Self { sector: Some(sector), ..self }
    }
}
