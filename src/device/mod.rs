//! Devices: disks, and what a ring asks of them beyond that. This is the only I/O of the library.

// Wake-ups between a backend and its clients: for `vhost-device-blockring`.
#[doc(hidden)]
pub mod bell;
mod buffer;
mod disk;
mod error;
// As `bell`.
#[doc(hidden)]
pub mod event;
mod file;
mod idle;
mod lock;
mod mapped;
mod open;
mod presence;
mod rights;
mod ring;
mod serial;
mod unix;
mod users;

pub use buffer::AlignedBuf;
pub use disk::BlockDevice;
pub use error::{DeviceError, Operation};
pub use file::FileDevice;
#[doc(hidden)] // for `vhost-device-blockring`, which takes locks on behalf of a guest
pub use lock::{EDIT_PATIENCE, holder_of, is_role_held};
pub use lock::{LockRange, RangeLock, holder};
pub use mapped::MappedDevice;
pub use open::OpenOptions;
pub use presence::{Displaced, Lookout};
pub use rights::Forbidden;
pub use ring::{Cause, HeldReadOutcome, HeldReads, Peer, RingDevice, SharedSleep, Sleep};
#[doc(inline)]
pub use ring_os::{Mapping, Memory, Prefault};
#[doc(hidden)] // for the models of the tests, and the region of `vhost-device-blockring`
pub use ring_os::{Orders, shown};
pub use serial::find_by_serial;
pub use unix::UnixDevice;
#[doc(hidden)] // for `blockring bind`
pub use users::Machine;
