//! `libblockring`: the C library. `include/blockring.h` is made from this source and is its
//! documentation; `docs/c.md` is the introduction.
//!
//! Nothing here knows how a ring works. A function of the header checks its arguments
//! ([`border`]), finds the object behind a handle ([`table`]), calls `shared-block-ring` and
//! answers with a code ([`code`]).
#![deny(missing_debug_implementations)]
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![allow(
    clippy::missing_safety_doc,
    reason = "one rule for all pointers, which the head of the header states"
)]
#![allow(clippy::doc_markdown, reason = "the words become C's comments, which have no backquotes")]

mod border;
mod code;
mod consumer;
mod control;
mod fork;
mod position;
mod producer;
mod ring;
mod table;
mod types;
mod waiting;
