//! Who of the front ends that are connected has its queues served.
//!
//! Mostly there is one. While a guest is migrated there are two: the VMM that it leaves, and the one
//! that it goes to, which has connected before and says nothing of queues until the guest runs
//! there. By then the other one has stopped its queues. One that asks while those of the other run
//! is not migrated to, and waits until the other has left: the queues are stopped, too, when a guest
//! is paused or reboots.

use crate::data_path::worker::Worker;
use crate::front_end::tenant::Tenant;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shared_block_ring::device::bell::new_event;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The seat at the worker: whoever holds it has its queues served.
#[derive(Default)]
pub struct Seat(Mutex<State>);

#[derive(Default)]
struct State {
    holder: Option<Arc<Tenant>>,
    /// The holder has stopped its queues: another one may have the seat.
    rests: bool,
    /// The features that the last holder has negotiated.
    features: u64,
    /// Those that wait until the holder has left, or they are told by these events to look again.
    waiting: Vec<Arc<OwnedFd>>,
}

impl State {
    /// Gives the worker the queues of `tenant`, in place of the holder's.
    fn give(&mut self, tenant: &Arc<Tenant>, worker: &mut Worker) {
        if let Some(former) = self.holder.take() {
            log::info!("the guest goes on with another front end: the one it has left is let go");
            self.features = former.features();
            vacate(worker);
            former.supersede();
        }
        worker.connect(tenant.queues());
        worker.set_write_through(tenant.writes_through());
        self.holder = Some(Arc::clone(tenant));
    }

    fn is_holder(&self, tenant: &Tenant) -> bool {
        self.holder.as_ref().is_some_and(|holder| std::ptr::eq(Arc::as_ptr(holder), tenant))
    }

    fn tell(&self) {
        for event in &self.waiting {
            // An event that is full tells already.
            let _ = nix::unistd::write(event, &1u64.to_ne_bytes());
        }
    }
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The features that the last holder has negotiated, which count until the next one negotiates.
    pub fn features(&self) -> u64 {
        self.lock().features
    }

    /// Gives `tenant` the seat: at once if the holder's queues are stopped, otherwise when it has
    /// left.
    ///
    /// # Errors
    ///
    /// The connection is over, or ends before.
    pub fn take(&self, tenant: &Arc<Tenant>) -> io::Result<()> {
        let mut wait = None;
        loop {
            let mut state = self.lock();
            if tenant.is_closed() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if state.is_holder(tenant) {
                state.rests = false;
                return Ok(());
            }
            if state.holder.is_none() || (state.rests && wait.is_none()) {
                state.give(tenant, &mut tenant.backend().worker());
                state.rests = false;
                return Ok(());
            }
            if wait.is_none() {
                log::warn!(
                    "another front end starts the disk while the guest of the first one uses it: it waits until that one has left"
                );
                let new = Wait::new(self, tenant)?;
                state.waiting.push(Arc::clone(&new.event));
                wait = Some(new);
            }
            drop(state);
            if let Some(wait) = &wait
                && !wait.wait()?
            {
                tenant.hang_up();
            }
        }
    }

    /// Calls `change` with the worker if `tenant` has the seat, and notes whether its queues are
    /// stopped then.
    pub fn stop(&self, tenant: &Tenant, change: impl FnOnce(&mut Worker)) {
        let mut state = self.lock();
        if state.is_holder(tenant) {
            let mut worker = tenant.backend().worker();
            change(&mut worker);
            state.rests = !worker.runs();
        }
    }

    /// Calls `change` with the worker if `tenant` has the seat.
    pub fn change(&self, tenant: &Tenant, change: impl FnOnce(&mut Worker)) {
        let state = self.lock();
        if state.is_holder(tenant) {
            change(&mut tenant.backend().worker());
        }
    }

    /// Whether `tenant` has the seat, and has taken back memory that the worker uses.
    pub fn has_lost_memory(&self, tenant: &Tenant) -> bool {
        // Under the lock: the next holder has lost nothing of what the last one did.
        let state = self.lock();
        state.is_holder(tenant) && tenant.backend().losses().guest_lost()
    }

    /// Has those that wait look again.
    pub fn tell(&self) {
        self.lock().tell();
    }

    /// Takes the seat back from `tenant`, which is gone.
    pub fn leave(&self, tenant: &Tenant) {
        let mut state = self.lock();
        if state.is_holder(tenant) {
            vacate(&mut tenant.backend().worker());
            state.features = tenant.features();
            state.holder = None;
            state.tell();
        }
    }
}

/// Takes the queues of the front end that leaves the seat, and what was lost of its memory, from
/// the worker. Under the seat's lock: the next one takes the seat as soon as that is free, and a
/// loss that is still noted would keep its queues from being served.
fn vacate(worker: &mut Worker) {
    worker.disconnect();
    worker.losses().forget_guest();
}

/// A wait for the seat, on the thread of a connection. It costs nothing meanwhile.
struct Wait<'a> {
    seat: &'a Seat,
    event: Arc<OwnedFd>,
    epoll: Epoll,
}

impl<'a> Wait<'a> {
    fn new(seat: &'a Seat, tenant: &Tenant) -> io::Result<Self> {
        let (event, epoll) = (new_event()?, Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        // What it says next waits in the socket: only its end is of interest.
        epoll.add(tenant.stream(), EpollEvent::new(EpollFlags::EPOLLRDHUP, 1))?;
        Ok(Self { seat, event: Arc::new(event), epoll })
    }

    /// Waits for news of the seat. Returns false once the front end has hung up.
    fn wait(&self) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); 2];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        // An event that is not readable tells of nothing.
        let _ = nix::unistd::read(self.event.as_fd(), &mut [0; 8]);
        Ok(!events[..count].iter().any(|event| event.data() == 1))
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.seat.lock().waiting.retain(|event| !Arc::ptr_eq(event, &self.event));
    }
}
