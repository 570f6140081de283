//! Rings on a simulated disk, taken through programs and crashes, and compared with what was
//! promised.
//!
//! [`step`] lists what the two sides do and the trouble they have; [`world`] carries it out with
//! the library's own producer and consumer, over [`tap`]s that [`control`] can interfere with;
//! [`oracle`] records what has been promised. After every change [`explorer`] examines all disks
//! that a crash could leave ([`mod@wander`] some of them), has [`inspect`] read each, and asks the
//! oracle.

mod canon;
mod control;
mod explorer;
mod inspect;
mod item;
mod mutant;
mod oracle;
mod repair;
mod step;
mod tap;
mod wander;
mod world;

pub use explorer::{Bounds, Counts, Explorer, Failure};
pub use inspect::inspect;
pub use item::payload;
pub use mutant::{Last, Mutant};
pub use oracle::{Content, Found, Item};
pub use repair::{RepairCounts, RepairMutant, explore_repair};
pub use step::{Op, Size, Step};
pub use wander::wander;
pub use world::Setting;
