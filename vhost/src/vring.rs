//! The queue's state, as the thread that answers the front end and the one that drives the queue share it.
//!
//! A standard mutex is not fair: a guest that keeps its queue busy would have the worker take it again and again, while the front
//! end's thread waits for it (and QEMU's main loop for that thread). So the front end's thread says that it waits, and the worker gives way.

use crate::dirty::GuestMemory;
use crate::notifier::{consume, event};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::GuestMemoryAtomic;

/// Guest memory, replaced as a whole when the front end changes it.
pub type Memory = GuestMemoryAtomic<GuestMemory>;

/// The longest that a worker gives way: the other thread needs microseconds, unless it is not given a processor.
const GIVE_WAY: Duration = Duration::from_millis(20);

/// How many wait for something that the worker holds most of the time.
#[derive(Debug, Clone, Default)]
pub struct Claims(Arc<AtomicU32>);

/// One of them, until it has what it waits for.
pub struct Claim<'a>(&'a AtomicU32);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Claims {
    /// Says that somebody waits.
    pub fn claim(&self) -> Claim<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Claim(&self.0)
    }

    /// Waits until nobody does. For the worker, while it holds nothing; one load when nobody waits.
    pub fn give_way(&self) {
        if self.0.load(Ordering::Relaxed) == 0 {
            return;
        }
        let start = Instant::now();
        while self.0.load(Ordering::Relaxed) > 0 && start.elapsed() < GIVE_WAY {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// The queue as the vhost-user side has it.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<Memory>,
    claims: Claims,
    /// The front end has passed on a size that the crate did not take.
    odd: Arc<AtomicBool>,
}

impl Vring {
    /// For the worker, which gives way first to those who wait.
    pub fn turn(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.claims.give_way();
        self.state.get_mut()
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
        Ok(Self {
            state: VringMutex::new(mem, max_queue_size)?,
            claims: Claims::default(),
            odd: Arc::default(),
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
        self.claimed(|state| state.set_kick(event(file, "kick")));
    }

    /// By the worker. The event may be another by now than the one that was readable, and have nothing to say: a guest that
    /// resets its device under load. An error would end the crate's thread, in silence.
    fn read_kick(&self) -> io::Result<bool> {
        let state = self.state.get_ref();
        if let Some(kick) = state.get_kick() {
            // SAFETY: the queue's own, open for as long as its lock is held.
            consume(unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) })?;
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.claimed(|state| state.set_call(event(file, "interrupt")));
    }

    fn set_err(&self, file: Option<File>) {
        self.claimed(|state| state.set_err(file));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use vmm_sys_util::eventfd::EventFd;

    fn vring() -> Vring {
        Vring::new(Memory::new(GuestMemory::new()), 256).unwrap()
    }

    #[test]
    fn a_kick_that_somebody_else_has_read_is_no_error_and_is_not_waited_for() {
        let vring = vring();
        let event = EventFd::new(0).unwrap();
        // SAFETY: the descriptor has just been taken out of its only owner.
        vring.set_kick(Some(unsafe { File::from_raw_fd(event.into_raw_fd()) }));
        vring.set_enabled(true);
        assert!(vring.read_kick().unwrap());
    }

    #[test]
    fn a_worker_gives_way_for_a_bounded_time() {
        let claims = Claims::default();
        claims.give_way();
        let claim = claims.claim();
        let start = Instant::now();
        claims.give_way();
        assert!(start.elapsed() >= GIVE_WAY);
        drop(claim);
        assert_eq!(claims.0.load(Ordering::Relaxed), 0);
    }
}
