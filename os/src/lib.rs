//! What the ring, the virtio driver and the backend ask of the operating system: mapped memory,
//! space that is allocated before it is needed, connections and waits that end, and paths that can
//! be printed.
//!
//! Everything that waits for another process takes [`Limits`]: a time, and descriptors that end the
//! wait early.
//!
//! ```
//! use ring_os::{Limits, Mapping, Memory, allocate, wait_readable};
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixStream;
//! use std::time::Duration;
//!
//! let file = tempfile::tempfile()?;
//! file.set_len(8192)?;
//! allocate(&file, 8192)?; // no store to the mapping meets a full disk
//! let mapping = Mapping::new(file, 8192)?;
//! mapping.write(4096, b"hello");
//! let mut copy = [0; 5];
//! mapping.read(4096, &mut copy);
//! assert_eq!(&copy, b"hello");
//!
//! let (silent, _peer) = UnixStream::pair()?;
//! let readable = wait_readable(&[silent.as_fd()], Some(Duration::from_millis(1)))?;
//! assert_eq!(readable, None);
//! assert!(Limits::within(Duration::ZERO).check_now().is_err(), "the time is over");
//! # Ok::<(), std::io::Error>(())
//! ```
#![deny(missing_docs, missing_debug_implementations)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod dial;
mod entries;
mod mapping;
mod memory;
mod prefetch;
mod random;
mod shown;
mod space;
mod wait;

pub use dial::{FIRST_RETRY, LONGEST_RETRY, SocketKind, await_readable, dial, persist};
pub use entries::entry_names;
pub use mapping::{Mapping, Prefault, Word};
pub use memory::Memory;
#[doc(hidden)] // for the models that search for interleavings
pub use memory::Orders;
pub use prefetch::{prefetch, prefetch_to_write};
pub use random::random_bytes;
pub use shown::{is_unfit, shown};
pub use space::{Allocation, allocate, allocate_within};
pub use wait::{ANSWER_PATIENCE, LONGEST_PAUSE, Limits, Pauses, wait_readable};
