//! Rings for metrics: opened beside their producers and consumers, and read for each scrape.

use super::address::Device;
use super::failure::Failure;
use super::forward::rings::RingSpec;
use super::passed::{PassedSocket, take_all};
use log::Level;
use ring_metrics::{Address, Ages, Bound, RingReading, Scrape};
use ring_program::descriptors::REMEDY;
use ring_program::say;
use ring_program::sockets::{Access, require_listening};
use shared_block_ring::device::{BlockDevice, is_role_held};
use shared_block_ring::format::Side;
use shared_block_ring::{DebugInfo, RingDevice, UnixDevice};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The longest wait for one backend's answer: all scrapes wait for it.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The time of a scrape after which no more rings are opened for it.
const OPENING: Duration = Duration::from_secs(2);

/// The pause after a ring could not be opened.
const RETRY: Duration = Duration::from_secs(5);

/// Descriptors of an open ring without a role: a backend's connection and region.
const VIEW: u64 = 2;

/// The time after which a backend is asked anew for its ring: it may be another one by then.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The name of a socket that a service manager passes for metrics.
const METRICS: &str = "metrics";

/// Listens at the addresses of `--metrics`, and at the sockets that a service manager passes.
pub fn listen(addresses: &[Address]) -> Result<Vec<Bound>, Failure> {
    let on = |address: &Address| {
        let bound = Bound::on(address, &Access::default());
        bound.map_err(Failure::io(format!("--metrics {address}")))
    };
    let passed = |passed: PassedSocket| {
        if passed.name() != METRICS {
            return Err(Failure::Usage(format!(
                "{passed}: FileDescriptorName= in its socket unit has to be {METRICS}"
            )));
        }
        let what = passed.to_string();
        let bound = require_listening(&passed.socket);
        bound.and_then(|()| Bound::inherited(passed.socket)).map_err(Failure::io(what))
    };
    let passed = take_all()?.into_iter().map(passed);
    let bound: Vec<_> = addresses.iter().map(on).chain(passed).collect::<Result<_, _>>()?;
    for one in &bound {
        say!("metrics at {}", one.name());
    }
    Ok(bound)
}

/// An open ring without a role.
enum Open {
    Socket(Box<UnixDevice>, Instant),
    Kernel(Device),
}

impl Open {
    fn read(&self) -> shared_block_ring::Result<RingReading> {
        let attached = |side| match self {
            Self::Socket(device, _) => device.is_held(side).ok(),
            Self::Kernel(device) => is_role_held(device.lock_file()?, device.geometry(), side).ok(),
        };
        let info = match self {
            Self::Socket(device, _) => DebugInfo::read(&**device),
            Self::Kernel(device) => {
                // A file that was removed or replaced is opened anew.
                device.check_presence()?;
                DebugInfo::read(&**device)
            }
        };
        Ok(RingReading {
            info: info?,
            producer_attached: attached(Side::Producer),
            consumer_attached: attached(Side::Consumer),
        })
    }
}

/// A ring that is observed.
struct View {
    spec: RingSpec,
    open: Option<Open>,
    /// Time of the next attempt to open it.
    next: Instant,
    ages: Ages,
    /// The reason why it cannot be read, as it was logged last.
    trouble: Option<String>,
}

impl View {
    fn new(spec: RingSpec) -> Self {
        Self { spec, open: None, next: Instant::now(), ages: Ages::default(), trouble: None }
    }

    /// Opens the ring, if it is time for that.
    ///
    /// # Errors
    /// Those of the attempt.
    fn open(&mut self, may_open: bool) -> Result<(), Failure> {
        let now = Instant::now();
        let is_old =
            |open: &Open| matches!(open, Open::Socket(_, since) if now > *since + ASK_AGAIN);
        if self.open.as_ref().is_some_and(|open| !is_old(open)) || !may_open || now < self.next {
            return Ok(());
        }
        let address = self.spec.address();
        let open = if address.socket().is_some() {
            address.connect_within(PATIENCE).map(|device| Open::Socket(Box::new(device), now))
        } else {
            address.open_read_only().map(Open::Kernel)
        };
        self.open = None;
        match open {
            Ok(open) => self.open = Some(open),
            Err(failure) => {
                self.next = Instant::now() + RETRY;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Reads the ring; `None` while it is not open and not to be opened now.
    fn read(&mut self, may_open: bool) -> Result<Option<RingReading>, Failure> {
        self.open(may_open)?;
        let Some(open) = &self.open else { return Ok(None) };
        let reading = open.read();
        if reading.is_err() {
            self.open = None;
        }
        reading.map(Some).map_err(Failure::about(self.spec.address().name()))
    }

    /// Closes the ring, for which the limit of open files has no room.
    fn leave_out(&mut self) -> Failure {
        self.open = None;
        Failure::Refused(format!("the limit of open files is too low ({REMEDY})"))
    }

    /// Logs at `level` why the ring cannot be read, once as long as that lasts.
    fn note(&mut self, name: &str, reading: &Result<Option<RingReading>, Failure>, level: Level) {
        match reading {
            Ok(None) => {}
            Ok(Some(_)) => {
                if self.trouble.take().is_some() {
                    log::log!(level, "{name}: the ring's state can be read again");
                }
            }
            Err(failure) => {
                let words = failure.words();
                if self.trouble.as_ref() != Some(&words) {
                    log::log!(level, "{name}: the ring's state cannot be read: {words}");
                    self.trouble = Some(words);
                }
            }
        }
    }
}

/// The rings that are observed, by name.
pub struct Observed {
    views: BTreeMap<String, View>,
    /// Level of the messages about rings that cannot be read.
    level: Level,
}

impl Observed {
    pub fn new(level: Level) -> Self {
        Self { views: BTreeMap::new(), level }
    }

    /// Adds the samples of the rings of `specs`, and forgets all others. No more than `files`
    /// descriptors are taken. Returns what was read.
    pub fn report(
        &mut self,
        specs: &BTreeMap<String, RingSpec>,
        mut files: u64,
        scrape: &mut Scrape,
    ) -> BTreeMap<String, RingReading> {
        self.views.retain(|name, view| specs.get(name) == Some(&view.spec));
        let begin = Instant::now();
        let mut readings = BTreeMap::new();
        for (name, spec) in specs {
            // A disk that this process drives itself has no second way to its sectors.
            if spec.is_driven() {
                continue;
            }
            let view = self.views.entry(name.clone()).or_insert_with(|| View::new(spec.clone()));
            let reading = if files < VIEW {
                Err(view.leave_out())
            } else {
                view.read(begin.elapsed() < OPENING)
            };
            view.note(name, &reading, self.level);
            let reading = reading.ok().flatten();
            if view.open.is_some() {
                files -= VIEW;
            }
            RingReading::report(reading.as_ref(), name, &mut view.ages, scrape);
            readings.extend(reading.map(|reading| (name.clone(), reading)));
        }
        readings
    }
}
