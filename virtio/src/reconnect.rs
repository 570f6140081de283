//! The search for a backend that is gone: what was in flight when it went is carried out by the
//! next one.

use crate::{BlockDriver, Error, ResumeError};
use ring_os::{ANSWER_PATIENCE, FIRST_RETRY, LONGEST_RETRY, Limits, wait_readable};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a backend may be gone: an upgrade and a reboot of its host's storage take less, and an
/// outage that takes longer should be reported.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How far a device has come with a queue: its used index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress(pub(super) u16);

/// The search for the device of one [`BlockDriver`], again and again while it is gone.
///
/// ```no_run
/// use std::time::Duration;
/// use virtio_blk_driver::{BlockDriver, Limits, Reconnect, Shape, VhostUser, wait_readable};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = VhostUser::connect("/run/disk.sock")?;
/// let mut driver = BlockDriver::new(backend, Shape::new(32, 4096), &Limits::default())?;
/// let mut search = Reconnect::new("/run/disk.sock");
/// search.set_patience(Duration::from_secs(60));
///
/// // While requests are in flight:
/// if wait_readable(driver.gone_fd().as_slice(), Some(Duration::ZERO))?.is_some() {
///     search.wait(&mut driver)?; // the next backend carries out what is in flight
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reconnect {
    /// The device, as the user named it.
    name: String,
    patience: Duration,
    stop: Option<OwnedFd>,
    outage: Option<Outage>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    /// Pause before the attempt after the next one.
    pause: Duration,
    /// When the next attempt is due.
    due: Instant,
    /// The device's progress when it came back last. If it goes away again without any, the outage
    /// goes on.
    progress: Option<Progress>,
}

impl Reconnect {
    /// Prepares the search for a device, which log lines call `name`. It gives up after five
    /// minutes.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), patience: PATIENCE, stop: None, outage: None }
    }

    /// Sets how long the device may be gone.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Has [`wait`](Self::wait) and each attempt end when `stop` is readable.
    pub fn stop_on(&mut self, stop: OwnedFd) {
        self.stop = Some(stop);
    }

    /// Returns the descriptor that ends the search by being readable.
    pub fn stop(&self) -> Option<BorrowedFd<'_>> {
        self.stop.as_ref().map(AsFd::as_fd)
    }

    /// Makes one attempt, if it is due. Returns the pause before the next one, or `None` if the
    /// device is back, with the queue running.
    ///
    /// # Errors
    /// [`Error::StayedAway`] or [`Error::AnswersNothing`] when the patience is over; otherwise
    /// those of [`ResumeError::Never`].
    pub fn try_once(&mut self, driver: &mut BlockDriver) -> Result<Option<Duration>, Error> {
        let progress = driver.progress()?;
        let (now, name, patience) = (Instant::now(), &self.name, self.patience);
        let outage = match &mut self.outage {
            Some(outage) if outage.progress.is_none_or(|then| then == progress) => {
                if outage.progress.take().is_some() {
                    log::warn!("{name}: the backend is gone again, and has answered nothing");
                    if outage.since.elapsed() >= patience {
                        return Err(Error::AnswersNothing { patience });
                    }
                    outage.put_off();
                }
                outage
            }
            outage => {
                log::warn!("{name}: the backend is gone, looking for it");
                outage.insert(Outage { since: now, pause: FIRST_RETRY, due: now, progress: None })
            }
        };
        if let Some(left) = outage.due.checked_duration_since(now).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        let stop = self.stop.as_ref().map(AsFd::as_fd);
        let limits = Limits::within(ANSWER_PATIENCE).or_on(stop.as_slice());
        match driver.resume(&limits) {
            Ok(()) => {
                let seconds = outage.since.elapsed().as_secs_f64();
                log::warn!("{name}: the backend is back after {seconds:.1} s");
                outage.progress = Some(progress);
                // There is no interrupt for what is done already, and others may wait for one.
                driver.pass_on_interrupt();
                Ok(None)
            }
            Err(ResumeError::Never(e)) => Err(e),
            Err(ResumeError::Later(e)) => {
                log::debug!("{name}: {e}");
                if outage.since.elapsed() >= patience {
                    return Err(Error::StayedAway { patience, last: Box::new(e) });
                }
                Ok(Some(outage.put_off()))
            }
        }
    }

    /// Makes attempts until the device is back.
    ///
    /// # Errors
    /// Those of [`try_once`](Self::try_once), and [`Error::Stopped`].
    pub fn wait(&mut self, driver: &mut BlockDriver) -> Result<(), Error> {
        while let Some(pause) = self.try_once(driver)? {
            let stop = self.stop();
            let woken = wait_readable(stop.as_slice(), Some(pause));
            if woken.map_err(super::Step::Wait.failed())?.is_some() {
                return Err(Error::Stopped);
            }
        }
        Ok(())
    }
}

impl Outage {
    /// Puts the next attempt off, for longer each time. Returns the pause until then.
    fn put_off(&mut self) -> Duration {
        let pause = self.pause;
        self.due = Instant::now() + pause;
        self.pause = (pause * 2).min(LONGEST_RETRY);
        pause
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tests::scripted::{Answers, Scripted};
    use crate::{Request, Shape};

    /// A driver with one request in flight, over a device that `script` describes.
    fn set_up(script: &Scripted) -> (Reconnect, BlockDriver) {
        let shape = Shape::new(1, 512);
        let mut driver = BlockDriver::new(script.device(), shape, &Limits::default()).unwrap();
        submit(&mut driver);
        (Reconnect::new("test"), driver)
    }

    fn submit(driver: &mut BlockDriver) {
        driver.slot().unwrap().submit(Request::flush());
        driver.publish().unwrap();
    }

    #[test]
    fn search_for_a_device_that_is_not_there_becomes_less_frequent() {
        let script = Scripted::default();
        let (mut search, mut driver) = set_up(&script);
        script.set(Answers::NotThere);
        let mut look = || search.try_once(&mut driver).unwrap().unwrap();
        let mut pause = FIRST_RETRY;
        for _ in 0..4 {
            assert_eq!(look(), pause);
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_RETRY);
        }
        script.set(Answers::Nothing);
        search.wait(&mut driver).unwrap();
        assert_eq!(script.resumed(), 1);
    }

    #[test]
    fn search_does_not_end_with_a_device_that_answers_nothing() {
        let script = Scripted::default();
        let (mut search, mut driver) = set_up(&script);
        search.set_patience(Duration::from_millis(100));
        let error = loop {
            if let Err(e) = search.wait(&mut driver) {
                break e;
            }
        };
        assert!(matches!(error, Error::AnswersNothing { .. }), "{error:?}");
        assert!(error.to_string().contains("did not come back in 0.1 s"), "{error}");
        // At once, and after 10, 30, 70, 150 ms, or less often: not as fast as it comes.
        assert!((1..=5).contains(&script.resumed()), "{}", script.resumed());
    }

    #[test]
    fn search_for_a_device_that_has_answered_something_begins_at_once() {
        let script = Scripted::default();
        let (mut search, mut driver) = set_up(&script);
        script.set(Answers::Oldest);
        for life in 1..100 {
            assert_eq!(search.try_once(&mut driver).unwrap(), None, "{life}");
            assert!(driver.reap().unwrap().is_some());
            submit(&mut driver);
        }
    }
}
