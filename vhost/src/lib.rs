//! A vhost-user-blk backend that shows a shared block ring to a virtual machine.
//!
//! Three parts, each of which refers to those in front of it alone: the [`data_path`] carries a
//! guest's requests out, the [`front_end`] side answers vhost-user messages, and the [`daemon`]
//! opens, confines and serves everything.

pub mod daemon;
pub mod data_path;
pub mod front_end;
