//! A vhost-user-blk backend that shows a shared block ring to a virtual machine.
//!
//! The way of a guest's byte: [`worker`] takes a descriptor chain off the [`queue`], [`request`] takes it apart, [`guard`] judges
//! it, [`executor`] stores it in the [`region`] and wakes the host. Around it: [`backend`] answers the front end's messages,
//! [`handover`] gives the region to a process on the host, [`connections`] serves one front end after the other, [`server`] is the daemon's life, in a [`sandbox`] that survives a [`fault`] of memory
//! that others share.

pub mod backend;
mod completion;
pub mod config;
pub mod connections;
pub mod counters;
pub mod dirty;
pub mod driver;
pub mod executor;
pub mod failure;
pub mod fault;
pub mod flusher;
pub mod guard;
pub mod handover;
mod notifier;
mod pace;
mod parked;
pub mod peer;
pub mod polling;
pub mod queue;
mod refusals;
pub mod region;
pub mod request;
pub mod ring;
pub mod sandbox;
pub mod server;
pub mod settings;
pub mod sockets;
pub mod vring;
pub mod worker;
