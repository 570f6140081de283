//! Helpers that run this package's program.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod load;
pub mod machine;
pub mod scene;
pub mod stream;
pub mod terminal;
