//! The front end's side: vhost-user messages, one connection after the other.
//!
//! [`connections`] serves one front end after the other; `handler` has what the messages change,
//! [`backend`] the device that they ask for, [`vring`] the queues that they set up. This part knows
//! the data path, and not the daemon.

pub mod accept;
pub mod backend;
mod backing;
pub mod connections;
pub mod failure;
mod handler;
mod inflight;
mod notifier;
pub mod vring;
