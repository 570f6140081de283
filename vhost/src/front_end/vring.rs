//! A queue as the front end's messages set it up.
//!
//! Messages that set the indices or the size of a running queue are answered without effect: see
//! [`SharedQueue`]. QEMU sends `SET_VRING_ADDR` to a running queue when a migration begins or
//! fails.
//!
//! A queue starts at the used index that is in guest memory, whatever base the front end has set.
//! Completion is in order, so everything behind that index is unanswered, and nothing before it is.
//! Front ends that reconnect do not all know this: QEMU sets the used index, Cloud Hypervisor the
//! available index, behind which the unanswered requests would be forgotten.

use crate::data_path::shared_queue::{Links, Memory, SharedQueue, is_running};
use crate::front_end::notifier::event;
use std::fs::File;
use std::num::Wrapping;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddressSpace;

/// A queue of a connection.
pub struct Vring {
    queue: SharedQueue,
    memory: Memory,
}

impl Vring {
    /// Makes a stopped queue of that number, of at most `size` descriptors, in `memory`. `links`
    /// are those of the worker that will serve it.
    ///
    /// # Errors
    ///
    /// No queue has that size.
    pub fn new(number: usize, memory: Memory, size: u16, links: Links) -> Result<Self, Error> {
        let queue = SharedQueue::new(number, memory.clone(), size, links)?;
        Ok(Self { queue, memory })
    }

    /// The queue as the worker serves it.
    pub fn queue(&self) -> &SharedQueue {
        &self.queue
    }

    /// Locks the queue. The worker gives way until the lock is taken.
    pub fn state(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.queue.lock()
    }

    /// Changes by `change` whether the queue runs. A queue that starts does so at the used index.
    fn switch(&self, change: impl FnOnce(&mut VringState<Memory>)) {
        self.queue.switch(|state| {
            let was_running = is_running(state);
            change(state);
            if !was_running && is_running(state) {
                resume(state.get_queue_mut(), &self.memory);
            }
        });
    }

    /// Sets whether the front end has the queue enabled.
    pub fn set_enabled(&self, enabled: bool) {
        self.switch(|state| state.set_enabled(enabled));
    }

    /// Sets whether the queue has what it needs to run.
    pub fn set_ready(&self, ready: bool) {
        self.switch(|state| state.get_queue_mut().set_ready(ready));
    }

    /// Sets the guest addresses of the queue's three parts.
    ///
    /// # Errors
    ///
    /// One of them is not aligned.
    pub fn set_addresses(&self, descriptors: u64, available: u64, used: u64) -> Result<(), Error> {
        self.queue.set_addresses(descriptors, available, used)
    }

    /// The index of the next request that is taken from the available ring.
    pub fn base(&self) -> u16 {
        self.queue.with(VringT::queue_next_avail)
    }

    /// Sets that index.
    pub fn set_base(&self, base: u16) {
        if !self.queue.set_up(|queue| queue.set_next_avail(base)) {
            self.queue.warn_without_effect("the base");
        }
    }

    /// Sets the index of the next entry in the used ring to what guest memory has.
    ///
    /// # Errors
    ///
    /// The used ring does not lie in guest memory.
    pub fn find_used_index(&self) -> Result<(), Error> {
        let used = self.queue.with(VringT::queue_used_idx)?;
        self.queue.set_up(|queue| queue.set_next_used(used));
        Ok(())
    }

    /// Sets the number of descriptors. A guest may have chosen it, and front ends pass it on: an
    /// invalid one must not end the connection, but stop the queue.
    pub fn set_size(&self, size: u16) {
        if !self.queue.set_size(size) {
            self.queue.warn_without_effect("the size");
        }
    }

    /// Sets whether event indices were negotiated.
    pub fn set_event_idx(&self, enabled: bool) {
        self.queue.with(|state| state.set_queue_event_idx(enabled));
    }

    /// Sets the event of the driver's kicks.
    pub fn set_kick(&self, file: Option<File>) {
        self.queue.set_kick(event(file, "kick"));
    }

    /// Sets the event for interrupts, and signals it at once: a backend that was killed may have
    /// answered requests that it had not interrupted for, and nothing else would tell the guest. A
    /// spurious interrupt is harmless.
    pub fn set_call(&self, file: Option<File>) {
        self.queue.with(|state| {
            state.set_call(event(file, "interrupt"));
            if let Err(e) = self.queue.interrupt(&state.get_ref()) {
                log::debug!("cannot interrupt the guest: {e}");
            }
        });
    }

    /// Sets the event for errors, which is never signalled.
    pub fn set_err(&self, file: Option<File>) {
        self.queue.with(|state| state.set_err(file));
    }
}

/// Sets both indices of a stopped queue to the used index in guest memory. If that cannot be read,
/// the worker finds so, too, and does not serve the queue.
fn resume(queue: &mut Queue, memory: &Memory) {
    let Ok(Wrapping(used)) = queue.used_idx(&*memory.memory(), Ordering::Acquire) else { return };
    let base = queue.next_avail();
    if base != used {
        log::warn!(
            "the front end starts a queue at request {base}, but only those up to {used} are answered: it is started there, and no request \
             is skipped"
        );
    }
    queue.set_next_avail(used);
    queue.set_next_used(used);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data_path::dirty::GuestMemory;
    use crate::data_path::kicks::Kicks;
    use crate::data_path::waiters::Waiters;
    use shared_block_ring::device::bell::new_event;
    use shared_block_ring::device::event::Signaller;
    use std::sync::Arc;

    #[test]
    fn worker_learns_of_every_change_of_its_queues() {
        let waiters = Waiters::new().unwrap();
        let (kicks, signaller) = (Kicks::new().unwrap(), Arc::new(Signaller::new().unwrap()));
        let links = Links { waiters: waiters.clone(), kicks: kicks.clone(), signaller };
        let memory = Memory::new(GuestMemory::new());
        let vrings =
            [0, 1].map(|number| Vring::new(number, memory.clone(), 256, links.clone()).unwrap());
        let woken = || nix::unistd::read(waiters.changed(), &mut [0; 8]).is_ok();
        let kick = new_event().unwrap();
        vrings[1].set_kick(Some(File::from(kick.try_clone().unwrap())));
        assert!(woken());
        nix::unistd::write(&kick, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(kicks.wait(&[], None).unwrap().kicked.into_iter().collect::<Vec<_>>(), [1]);
        vrings[0].set_enabled(true);
        assert!(vrings[0].queue().lock_for_turn().is_enabled() && woken() && !woken());
        assert!(!vrings[1].queue().lock_for_turn().is_enabled());
    }
}
