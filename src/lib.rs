//! A crash-safe queue on a block device, with one producer and one consumer.
//!
//! Published items survive the death of the producer, of the consumer and of the machine. They
//! arrive in order, at least once, each with a position by which a receiver recognises an item that
//! it has handled already. The device can be a file, a disk, memory that two processes share, or a
//! ring that `vhost-device-blockring` hands over from a virtual machine. The bytes are compatible
//! with those of the OCaml library `shared-block-ring`.
//!
//! # Push and advance, pop and advance
//!
//! A ring is made once, with [`create`]. [`Producer::push`] writes an item where the consumer does
//! not see it, and [`Producer::advance`] publishes everything up to a position: from then on the
//! item survives any crash. [`Consumer::pop`] looks at an item, the same one every time, and
//! [`Consumer::advance`] frees everything up to a position: those items are not delivered again.
//!
//! ```
//! use shared_block_ring::{Consumer, CreateOptions, OpenOptions, Producer, create, make_file};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//!
//! make_file(&path, 1 << 20)?;
//! create(&OpenOptions::default().open(&path)?, CreateOptions::new())?;
//!
//! let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
//! let position = producer.push("hello")?;
//! producer.advance(position)?; // published: it survives any crash, and the consumer sees it
//!
//! let mut consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! let item = consumer.pop(consumer.position())?;
//! assert_eq!(item.bytes, b"hello");
//! let next = item.next;
//! consumer.advance(next)?; // the item was dealt with: its space is free
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A consumer that dies between `pop` and `advance` gets the item again. A receiver that must
//! handle each item once stores [`next`](Popped::next) together with its result, in one
//! transaction. After a restart it advances to the stored position, and what it has handled does
//! not come again. The stored position belongs to one ring, which [`DebugInfo::uuid`] names.
//! `examples/collector.rs` does all of this.
//!
//! # Batches
//!
//! Several pushes before one `advance` are an atomic batch: the consumer sees all of its items or
//! none, whatever crashes. A batch costs one write of data and one of the pointer, with the flushes
//! that [`Durability`] asks for, so it is also what makes a producer fast. [`Producer::push_batch`]
//! pushes all of a slice or nothing; [`Producer::push_some`] as many as there is room for;
//! [`Producer::reserve`] lends the room in which a large item is written.
//! [`Consumer::fold`] goes over all published items, and is the fastest way to read them.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//! # use shared_block_ring::{Consumer, OpenOptions, Producer, create, make_file};
//! # make_file(&path, 1 << 20)?;
//! # create(&OpenOptions::default().open(&path)?, Default::default())?;
//! # let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
//! # let mut consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! producer.push("debit 7")?;
//! let end = producer.push("credit 7")?;
//! producer.advance(end)?; // both at once
//!
//! let start = consumer.position();
//! let (end, lines) = consumer.fold(start, Vec::new(), |mut lines, item| {
//!     lines.push(String::from_utf8_lossy(item.bytes).into_owned());
//!     lines
//! })?;
//! assert_eq!(lines, ["debit 7", "credit 7"]);
//! consumer.advance(end)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Waiting
//!
//! No call waits for the other side: an empty ring, and a full one, answer [`Error::Retry`] at
//! once. A [`Wait`](wait::Wait) waits in between, in the best way that the device has, and ends
//! early for a timeout or a descriptor that becomes readable. A [`Readiness`](wait::Readiness) is the
//! same wait as a descriptor, for a program that has an event loop.
//!
//! ```
//! use shared_block_ring::Error;
//! use shared_block_ring::wait::{Wait, Woken};
//! use std::time::Duration;
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//! # use shared_block_ring::{Consumer, OpenOptions, Producer, create, make_file};
//! # make_file(&path, 1 << 20)?;
//! # create(&OpenOptions::default().open(&path)?, Default::default())?;
//! # let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
//! # let mut consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! # let sender = std::thread::spawn(move || {
//! #     let end = producer.push("hello").unwrap();
//! #     producer.advance(end).unwrap();
//! # });
//!
//! let mut wait = Wait::for_items(Some(Duration::from_secs(60)));
//! let (next, line) = loop {
//!     match consumer.pop_as::<String>(consumer.position()) {
//!         Ok(item) => break item,
//!         Err(Error::Retry) => {
//!             if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
//!                 return Err("no item within a minute".into());
//!             }
//!         }
//!         Err(e) => return Err(e.into()),
//!     }
//! };
//! assert_eq!(line, "hello");
//! consumer.advance(next)?;
//! # sender.join().unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Roles
//!
//! A ring has one producer and one consumer. A handle holds its role by a lock that ends with the
//! process, or when the handle is dropped or detached; a second one is [`Error::RoleTaken`]. A
//! [`Control`] stands beside the two: it looks at the ring, and suspends and resumes the producer.
//!
//! ```
//! use shared_block_ring::format::Side;
//! use shared_block_ring::{Control, Error};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//! # use shared_block_ring::{OpenOptions, Producer, create, make_file};
//! # make_file(&path, 1 << 20)?;
//! # create(&OpenOptions::default().open(&path)?, Default::default())?;
//! let open = || OpenOptions::default().open(&path);
//!
//! let first = Producer::attach(open()?, "logs", "web-1")?;
//! let second = Producer::attach(open()?, "logs", "web-2");
//! assert!(matches!(second, Err(Error::RoleTaken { role: Side::Producer, .. })));
//! assert_eq!(Control::open(open()?)?.debug_info()?.used, 0);
//! drop(first);
//! Producer::attach(open()?, "logs", "web-2")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//!
//! An error is transient or lasting. A transient one ([`Error::is_transient`]: `Retry`,
//! `Suspended`) says that the other side has to move first. A lasting one names what is wrong: the
//! argument, the handle, the ring's bytes ([`Error::Format`]) or the device ([`Error::Device`],
//! with the [`Operation`](device::Operation) that failed and the operating system's error).
//!
//! ```
//! use shared_block_ring::Error;
//! use shared_block_ring::device::Operation;
//! # use shared_block_ring::OpenOptions;
//!
//! match OpenOptions::default().open("/nonexistent/ring") {
//!     Err(Error::Device(e)) => {
//!         assert_eq!(e.operation, Operation::Open);
//!         assert_eq!(e.source.kind(), std::io::ErrorKind::NotFound);
//!     }
//!     other => panic!("{other:?}"),
//! }
//! ```
//!
//! # More
//!
//! - [`device`]: the devices, and how to write one;
//! - [`ConsumerSet`]: any number of consumers in one wait;
//! - `stream`, with the feature `tokio`: both ends as `Stream` and `Sink` in asynchronous programs;
//! - [`Journal`]: both ends in one process, a write-ahead log whose entries are performed at least
//!   once;
//! - [`check()`], [`Repair`]: for a ring that may be damaged;
//! - [`format`](mod@format): the bytes.
#![deny(missing_docs, missing_debug_implementations)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod consumer;
mod consumer_set;
mod control;
mod create;
pub mod device;
mod error;
pub mod format;
mod handle;
// The protocol between a backend and its clients: for `vhost-device-blockring`.
#[doc(hidden)]
pub mod handover;
mod history;
mod item;
mod journal;
mod new_file;
mod producer;
mod reader;
mod repair;
// Pure decisions that the guard of `vhost-device-blockring` makes, too.
#[doc(hidden)]
pub mod rules;
mod sector0;
mod stage;
#[cfg(feature = "tokio")]
pub mod stream;
// Everything that lies in a ring, for the inspection, health and live view of `blockring`.
#[doc(hidden)]
pub mod survey;
pub mod wait;
mod window;

pub use check::{CheckReport, Notice, check};
pub use consumer::Consumer;
pub use consumer_set::{ConsumerSet, Counters, Key, Occurrence};
pub use control::Control;
pub use create::{CreateOptions, Created, create, first_used_byte};
pub use device::{BlockDevice, FileDevice, MappedDevice, OpenOptions, RingDevice, UnixDevice};
pub use error::{Error, Result};
pub use format::Position;
#[doc(hidden)]
pub use handle::read_slot;
pub use handle::{DebugInfo, Durability, State};
pub use handover::Role;
pub use item::{Decode, Encode};
pub use journal::{
    Aside, Journal, JournalError, JournalOptions, SyncError, Synced, Ticket, WhenAbsent, WhenFull,
};
#[doc(hidden)] // for the files that the programs make beside a ring
pub use new_file::{make_empty, refuse_among_devices, sync_name};
pub use new_file::{make_file, make_file_within};
pub use producer::{Producer, Reservation};
pub use repair::{Fix, Repair};
#[doc(hidden)] // for `vhost-device-blockring`, which makes and serves files
pub use ring_os::{Allocation, allocate};
pub use window::Popped;
