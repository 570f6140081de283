//! Helpers for tests that boot real guests.
//!
//! A test asks for the programs ([`binaries`]), starts the host's side as a [`Daemon`], and boots a
//! [`Guest`] from an initramfs that [`ImageSpec`] puts together: busybox, the virtio modules, this
//! workspace's programs linked statically, and an `/init` that takes commands from the serial
//! console.
//!
//! ```no_run
//! use qemu_tests::{Disk, GuestBuilder};
//!
//! # fn main() -> qemu_tests::Result<()> {
//! let guest = GuestBuilder::new().disk(Disk::file("/tmp/ring.img", "ring")).boot()?;
//! let answer = guest.run("cat /sys/block/vda/serial")?;
//! assert_eq!((answer.status, answer.stdout.as_str()), (0, "ring"));
//! guest.power_off()
//! # }
//! ```
//!
//! Nothing here waits without a bound, and nothing that was started outlives the test process.

mod assets;
pub mod binaries;
pub mod campaign;
mod console;
mod disk;
mod emulator;
mod error;
mod guest;
mod image;
mod job;
pub mod load;
mod lun;
mod process;
pub mod program;
mod qemu;
mod qmp;
pub mod redteam;
pub mod scene;
mod system;

pub use disk::Disk;
pub use emulator::Qemu;
pub use error::{Error, Result};
pub use guest::{Guest, Snapshot};
pub use image::ImageSpec;
pub use job::{Job, Output};
pub use lun::Lun;
pub use process::{Daemon, wait_until};
pub use qemu::GuestBuilder;
pub use system::{Host, Packages, System};
