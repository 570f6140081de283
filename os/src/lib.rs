//! What the ring, the virtio driver and the backend ask of the operating system: mapped memory,
//! space that is allocated before it is needed, connections and waits that end, and paths that can
//! be printed.
#![deny(missing_docs, missing_debug_implementations)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod dial;
mod entries;
mod mapping;
mod memory;
mod random;
mod shown;
mod space;
mod wait;

pub use dial::{FIRST_RETRY, LONGEST_RETRY, await_readable, dial, persist};
pub use entries::entry_names;
pub use mapping::{Mapping, Prefault, Word};
pub use memory::{Memory, Orders};
pub use random::random_bytes;
pub use shown::shown;
pub use space::{Allocation, allocate, allocate_within};
pub use wait::{ANSWER_PATIENCE, LONGEST_PAUSE, Limits, Pauses, wait_readable};
