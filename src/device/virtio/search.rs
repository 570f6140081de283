//! The search for a backend that is gone: what was under way when it went is carried out by the next one.

use crate::virtqueue::{Away, BlockQueue, Transport};
use crate::wait::wait_readable;
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
                    let seconds = self.patience.as_secs_f64();
                    let text =
                        format!("the backend is gone, and did not come back in {seconds} s: {e}");
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
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

impl Outage {
    /// To a later time each time. How long it is until then.
    fn put_off(&mut self) -> Duration {
        let pause = self.pause;
        self.due = Instant::now() + pause;
        self.pause = (pause * 2).min(LONGEST);
        pause
    }
}
