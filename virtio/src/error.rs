//! Why a device is not driven, or not any more.

use crate::pci_transport::CapabilityError;
use crate::{Broken, Difference};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// Error of a driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system has refused a step.
    #[error("cannot {step}: {source}")]
    System {
        /// Step that was tried.
        step: Step,
        /// The operating system's error.
        source: io::Error,
    },
    /// The device is not one that can be driven, or not by this process now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The device has violated the rules of the queue: what was in flight does not come back.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The device is not there any more.
    #[error("the device is gone")]
    Gone,
    /// The device asks to be reset.
    #[error("the device has met an error that only a reset ends")]
    NeedsReset,
    /// The device did not acknowledge a reset: it may still use the memory that it was given.
    #[error("the device does not reset")]
    NoReset,
    /// The device has stayed away for longer than the driver waits for it.
    #[error("the backend is gone, and did not come back in {} s: {last}", patience.as_secs_f64())]
    StayedAway {
        /// How long it was waited for.
        patience: Duration,
        /// What the last attempt failed with.
        last: Box<Self>,
    },
    /// The device has come back and gone again, for longer than the driver waits, and has answered
    /// nothing.
    #[error("the backend is gone, and did not come back in {} s: it comes and answers nothing", patience.as_secs_f64())]
    AnswersNothing {
        /// How long it was waited for.
        patience: Duration,
    },
    /// The device is gone, and the caller has asked to stop.
    #[error("the backend is gone, and we were asked to stop")]
    Stopped,
}

impl Error {
    /// Returns the operating system's error, if it is the reason.
    pub(super) fn system_error(&mut self) -> Option<&mut io::Error> {
        match self {
            Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Step of a driver that the operating system has refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Connecting to a vhost-user backend, and agreeing on features with it.
    Connect,
    /// Allocating memory for a queue.
    Allocate,
    /// Telling the device of its queue.
    Start,
    /// Notifying the device of requests.
    Notify,
    /// Waiting for the device.
    Wait,
    /// Opening a file.
    Open(PathBuf),
    /// Reading what sysfs says of a device.
    Look,
    /// Reading or writing the configuration space of a PCI function.
    Configure,
    /// Mapping a device's registers.
    MapRegisters,
    /// Asking VFIO for a function, or its interrupts.
    Vfio,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => write!(f, "connect"),
            Self::Allocate => write!(f, "allocate memory for the queue"),
            Self::Start => write!(f, "start the queue"),
            Self::Notify => write!(f, "notify the device"),
            Self::Wait => write!(f, "wait for the device"),
            Self::Open(path) => write!(f, "open {}", path.display()),
            Self::Look => write!(f, "look the device up in sysfs"),
            Self::Configure => write!(f, "use the configuration space"),
            Self::MapRegisters => write!(f, "map the device's registers"),
            Self::Vfio => write!(f, "get the device from VFIO"),
        }
    }
}

impl Step {
    /// Returns what makes an [`Error`] of this step out of the operating system's.
    pub(super) fn failed(self) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { step: self, source }
    }
}

/// Why a device cannot be driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No device has this address.
    #[error("there is no such PCI device")]
    NotThere,
    /// The device is another one.
    #[error("{vendor:04x}:{device:04x} is no virtio block device")]
    NotVirtioBlk {
        /// The PCI vendor number.
        vendor: u16,
        /// The PCI device number.
        device: u16,
    },
    /// Another process has the device.
    #[error("another process drives the device")]
    InUse,
    /// A driver of the kernel has the device.
    #[error("the kernel's driver {0} has it")]
    KernelDriver(String),
    /// The process lacks the privilege.
    #[error("only root may drive a device (CAP_SYS_ADMIN)")]
    NotRoot,
    /// VFIO has no IOMMU group for the device.
    #[error("it is in no IOMMU group")]
    NoGroup,
    /// Devices that share an IOMMU group with this one have drivers of the kernel.
    #[error(
        "other devices of its IOMMU group are the kernel's: they have to be bound to vfio-pci too"
    )]
    SharedGroup,
    /// The device does not offer virtio 1.
    #[error("the device has no virtio 1 (leave out disable-modern=on)")]
    Legacy,
    /// The device goes by addresses of an IOMMU.
    #[error(
        "the device reaches memory through an IOMMU only, which a vhost-user backend cannot translate for (leave out iommu_platform=on)"
    )]
    Translated,
    /// The device does not accept the features that this driver knows.
    #[error("the device does not work with the features that we know")]
    Features,
    /// The device lacks indirect descriptors, which a queue of this depth needs.
    #[error("the device has no indirect descriptors, which more than 85 requests at once need")]
    NoIndirect,
    /// The device's configuration was not the same twice.
    #[error("the device's configuration changes all the time")]
    Unsteady,
    /// The device's queue is too small.
    #[error(
        "the device's queue holds {most} descriptors, and {needed} are needed (queue-size={needed})"
    )]
    QueueSize {
        /// Descriptors that the device's queue holds.
        most: u16,
        /// Descriptors that are needed.
        needed: u16,
    },
    /// The device has accepted no interrupt for its queue.
    #[error("the device has no interrupt for its queue")]
    NoInterrupt,
    /// A device's structures are not where they could be.
    #[error(transparent)]
    Capabilities(#[from] CapabilityError),
    /// A structure of the device lies beyond the region that it is said to be in.
    #[error("{length} bytes of registers at {offset} of region {bar}, which has {bytes}")]
    Registers {
        /// The base address register of the region.
        bar: u8,
        /// The structure's offset.
        offset: u32,
        /// The structure's bytes.
        length: u32,
        /// The region's bytes.
        bytes: u64,
    },
    /// A queue does not fit into one huge page.
    #[error("{0} bytes for the queue, and a huge page has 2097152")]
    TooLarge(u64),
    /// No huge page is free.
    #[error("no huge page of 2 MiB is free: {0} (echo 8 > /proc/sys/vm/nr_hugepages)")]
    NoHugePage(io::Error),
    /// The kernel says that the queue's memory has no physical address.
    #[error("the queue's memory is not there")]
    NoPhysicalAddress,
    /// The backend that has come back has another disk.
    #[error("the backend has come back with another disk: {0}")]
    OtherDisk(Difference),
}

impl Error {
    /// Returns the kind of the operating system's error that comes nearest.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::System { source, .. } => source.kind(),
            Self::Refused(refusal) => refusal.kind(),
            Self::Gone | Self::StayedAway { .. } | Self::AnswersNothing { .. } | Self::Stopped => {
                ErrorKind::ConnectionAborted
            }
            Self::Broken(_) | Self::NeedsReset | Self::NoReset => ErrorKind::Other,
        }
    }
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotThere => ErrorKind::NotFound,
            Self::InUse | Self::KernelDriver(_) | Self::SharedGroup => ErrorKind::ResourceBusy,
            Self::NotRoot => ErrorKind::PermissionDenied,
            Self::NoHugePage(_) => ErrorKind::OutOfMemory,
            Self::Registers { .. } | Self::OtherDisk(_) => ErrorKind::InvalidData,
            Self::NoGroup | Self::NoPhysicalAddress => ErrorKind::Other,
            _ => ErrorKind::Unsupported,
        }
    }
}

impl From<Error> for io::Error {
    /// The operating system's own error stays as it is, so that its number can be asked for, unless
    /// the step names a file. Every other error is the source of the one that this returns.
    fn from(error: Error) -> Self {
        match error {
            Error::System { step: Step::Open(_), .. } => Self::new(error.kind(), error),
            Error::System { source, .. } => source,
            _ => Self::new(error.kind(), error),
        }
    }
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Error::from(broken).into()
    }
}

/// Why a device that went away is not driven again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The device is not there, or not yet able to serve: a later attempt may succeed.
    #[error(transparent)]
    Later(Error),
    /// The device does not come back, or has come back as another one.
    #[error(transparent)]
    Never(Error),
}
