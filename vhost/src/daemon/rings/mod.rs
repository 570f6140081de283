//! A daemon of many rings: two processes, of which one has the rights and the other the work.
//!
//! The control process ([`server`]) reads the [`folder`] of the rings, opens their files, makes
//! their sockets and takes [`calls`] by [`varlink`]. The [`data_process`] gets all of that as
//! descriptors ([`messages`]); it serves the rings, and the sandbox leaves it nothing else. If it
//! dies, another one takes its place ([`plane`]).

mod calls;
pub mod data_process;
pub mod folder;
mod manager;
mod member;
mod messages;
mod metrics;
mod names;
pub mod options;
mod passed;
mod plane;
mod preparations;
pub mod reexec;
pub mod room;
pub mod server;
mod succession;
mod varlink;
mod waits;
