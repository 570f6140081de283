//! The search for a backend that is gone: what was under way when it went is carried out by the next one.

use crate::virtqueue::{Away, BlockQueue, Transport};
use crate::wait::wait_readable;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Between the first two looks: a backend that is started again at once is there within milliseconds.
const FIRST: Duration = Duration::from_millis(10);

/// Between later ones: nobody notices a second of an outage that has lasted for ten.
const LONGEST: Duration = Duration::from_secs(1);

/// How long a backend may be gone: an upgrade and a reboot of its host's storage take less, and somebody should hear of what takes more.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How a device is looked for.
pub struct Search {
    /// The device, as the user named it.
    name: String,
    /// How long at most.
    pub patience: Duration,
    /// Ends it when readable.
    pub stop: Option<OwnedFd>,
    outage: Option<Outage>,
}

struct Outage {
    since: Instant,
    /// Before the look after the next one.
    pause: Duration,
    /// When the next look is due.
    due: Instant,
    /// The used index that a backend was found for. One that goes away again without having moved it has ended nothing.
    base: Option<u16>,
}

impl Search {
    /// For the device of that name, none of which is needed yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), patience: PATIENCE, stop: None, outage: None }
    }

    /// One look, if it is due. How long to wait before the next one, unless the device is back, with the queue running.
    pub fn look(
        &mut self,
        transport: &mut dyn Transport,
        queue: &mut BlockQueue,
    ) -> io::Result<Option<Duration>> {
        let base = queue.replay().map_err(io::Error::other)?;
        let now = Instant::now();
        let name = &self.name;
        let outage = match &mut self.outage {
            Some(outage) if outage.base.is_none_or(|then| then == base) => {
                if outage.base.take().is_some() {
                    log::warn!("{name}: the backend is gone again, and has answered nothing");
                    if outage.since.elapsed() >= self.patience {
                        return Err(given_up(self.patience, &"it comes and answers nothing"));
                    }
                    outage.put_off();
                }
                outage
            }
            outage => {
                log::warn!("{name}: the backend is gone, looking for it");
                outage.insert(Outage { since: now, pause: FIRST, due: now, base: None })
            }
        };
        if let Some(left) = outage.due.checked_duration_since(now).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        match transport.resume(queue.memory(), queue.ring().layout(), base) {
            Ok(()) => {
                let seconds = outage.since.elapsed().as_secs_f64();
                log::warn!("{name}: the backend is back after {seconds:.1} s");
                outage.base = Some(base);
                // Of what is done already there is no interrupt, and others may wait for one.
                transport.pass_on();
                Ok(None)
            }
            Err(Away::ForGood(e)) => Err(e),
            Err(Away::ForNow(e)) => {
                log::debug!("{name}: {e}");
                if outage.since.elapsed() >= self.patience {
                    return Err(given_up(self.patience, &e));
                }
                Ok(Some(outage.put_off()))
            }
        }
    }

    /// Looks until the device is back.
    pub fn wait(
        &mut self,
        transport: &mut dyn Transport,
        queue: &mut BlockQueue,
    ) -> io::Result<()> {
        while let Some(pause) = self.look(transport, queue)? {
            let stop = self.stop.as_ref().map(AsFd::as_fd);
            if wait_readable(stop.as_slice(), Some(pause))?.is_some() {
                let text = "the backend is gone, and we were asked to stop";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
            }
        }
        Ok(())
    }
}

fn given_up(patience: Duration, why: &dyn fmt::Display) -> io::Error {
    let seconds = patience.as_secs_f64();
    let text = format!("the backend is gone, and did not come back in {seconds} s: {why}");
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}

impl Outage {
    /// To a later time each time. How long it is until then.
    fn put_off(&mut self) -> Duration {
        let pause = self.pause;
        self.due = Instant::now() + pause;
        self.pause = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::virtqueue::{Disk, DmaMemory, Layout, Operation, Pages, Request, Shape};
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicU16, Ordering};

    /// A device that answers one request of each life and is gone, or none.
    struct Short {
        is_there: bool,
        answers: bool,
        lives: u32,
    }

    impl Transport for Short {
        fn disk(&self) -> Disk {
            unreachable!("nobody asks")
        }

        fn allocate(&self, bytes: u64) -> io::Result<DmaMemory> {
            DmaMemory::new(bytes, Pages::Small)
        }

        fn start(&mut self, _: &DmaMemory, _: Layout) -> io::Result<()> {
            Ok(())
        }

        fn notify(&self) -> io::Result<()> {
            Ok(())
        }

        fn interrupt(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn acknowledge(&self) {}

        fn pass_on(&self) {}

        fn gone(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn present(&self) -> io::Result<()> {
            Ok(())
        }

        fn resume(&mut self, memory: &DmaMemory, layout: Layout, base: u16) -> Result<(), Away> {
            if !self.is_there {
                return Err(Away::ForNow(io::ErrorKind::ConnectionRefused.into()));
            }
            self.lives += 1;
            if self.answers {
                // The entry is as it was, all zero, and so is the head of the first request.
                let used: &[AtomicU16] = memory.words(layout.used, 2);
                used[1].store(base + 1, Ordering::Release);
            }
            Ok(())
        }
    }

    fn set_up() -> (Search, Short, BlockQueue) {
        let transport = Short { is_there: true, answers: false, lives: 0 };
        let shape = Shape::new(1, 512);
        let memory = transport.allocate(shape.memory()).unwrap();
        let mut queue = BlockQueue::new(memory, shape, false);
        submit(&mut queue);
        (Search::new("test"), transport, queue)
    }

    fn submit(queue: &mut BlockQueue) {
        let request = Request { operation: Operation::Flush, sector: 0, bytes: 0, priority: 0 };
        queue.submit(queue.slot().unwrap(), request);
        let _ = queue.publish();
    }

    #[test]
    fn a_device_that_is_not_there_is_looked_for_ever_less_often() {
        let (mut search, mut transport, mut queue) = set_up();
        transport.is_there = false;
        let mut look = || search.look(&mut transport, &mut queue).unwrap().unwrap();
        let mut pause = FIRST;
        for _ in 0..4 {
            assert_eq!(look(), pause);
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
        transport.is_there = true;
        search.wait(&mut transport, &mut queue).unwrap();
        assert_eq!(transport.lives, 1);
    }

    #[test]
    fn one_that_comes_back_and_answers_nothing_is_no_end_of_the_search() {
        let (mut search, mut transport, mut queue) = set_up();
        search.patience = Duration::from_millis(100);
        let error = loop {
            if let Err(e) = search.wait(&mut transport, &mut queue) {
                break e.to_string();
            }
        };
        assert!(error.contains("did not come back in 0.1 s"), "{error}");
        // At once, and after 10, 30, 70, 150 ms, or less often: not as fast as it comes.
        assert!((1..=5).contains(&transport.lives), "{}", transport.lives);
    }

    #[test]
    fn one_that_has_answered_something_is_looked_for_at_once() {
        let (mut search, mut transport, mut queue) = set_up();
        transport.answers = true;
        for life in 1..100 {
            assert_eq!(search.look(&mut transport, &mut queue).unwrap(), None, "{life}");
            assert!(queue.reap().unwrap().is_some());
            submit(&mut queue);
        }
    }
}
