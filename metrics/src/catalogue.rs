//! Every metric of the programs. `docs/observability.md` has one row for each.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows until the program starts anew.
    Counter,
    /// The present value.
    Gauge,
    /// Counts of durations in buckets.
    Histogram,
    /// Always 1: its labels hold the information.
    Info,
}

impl Kind {
    pub(crate) fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

/// A program that has metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `vhost-device-blockring`.
    Backend,
    /// The same with a folder of rings: it has the metrics of a [`Backend`](Self::Backend), and its
    /// own.
    BackendOfMany,
    /// `blockring forward`.
    Forward,
    /// `blockring export`.
    Export,
}

impl Program {
    /// Returns the name in the label `program`, where the backend is always `backend`, and in the
    /// documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::BackendOfMany => "backend of many rings",
            Self::Forward => "forward",
            Self::Export => "export",
        }
    }
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// The name, without its unit and `_total`.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// The base unit, with which the full name ends.
    pub unit: Option<Unit>,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// The programs that have it.
    pub programs: &'static [Program],
    /// Its meaning, in one sentence.
    pub help: &'static str,
}

impl Metric {
    /// Returns whether `program` has it.
    pub fn is_of(&self, program: Program) -> bool {
        let is_listed = |program| self.programs.contains(&program);
        is_listed(program) || program == Program::BackendOfMany && is_listed(Program::Backend)
    }

    /// Returns the name of its samples. Those of a histogram have `_bucket`, `_sum` or `_count`
    /// behind it.
    pub fn full_name(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let end = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{end}", self.name)
    }

    /// Returns the names of its series in queries.
    pub fn series(&self) -> Vec<String> {
        let name = self.full_name();
        match self.kind {
            Kind::Histogram => {
                ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).into()
            }
            _ => vec![name],
        }
    }
}

macro_rules! catalogue {
    ($($id:ident = $kind:ident $name:literal $unit:expr, $labels:expr, $programs:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &$labels,
                programs: $programs,
                help: $help,
            };
        )*

        /// All metrics, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const RING: [&str; 1] = ["ring"];
const EACH: &[Program] = &[Program::Backend, Program::Forward, Program::Export];
const BACKEND: &[Program] = &[Program::Backend];
const BACKEND_OF_MANY: &[Program] = &[Program::BackendOfMany];
const FORWARD: &[Program] = &[Program::Forward];

catalogue! {
    BUILD = Info "blockring_build" None, ["program", "version"], EACH,
        "The program and its version.";
    RING_UP = Gauge "blockring_ring_up" None, RING, EACH,
        "1 if the ring's state could be read for this scrape; if not, the ring's other values are missing.";
    CAPACITY = Gauge "blockring_capacity" BYTES, RING, EACH,
        "Bytes in the ring's data area.";
    USED = Gauge "blockring_used" BYTES, RING, EACH,
        "Bytes that are published and not consumed, with the items' framing.";
    FREE = Gauge "blockring_free" BYTES, RING, EACH,
        "Bytes that the producer can still publish, with the items' framing.";
    PRODUCED_BYTES = Counter "blockring_produced" BYTES, RING, EACH,
        "Bytes published since the ring was created, with the items' framing: the producer's position.";
    CONSUMED_BYTES = Counter "blockring_consumed" BYTES, RING, EACH,
        "Bytes consumed since the ring was created, with the items' framing: the consumer's position.";
    PRODUCED_ITEMS = Counter "blockring_produced_items" None, RING, EACH,
        "Items published since the ring was created; missing where the ring does not tell.";
    CONSUMED_ITEMS = Counter "blockring_consumed_items" None, RING, EACH,
        "Items consumed since the ring was created; missing where the ring does not tell.";
    OLDEST_ITEM_AGE = Gauge "blockring_oldest_item_age" SECONDS, RING, EACH,
        "The least time since the oldest unconsumed item was published, as far as the scrapes so far tell; 0 if there is none, missing where the ring does not tell.";
    PRODUCER_IDLE = Gauge "blockring_producer_idle" SECONDS, RING, EACH,
        "The time since the producer moved its pointer, by the producer's clock; missing where the ring does not tell.";
    CONSUMER_IDLE = Gauge "blockring_consumer_idle" SECONDS, RING, EACH,
        "The time since the consumer moved its pointer, by the consumer's clock; missing where the ring does not tell.";
    PRODUCER_ATTACHED = Gauge "blockring_producer_attached" None, RING, EACH,
        "1 if a process of this machine holds the producer's role; for a guest the backend holds it.";
    CONSUMER_ATTACHED = Gauge "blockring_consumer_attached" None, RING, EACH,
        "1 if a process of this machine holds the consumer's role; for a guest the backend holds it.";
    SUSPEND_REQUESTED = Gauge "blockring_suspend_requested" None, RING, EACH,
        "1 if the producer is asked to stop.";
    SUSPEND_ACKNOWLEDGED = Gauge "blockring_suspend_acknowledged" None, RING, EACH,
        "1 if the producer has stopped because it was asked to.";
    READS = Counter "blockring_reads" None, RING, BACKEND,
        "READ requests of the guest that were answered.";
    WRITES = Counter "blockring_writes" None, RING, BACKEND,
        "WRITE requests of the guest that changed or confirmed the region.";
    DURABLE_FLUSHES = Counter "blockring_flushes" None, RING, BACKEND,
        "FLUSH requests, and writes of a write-through disk, whose data is durable.";
    FAILED_REQUESTS = Counter "blockring_failed_requests" None, RING, BACKEND,
        "Requests that failed because of the medium or of guest memory.";
    READ_BYTES = Counter "blockring_read" BYTES, RING, BACKEND,
        "Bytes read by the guest.";
    WRITTEN_BYTES = Counter "blockring_written" BYTES, RING, BACKEND,
        "Bytes written by the guest.";
    PUBLICATIONS = Counter "blockring_publications" None, RING, BACKEND,
        "New positions that the guest has published.";
    HELD_READS = Counter "blockring_held_reads" None, RING, BACKEND,
        "READ requests that were held until there was news, or their time was over.";
    WAKEUPS = Counter "blockring_wakeups" None, RING, BACKEND,
        "Times that a sleeping process on the host was woken.";
    REFUSALS = Counter "blockring_refusals" None, ["ring", "reason"], BACKEND,
        "Requests that the guard has refused, by reason.";
    RESTS = Counter "blockring_rests" None, RING, BACKEND,
        "Times that the guest's requests began to wait because a limit per second was used up.";
    BROKEN_QUEUES = Counter "blockring_broken_queues" None, RING, BACKEND,
        "Times that a virtqueue was broken: outside guest memory, or with indices out of bounds.";
    SUSPENDS = Counter "blockring_suspends" None, RING, BACKEND,
        "Suspends that clients of the consumer socket have asked for.";
    CONNECTIONS = Counter "blockring_front_end_connections" None, RING, BACKEND,
        "Front ends that have connected.";
    FRONT_END_CONNECTED = Gauge "blockring_front_end_connected" None, RING, BACKEND,
        "1 if a front end is connected.";
    TURNED_AWAY = Counter "blockring_clients_turned_away" None, RING, BACKEND,
        "Clients of the consumer socket that were refused.";
    SERVICE_TIME = Histogram "blockring_request_service" SECONDS, RING, BACKEND,
        "The time of the queues' thread for a request: the mean of each busy stretch, once for each of its requests.";
    FLUSHES = Histogram "blockring_flush" SECONDS, RING, BACKEND,
        "The time of each fdatasync of the region, which several requests may share.";
    FAILED = Gauge "blockring_failed" None, RING, BACKEND,
        "1 if a flush has failed or the ring's file was truncated: every write fails until the backend starts anew.";
    DISPLACED = Gauge "blockring_displaced" None, RING, BACKEND,
        "1 while the ring's file is not at its path: it was moved, removed or replaced, and is lost when the backend ends unless it has another name.";
    RINGS = Gauge "blockring_rings" None, [], BACKEND_OF_MANY,
        "Rings that are served: fewer than are configured if some could not be.";
    QUEUE_THREADS = Gauge "blockring_queue_threads" None, [], BACKEND_OF_MANY,
        "Threads that drive the queues of all rings.";
    ACKNOWLEDGED_ITEMS = Counter "blockring_forward_acknowledged_items" None, RING, FORWARD,
        "Items that have arrived at the sink.";
    ACKNOWLEDGED_BYTES = Counter "blockring_forward_acknowledged" BYTES, RING, FORWARD,
        "Bytes of items that have arrived at the sink, without framing.";
    LAG_BYTES = Gauge "blockring_forward_lag" BYTES, RING, FORWARD,
        "Bytes that are published and have not arrived at the sink, with the items' framing.";
    LAG_TIME = Gauge "blockring_forward_lag" SECONDS, RING, FORWARD,
        "The least time since the oldest item was published that has not arrived at the sink, as far as the scrapes so far tell; 0 if there is none.";
    IN_FLIGHT = Gauge "blockring_forward_in_flight" BYTES, RING, FORWARD,
        "Memory of the items that were sent to the sink and have not arrived.";
    RING_RETRIES = Counter "blockring_forward_ring_failures" None, RING, FORWARD,
        "Failures of the ring itself, each of which was followed by another attempt.";
    SINK_RETRIES = Counter "blockring_forward_sink_failures" None, RING, FORWARD,
        "Failures of the sink for this ring, each of which was followed by another attempt.";
    FORWARD_STATE = Gauge "blockring_forward_state" None, ["ring", "state"], FORWARD,
        "1 for the present state: closed, opening, waiting (for the sink), ready, away (its backend is gone) or stopped.";
    MEMORY = Gauge "blockring_forward_memory" BYTES, [], FORWARD,
        "Memory of the items of all rings that were read and have not arrived.";
    MEMORY_LIMIT = Gauge "blockring_forward_memory_limit" BYTES, [], FORWARD,
        "The most that this memory may be.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_help_is_one_sentence() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.full_name()).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("blockring_"), "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{}", metric.help);
        }
    }
}
