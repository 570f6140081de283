//! Handing regions to processes on the host: one with a role for each ring, others without.
//!
//! One thread serves the consumer sockets of all rings. Each ring has a [`desk`], which is added
//! and removed while others are served. The thread sleeps in one epoll set; of the sockets that it
//! finds readable, whichever desks they belong to, it handles each once before it looks again. So
//! no client delays another one without end, and no ring another ring.

mod desk;
mod estate;
pub(super) mod set;

use self::desk::{Desk, LISTENING};
pub use self::estate::{Estate, Reopening, Suspend, reopen};
use self::set::{Set, Token};
use crate::daemon::failure::{Failure, system};
use crate::daemon::sockets::Listening;
use nix::errno::Errno;
use shared_block_ring::device::bell::new_event;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// The place of the event that ends the thread.
const STOP: Token = Token { desk: 0, number: 0 };

/// A desk that was added and not removed yet.
#[derive(Debug)]
pub struct DeskId(u32);

/// The callback that reports that a desk has failed.
type Failed = Box<dyn FnOnce() + Send>;

/// The thread that serves the consumer sockets.
pub struct Handover {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Handover {
    /// Starts the thread, without a desk.
    ///
    /// # Errors
    ///
    /// No epoll set, no event or no thread can be made.
    pub fn start() -> io::Result<Self> {
        let (shared, stop) = (Arc::new(Shared::new()?), new_event()?);
        shared.set.add(&stop, STOP)?;
        let serving = Arc::clone(&shared);
        let serve = move || serving.serve();
        let thread = std::thread::Builder::new().name("handover".to_owned()).spawn(serve)?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Serves clients of `listening` until the desk is removed. Calls `failed` on the thread if
    /// that cannot go on: the connections and the listening socket are closed then, and the other
    /// desks are served when it has returned. It may use this object, and may wait for a thread
    /// that does.
    ///
    /// # Errors
    ///
    /// The kernel cannot watch the socket.
    pub fn add(
        &self,
        listening: Listening,
        estate: Estate,
        failed: impl FnOnce() + Send + 'static,
    ) -> io::Result<DeskId> {
        self.shared.visit(|desks| desks.add(&self.shared.set, listening, estate, Box::new(failed)))
    }

    /// Closes the desk's connections and its listening socket, whose path is removed.
    ///
    /// # Errors
    ///
    /// Why the desk had stopped serving. The call of its `failed` may still be under way.
    pub fn remove(&self, id: DeskId) -> Result<(), Failure> {
        // The rest of a desk that serves is dropped behind the visit: nobody waits for that.
        self.shared.visit(|desks| desks.remove(id)).map_or(Ok(()), Place::outcome)
    }

    /// Removes all desks and ends the thread. A `failed` that is under way is waited for.
    ///
    /// # Errors
    ///
    /// Why a desk had stopped serving; of several, the one that was added first.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        if nix::unistd::write(&self.stop, &1u64.to_ne_bytes()).is_ok() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
        let places = self.shared.visit(|desks| std::mem::take(&mut desks.places));
        places.into_values().try_for_each(Place::outcome)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        // An error is returned by `finish`; here nobody wants it.
        let _ = self.end();
    }
}

/// What the thread shares with those that add and remove desks.
struct Shared {
    set: Set,
    desks: Mutex<Desks>,
    /// The callers that wait for the desks or have them. The thread lets them go first: it takes
    /// the lock so often, when clients send all the time, that they might never get it.
    visitors: AtomicUsize,
    visited: Condvar,
}

impl Shared {
    fn new() -> io::Result<Self> {
        Ok(Self {
            set: Set::new()?,
            desks: Mutex::default(),
            visitors: AtomicUsize::new(0),
            visited: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Desks> {
        // A panic while a desk is handled is caught.
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `visit` with the desks, between two rounds of the thread.
    fn visit<T>(&self, visit: impl FnOnce(&mut Desks) -> T) -> T {
        self.visitors.fetch_add(1, Ordering::Relaxed);
        let mut desks = self.lock();
        let outcome = visit(&mut desks);
        // Under the lock, so that a thread which has counted this visitor hears of its end.
        self.visitors.fetch_sub(1, Ordering::Relaxed);
        self.visited.notify_one();
        outcome
    }

    /// Runs the thread.
    fn serve(&self) {
        let mut until = None;
        loop {
            match self.set.wait(until) {
                Ok(ready) if ready.contains(&STOP) => return,
                Ok(ready) => until = self.round(ready),
                Err(e) => return self.give_up(e),
            }
        }
    }

    /// Handles each readable socket once, and what has come to its time. Returns when the next one
    /// comes to its time.
    fn round(&self, mut ready: Vec<Token>) -> Option<Instant> {
        // Clients come before new connections: connecting all the time delays no client's request.
        ready.sort_by_key(|token| token.number == LISTENING);
        let mut all_failed = Vec::new();
        let until = {
            let desks = self.lock();
            let others = |_: &mut Desks| self.visitors.load(Ordering::Relaxed) > 0;
            let waited = self.visited.wait_while(desks, others);
            let mut desks = waited.unwrap_or_else(PoisonError::into_inner);
            for token in ready {
                all_failed.extend(desks.handle(token.desk, |desk| desk.serve(token.number)));
            }
            let now = Instant::now();
            while let Some((_, number)) = desks.deadlines.first().filter(|(at, _)| *at <= now) {
                let number = *number;
                all_failed.extend(desks.handle(number, |desk| {
                    desk.expire(now);
                    Ok(())
                }));
            }
            desks.deadlines.first().map(|(at, _)| *at)
        };
        call(all_failed);
        until
    }

    /// Stops all desks: the thread cannot wait for their clients.
    fn give_up(&self, error: Errno) {
        let all_failed = {
            let mut desks = self.lock();
            desks.over = Some(error);
            let numbers: Vec<_> = desks.places.keys().copied().collect();
            let fail = |_: &mut Desk| Err(system("wait for clients")(error.into()));
            numbers.into_iter().filter_map(|number| desks.handle(number, fail)).collect()
        };
        call(all_failed);
    }
}

/// Calls what is to be called of desks that have failed. The desks are not locked: what is called
/// may wait for a thread that adds or removes one.
fn call(all: Vec<Failed>) {
    for failed in all {
        // A panic has been reported; the other desks are still served.
        let _ = catch_unwind(AssertUnwindSafe(failed));
    }
}

/// Returns the first number after `last`, and from zero on behind the greatest, that is not taken.
fn unused(last: u32, is_taken: impl Fn(u32) -> bool) -> u32 {
    let mut number = last.wrapping_add(1);
    while is_taken(number) {
        number = number.wrapping_add(1);
    }
    number
}

/// The desks by their numbers.
#[derive(Default)]
struct Desks {
    places: BTreeMap<u32, Place>,
    /// When which desk comes to its time: those alone that have such a time.
    deadlines: BTreeSet<(Instant, u32)>,
    /// The number of the last desk that was added.
    last: u32,
    /// Why the thread has ended, if it had to.
    over: Option<Errno>,
}

/// The place of a desk.
enum Place {
    Open(Box<Open>),
    /// The desk has stopped serving, and was dropped.
    Failed(Failure),
}

/// A desk that serves.
struct Open {
    desk: Desk,
    /// The deadline that is in the set of deadlines.
    deadline: Option<Instant>,
    failed: Failed,
}

impl Place {
    /// Drops the desk. Returns why it had stopped serving, if it had.
    fn outcome(self) -> Result<(), Failure> {
        match self {
            Self::Open(_) => Ok(()),
            Self::Failed(failure) => Err(failure),
        }
    }
}

impl Desks {
    fn add(
        &mut self,
        set: &Set,
        listening: Listening,
        estate: Estate,
        failed: Failed,
    ) -> io::Result<DeskId> {
        if let Some(error) = self.over {
            return Err(error.into());
        }
        let is_taken = |number| number == STOP.desk || self.places.contains_key(&number);
        let number = unused(self.last, is_taken);
        let desk = Desk::open(set, number, listening, estate)?;
        self.last = number;
        let open = Open { desk, deadline: None, failed };
        self.places.insert(number, Place::Open(Box::new(open)));
        Ok(DeskId(number))
    }

    fn remove(&mut self, DeskId(number): DeskId) -> Option<Place> {
        let place = self.places.remove(&number)?;
        if let Place::Open(open) = &place
            && let Some(deadline) = open.deadline
        {
            self.deadlines.remove(&(deadline, number));
        }
        Some(place)
    }

    /// Has a desk do something. Returns what is to be called if it has failed, or panicked: it is
    /// dropped then. A desk that was removed since its event was found does nothing.
    fn handle(
        &mut self,
        number: u32,
        action: impl FnOnce(&mut Desk) -> Result<(), Failure>,
    ) -> Option<Failed> {
        let Some(Place::Open(open)) = self.places.get_mut(&number) else { return None };
        // What a panic has left half changed is not used again, but dropped.
        let outcome = catch_unwind(AssertUnwindSafe(|| action(&mut open.desk)));
        let panicked = || system("serve clients")(io::Error::other("the thread has panicked"));
        let outcome = outcome.unwrap_or_else(|_| Err(panicked()));
        let next = if outcome.is_ok() { open.desk.deadline() } else { None };
        let before = std::mem::replace(&mut open.deadline, next);
        if before != next {
            before.map(|at| self.deadlines.remove(&(at, number)));
            next.map(|at| self.deadlines.insert((at, number)));
        }
        match self.places.insert(number, Place::Failed(outcome.err()?)) {
            Some(Place::Open(open)) => Some(open.failed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::condition::Condition;
    use crate::daemon::peer::Admission;
    use crate::daemon::sockets::Access;
    use crate::data_path::counters::Counters;
    use crate::data_path::fault::Losses;
    use nix::sys::socket::SockType;
    use shared_block_ring::device::bell::new_page;
    use shared_block_ring::format::{Geometry, SectorSize, Side};
    use std::path::Path;
    use std::sync::mpsc;

    fn desk(path: &Path) -> (Listening, Estate) {
        let listening = Listening::on(path, SockType::SeqPacket, &Access::default()).unwrap();
        let geometry = Geometry::new(SectorSize::DEFAULT, 32).unwrap();
        let (region, counters) = (tempfile::tempfile().unwrap(), Arc::new(Counters::default()));
        let losses = Losses::new().unwrap();
        let condition = Condition::new(region.try_clone().unwrap(), geometry, &counters, &losses);
        let estate = Estate {
            reopen: Box::new(move |writing| reopen(&region, writing)),
            geometry,
            guest: Side::Producer,
            guarded: true,
            page: new_page().unwrap(),
            to_host: Arc::new(new_event().unwrap()),
            to_backend: Arc::new(new_event().unwrap()),
            counters,
            condition: Arc::new(condition),
            admission: Admission::default(),
            suspend: Box::new(|_| Ok(true)),
        };
        (listening, estate)
    }

    fn add(shared: &Shared, path: &Path, failed: Failed) -> io::Result<DeskId> {
        let (listening, estate) = desk(path);
        shared.visit(|desks| desks.add(&shared.set, listening, estate, failed))
    }

    #[test]
    fn number_in_use_is_not_given_again() {
        assert_eq!(unused(5, |_| false), 6);
        assert_eq!(unused(u32::MAX - 1, |number| number == u32::MAX || number < 3), 3);
    }

    #[test]
    fn events_of_a_desk_and_a_client_that_are_gone_do_nothing() {
        let (shared, dir) = (Shared::new().unwrap(), tempfile::tempdir().unwrap());
        let add = |name| add(&shared, &dir.path().join(name), Box::new(|| panic!("failed")));
        let [gone, stays] = ["gone", "stays"].map(|name| add(name).unwrap());
        let (old, new) = (gone.0, stays.0);
        assert!(shared.visit(|desks| desks.remove(gone)).unwrap().outcome().is_ok());
        let events = [(old, LISTENING), (old, 1), (new, 7), (new, LISTENING)];
        let events = events.map(|(desk, number)| Token { desk, number });
        // There is nothing to be woken for, either.
        assert_eq!(shared.round(events.into()), None);
        assert!(shared.visit(|desks| desks.remove(stays)).unwrap().outcome().is_ok());
    }

    #[test]
    fn thread_that_cannot_wait_tells_every_desk_and_takes_no_more() {
        let (shared, dir) = (Shared::new().unwrap(), tempfile::tempdir().unwrap());
        let (tell, failed) = mpsc::channel();
        let ids: Vec<_> = (0..3)
            .map(|number: u32| {
                let (path, tell) = (dir.path().join(number.to_string()), tell.clone());
                add(&shared, &path, Box::new(move || tell.send(number).unwrap())).unwrap()
            })
            .collect();
        shared.give_up(Errno::ENOMEM);
        assert_eq!(failed.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert!(add(&shared, &dir.path().join("late"), Box::new(|| ())).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for id in ids {
            let failure = shared.visit(|desks| desks.remove(id)).unwrap().outcome().unwrap_err();
            assert!(failure.to_string().starts_with("cannot wait for clients"), "{failure}");
        }
    }
}
