//! What a fleet is made of, and what its parts cost.

use std::time::Duration;

/// Times of the model, in microseconds since its start.
pub type Time = u64;

/// One second.
pub const SECOND: Time = 1_000_000;

/// Options of the model.
#[derive(Debug, Clone, PartialEq, clap::Args, serde::Serialize)]
#[command(next_help_heading = "Options of --measure fleet")]
pub struct Plan {
    /// Hosts, each with one `blockring forward`
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub hosts: u32,
    /// Rings of a host
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub host_rings: u32,
    /// Items a second of a ring, on average, in thousandths
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub milli_rate: u64,
    /// Bytes of an item
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub item_bytes: u64,
    /// A ring's items come in bursts of ten seconds, at this many times its average rate
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub burst: u64,
    /// KiB of a ring
    #[arg(long, value_name = "KIB", default_value = "64", value_parser = clap::value_parser!(u64).range(4..=1 << 24))]
    pub ring_kib: u64,
    /// Servers of the JetStream cluster
    #[arg(long, value_name = "N", default_value = "9", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub nodes: u32,
    /// Processors of a server
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub node_processors: u64,
    /// Servers that keep each stream
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=5))]
    pub replicas: u32,
    /// Streams, which share the hosts evenly
    #[arg(long, value_name = "N", default_value = "90", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub streams: u32,
    /// A flush of a server's disk, in microseconds (the default is `pwrite` and `fdatasync` of 64
    /// bytes in docs/performance.md)
    #[arg(long, value_name = "US", default_value = "110")]
    pub flush_us: Time,
    /// The servers acknowledge before a message is on their disks: without `sync_interval: always`
    #[arg(long)]
    pub lazy_sync: bool,
    /// From a host to a server and back, in microseconds (assumed: one datacenter)
    #[arg(long, value_name = "US", default_value = "500")]
    pub round_trip_us: Time,
    /// Seconds of each failure, which begins after a minute
    #[arg(long, value_name = "S", default_value = "300", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub outage_s: u64,
    /// Seconds that are modelled after the failure
    #[arg(long, value_name = "S", default_value = "240", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub after_s: u64,
    /// Seed of the rings' phases and the hosts' pauses
    #[arg(long, value_name = "N", default_value = "1")]
    pub seed: u64,
}

/// The beginning of a failure.
pub const FAILURE: Time = 60 * SECOND;

/// Time in which a stream stores a message: the reciprocal of the 97 k messages of 100 bytes a
/// second of docs/performance.md, "Forwarding". It stores one after the other.
const MESSAGE_NS: u64 = 10_000;

/// Time of a server's processor for a message: the server's processor time for batches of 1000, with
/// what it takes to receive them.
const MESSAGE_PROCESSOR: Time = 15;

/// The same for a byte: what a message of 64 KiB takes beyond one of 100 bytes, in the same table.
const BYTE_PS: u64 = 3_500;

/// Flushes of the server's disk for a batch of several messages, whatever `sync_interval` is: three
/// `fsync` and two writes with `O_SYNC` (nats-server 2.15.1, `strace`).
const BATCH_FLUSHES: u64 = 5;

/// Time of a server's processor for a batch of several messages, beside its messages: the server
/// makes a store for it and removes it again (batches of ten, on a tmpfs).
const BATCH: Time = 700;

/// Time of a server's processor for a request about a stream (`MSG.GET`, `INFO`).
pub const REQUEST: Time = 70;

/// Time of a server's processor for a connection without TLS.
pub const CONNECTION: Time = 430;

/// Bytes of a server's memory for a connection.
const CONNECTION_MEMORY: u64 = 31 << 10;

/// Time from a server's loss until its streams have another leader. nats-server waits between four
/// and nine seconds; this is not measured.
pub const ELECTION: Time = 7 * SECOND;

/// Bounds of `blockring forward` (`cli/src/forward`): of a batch, of the time until it is
/// acknowledged, of an attempt to connect, and of the time until a request is answered.
pub const BATCH_ITEMS: u64 = 1000;
const BATCH_BYTES: u64 = 2 << 20;
pub const ACKNOWLEDGEMENT: Time = 10 * SECOND;
pub const CONNECT: Time = 5 * SECOND;
pub const ANSWER: Time = 5 * SECOND;

/// Bytes that a server takes from a connection at once: the messages of a longer batch come with
/// those of others between them.
const READ: u64 = 64 << 10;

/// Bytes of a message beside its item: the record's and the batch's headers.
const HEADERS: u64 = 300;

/// Batches of a stream that may have begun and not ended, by the server's default.
pub const OPEN_BATCHES: usize = 50;

/// Messages that a stream takes before they are stored, by the server's default
/// (`max_buffered_msgs`). It drops those beyond, and refuses their batch.
pub const BUFFERED: u64 = 10_000;

/// Shortest time between two looks of a modelled forwarder at its rings. The real one looks sooner;
/// what it would have sent in between is counted as the batches that it would have been.
pub const STEP: Time = 500_000;

/// Length of a burst.
pub const BURST: Time = 10 * SECOND;

/// A load on a stream: what one ring sends at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub messages: u64,
    /// Time of the stream's store, in which it does nothing else.
    pub store: Time,
    /// Time of a processor of each server that keeps the stream.
    pub processor: Time,
    /// Whether its batch is under way while the messages of others come.
    pub is_long: bool,
}

impl Plan {
    /// Returns the items that a ring holds: each has a length of four bytes and is padded to four.
    pub fn capacity(&self) -> u64 {
        // Three sectors are the ring's own.
        (self.ring_kib * 1024 - 3 * 512) / (4 + self.item_bytes.next_multiple_of(4))
    }

    /// Returns the items of a batch at most.
    pub fn batch_items(&self) -> u64 {
        (BATCH_BYTES / self.item_bytes).clamp(1, BATCH_ITEMS)
    }

    /// Returns the load of `items` that a ring sends in so many batches.
    pub fn load(&self, items: u64, batches: u64) -> Load {
        let (of_batches, per_batch) = if items > batches {
            (batches, items / batches)
        } else {
            // A message alone is no batch.
            (0, 1)
        };
        let synced = if self.lazy_sync { 0 } else { batches };
        let flushes = of_batches * BATCH_FLUSHES + synced;
        let bytes = items * self.item_bytes;
        let messages = (items * MESSAGE_NS + bytes * BYTE_PS / 1000).div_ceil(1000);
        let store = messages + of_batches * BATCH + flushes * self.flush_us;
        let processor = items * MESSAGE_PROCESSOR + of_batches * BATCH;
        let is_long = per_batch > 1 && per_batch * (self.item_bytes + HEADERS) > READ;
        Load { messages: items, store, processor, is_long }
    }

    /// Returns the number of items of all rings in a second.
    pub fn all_items(&self) -> f64 {
        let rings = f64::from(self.hosts) * f64::from(self.host_rings);
        rings * self.milli_rate as f64 / 1000.0
    }

    /// Returns the connections of a server, and the bytes of memory for them.
    pub fn connections(&self) -> (u64, u64) {
        let connections = u64::from(self.hosts.div_ceil(self.nodes));
        (connections, connections * CONNECTION_MEMORY)
    }

    /// Returns the bytes that a server stores in a day.
    pub fn stored(&self) -> f64 {
        let copies = f64::from(self.replicas.min(self.nodes)) / f64::from(self.nodes);
        self.all_items() * (self.item_bytes + HEADERS) as f64 * 86_400.0 * copies
    }

    /// Returns the end of the failure.
    pub fn failure_end(&self) -> Time {
        FAILURE + self.outage_s * SECOND
    }

    /// Returns the end of the model.
    pub fn end(&self) -> Time {
        self.failure_end() + self.after_s * SECOND
    }
}

/// Returns the pause before an attempt to connect, by its number: as `blockring forward` has it.
pub fn connect_pause(attempt: u32) -> Time {
    const LONGEST: Time = 2 * SECOND;
    match attempt {
        0 | 1 => 0,
        _ => LONGEST.min(5_000 << (attempt - 1).min(16)),
    }
}

/// Returns the pause before a batch is sent again, by the number of failures before.
pub fn resend_pause(failures: u32) -> Time {
    const LONGEST: Time = 5 * SECOND;
    LONGEST.min(20_000 << failures.min(16))
}

/// Returns a time as seconds.
pub fn seconds(time: Time) -> f64 {
    Duration::from_micros(time).as_secs_f64()
}
