//! The front end's side: vhost-user messages, one connection after the other.
//!
//! The [`supervisor`] is told when something happens at a ring's [`endpoint`], which accepts one
//! front end after the other and ends what has to end; a thread of its own serves each
//! [`connection`]. `handler` has what the messages change, [`vring`] the queues that they set up,
//! [`tenant`] what a front end has set of the device, which is [`backend`]. [`seat`] says which of
//! two front ends is served. This part knows the data path, and not the daemon.

pub mod arrival;
pub mod backend;
mod backing;
pub mod connection;
pub mod endpoint;
pub mod failure;
mod handler;
mod inflight;
mod notifier;
pub mod seat;
pub mod supervisor;
pub mod tenant;
pub mod vring;
