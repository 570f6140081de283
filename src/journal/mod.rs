//! A write-ahead journal: entries that are performed at least once, in order, whatever crashes in
//! between.

mod options;
mod shared;
mod ticket;
mod worker;

pub use options::{Aside, JournalOptions, WhenAbsent, WhenFull};
pub use ticket::{SyncError, Synced, Ticket};

use crate::consumer::Consumer;
use crate::create::{CreateOptions, create, first_used_byte};
use crate::device::{AlignedBuf, LockRange, Lookout, RangeLock, RingDevice, holder};
use crate::error::Error;
use crate::format::{FormatError, SIGNATURE, Side};
use crate::handle::State;
use crate::item::{Decode, Encode};
use crate::producer::Producer;
use crate::sector0::Sector0;
use shared::Shared;
use std::fmt::{self, Display};
use std::io::IoSliceMut;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;
use worker::{PerformFn, Worker};

/// The pause between looks of a push that waits for a suspended journal: the process that resumes
/// the journal is another one, and wakes nobody.
const LOOK: Duration = Duration::from_millis(20);

type Device = Arc<dyn RingDevice + Sync>;

/// A running write-ahead journal: entries that are performed at least once, in order, whatever
/// crashes in between.
///
/// ```
/// use shared_block_ring::{Journal, JournalOptions, OpenOptions};
/// use std::io;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("journal");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
///
/// let device = OpenOptions::default().open(&path)?;
/// let options = JournalOptions::new(|aside| Err(io::Error::other(aside.reason.clone())));
/// let perform = |entries: &[String]| -> Result<(), io::Error> {
///     // It must be idempotent: after a crash an entry comes again.
///     entries.iter().for_each(|entry| println!("{entry}"));
///     Ok(())
/// };
/// let journal = Journal::start(device, options, perform)?; // first performs what a crash has left
/// let ticket = journal.push(&"hello".to_owned())?; // durable: it will be performed
/// ticket.sync(None)?; // it has been performed
/// journal.shutdown();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Dropping a journal shuts it down, and waits for a call of `perform` that is under way.
///
/// Its methods may be called from any thread, and from within `perform`, where none of them waits:
/// a push without room fails with [`JournalError::Full`], [`Ticket::sync`] with
/// [`SyncError::WithinPerform`], and [`shutdown`](Journal::shutdown) returns before the journal has
/// ended.
pub struct Journal<T> {
    device: Device,
    /// Sector 0 when the journal was started.
    sector0: Sector0,
    /// Locked by a push while it waits for room. Other pushes wait for their turn, so that small
    /// entries do not overtake a large one for ever.
    producer: Mutex<Producer<Device>>,
    shared: Arc<Shared>,
    when_full: WhenFull,
    /// The time of the next check that the ring is still where it was opened.
    lookout: Mutex<Lookout>,
    worker: Mutex<Option<JoinHandle<()>>>,
    entries: PhantomData<fn(T)>,
}

/// The error of a journal that could not start, or could not take an entry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The ring or its device failed. The journal goes on after such an error of a push: an entry
    /// larger than the journal ([`Error::TooLarge`]); a journal that is suspended from outside
    /// ([`Error::Suspended`]), with [`WhenFull::Fail`]; or one that another instance of this
    /// process has moved while the entry was pushed ([`Error::Superseded`]: the entry may be
    /// performed, or not).
    #[error(transparent)]
    Ring(#[from] Error),
    /// The device holds something else than a journal.
    #[error(
        "not a journal, and not empty: byte {0} is not zero (WhenAbsent::Overwrite overwrites it)"
    )]
    NotEmpty(u64),
    /// The journal has no room, and the push may not wait: because of [`WhenFull::Fail`], or
    /// because `perform` is pushing.
    #[error("the journal is full")]
    Full,
    /// [`Journal::shutdown`] was called.
    #[error("the journal is shut down")]
    ShutDown,
    /// The journal has failed. Entries that were accepted are performed when it is started again.
    #[error("the journal has failed: {0}")]
    Failed(Arc<Error>),
    /// The journal's thread could not be started.
    #[error("cannot start the journal's thread: {0}")]
    Thread(std::io::Error),
}

impl<T: Encode + for<'a> Decode<'a> + 'static> Journal<T> {
    /// Starts a journal on `device`. Entries that were not performed before a crash or a shutdown
    /// are performed first.
    ///
    /// `perform` gets batches in order, at least once: it must be idempotent. An entry leaves the
    /// journal when `perform` has returned `Ok` for it. After an error or a panic it is tried
    /// again: see [`JournalOptions`].
    ///
    /// # Errors
    /// [`JournalError::NotEmpty`] and [`JournalError::Ring`]: by [`JournalOptions::when_absent`],
    /// because another handle has a role of the ring, or because of the device.
    pub fn start<D, F, E>(
        device: D,
        options: JournalOptions,
        mut perform: F,
    ) -> Result<Self, JournalError>
    where
        D: RingDevice + Sync + 'static,
        F: FnMut(&[T]) -> Result<(), E> + Send + 'static,
        E: Display + 'static,
    {
        let perform = move |entries: &[T]| perform(entries).map_err(|e| e.to_string());
        Self::start_boxed(Arc::new(device), options, Box::new(perform))
    }

    fn start_boxed(
        device: Device,
        options: JournalOptions,
        perform: PerformFn<T>,
    ) -> Result<Self, JournalError> {
        // Before the look at the device: two journals that start at once must not both find it
        // empty.
        let roles = [take_role(&device, Side::Producer)?, take_role(&device, Side::Consumer)?];
        create_if_absent(&device, options.when_absent)?;
        // The open file description keeps the locks, so that no other process takes a role in
        // between. This process grants each of them to one of its handles.
        roles.into_iter().for_each(RangeLock::leave);
        let producer = attach_producer(&device)?;
        let consumer = Consumer::attach(Arc::clone(&device), "journal", "journal")?;
        let shared = Arc::new(Shared::new(consumer.position(), producer.position()));
        let when_full = options.when_full;
        let worker = Worker::new(consumer, Arc::clone(&shared), options, perform);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run())
            .map_err(JournalError::Thread)?;
        Ok(Self {
            device,
            sector0: producer.sector0().clone(),
            producer: Mutex::new(producer),
            shared,
            when_full,
            lookout: Mutex::default(),
            worker: Mutex::new(Some(thread)),
            entries: PhantomData,
        })
    }

    /// Makes an entry durable: it will be performed, also after a crash. If there is no room,
    /// entries are performed at once to make some.
    ///
    /// # Errors
    /// The entry will not be performed. After [`JournalError::Failed`] and [`Error::Superseded`]
    /// that is not known.
    pub fn push(&self, entry: &T) -> Result<Ticket, JournalError> {
        let may_wait = self.when_full == WhenFull::Wait && !self.shared.is_worker();
        let mut producer = self.producer()?;
        if self.lookout.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
            self.check_presence()?;
        }
        loop {
            self.shared.alive()?;
            let left = self.shared.left();
            let accepted = self.accept(&mut producer, entry);
            if let Err(Error::Superseded { .. } | Error::Format(_)) = accepted {
                // Another ring that was written over this one looks like that, too.
                self.check_presence()?;
            }
            match accepted {
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
                    // Nothing of this instance is in doubt: the entry is pushed behind the other's.
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

    /// Checks that the journal is still where it was opened (see
    /// [`RingDevice::check_presence`]), and that no other ring was written over it. Each push does
    /// so, too, at most once a second: a program that waits for something else, or ends, checks
    /// here.
    ///
    /// # Errors
    /// [`JournalError::Failed`] if it is not: the journal has ended.
    pub fn check_presence(&self) -> Result<(), JournalError> {
        let asked = self.sector0.check_presence(&self.device);
        asked.map_err(|e| JournalError::Failed(self.shared.fail(e.into())))
    }

    fn producer(&self) -> Result<MutexGuard<'_, Producer<Device>>, JournalError> {
        if !self.shared.is_worker() {
            return Ok(self.producer.lock().unwrap_or_else(PoisonError::into_inner));
        }
        match self.producer.try_lock() {
            Ok(producer) => Ok(producer),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            // The push that holds it may wait for this thread to make room.
            Err(TryLockError::WouldBlock) => Err(JournalError::Full),
        }
    }

    /// Pushes and publishes an entry, or neither: it must not be published with a later one.
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

    /// Returns a ticket for all entries that are in the journal now, those of an earlier run
    /// included.
    pub fn ticket_for_all(&self) -> Ticket {
        self.shared.ticket_for_all()
    }

    /// Ends the journal, after a call of `perform` that is under way. Entries that were not
    /// performed stay for the next start, and waits for them end with [`SyncError::ShutDown`]. The
    /// device is then free for another journal.
    pub fn shutdown(&self) {
        if self.end() {
            self.producer.lock().unwrap_or_else(PoisonError::into_inner).detach();
        }
    }
}

impl<T> Journal<T> {
    /// Ends the worker, and returns whether it has ended: within `perform` it has not.
    fn end(&self) -> bool {
        self.shared.shut_down();
        if self.shared.is_worker() {
            return false;
        }
        // Locked during the wait, so that a second caller waits, too.
        let mut thread = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // Panics are caught within the thread, and reported to pushes and waits.
            let _ = thread.join();
        }
        true
    }
}

impl<T> fmt::Debug for Journal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("device", &self.device.name())
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
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

/// Takes a role on the device, for whichever handle attaches to it next.
fn take_role(device: &Device, role: Side) -> Result<RangeLock, Error> {
    RangeLock::try_acquire(device, LockRange::Role(role))?
        .ok_or_else(|| Error::RoleTaken { role, holder: holder(device, role) })
}

/// Makes a ring if the device holds none, as `when_absent` says.
fn create_if_absent(device: &Device, when_absent: WhenAbsent) -> Result<(), JournalError> {
    let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
    device.read(0, &mut [IoSliceMut::new(&mut sector)]).map_err(Error::from)?;
    if sector.starts_with(SIGNATURE) {
        return Ok(());
    }
    if when_absent == WhenAbsent::Refuse {
        return Err(Error::from(FormatError::NotARing).into());
    }
    if when_absent == WhenAbsent::CreateIfEmpty
        && let Some(byte) = first_used_byte(device).map_err(Error::from)?
    {
        return Err(JournalError::NotEmpty(byte));
    }
    create(device, CreateOptions::default())?;
    Ok(())
}
