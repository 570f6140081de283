//! A queue as the vhost-user library drives it by the front end's messages.
//!
//! Messages that set the indices or the size of a running queue are answered without effect: see
//! [`SharedQueue`]. QEMU sends `SET_VRING_ADDR` to a running queue when a migration begins or
//! fails; the library then reads the used index and sets it, in two steps.
//!
//! A queue starts at the used index that is in guest memory, whatever base the front end has set.
//! Completion is in order, so everything behind that index is unanswered, and nothing before it is.
//! Front ends that reconnect do not all know this: QEMU sets the used index, Cloud Hypervisor the
//! available index, behind which the unanswered requests would be forgotten.

use crate::data_path::shared_queue::{Links, Memory, SharedQueue, is_running};
use crate::front_end::notifier::event;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::num::Wrapping;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use vhost_user_backend::{VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddressSpace;

thread_local! {
    /// The queues that this thread has the library make: the library passes nothing to their
    /// constructor, and shows them to nobody but its own event loop.
    static MAKING: RefCell<Option<Making>> = const { RefCell::new(None) };
}

struct Making {
    links: Links,
    made: Vec<SharedQueue>,
}

/// Calls `make`, and returns with its result the queues that the library has made there, in their
/// order. `links` are those of the worker that will serve them.
pub fn making<T>(links: Links, make: impl FnOnce() -> T) -> (T, Vec<SharedQueue>) {
    MAKING.replace(Some(Making { links, made: Vec::new() }));
    let value = make();
    let queues = MAKING.take().map(|making| making.made);
    (value, queues.unwrap_or_default())
}

/// A queue for the vhost-user library.
#[derive(Clone)]
pub struct Vring {
    queue: SharedQueue,
    memory: Memory,
}

impl Vring {
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

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        MAKING.with_borrow_mut(|making| {
            let Making { links, made } = making.as_mut().ok_or(Error::QueueNotReady)?;
            let memory = mem.clone();
            let queue = SharedQueue::new(made.len(), mem, max_queue_size, links.clone())?;
            made.push(queue.clone());
            Ok(Self { queue, memory })
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.queue.lock()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.queue.lock()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.queue.with(|state| state.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.queue.with(|state| self.queue.interrupt(&state.get_ref()))
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.queue.with(VringT::enable_notification)
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.queue.with(VringT::disable_notification)
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.queue.with(VringT::needs_notification)
    }

    fn set_enabled(&self, enabled: bool) {
        self.switch(|state| state.set_enabled(enabled));
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), Error> {
        self.queue.set_addresses(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.queue.with(VringT::queue_next_avail)
    }

    fn set_queue_next_avail(&self, base: u16) {
        if !self.queue.set_up(|queue| queue.set_next_avail(base)) {
            self.queue.warn_without_effect("the base");
        }
    }

    /// Called with what the library has read at `SET_VRING_ADDR`, in an earlier step.
    fn set_queue_next_used(&self, idx: u16) {
        self.queue.set_up(|queue| queue.set_next_used(idx));
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.queue.with(VringT::queue_used_idx)
    }

    /// A guest may have chosen the size, and front ends pass it on: an invalid one must not end the
    /// connection, but stop the queue.
    fn set_queue_size(&self, num: u16) {
        if !self.queue.set_size(num) {
            self.queue.warn_without_effect("the size");
        }
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.queue.with(|state| state.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.switch(|state| state.get_queue_mut().set_ready(ready));
    }

    fn set_kick(&self, file: Option<File>) {
        self.queue.set_kick(event(file, "kick"));
    }

    /// For the library's event loop, which is not started.
    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.queue.lock_for_turn().is_enabled())
    }

    /// Signalled at once: a backend that was killed may have answered requests that it had not
    /// interrupted for, and nothing else would tell the guest. A spurious interrupt is harmless.
    fn set_call(&self, file: Option<File>) {
        self.queue.with(|state| {
            state.set_call(event(file, "interrupt"));
            if let Err(e) = self.queue.interrupt(&state.get_ref()) {
                log::debug!("cannot interrupt the guest: {e}");
            }
        });
    }

    fn set_err(&self, file: Option<File>) {
        self.queue.with(|state| state.set_err(file));
    }
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
        let new = || Vring::new(Memory::new(GuestMemory::new()), 256).unwrap();
        let (vrings, queues) = making(links, || [new(), new()]);
        assert_eq!(queues.len(), 2);
        let woken = || nix::unistd::read(waiters.changed(), &mut [0; 8]).is_ok();
        let kick = new_event().unwrap();
        vrings[1].set_kick(Some(File::from(kick.try_clone().unwrap())));
        assert!(woken());
        nix::unistd::write(&kick, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(kicks.wait(&[], None).unwrap().into_iter().collect::<Vec<_>>(), [1]);
        vrings[0].set_enabled(true);
        assert!(queues[0].lock_for_turn().is_enabled() && woken() && !woken());
        assert!(!queues[1].lock_for_turn().is_enabled());
    }
}
