//! A write-ahead journal: entries that are performed at least once, in order, whatever dies in between.
//!
//! ```
//! use shared_block_ring::{Journal, JournalOptions, OpenOptions};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("journal-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! # let path = dir.join("journal");
//! # shared_block_ring::make_file(&path, 1 << 20)?;
//! let device = OpenOptions::default().open(&path)?;
//! let options = JournalOptions::new(|aside| Err(std::io::Error::other(aside.reason.clone())));
//! let perform = |entries: &[String]| -> Result<(), std::io::Error> {
//!     // Idempotent: after a crash an entry comes again.
//!     entries.iter().for_each(|entry| println!("{entry}"));
//!     Ok(())
//! };
//! let journal = Journal::start(device, options, perform)?; // performs first what a crash has left over
//! let ticket = journal.push(&"hello".to_owned())?; // from here on it will be performed
//! ticket.sync(None)?; // and here it has been
//! journal.shutdown();
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok(())
//! # }
//! ```

mod options;
mod shared;
mod worker;

pub use options::{Aside, Format, JournalOptions, WhenFull};
pub use shared::{SyncError, Synced, Ticket};

use crate::consumer::Consumer;
use crate::create::{CreateOptions, create, first_used};
use crate::device::{AlignedBuf, BlockDevice};
use crate::error::Error;
use crate::format::{FormatError, SIGNATURE};
use crate::item::{Decode, Encode};
use crate::producer::Producer;
use shared::{Full, Shared};
use std::fmt::Display;
use std::io::IoSliceMut;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use worker::Worker;

/// A running journal. Dropping it shuts it down.
pub struct Journal<T> {
    producer: Mutex<Producer<Arc<dyn BlockDevice + Sync>>>,
    shared: Arc<Shared>,
    when_full: WhenFull,
    worker: Mutex<Option<JoinHandle<()>>>,
    entries: PhantomData<fn(T)>,
}

/// Why a journal could not start, or could not take an entry.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The ring, or its device.
    #[error(transparent)]
    Ring(#[from] Error),
    /// The device is not a ring, and holds something else.
    #[error("not a journal, and not empty: byte {0} is not zero (Format::Always overwrites it)")]
    NotEmpty(u64),
    /// No room, and [`WhenFull::Answer`] was asked for.
    #[error("the journal is full")]
    Full,
    /// [`Journal::shutdown`] was called.
    #[error("the journal is shut down")]
    ShutDown,
    /// The worker met an error that it cannot go on after.
    #[error("the journal has failed: {0}")]
    Failed(String),
    /// The operating system gave no thread.
    #[error("cannot start the journal's thread: {0}")]
    Thread(std::io::Error),
}

impl<T: Encode + for<'a> Decode<'a> + 'static> Journal<T> {
    /// Starts a journal on `device`. What was not performed before a crash or a shutdown comes first.
    ///
    /// `perform` gets batches in order, at least once: it must be idempotent. An entry leaves the journal when `perform` has returned
    /// `Ok` for it. An error or a panic is retried; see [`JournalOptions`].
    pub fn start<D, F, E>(
        device: D,
        options: JournalOptions,
        perform: F,
    ) -> Result<Self, JournalError>
    where
        D: BlockDevice + Sync + 'static,
        F: FnMut(&[T]) -> Result<(), E> + Send + 'static,
        E: Display + 'static,
    {
        let device: Arc<dyn BlockDevice + Sync> = Arc::new(device);
        format(&device, options.format)?;
        let producer = Producer::attach(Arc::clone(&device), "journal", "journal")?;
        let consumer = Consumer::attach(device, "journal", "journal")?;
        let shared = Arc::new(Shared::new(consumer.position(), producer.position()));
        let when_full = options.when_full;
        let worker = Worker::new(consumer, Arc::clone(&shared), options, perform);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run())
            .map_err(JournalError::Thread)?;
        Ok(Self {
            producer: Mutex::new(producer),
            shared,
            when_full,
            worker: Mutex::new(Some(thread)),
            entries: PhantomData,
        })
    }

    /// Makes an entry durable: it will be performed, also after a crash. Where there is no room, entries are performed at once to
    /// make some.
    pub fn push(&self, entry: &T) -> Result<Ticket, JournalError> {
        loop {
            self.shared.alive()?;
            let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
            match producer.push(entry).and_then(|end| producer.advance(end).map(|()| end)) {
                Ok(end) => {
                    self.shared.pushed(end);
                    return Ok(Ticket::new(Arc::clone(&self.shared), end));
                }
                Err(Error::Retry) => {
                    let pushed = producer.position();
                    drop(producer);
                    let full = self.shared.make_room(pushed, self.when_full == WhenFull::Wait);
                    if full == Full::Answer {
                        return Err(JournalError::Full);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A ticket for all that is in the journal now, what an earlier run left over included.
    pub fn everything(&self) -> Ticket {
        Ticket::new(Arc::clone(&self.shared), self.shared.last())
    }

    /// Ends the journal: at once, but for a `perform` that is under way. What was not performed stays for the next start; whoever
    /// waits for it is told so.
    pub fn shutdown(&self) {
        self.shared.shut_down();
        let thread = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of `perform` is caught within; one of the worker itself has been reported on standard error.
            let _ = thread.join();
        }
        self.producer.lock().unwrap_or_else(PoisonError::into_inner).detach();
    }
}

impl<T> Drop for Journal<T> {
    fn drop(&mut self) {
        self.shared.shut_down();
        let thread = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Makes a ring where there is none, as far as that is wanted.
fn format(device: &Arc<dyn BlockDevice + Sync>, format: Format) -> Result<(), JournalError> {
    let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
    device.read(0, &mut [IoSliceMut::new(&mut sector)]).map_err(Error::from)?;
    if sector.starts_with(SIGNATURE) {
        return Ok(());
    }
    if format == Format::Never {
        return Err(Error::from(FormatError::NotARing).into());
    }
    if format == Format::IfEmpty
        && let Some(byte) = first_used(device).map_err(Error::from)?
    {
        return Err(JournalError::NotEmpty(byte));
    }
    create(device, CreateOptions::default())?;
    Ok(())
}
