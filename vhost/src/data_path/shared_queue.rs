//! One queue's set-up and indices, as the queue's thread and the front end's thread share them.
//!
//! Between two steps of a vhost-user message the worker may serve any number of requests. So
//! nothing that the front end's thread has read may be written back: while the queue runs, its
//! indices and its size are the worker's alone. Whatever stops the queue gives back the unfinished
//! request in the same step: the worker need not have seen the queue stopped before it is set up
//! again.

use crate::data_path::dirty::GuestMemory;
use crate::data_path::kicks::{Kick, Kicks};
use crate::data_path::waiters::Waiters;
use shared_block_ring::device::event::Signaller;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestMemoryAtomic;

/// Guest memory, replaced as a whole when the front end changes it.
pub type Memory = GuestMemoryAtomic<GuestMemory>;

/// The most descriptors in a queue: as many as a split virtqueue can have (virtio 1.3, 2.7). crosvm
/// sets that many unless it is told otherwise.
pub const QUEUE_SIZE: u16 = 32_768;

/// A queue, by the crate's state of it and notes of our own.
#[derive(Clone)]
pub struct SharedQueue {
    number: usize,
    state: VringMutex<Memory>,
    links: Links,
    /// The event of the driver's kicks, in the set that the worker sleeps by.
    kick: Arc<Mutex<Option<Kick>>>,
    notes: Arc<Notes>,
}

/// What all queues of one worker share.
#[derive(Debug, Clone)]
pub struct Links {
    /// The threads that wait for the worker.
    pub waiters: Waiters,
    /// The events that wake the worker.
    pub kicks: Kicks,
    /// The way to interrupt the guest.
    pub signaller: Arc<Signaller>,
}

/// Notes about a queue. They are read and written under the queue's lock, unless they say
/// otherwise.
#[derive(Debug, Default)]
struct Notes {
    /// The front end has set the size.
    sized: AtomicBool,
    /// The front end has asked for a size that no split queue can have.
    invalid_size: AtomicBool,
    /// The queue was stopped or set up since the worker's last turn.
    restarted: AtomicBool,
    /// It was logged that the front end sets what a running queue does not change. Needs no lock.
    warned: AtomicBool,
}

/// Whether the worker serves the queue.
pub fn is_running(state: &VringState<Memory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

/// Gives the unfinished request back. Completion is in order, so everything behind the used index
/// is unanswered: it is found again when the queue starts.
pub fn give_back(queue: &mut Queue) {
    queue.set_next_avail(queue.next_used());
}

impl SharedQueue {
    /// Makes a stopped queue of that number.
    ///
    /// # Errors
    ///
    /// The crate takes no such size.
    pub fn new(number: usize, mem: Memory, max_size: u16, links: Links) -> Result<Self, Error> {
        let state = VringMutex::new(mem, max_size)?;
        let (kick, notes) = (Arc::default(), Arc::default());
        Ok(Self { number, state, links, kick, notes })
    }

    /// Locks the queue for the worker, which checks by itself whether a thread waits.
    #[inline]
    pub fn lock_for_turn(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.state.get_mut()
    }

    /// Locks the queue for any other thread. The worker gives way until the lock is taken.
    pub fn lock(&self) -> MutexGuard<'_, VringState<Memory>> {
        let _waiter = self.links.waiters.enter();
        self.state.get_mut()
    }

    /// Calls `f` with the queue, for any thread but the worker's.
    pub fn with<T>(&self, f: impl FnOnce(&VringMutex<Memory>) -> T) -> T {
        let _waiter = self.links.waiters.enter();
        f(&self.state)
    }

    /// Sets the event of the driver's kicks.
    pub fn set_kick(&self, file: Option<File>) {
        let own = file.as_ref().and_then(|file| {
            let own = file.try_clone().and_then(|own| self.links.kicks.add(self.number, own));
            own.inspect_err(|e| log::error!("cannot receive the guest's kicks: {e}")).ok()
        });
        self.with(|state| {
            *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = own;
            state.set_kick(file);
        });
    }

    /// Whether the front end has set the queue's size.
    pub fn has_size(&self) -> bool {
        self.notes.sized.load(Ordering::Relaxed)
    }

    /// Whether the front end has asked for a size that this queue cannot have (virtio 1.3, 2.7: a
    /// power of two).
    pub fn has_invalid_size(&self) -> bool {
        self.notes.invalid_size.load(Ordering::Relaxed)
    }

    /// Sets the size. Returns false for a running queue of another size.
    pub fn set_size(&self, size: u16) -> bool {
        let set = self.set_up(|queue| {
            self.notes.sized.store(true, Ordering::Relaxed);
            let fits = size.is_power_of_two();
            self.notes.invalid_size.store(!fits, Ordering::Relaxed);
            if fits {
                queue.set_size(size);
            }
        });
        set || self.state.get_ref().get_queue().size() == size
    }

    /// Sets the addresses of the three parts: all or none. The worker may use them before the front
    /// end learns that they were refused.
    ///
    /// # Errors
    ///
    /// An address that the crate does not take.
    pub fn set_addresses(&self, descriptors: u64, available: u64, used: u64) -> Result<(), Error> {
        let _waiter = self.links.waiters.enter();
        let mut state = self.state.get_mut();
        let queue = state.get_queue();
        let before = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        let set = state.set_queue_info(descriptors, available, used);
        if set.is_err() {
            state.set_queue_info(before.0, before.1, before.2)?;
        }
        set
    }

    /// Starts or stops the queue by `change`, and in the same step gives back the unfinished
    /// request of a queue that stops.
    pub fn switch(&self, change: impl FnOnce(&mut VringState<Memory>)) {
        let _waiter = self.links.waiters.enter();
        let mut state = self.state.get_mut();
        let was_running = is_running(&state);
        change(&mut state);
        if was_running && !is_running(&state) {
            give_back(state.get_queue_mut());
            self.notes.restarted.store(true, Ordering::Relaxed);
        }
    }

    /// Sets up by `change` what is the worker's while the queue runs. Returns whether it was done.
    pub fn set_up(&self, change: impl FnOnce(&mut Queue)) -> bool {
        let _waiter = self.links.waiters.enter();
        let mut state = self.state.get_mut();
        let may = !is_running(&state);
        if may {
            change(state.get_queue_mut());
            self.notes.restarted.store(true, Ordering::Relaxed);
        }
        may
    }

    /// Whether the queue was stopped or set up since the last call: an unfinished request was given
    /// back then, and what the worker remembers of the queue is void. Called by the worker, under
    /// the lock.
    pub fn take_restarted(&self) -> bool {
        let restarted = self.notes.restarted.load(Ordering::Relaxed);
        if restarted {
            self.notes.restarted.store(false, Ordering::Relaxed);
        }
        restarted
    }

    /// Logs once that a message about a running queue had no effect.
    pub fn warn_without_effect(&self, what: &str) {
        if !self.notes.warned.swap(true, Ordering::Relaxed) {
            log::warn!("the front end sets {what} of a running queue: without effect");
        }
    }

    /// Interrupts the guest, if the front end has set an event for that.
    ///
    /// # Errors
    ///
    /// The event cannot be signalled.
    pub fn interrupt(&self, state: &VringState<Memory>) -> io::Result<()> {
        let Some(call) = state.get_call() else { return Ok(()) };
        // SAFETY: the descriptor is the queue's, which is borrowed for as long.
        let call = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
        Ok(self.links.signaller.signal(call)?)
    }
}
