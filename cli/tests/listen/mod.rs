//! `blockring produce --listen`: items of many processes, by sockets.
#![allow(clippy::unwrap_used)]

mod datagrams;
mod load;
mod passed;
mod senders;
mod sockets;
mod streams;
