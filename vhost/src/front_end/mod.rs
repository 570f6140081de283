//! The front end's side: vhost-user messages, one connection after the other.
//!
//! [`connections`] serves one front end after the other, [`backend`] answers its messages,
//! [`vring`] is the queue that they set up. This part knows the data path, and not the daemon.

pub mod accept;
pub mod backend;
mod backing;
pub mod connections;
pub mod failure;
mod notifier;
pub mod vring;
