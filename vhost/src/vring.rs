//! The queue's state, as the thread that answers the front end and the one that drives the queue share it.
//!
//! A standard mutex is not fair: a guest that keeps its queue busy would have the worker take it again and again, while the front
//! end's thread waits for it (and QEMU's main loop for that thread). So the front end's thread says that it waits, and the worker gives way.

use crate::dirty::GuestMemory;
use crate::notifier::event;
use shared_block_ring::device::bell::new_event;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::GuestMemoryAtomic;

/// Guest memory, replaced as a whole when the front end changes it.
pub type Memory = GuestMemoryAtomic<GuestMemory>;

/// The longest that a worker gives way: the other thread needs microseconds, unless it is not given a processor.
const GIVE_WAY: Duration = Duration::from_millis(20);

/// How many wait for something that the worker holds most of the time, and what wakes it when they have changed something.
#[derive(Debug, Clone)]
pub struct Claims(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: AtomicU32,
    /// Told when one of them has done with it.
    done: (Mutex<()>, Condvar),
    changed: OwnedFd,
}

/// One of them, until it has what it waits for and has done with it.
pub struct Claim<'a>(&'a Shared);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let Shared { waiting, done: (lock, done), changed } = self.0;
        // A full counter means that the worker is about to wake up anyway.
        let _ = nix::unistd::write(changed, &1u64.to_ne_bytes());
        waiting.fetch_sub(1, Ordering::Relaxed);
        // Not between the worker's look and its wait, which would then not hear of it.
        drop(lock.lock());
        done.notify_all();
    }
}

impl Claims {
    /// Nobody waits.
    pub fn new() -> io::Result<Self> {
        let (waiting, done, changed) = (AtomicU32::new(0), Default::default(), new_event()?);
        Ok(Self(Arc::new(Shared { waiting, done, changed })))
    }

    /// Says that somebody waits.
    pub fn claim(&self) -> Claim<'_> {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Claim(&self.0)
    }

    /// Whether the worker has to let go of what it holds. One load.
    pub fn pending(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits until nobody does. For the worker, while it holds nothing.
    pub fn give_way(&self) {
        if self.pending() {
            let (lock, done) = &self.0.done;
            let lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
            // When the time is up it goes on, and gives way again soon.
            drop(done.wait_timeout_while(lock, GIVE_WAY, |()| self.pending()));
        }
    }

    /// Readable when somebody has changed something.
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.0.changed.as_fd()
    }
}

thread_local! {
    /// Of the queues that are being made by this thread: the library makes them, and neither asks for anything nor gives them out
    /// to anybody but its own event loop.
    static MAKING: RefCell<Option<(Claims, Vec<Vring>)>> = const { RefCell::new(None) };
}

/// The queues that the library makes in `make`, on behalf of a worker that takes notice of `claims`.
pub fn making<T>(claims: &Claims, make: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    MAKING.replace(Some((claims.clone(), Vec::new())));
    let value = make();
    let vrings = MAKING.take().map(|(_, vrings)| vrings);
    (value, vrings.unwrap_or_default())
}

/// The queue as the vhost-user side has it.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<Memory>,
    claims: Claims,
    /// What kicks arrive on, for a worker that sleeps and holds no lock.
    kick: Arc<Mutex<Option<Arc<File>>>>,
    /// The front end has passed on a size that the crate did not take.
    odd: Arc<AtomicBool>,
}

impl Vring {
    /// For the worker, which looks by itself whether somebody waits.
    pub fn turn(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.state.get_mut()
    }

    /// What the driver kicks, if it does.
    pub fn kick(&self) -> Option<Arc<File>> {
        self.kick.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its size is none that a split queue can have (virtio 1.3, 2.7: a power of two).
    pub fn is_odd(&self) -> bool {
        self.odd.load(Ordering::Relaxed)
    }

    /// For everybody else.
    fn claimed<T>(&self, f: impl FnOnce(&VringMutex<Memory>) -> T) -> T {
        let _claim = self.claims.claim();
        f(&self.state)
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        let state = VringMutex::new(mem, max_queue_size)?;
        MAKING.with_borrow_mut(|making| {
            let (claims, made) = making.as_mut().ok_or(Error::QueueNotReady)?;
            let vring =
                Self { state, claims: claims.clone(), kick: Arc::default(), odd: Arc::default() };
            made.push(vring.clone());
            Ok(vring)
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        let _claim = self.claims.claim();
        self.state.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        let _claim = self.claims.claim();
        self.state.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.claimed(|state| state.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.claimed(VringT::signal_used_queue)
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.claimed(VringT::enable_notification)
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.claimed(VringT::disable_notification)
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.claimed(VringT::needs_notification)
    }

    fn set_enabled(&self, enabled: bool) {
        self.claimed(|state| state.set_enabled(enabled));
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), Error> {
        self.claimed(|state| state.set_queue_info(desc_table, avail_ring, used_ring))
    }

    fn queue_next_avail(&self) -> u16 {
        self.claimed(VringT::queue_next_avail)
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.claimed(|state| state.set_queue_next_avail(base));
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.claimed(|state| state.set_queue_next_used(idx));
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.claimed(VringT::queue_used_idx)
    }

    /// A guest may have chosen it, and front ends pass it on: what is wrong with it must not end the connection, but stop the queue.
    fn set_queue_size(&self, num: u16) {
        self.odd.store(!num.is_power_of_two(), Ordering::Relaxed);
        self.claimed(|state| state.set_queue_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.claimed(|state| state.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.claimed(|state| state.set_queue_ready(ready));
    }

    fn set_kick(&self, file: Option<File>) {
        let file = event(file, "kick");
        let ours = file.as_ref().and_then(|file| {
            let ours = file.try_clone();
            ours.inspect_err(|e| log::error!("the guest's kicks are not heard: {e}")).ok()
        });
        self.claimed(|state| {
            *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = ours.map(Arc::new);
            state.set_kick(file);
        });
    }

    /// For an event loop of the library's, which we do without.
    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.state.get_ref().is_enabled())
    }

    /// Rung at once: a backend that was killed may have answered what it had not interrupted for, and nothing else would tell the guest.
    /// An interrupt for nothing costs nothing.
    fn set_call(&self, file: Option<File>) {
        self.claimed(|state| {
            state.set_call(event(file, "interrupt"));
            if let Err(e) = state.signal_used_queue() {
                log::debug!("cannot interrupt the guest: {e}");
            }
        });
    }

    fn set_err(&self, file: Option<File>) {
        self.claimed(|state| state.set_err(file));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_worker_hears_of_every_change() {
        let claims = Claims::new().unwrap();
        let new = || Vring::new(Memory::new(GuestMemory::new()), 256).unwrap();
        let (vring, vrings) = making(&claims, new);
        assert_eq!(vrings.len(), 1);
        let heard = || nix::unistd::read(claims.changed(), &mut [0; 8]).is_ok();
        vring.set_kick(Some(File::from(new_event().unwrap())));
        assert!(vrings[0].kick().is_some() && heard());
        vring.set_enabled(true);
        assert!(vrings[0].turn().is_enabled() && heard() && !heard());
    }

    #[test]
    fn a_worker_gives_way_until_nobody_waits_or_for_a_bounded_time() {
        let claims = Claims::new().unwrap();
        claims.give_way();
        let claim = claims.claim();
        let start = Instant::now();
        claims.give_way();
        assert!(start.elapsed() >= GIVE_WAY && claims.pending());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(claim));
            while claims.pending() {
                claims.give_way();
            }
        });
    }
}
