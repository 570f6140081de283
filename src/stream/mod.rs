//! Producer and consumer in asynchronous programs, on the runtime of `tokio`.
//!
//! [`ItemStream`] is a consumer as a [`Stream`](futures_core::Stream) of items, and [`ItemSink`] a
//! producer as a [`Sink`](futures_sink::Sink) for them. They wait by a
//! [`Readiness`](crate::wait::Readiness), and every access to the device, which may take as long as
//! a flush of a disk does, runs where the runtime runs blocking calls. Without the feature `tokio`
//! nothing of this is built, and the rest of the library knows of no runtime.
//!
//! ```
//! use futures_util::{SinkExt, StreamExt, TryStreamExt};
//! use shared_block_ring::stream::{ItemSink, ItemStream};
//! use shared_block_ring::{Consumer, OpenOptions, Producer, create, make_file};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//! # make_file(&path, 1 << 20)?;
//! # create(&OpenOptions::default().open(&path)?, Default::default())?;
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
//! let mut sink = ItemSink::new(producer)?;
//! sink.feed("debit 7").await?;
//! sink.feed("credit 7").await?;
//! sink.flush().await?; // both at once; from here on they survive any crash
//!
//! let consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! let mut items = ItemStream::new(consumer)?;
//! while let Some(item) = items.try_next().await? {
//!     println!("{}", String::from_utf8_lossy(&item.bytes));
//!     items.advance(item.next).await?; // the item was dealt with: its space is free
//! #   if item.bytes == b"credit 7" { break }
//! }
//! # drop((sink, items));
//! #
//! // Batches: what is there, up to 64 items at a time.
//! # let mut sink = ItemSink::new(Producer::attach(OpenOptions::default().open(&path)?, "", "")?)?;
//! # sink.send("third").await?;
//! # let consumer = Consumer::attach(OpenOptions::default().open(&path)?, "logs", "collector")?;
//! # let mut items = ItemStream::new(consumer)?;
//! let mut batches = (&mut items).ready_chunks(64);
//! # let mut seen = 0;
//! while let Some(batch) = batches.next().await {
//!     let mut end = None;
//!     for item in batch {
//!         end = Some(item?.next);
//! #       seen += 1;
//!     }
//!     if let Some(end) = end {
//!         batches.get_mut().advance(end).await?;
//!     }
//! #   if seen == 1 { break }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Cancellation
//!
//! Every future here can be dropped at any await, and nothing is lost by it. An item that the
//! stream has read comes with the next call, or, if the stream itself is dropped before
//! [`advance`](ItemStream::advance), from the ring again. An item that the sink has accepted
//! (`start_send` has returned) is published by the next flush; those that were accepted and not
//! flushed go with a sink that is dropped, as those of any buffered writer do. `send` and `feed`
//! accept their item only once there is room: an item whose `send` was dropped before that is not
//! accepted. A call that was dropped while it was at the device goes on there, and its error, if
//! any, is that of the next call.

mod at_device;
mod items;
mod sink;

pub use items::{Item, ItemStream};
pub use sink::ItemSink;
