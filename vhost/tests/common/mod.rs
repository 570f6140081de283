//! What the tests of this package share; none of them needs all of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod attack;
pub mod beside;
pub mod daemon;
pub mod direct;
pub mod disk;
pub mod front_end;
pub mod sight;
