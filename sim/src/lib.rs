//! A simulated disk, and what is explored on it.
//!
//! [`Disk`] is a medium behind a volatile cache: writes are visible at once, durable after a flush, and a crash keeps what an
//! adversary likes of the rest. [`DiskDevice`] is one opening of it, as the ring library takes it. [`model`] and [`corrupt`] are what tests on
//! several devices, and the fuzzer, have in common.

// A test's support: what cannot be is a panic.
#![allow(clippy::missing_panics_doc)]

mod adversary;
mod canon;
mod control;
pub mod corrupt;
mod device;
mod disk;
mod explorer;
mod image;
mod inspect;
mod item;
pub mod model;
mod mutant;
mod oracle;
mod process;
mod step;
mod tap;
mod wander;
mod watching;
mod world;

pub use adversary::Adversary;
pub use device::DiskDevice;
pub use disk::{Disk, Fault, Operation};
pub use explorer::{Bounds, Counts, Explorer, Failure};
pub use image::Image;
pub use mutant::Mutant;
pub use process::fail_flushes;
pub use step::{Op, Size, Step};
pub use wander::wander;
pub use watching::Watching;
pub use world::Setting;
