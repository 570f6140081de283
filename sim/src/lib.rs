//! A simulated disk, models of a ring, and their exploration.
//!
//! [`Disk`] is a medium behind a volatile cache: writes are visible at once, durable after a flush,
//! and a crash keeps any of the rest. [`DiskDevice`] is one open handle on it, for the ring
//! library. [`Explorer`] and [`wander`] take rings on it through crashes. [`Hooked`] lets a test
//! interfere with the accesses to any device. [`model`], [`corrupt`], [`oracle`] and [`requests`]
//! compare rings with models; [`Footprint`] measures processes.

// Tests only: what cannot happen is a panic.
#![allow(clippy::missing_panics_doc)]

mod adversary;
pub mod corrupt;
mod device;
mod disk;
mod explore;
mod footprint;
mod hooked;
mod image;
pub mod model;
pub mod oracle;
mod process;
pub mod requests;
mod watching;

pub use adversary::Adversary;
pub use device::DiskDevice;
pub use disk::{BegunFlush, Disk, Fault, Operation};
pub use explore::{
    Bounds, Content, Counts, Explorer, Failure, Found, Item, Last, Mutant, Op, RepairCounts,
    RepairMutant, Setting, Size, Step, explore_repair, inspect, payload, wander,
};
pub use footprint::Footprint;
pub use hooked::{Access, Hook, Hooked, hooked, unlocked};
pub use image::Image;
pub use process::{fail_flushes, fail_writes_at};
pub use watching::Watching;
