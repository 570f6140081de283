//! Metrics and health of the daemon, from the counters of the data path and the ring's pointer
//! sectors.

use crate::daemon::condition::{Condition, Fault};
use crate::daemon::failure::{Failure, system};
use crate::daemon::ring::Opened;
use crate::daemon::settings::Settings;
use crate::daemon::sockets::{Access, Inherited};
use crate::data_path::counters::Counters;
use crate::data_path::fault::{Owner, Watched};
use crate::data_path::guard::Reason;
use ring_metrics::catalogue::{
    BROKEN_QUEUES, BUILD, CONNECTIONS, DISPLACED, DURABLE_FLUSHES, FAILED, FAILED_REQUESTS,
    FLUSHES, FRONT_END_CONNECTED, HELD_READS, PUBLICATIONS, READ_BYTES, READS, REFUSALS,
    SERVICE_TIME, SUSPENDS, TURNED_AWAY, WAKEUPS, WRITES, WRITTEN_BYTES,
};
use ring_metrics::{Ages, Bound, Program, RingReading, Scrape, Server, Source};
use shared_block_ring::device::{BlockDevice, DeviceError, Operation, is_role_held};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::{DebugInfo, MappedDevice};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Listens at the addresses of the metrics, and on the sockets that the daemon was started with,
/// each of which `take` takes. To be called before the process is confined.
///
/// # Errors
///
/// One cannot be made.
pub fn listen(
    settings: &Settings,
    take: impl Fn(Inherited) -> io::Result<OwnedFd>,
) -> Result<Vec<Bound>, Failure> {
    let identity = settings.identity;
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
    let inherited = settings.inherited_metrics.iter().map(passed);
    settings.metrics.iter().map(on).chain(inherited).collect()
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

/// Starts to answer scrapes, if there are addresses for that.
///
/// # Errors
///
/// The ring cannot be mapped once more, or no thread can be made.
pub fn serve(
    bound: Vec<Bound>,
    settings: &Settings,
    opened: &Opened,
    counters: &Arc<Counters>,
    condition: &Arc<Condition>,
) -> Result<Option<Server>, Failure> {
    if bound.is_empty() {
        return Ok(None);
    }
    let file = opened.file.try_clone().map_err(system("duplicate a descriptor"))?;
    let path = settings.ring.as_path();
    let counted = (Arc::clone(counters), Arc::clone(condition));
    let observed = Observed::new(path, file, opened.geometry, settings.guest, counted);
    let name = path.display().to_string();
    let observed = observed.map_err(|e| Failure::Ring { path: name, source: e.into() })?;
    Server::start(bound, observed).map(Some).map_err(system("start a thread"))
}

/// The ring and the counters, as the metrics' thread reads them.
struct Observed {
    name: String,
    guest: Side,
    file: File,
    /// A mapping of its own: the queues' thread shares nothing with this one but counters.
    device: Watched<MappedDevice>,
    ages: Ages,
    counters: Arc<Counters>,
    condition: Arc<Condition>,
}

impl Observed {
    /// Maps the ring's `file`, which was opened by `path`.
    fn new(
        path: &Path,
        file: File,
        geometry: Geometry,
        guest: Side,
        (counters, condition): (Arc<Counters>, Arc<Condition>),
    ) -> Result<Self, DeviceError> {
        let name = path.display().to_string();
        let mapped =
            file.try_clone().map_err(|e| DeviceError::new(name.clone(), Operation::Map, e))?;
        let device = MappedDevice::new(mapped, &name, geometry)?;
        let device = Watched::new(device, Owner::Ring, condition.losses());
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, guest, file, device, ages: Ages::default(), counters, condition })
    }

    fn read(&self) -> Option<RingReading> {
        if self.condition.is_truncated() {
            return None;
        }
        let info = DebugInfo::read(&*self.device).ok()?;
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
}

impl Source for Observed {
    fn scrape(&mut self, scrape: &mut Scrape) {
        scrape.whole(&BUILD, &[Program::Backend.name(), env!("CARGO_PKG_VERSION")], 1);
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

    fn health(&mut self) -> Result<String, String> {
        self.condition
            .fault()
            .map_or_else(|| Ok("ok".to_owned()), |fault| Err(fault.words().to_owned()))
    }
}
