//! Rings on a simulated disk, carried through programs and crashes, and held against what was promised.
//!
//! [`step`] says what the two sides do and what befalls them; [`world`] carries it out with the library's own producer and consumer, over
//! [`tap`]s where [`control`] lets things happen; [`oracle`] keeps what has been promised. After every change [`explorer`] looks at all
//! disks that a crash could leave ([`mod@wander`] at some), has [`inspect`] say what is on each, and asks the oracle.

mod canon;
mod control;
mod explorer;
mod inspect;
mod item;
mod mutant;
mod oracle;
mod step;
mod tap;
mod wander;
mod world;

pub use explorer::{Bounds, Counts, Explorer, Failure};
pub use mutant::{Last, Mutant};
pub use step::{Op, Size, Step};
pub use wander::wander;
pub use world::Setting;
