//! The data path: a guest's request, from its descriptor chain to the used ring.
//!
//! The [`queue_thread`] takes turns of the [`worker`], which takes a descriptor chain off the
//! [`queue`]. [`fast_path`] parses the usual shape and [`request`] every other; [`guard`] judges the
//! request, [`executor`] stores it in the [`region`] and wakes the host; [`request_state`] is how it
//! stands in between. A [`flusher`] makes the region durable, on a thread of the [`flush_pool`].
//! This part knows neither the front end's messages nor the daemon.

pub mod counters;
pub mod dirty;
pub mod empty_kicks;
pub mod executor;
pub mod fast_path;
pub mod fault;
pub mod flush_pool;
pub mod flusher;
pub mod guard;
pub mod io_threads;
pub mod kicks;
pub mod lookup;
pub mod polling;
pub mod probes;
pub mod queue;
pub mod queue_set;
pub mod queue_thread;
pub mod rate;
mod refusals;
pub mod region;
pub mod request;
pub mod request_state;
mod rota;
pub mod shared_queue;
pub mod waiters;
pub mod worker;
