//! Metrics and health of the daemon, from the counters of the data path and the ring's pointer
//! sectors.

use crate::daemon::condition::{Condition, Fault};
use crate::daemon::failure::{Failure, system};
use crate::daemon::sandbox::Identity;
use crate::daemon::service::Service;
use crate::daemon::sockets::{Access, Inherited};
use crate::data_path::counters::Counters;
use crate::data_path::fault::{Owner, Watched};
use crate::data_path::guard::Reason;
use ring_metrics::catalogue::{
    BROKEN_QUEUES, BUILD, CONNECTIONS, DISPLACED, DURABLE_FLUSHES, FAILED, FAILED_REQUESTS,
    FLUSHES, FRONT_END_CONNECTED, HELD_READS, PUBLICATIONS, READ_BYTES, READS, REFUSALS, RESTS,
    SERVICE_TIME, SUSPENDS, TURNED_AWAY, WAKEUPS, WRITES, WRITTEN_BYTES,
};
use ring_metrics::{Address, Ages, Bound, Program, RingReading, Scrape, Server, Source};
use shared_block_ring::device::{BlockDevice, is_role_held};
use shared_block_ring::format::Side;
use shared_block_ring::{DebugInfo, MappedDevice};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Listens at the addresses of the metrics, whose UNIX sockets are the user's that the daemon
/// becomes, and on the sockets that the daemon was started with, each of which `take` takes. To be
/// called before the process is confined.
///
/// # Errors
///
/// One cannot be made.
pub fn listen(
    addresses: &[Address],
    inherited: &[Inherited],
    identity: Option<Identity>,
    take: impl Fn(Inherited) -> io::Result<OwnedFd>,
) -> Result<Vec<Bound>, Failure> {
    let access = Access {
        owner: identity.map(|identity| identity.uid),
        group: identity.map(|identity| identity.gid),
        ..Access::default()
    };
    let on = |address| {
        let failure = |source| explain(format!("--metrics {address}"), source);
        Bound::on(address, &access).map_err(failure)
    };
    let passed = |inherited: &Inherited| {
        let failure = |source| Failure::Socket { name: inherited.to_string(), source };
        take(*inherited).and_then(Bound::inherited).map_err(failure)
    };
    addresses.iter().map(on).chain(inherited.iter().map(passed)).collect()
}

/// Returns the failure for an address, with the remedy where the unit of a service manager has taken
/// the network from this process.
fn explain(name: String, source: io::Error) -> Failure {
    let is_without_network = source.raw_os_error() == Some(libc::EAFNOSUPPORT);
    let source = if is_without_network {
        let text = format!(
            "{source} (this process has no network: take unix:PATH, or have the service manager pass a socket named `metrics`)"
        );
        io::Error::new(source.kind(), text)
    } else {
        source
    };
    Failure::Socket { name, source }
}

/// Returns the part of the log's line at the start that names the addresses of the metrics.
pub fn names(bound: &[Bound]) -> String {
    let names: Vec<_> =
        bound.iter().map(|bound| format!(", metrics at {}", bound.name())).collect();
    names.concat()
}

/// Starts to answer scrapes of a daemon of one ring, if there are addresses for that.
///
/// # Errors
///
/// The ring cannot be mapped once more, or no thread can be made.
pub fn serve(bound: Vec<Bound>, service: &Service) -> Result<Option<Server>, Failure> {
    if bound.is_empty() {
        return Ok(None);
    }
    let path = service.terms.path.as_path();
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let source = OneRing(Observed::new(service, name)?);
    Server::start(bound, source).map(Some).map_err(system("start a thread"))
}

/// Adds the sample with the program and its version.
pub fn report_build(scrape: &mut Scrape) {
    scrape.whole(&BUILD, &[Program::Backend.name(), env!("CARGO_PKG_VERSION")], 1);
}

/// The metrics of a daemon of one ring.
struct OneRing(Observed);

impl Source for OneRing {
    fn scrape(&mut self, scrape: &mut Scrape) {
        report_build(scrape);
        self.0.report(scrape);
    }

    fn health(&mut self) -> Result<String, String> {
        self.0.fault().map_or_else(|| Ok("ok".to_owned()), |fault| Err(fault.words().to_owned()))
    }
}

/// A ring and its counters, as the metrics' thread reads them.
pub struct Observed {
    name: String,
    guest: Side,
    file: Arc<File>,
    /// A mapping of its own: the queues' thread shares nothing with this one but counters.
    device: Watched<MappedDevice>,
    ages: Ages,
    counters: Arc<Counters>,
    condition: Arc<Condition>,
}

impl Observed {
    /// Maps a ring that is served. Its metrics have `name` as their label `ring`.
    ///
    /// # Errors
    ///
    /// It cannot be mapped once more.
    pub fn new(service: &Service, name: String) -> Result<Self, Failure> {
        let path = service.name();
        let device = MappedDevice::new(Arc::clone(&service.file), &path, service.geometry);
        let device = device.map_err(|e| Failure::Ring { path, source: e.into() })?;
        let condition = Arc::clone(&service.condition);
        let device = Watched::new(device, Owner::Ring, condition.losses());
        let (guest, file) = (service.terms.guest, Arc::clone(&service.file));
        let (ages, counters) = (Ages::default(), Arc::clone(&service.counters));
        Ok(Self { name, guest, file, device, ages, counters, condition })
    }

    /// The value of the label `ring`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what is wrong with the ring.
    pub fn fault(&self) -> Option<Fault> {
        self.condition.fault()
    }

    fn read(&self) -> Option<RingReading> {
        if self.condition.is_truncated() {
            return None;
        }
        let info = DebugInfo::read(&*self.device).ok()?;
        // Truncated meanwhile: what was read may be the zeros in the place of what is lost.
        if self.condition.losses().region_lost() {
            return None;
        }
        let attached = |side| {
            // The guest's role is locked by this process.
            let held = || is_role_held(self.file.as_fd(), self.device.geometry(), side).ok();
            if side == self.guest { Some(true) } else { held() }
        };
        Some(RingReading {
            info,
            producer_attached: attached(Side::Producer),
            consumer_attached: attached(Side::Consumer),
        })
    }

    /// Adds the ring's samples.
    pub fn report(&mut self, scrape: &mut Scrape) {
        let reading = self.read();
        RingReading::report(reading.as_ref(), &self.name, &mut self.ages, scrape);
        let (counters, ring) = (&*self.counters, &[&*self.name]);
        for (metric, counter) in [
            (&READS, &counters.reads),
            (&WRITES, &counters.writes),
            (&DURABLE_FLUSHES, &counters.flushes),
            (&FAILED_REQUESTS, &counters.failed),
            (&READ_BYTES, &counters.read_bytes),
            (&WRITTEN_BYTES, &counters.written_bytes),
            (&PUBLICATIONS, &counters.published),
            (&HELD_READS, &counters.held),
            (&WAKEUPS, &counters.wakeups),
            (&RESTS, &counters.rests),
            (&BROKEN_QUEUES, &counters.broken),
            (&SUSPENDS, &counters.suspends),
            (&CONNECTIONS, &counters.connections),
            (&TURNED_AWAY, &counters.turned_away),
        ] {
            scrape.whole(metric, ring, counter.get());
        }
        // Those without a refusal, too: the first one then shows as an increase.
        for reason in Reason::ALL {
            scrape.whole(&REFUSALS, &[&self.name, reason.name()], counters.refused(reason));
        }
        scrape.flag(&FRONT_END_CONNECTED, ring, counters.has_front_end());
        scrape.histogram(&SERVICE_TIME, ring, &counters.service_time);
        scrape.histogram(&FLUSHES, ring, &counters.flush_time);
        let has_failed = matches!(self.condition.fault(), Some(Fault::Truncated | Fault::Flush));
        scrape.flag(&FAILED, ring, has_failed);
        scrape.flag(&DISPLACED, ring, self.condition.is_displaced());
    }
}
