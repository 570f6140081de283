//! A simulated disk, and what is explored on it.
//!
//! [`Disk`] is a medium behind a volatile cache: writes are visible at once, durable after a flush, and a crash keeps what an
//! adversary likes of the rest. [`DiskDevice`] is one opening of it, as the ring library takes it.
//! [`Explorer`] and [`wander`] carry rings through crashes on it. [`model`] and [`corrupt`] are what tests on
//! several devices, and the fuzzer, have in common; [`Footprint`] is what tests of whole programs have.

// A test's support: what cannot be is a panic.
#![allow(clippy::missing_panics_doc)]

mod adversary;
pub mod conversation;
pub mod corrupt;
mod device;
mod disk;
mod explore;
mod footprint;
pub mod front_end;
mod image;
pub mod model;
pub mod oracle;
mod process;
pub mod requests;
mod unlocked;
mod watching;

pub use adversary::Adversary;
pub use device::DiskDevice;
pub use disk::{Disk, Fault, Operation};
pub use explore::{
    Bounds, Counts, Explorer, Failure, Last, Mutant, Op, Setting, Size, Step, wander,
};
pub use footprint::Footprint;
pub use image::Image;
pub use process::fail_flushes;
pub use unlocked::Unlocked;
pub use watching::Watching;
