//! The search for the backend after it has gone: until it answers, or a step at a time.

use super::UnixDevice;
use super::link::{Asked, Link};
use crate::device::lock::RangeLock;
use crate::device::presence::Displaced;
use crate::device::{Cause, DeviceError, Operation, Peer, RingDevice, SharedSleep};
use crate::error::Error;
use crate::format::{Geometry, Side};
use crate::wait::{ANSWER_PATIENCE, Limits, Pauses, Woken, wait_readable};
use ring_os::await_readable;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The pause between two attempts to find the backend again: the first one of a search in steps.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause of a search in steps: a thousand rings whose backends are gone cost a thousand
/// attempts in this time, some milliseconds.
const LONGEST_RECONNECT_PAUSE: Duration = Duration::from_secs(2);

/// The search for the backend.
#[derive(Default)]
pub(super) struct Search {
    /// Where the search in steps stands.
    state: Mutex<State>,
    /// Since when backends have refused the role without naming its holder.
    refused_since: Mutex<Option<Instant>>,
}

#[derive(Default)]
enum State {
    /// There is nothing to search for.
    #[default]
    Connected,
    /// The next attempt follows after a pause; the one after it, if it fails, after this one.
    Pausing(Duration),
    /// The backend has accepted the connection, and has not answered. It has the pause after it.
    Asked(Asked, Duration),
}

/// How long the role may be taken for an attempt of this device's to connect: the backend takes it
/// before it answers, and gives it back when nobody waits for the answer any more.
const OWN_ATTEMPT: Duration = Duration::from_secs(1);

impl UnixDevice {
    /// Looks for the backend until it answers. Returns `None` when it has answered.
    pub(super) fn reconnect(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Option<Woken>, DeviceError> {
        self.give_back();
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let patience = left.map_or(ANSWER_PATIENCE, |left| left.min(ANSWER_PATIENCE));
            // An interrupt ends the attempt here, and the search below.
            let limits = Limits::within(patience).or_on(interrupts);
            match Link::new(&self.path, &self.name, self.role, &limits) {
                Ok((link, geometry)) => return self.adopt(link, geometry).map(|()| None),
                Err(Error::RoleTaken { holder, .. }) if self.has_it_for_now(holder) => {}
                Err(e @ Error::RoleTaken { .. }) => {
                    return Err(self.error(Operation::Reconnect, io::Error::other(e.to_string())));
                }
                Err(e) => log::debug!("{}: {e}", self.name),
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(Some(Woken::TimedOut));
            }
            let readable = wait_readable(interrupts, Some(RECONNECT_PAUSE))
                .map_err(|e| self.error(Operation::Wait, e))?;
            if let Some(index) = readable {
                return Ok(Some(Woken::Readable(index)));
            }
        }
    }

    /// Returns whether the role that a backend has refused may be taken by this device itself: for an
    /// earlier attempt whose answer nobody waited for. Such a holder, which is not known while the
    /// lock is on its way, does not last.
    fn has_it_for_now(&self, holder: Option<i32>) -> bool {
        if let Some(pid) = holder {
            return is_this_process(pid);
        }
        let since = &self.search.refused_since;
        let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed() < OWN_ATTEMPT
    }

    /// Gives the role back. The mapping keeps the old open file description, and with it the role's
    /// lock, alive: the new backend would find the role taken, by ourselves. Behind the writes of
    /// other threads that are under way.
    fn give_back(&self) {
        self.link.write().unwrap_or_else(PoisonError::into_inner).release();
    }

    /// Takes the role that [`give_back`](Self::give_back) gave back.
    pub(super) fn take_role_back(&self, side: Side) -> crate::Result<()> {
        let limits = Limits::within(OWN_ATTEMPT);
        let mut pauses = Pauses::default();
        while !self.try_role(side)? {
            let is_over =
                !self.await_answer(&limits)? && limits.pause(pauses.next_pause()).is_err();
            if is_over {
                return Err(Error::RoleTaken { role: side, holder: self.holder(side) });
            }
        }
        Ok(())
    }

    /// Returns whether this device has the role now.
    fn try_role(&self, side: Side) -> Result<bool, DeviceError> {
        let link = self.link();
        let Some(file) = link.region.lock_file() else { return Ok(true) };
        if link.held.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let lock = RangeLock::try_role(file, self.geometry, side);
        let Some(lock) = lock.map_err(|e| self.error(Operation::Lock, e))? else {
            return Ok(false);
        };
        lock.leave();
        link.held.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Waits for the answer to an attempt that is under way, with which the role may come. Returns
    /// `false` where there is none.
    fn await_answer(&self, limits: &Limits<'_>) -> Result<bool, DeviceError> {
        let mut state = self.search();
        let (asked, pause) = match std::mem::take(&mut *state) {
            State::Asked(asked, pause) => (asked, pause),
            other => {
                *state = other;
                return Ok(false);
            }
        };
        let answer = await_readable(asked.fd(), limits)
            .map_err(|e| self.error(Operation::ReceiveHandover, e).into())
            .and_then(|()| asked.answer(&self.name));
        match answer {
            Ok((link, geometry)) => self.adopt(link, geometry).map(|()| true),
            Err(e) => {
                log::debug!("{}: {e}", self.name);
                Self::pause(&mut state, pause);
                Ok(false)
            }
        }
    }

    /// Takes the connection to the next backend, if that serves the same ring.
    fn adopt(&self, mut link: Link, geometry: Geometry) -> Result<(), DeviceError> {
        if geometry != self.geometry {
            let text = "the backend is back with a ring of another shape";
            return Err(self.error(Operation::Reconnect, io::Error::other(text)));
        }
        let same = link.same_ring(&self.link());
        if !same.map_err(|e| self.error(Operation::Reconnect, e))? {
            return Err(Displaced::AnotherRing.error(&self.name));
        }
        if self.in_place {
            // SAFETY: whoever called `lend_in_place` vouches for every backend that answers at this
            // path.
            unsafe { link.lend_in_place() };
        }
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
        *self.search.refused_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn search(&self) -> MutexGuard<'_, State> {
        self.search.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an attempt, which pauses for `pause` if it fails.
    fn attempt(&self, state: &mut State, pause: Duration) -> Peer {
        self.give_back();
        let at_once = Limits::within(Duration::ZERO);
        match Asked::new(&self.path, &self.name, self.role, &at_once) {
            Ok(asked) => {
                *state = State::Asked(asked, pause);
                Peer::Away(ANSWER_PATIENCE)
            }
            Err(e) => {
                log::debug!("{}: {e}", self.name);
                Self::pause(state, pause)
            }
        }
    }

    fn pause(state: &mut State, pause: Duration) -> Peer {
        *state = State::Pausing((pause * 2).min(LONGEST_RECONNECT_PAUSE));
        Peer::Away(pause)
    }
}

impl SharedSleep for UnixDevice {
    fn descriptors(
        &self,
        visit: &mut dyn FnMut(usize, BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match &*self.search() {
            State::Connected => {
                let link = self.link();
                if let Some(bells) = &link.bells {
                    visit(0, bells.ours.fd())?;
                }
                visit(1, link.connection.as_fd())
            }
            State::Pausing(_) => Ok(()),
            State::Asked(asked, _) => visit(1, asked.fd()),
        }
    }

    fn step(&self, cause: Cause) -> Result<Peer, DeviceError> {
        let mut state = self.search();
        match (std::mem::take(&mut *state), cause) {
            (State::Connected, Cause::Readable(0)) => {
                if let Some(bells) = &self.link().bells {
                    bells.ours.awake();
                }
                Ok(Peer::Here)
            }
            (State::Connected, Cause::Readable(_)) => {
                log::info!("{}: the backend is gone, looking for it", self.name);
                Ok(self.attempt(&mut state, RECONNECT_PAUSE))
            }
            (State::Connected, Cause::Elapsed) => Ok(Peer::Here),
            (State::Pausing(pause), _) => Ok(self.attempt(&mut state, pause)),
            (State::Asked(asked, pause), Cause::Readable(_)) => match asked.answer(&self.name) {
                Ok((link, geometry)) => self.adopt(link, geometry).map(|()| Peer::Here),
                // This process took the role back meanwhile, to free what it had read: the next
                // attempt gives it back before it asks.
                Err(Error::RoleTaken { holder, .. }) if holder.is_none_or(is_this_process) => {
                    Ok(Self::pause(&mut state, pause))
                }
                Err(e @ Error::RoleTaken { .. }) => {
                    Err(self.error(Operation::Reconnect, io::Error::other(e.to_string())))
                }
                Err(e) => {
                    log::debug!("{}: {e}", self.name);
                    Ok(Self::pause(&mut state, pause))
                }
            },
            (State::Asked(_, pause), Cause::Elapsed) => {
                log::debug!("{}: the backend does not answer", self.name);
                Ok(Self::pause(&mut state, pause))
            }
        }
    }
}

fn is_this_process(pid: i32) -> bool {
    u32::try_from(pid) == Ok(std::process::id())
}
