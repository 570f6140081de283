//! The metrics of `blockring` and `vhost-device-blockring`, and the server that answers scrapes.
//!
//! The [`catalogue`] names every metric once, and `docs/observability.md` has the same table. A
//! program implements [`Source`], which is called on the server's own thread: it reads what other
//! threads have written with plain stores, and so keeps none of them waiting.

mod address;
mod answers;
pub mod catalogue;
mod connection;
mod histogram;
mod http;
mod ring;
mod scrape;
mod server;

pub use address::Address;
pub use catalogue::{Kind, Metric, Program};
pub use histogram::Histogram;
pub use ring::{Ages, RingReading};
pub use scrape::{Format, Scrape};
pub use server::{Bound, Server, Source};
