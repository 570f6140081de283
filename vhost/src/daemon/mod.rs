//! The daemon around both: its [`config`]uration and [`settings`], [`sockets`], the [`handover`] to
//! a process on the host, the [`sandbox`], and the [`server`] that starts and ends all of it.

mod clients;
pub mod condition;
pub mod config;
pub mod config_file;
pub mod failure;
pub mod handover;
mod interruptible;
pub mod metrics;
pub mod peer;
pub mod prepared;
pub mod ring;
pub mod rings;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod settings;
pub mod sockets;
mod watch;
pub mod watchdog;
