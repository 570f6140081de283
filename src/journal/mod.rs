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
mod ticket;
mod worker;

pub use options::{Aside, Format, JournalOptions, WhenFull};
pub use ticket::{SyncError, Synced, Ticket};

use crate::consumer::Consumer;
use crate::create::{CreateOptions, create, first_used};
use crate::device::{AlignedBuf, BlockDevice, LockRange, RangeLock, holder};
use crate::error::Error;
use crate::format::{FormatError, SIGNATURE, Side};
use crate::handle::State;
use crate::item::{Decode, Encode};
use crate::producer::Producer;
use shared::Shared;
use std::fmt::Display;
use std::io::IoSliceMut;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;
use worker::Worker;

/// How often a push that waits for a suspended journal looks: the one who resumes it is another process, and cannot wake us.
const LOOK: Duration = Duration::from_millis(20);

type Device = Arc<dyn BlockDevice + Sync>;

/// A running journal. Dropping it shuts it down.
///
/// All of it may be called from any thread, from within `perform` too: there nothing waits. A push that finds no room answers
/// [`JournalError::Full`], [`Ticket::sync`] answers [`SyncError::WithinPerform`], and [`shutdown`](Journal::shutdown) only asks.
pub struct Journal<T> {
    device: Device,
    /// Held by a push while it waits for room: those behind it wait for their turn, so that small entries do not overtake a large
    /// one for ever.
    producer: Mutex<Producer<Device>>,
    shared: Arc<Shared>,
    when_full: WhenFull,
    worker: Mutex<Option<JoinHandle<()>>>,
    entries: PhantomData<fn(T)>,
}

/// Why a journal could not start, or could not take an entry.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The ring, or its device. From a push: an entry larger than the journal ([`Error::TooLarge`]), or a journal that was suspended
    /// from outside ([`Error::Suspended`]) where [`WhenFull::Answer`] was asked for; or one that another life of this process has moved while
    /// the entry was on its way ([`Error::Superseded`]: the entry is performed, or not). The journal goes on.
    #[error(transparent)]
    Ring(#[from] Error),
    /// The device is not a ring, and holds something else.
    #[error("not a journal, and not empty: byte {0} is not zero (Format::Always overwrites it)")]
    NotEmpty(u64),
    /// No room, and [`WhenFull::Answer`] was asked for, or `perform` was pushing.
    #[error("the journal is full")]
    Full,
    /// [`Journal::shutdown`] was called.
    #[error("the journal is shut down")]
    ShutDown,
    /// The device has failed. Entries that were accepted are performed when the journal is started again.
    #[error("the journal has failed: {0}")]
    Failed(Arc<Error>),
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
        let device: Device = Arc::new(device);
        // Before the look at what is there: two that start at once must not both find it empty.
        let roles = [alone(&device, Side::Producer)?, alone(&device, Side::Consumer)?];
        format(&device, options.format)?;
        let producer = attach_producer(&device)?;
        let consumer = Consumer::attach(Arc::clone(&device), "journal", "journal")?;
        // The two have the same locks by now, through the same open file description.
        roles.into_iter().for_each(RangeLock::leave);
        let shared = Arc::new(Shared::new(consumer.position(), producer.position()));
        let when_full = options.when_full;
        let worker = Worker::new(consumer, Arc::clone(&shared), options, perform);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run())
            .map_err(JournalError::Thread)?;
        Ok(Self {
            device,
            producer: Mutex::new(producer),
            shared,
            when_full,
            worker: Mutex::new(Some(thread)),
            entries: PhantomData,
        })
    }

    /// Makes an entry durable: it will be performed, also after a crash. Where there is no room, entries are performed at once to
    /// make some. An error means that the entry will not be performed (unless it is [`JournalError::Failed`] or [`Error::Superseded`]: then
    /// nobody knows).
    pub fn push(&self, entry: &T) -> Result<Ticket, JournalError> {
        let may_wait = self.when_full == WhenFull::Wait && !self.shared.am_i_the_worker();
        let mut producer = self.producer()?;
        loop {
            self.shared.alive()?;
            let left = self.shared.left();
            match self.accept(&mut producer, entry) {
                Ok(ticket) => return Ok(ticket),
                Err(Error::Retry) => {
                    self.shared.want(producer.position());
                    if !may_wait {
                        return Err(JournalError::Full);
                    }
                    self.shared.wait_for_room(left);
                }
                Err(Error::Suspended) if may_wait => {
                    self.shared.pause(LOOK);
                }
                Err(Error::Superseded { from, to, .. }) if from == to => {
                    // What is elsewhere is no entry of ours: this one is pushed behind it.
                    self.shared.pushed(producer.position());
                }
                Err(e @ Error::Superseded { .. }) => {
                    self.shared.pushed(producer.position());
                    return Err(e.into());
                }
                Err(e @ (Error::Suspended | Error::TooLarge { .. })) => return Err(e.into()),
                Err(e) => return Err(JournalError::Failed(self.shared.fail(e))),
            }
        }
    }

    fn producer(&self) -> Result<MutexGuard<'_, Producer<Device>>, JournalError> {
        if !self.shared.am_i_the_worker() {
            return Ok(self.producer.lock().unwrap_or_else(PoisonError::into_inner));
        }
        match self.producer.try_lock() {
            Ok(producer) => Ok(producer),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            // Who has it may be waiting for us to make room.
            Err(TryLockError::WouldBlock) => Err(JournalError::Full),
        }
    }

    /// All or nothing: what did not become visible now must not do so with the entry after it.
    fn accept(&self, producer: &mut Producer<Device>, entry: &T) -> Result<Ticket, Error> {
        if producer.state()? == State::Suspended {
            return Err(Error::Suspended);
        }
        let end = producer.push(entry)?;
        let ticket = self.shared.expect(end);
        match producer.advance(end) {
            Ok(()) => {
                self.shared.pushed(end);
                Ok(ticket)
            }
            Err(e) => {
                self.shared.withdraw(end);
                if matches!(e, Error::Suspended) {
                    producer.detach();
                    *producer = attach_producer(&self.device)?;
                }
                Err(e)
            }
        }
    }

    /// A ticket for all that is in the journal now, what an earlier run left over included.
    pub fn everything(&self) -> Ticket {
        self.shared.everything()
    }

    /// Ends the journal: at once, but for a `perform` that is under way. What was not performed stays for the next start; whoever
    /// waits for it is told so. Then the device is free for another journal.
    pub fn shutdown(&self) {
        if self.end() {
            self.producer.lock().unwrap_or_else(PoisonError::into_inner).detach();
        }
    }
}

impl<T> Journal<T> {
    /// Whether the worker has ended: not where it would wait for itself.
    fn end(&self) -> bool {
        self.shared.shut_down();
        if self.shared.am_i_the_worker() {
            return false;
        }
        // Held over the wait, so that whoever comes second waits too.
        let mut thread = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // What can panic in it is caught within, and told to whoever pushes or waits.
            let _ = thread.join();
        }
        true
    }
}

impl<T> Drop for Journal<T> {
    fn drop(&mut self) {
        self.end();
    }
}

fn attach_producer(device: &Device) -> Result<Producer<Device>, Error> {
    Producer::attach(Arc::clone(device), "journal", "journal")
}

fn alone(device: &Device, role: Side) -> Result<RangeLock, Error> {
    RangeLock::try_acquire(device, LockRange::Role(role))?
        .ok_or_else(|| Error::Held { role, holder: holder(device, role) })
}

/// Makes a ring where there is none, as far as that is wanted.
fn format(device: &Device, format: Format) -> Result<(), JournalError> {
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
