//! A crash-safe single-producer/single-consumer queue on a block device, byte-compatible with the OCaml library
//! `shared-block-ring`.
//!
//! ```
//! use shared_block_ring::{Consumer, CreateOptions, OpenOptions, Producer, create};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("ring-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let path = dir.join("ring");
//! std::fs::write(&path, vec![0; 1 << 20])?;
//! create(&OpenOptions::default().open(&path)?, CreateOptions::default())?;
//!
//! let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
//! let position = producer.push("hello")?;
//! producer.advance(position)?; // from here on the item survives any crash, and the consumer sees it
//!
//! let mut consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! let item = consumer.pop(consumer.position())?;
//! assert_eq!(item.bytes, b"hello");
//! let next = item.next;
//! consumer.advance(next)?; // the item has been dealt with: its space is free
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok(())
//! # }
//! ```

mod check;
mod consumer;
mod control;
mod create;
pub mod device;
mod error;
pub mod format;
mod handle;
pub mod handover;
mod history;
mod item;
mod journal;
pub mod pci;
mod producer;
mod reader;
mod repair;
pub mod rules;
mod stage;
mod stop;
pub mod virtqueue;
pub mod wait;
mod window;

pub use check::{Sound, check};
pub use consumer::Consumer;
pub use control::Control;
pub use create::{
    CreateOptions, Created, allocate, create, first_used, make_file, parse_size, sync_name,
};
pub use device::{BlockDevice, FileDevice, MappedDevice, OpenOptions, UnixDevice, VirtioDevice};
pub use error::{Error, Result};
pub use format::Position;
pub use handle::{DebugInfo, Durability, State, read_slot};
pub use item::{Decode, Encode};
pub use journal::{
    Aside, Format, Journal, JournalError, JournalOptions, SyncError, Synced, Ticket, WhenFull,
};
pub use producer::Producer;
pub use repair::{Fix, Repair};
pub use stop::Stop;
pub use window::Popped;
