//! The wait of a set, and the work that its timers ask for.

use super::members::State;
use super::{ConsumerSet, Key, NUMBER_BITS, Occurrence, WATCHED, descriptor};
use crate::device::{Cause, RingDevice};
use crate::wait::wait_readable;
use nix::sys::epoll::EpollTimeout;
use std::io;
use std::time::{Duration, Instant};

/// The time between two rounds of checks.
pub(super) const CHECK: Duration = Duration::from_secs(1);

/// Members that a round checks at least, if there are so many: few are all checked each second.
const FEW: u32 = 16;

/// Rounds after which every member was checked.
const ROUNDS: u32 = 10;

/// The part of the time that looks at polled rings may take: one in so many.
const POLLING_SHARE: u32 = 50;

/// The longest pause between two looks at polled rings, however many there are.
const LONGEST_POLL_PAUSE: Duration = Duration::from_secs(1);

impl<D: RingDevice> ConsumerSet<D> {
    /// Waits until there is something to report, `timeout` has passed, or a signal has come; and
    /// adds the reports to `occurrences`, in order.
    ///
    /// # Errors
    /// Those of `ppoll` and `epoll_wait`. A ring's errors are reported as [`Occurrence::Failed`].
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        occurrences: &mut Vec<Occurrence>,
    ) -> io::Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let before = occurrences.len();
        loop {
            let mut now = Instant::now();
            self.work(now);
            // With news the descriptors are only looked at, so that busy rings hide no other.
            let pause = if self.news.is_empty() {
                now = Instant::now();
                let until = self.due(deadline);
                until.saturating_duration_since(now)
            } else {
                Duration::ZERO
            };
            let readable = wait_readable(&[descriptor(&self.epoll)], Some(pause))?;
            self.counters.wakeups += u64::from(!pause.is_zero());
            let signalled = readable.is_none() && Instant::now() < now + pause;
            if readable.is_some() {
                self.take_events(occurrences)?;
            }
            occurrences.extend(self.news.drain(..));
            let late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
            if occurrences.len() > before || signalled || late() {
                return Ok(());
            }
        }
    }

    /// Returns the end of the next sleep.
    fn due(&self, deadline: Option<Instant>) -> Instant {
        let search = self.searches.first().map(|(due, _)| *due);
        let poll = (!self.polled.is_empty()).then_some(self.next_poll);
        [deadline, search, poll].into_iter().flatten().fold(self.next_check, Instant::min)
    }

    fn take_events(&mut self, occurrences: &mut Vec<Occurrence>) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        let taken = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        for event in &events[..*taken.as_ref().unwrap_or(&0)] {
            let data = event.data();
            let number = data & ((1 << NUMBER_BITS) - 1);
            // The two halves of the data.
            let high = u32::try_from(data >> 32).unwrap_or_default();
            let index = u32::try_from((data & u64::from(u32::MAX)) >> NUMBER_BITS);
            if number == WATCHED {
                occurrences.push(Occurrence::Readable(high));
                continue;
            }
            let key = Key { index: index.unwrap_or_default(), generation: high };
            self.step(key, Cause::Readable(usize::from(number == 1)));
        }
        self.events = events;
        taken.map(drop).map_err(io::Error::from)
    }

    /// Does what is due at `now`.
    fn work(&mut self, now: Instant) {
        while let Some(&(due, index)) = self.searches.first()
            && due <= now
        {
            self.searches.remove(&(due, index));
            match self.members.key(index) {
                Some(key) => self.step(key, Cause::Elapsed),
                None => continue,
            }
        }
        if !self.polled.is_empty() && self.next_poll <= now {
            self.poll();
        }
        if self.next_check <= now {
            self.next_check = now + CHECK;
            self.check();
        }
    }

    /// Looks at all polled rings.
    fn poll(&mut self) {
        let begin = Instant::now();
        let polled = std::mem::take(&mut self.polled);
        let before = self.news.len();
        let rests = |index: &u32| self.members.key(*index).is_some_and(|key| self.look(key));
        self.polled = polled.into_iter().filter(rests).collect();
        if self.news.len() > before {
            self.pauses = crate::wait::Pauses::default();
        }
        self.schedule_poll(begin.elapsed());
    }

    /// Sets the time of the next look at the polled rings, after one that took `took`.
    pub(super) fn schedule_poll(&mut self, took: Duration) {
        let pause = self.pauses.next_pause().max((took * POLLING_SHARE).min(LONGEST_POLL_PAUSE));
        self.next_poll = Instant::now() + pause;
    }

    /// Checks that some of the rings are still there.
    fn check(&mut self) {
        let places = self.members.places();
        for _ in 0..places.div_ceil(ROUNDS).max(FEW).min(places) {
            if self.unchecked >= places {
                self.unchecked = 0;
            }
            let key = self.members.key(self.unchecked);
            self.unchecked += 1;
            let Some(key) = key else { continue };
            let Some(member) = self.members.get(key) else { continue };
            if matches!(member.state, State::Failed) {
                continue;
            }
            self.counters.checks += 1;
            if let Err(e) = member.consumer.check_presence() {
                self.fail(key, e);
            }
        }
    }
}
