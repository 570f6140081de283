//! A model of many hosts that forward their rings into one JetStream cluster: how full the rings
//! become while something fails, and how soon they are empty again.
//!
//! Nothing is measured here, and no time passes: the events of a fleet are worked off in their
//! order, with costs that were measured elsewhere ([`plan`]). The same options have the same
//! outcome.

mod cluster;
mod figures;
mod model;
mod plan;
mod ring;
#[cfg(test)]
mod tests;

pub use plan::Plan;

use crate::error::{Error, Result};
use crate::machine::finished;
use crate::table::count;
use figures::Samples;
use model::{Failure, Model};
use plan::seconds;
use serde::Serialize;

/// What fails, and its name in the table.
const FAILURES: [(Failure, &str); 4] = [
    (Failure::Nothing, "nothing"),
    (Failure::Server, "one server is lost"),
    (Failure::HalfOfTheHosts, "half of the hosts are cut off"),
    (Failure::Cluster, "all servers are lost"),
];

/// Memory of a host's programs for a ring, in KiB, and for the forwarder itself; descriptors of a
/// ring: docs/performance.md, "Many rings" and "Forwarding", and docs/forwarding.md.
const DAEMON_KIB: u64 = 129;
const FORWARDER_KIB: u64 = 6 << 10;
const FORWARDED_KIB: u64 = 20;
const DAEMON_DESCRIPTORS: u64 = 23;
const FORWARDED_DESCRIPTORS: u64 = 6;

/// All figures of a fleet.
#[derive(Debug, Clone, Serialize)]
pub struct Fleet {
    pub plan: Plan,
    pub failures: Vec<Failed>,
}

/// A fleet in which something fails.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    pub what: &'static str,
    #[serde(flatten)]
    pub samples: Samples,
    /// Seconds from the failure's end until no more waits than before it.
    pub drained: Option<u64>,
}

/// Head of the table of failures.
pub const HEAD: [&str; 9] = [
    "fails",
    "median ring",
    "fullest",
    "first ring full",
    "rings full",
    "connections/s",
    "batches refused",
    "items/s at most",
    "drained after",
];

/// Models a fleet in which nothing fails, and each failure.
pub fn all(plan: &Plan) -> Result<Fleet> {
    if plan.capacity() == 0 {
        return Err(Error::Usage("an item does not fit into a ring (--ring-kib)".to_owned()));
    }
    let failures = std::thread::scope(|scope| {
        let runs = FAILURES.map(|(failure, what)| {
            let run = scope.spawn(move || Ok(Model::new(plan, failure).run()));
            (what, run)
        });
        let figures = runs.map(|(what, run)| {
            let samples = finished(run)?;
            let drained = samples.drained(plan);
            Ok(Failed { what, samples, drained })
        });
        figures.into_iter().collect::<Result<Vec<_>>>()
    })?;
    Ok(Fleet { plan: plan.clone(), failures })
}

impl Fleet {
    /// Returns the lines of the table of failures.
    pub fn lines(&self) -> Vec<Vec<String>> {
        self.failures.iter().map(|failed| failed.line(&self.plan)).collect()
    }

    /// Returns what the parts need while nothing fails: what it is, and the figure.
    pub fn needs(&self) -> Vec<Vec<String>> {
        let plan = &self.plan;
        let rings = u64::from(plan.host_rings);
        let (connections, memory) = plan.connections();
        let host = DAEMON_KIB * rings + FORWARDER_KIB + FORWARDED_KIB * rings;
        let open = (DAEMON_DESCRIPTORS + FORWARDED_DESCRIPTORS) * rings;
        let full = plan.capacity() as f64 / (plan.milli_rate as f64 / 1000.0);
        let line = |what: &str, figure: String| vec![what.to_owned(), figure];
        vec![
            line("items of the fleet", format!("{}/s", count(plan.all_items()))),
            line(
                "memory of a host for its rings: daemon and forwarder",
                format!("{} MiB", host >> 10),
            ),
            line("descriptors of a host for its rings: the same", open.to_string()),
            line("connections of a server", format!("{connections}, {} MiB", memory >> 20)),
            line("stored by a server", format!("{:.0} GB a day", plan.stored() / 1e9)),
            line("an empty ring is full, on average, after", format!("{full:.0} s")),
        ]
    }
}

impl Failed {
    fn line(&self, plan: &Plan) -> Vec<String> {
        let peak = self.samples.peak();
        let full = |part: f64| format!("{:.0} %", 100.0 * part);
        let first = self.samples.first_full.map(|at| seconds(at) - seconds(plan::FAILURE));
        let drained = match self.drained {
            None => format!("> {} s", plan.after_s),
            Some(after) => format!("{after} s"),
        };
        vec![
            self.what.to_owned(),
            full(peak.p50),
            full(peak.max),
            first.map_or_else(|| "none".to_owned(), |after| format!("after {after:.0} s")),
            count(self.samples.ever_full as f64),
            count(self.samples.busiest() as f64),
            count(self.samples.refused as f64),
            count(self.samples.fastest() as f64),
            drained,
        ]
    }
}
