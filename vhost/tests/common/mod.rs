//! What the tests of this package share; none of them needs all of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod attack;
pub mod daemon;
pub mod fuse;
pub mod rings;
pub mod service;
pub mod user;
