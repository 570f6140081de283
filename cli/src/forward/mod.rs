//! `blockring forward`.

pub mod sink;
