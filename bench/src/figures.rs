//! Figures of a ring from end to end.

use crate::bars::{Bar, Found, verdicts};
use crate::fleet::Fleet;
use crate::machine::quantile;
use crate::reference::Against;
use crate::rings::Rings;
use serde::Serialize;

/// Quantiles that describe a distribution, and that are plotted.
pub const QUANTILES: [f64; 9] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];

/// Times of single operations, in nanoseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Distribution {
    /// The time at each of [`QUANTILES`].
    pub at: [f64; 9],
    /// Number of operations.
    pub count: usize,
}

impl Distribution {
    /// Makes a distribution of these times.
    pub fn of(times: &mut [f64]) -> Self {
        Self { at: QUANTILES.map(|part| quantile(times, part)), count: times.len() }
    }

    /// Returns the median.
    pub fn p50(&self) -> f64 {
        self.at[3]
    }

    /// Returns the time that all but a hundredth take at most.
    pub fn p99(&self) -> f64 {
        self.at[6]
    }
}

/// A load of a ring.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Bytes of an item.
    pub bytes: usize,
    /// Items in a batch.
    pub batch: usize,
    /// Whether both ends compute checksums.
    pub checksums: bool,
}

/// Figures of items from one end of a ring to the other.
#[derive(Debug, Clone, Serialize)]
pub struct Items {
    /// Places of the ends.
    pub way: &'static str,
    /// The items.
    #[serde(flatten)]
    pub load: Load,
    /// Items per second: the median of the rounds.
    pub rate: f64,
    /// Times from before the push until the item was popped, one item at a time.
    pub latency: Option<Distribution>,
    /// Figures of the machine and the peer, measured in turns with it.
    pub beside: Option<Beside>,
    /// The bars.
    #[serde(skip)]
    pub bars: &'static [Bar],
}

/// The machine's limits and the peer: medians of the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Beside {
    /// Round trip of a cache line between the processors, in nanoseconds.
    pub line: f64,
    /// Whether the rounds were near.
    pub near: bool,
    /// The peer's requests per second: writes of 512 bytes, 32 at once.
    pub peer: f64,
    /// Items per second, relative to the peer's requests, by pairs of rounds.
    pub times_peer: f64,
    /// Median time from before the push of one item until the consumer could see it, in
    /// nanoseconds.
    pub visible: Option<f64>,
    /// Bytes per second of a copy alone, beyond the caches.
    pub copy: f64,
    /// Bytes of items per second, relative to the copy, by pairs of rounds.
    pub of_copy: f64,
}

impl Items {
    /// Returns the figures for the bars.
    pub fn found(&self) -> Found {
        let beside = self.beside.as_ref();
        Found {
            lines: beside.and_then(|beside| Some(beside.visible? / beside.line)),
            times_peer: beside.map(|beside| beside.times_peer),
            far: beside.is_some_and(|beside| !beside.near),
            of_copy: beside.map(|beside| beside.of_copy),
            rate: Some(self.rate),
            ..Found::default()
        }
    }

    /// Returns the bars, and whether each is met.
    pub fn wanted(&self) -> String {
        verdicts(self.bars, &self.found())
    }
}

/// Durability of the items: two flushes for each batch, or one.
pub const AT_ONCE: &str = "at once";
pub const WITH_THE_NEXT: &str = "with the next";

/// Figures of a push that is durable when it returns, or when the next one does, and of the least
/// that a disk needs for the same bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Durable {
    /// Bytes of an item.
    pub bytes: usize,
    /// Items in a batch.
    pub batch: usize,
    /// Time at which the pointer is durable.
    pub pointer: &'static str,
    /// Times of a batch, in nanoseconds.
    pub push: Distribution,
    /// Times of `pwrite` and `fdatasync` of the same bytes, in nanoseconds.
    pub raw: Distribution,
}

impl Durable {
    /// Batches per second, relative to writing and flushing alone.
    pub fn of_raw(&self) -> f64 {
        self.raw.p50() / self.push.p50()
    }

    /// Returns the bars of batches in a row, and whether each is met.
    pub fn wanted(&self) -> String {
        let in_a_row = self.batch > 1 && self.pointer == WITH_THE_NEXT;
        let bars: &[Bar] = if in_a_row { &[Bar::Raw(0.9)] } else { &[] };
        verdicts(bars, &Found { of_raw: Some(self.of_raw()), ..Found::default() })
    }
}

/// Cost of one item in a ring of that size that holds that many others.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// Bytes of the ring.
    pub size: u64,
    /// Items in the ring.
    pub items: u64,
    /// Median time of push and advance, in nanoseconds.
    pub push: f64,
    /// Median time of pop and advance, in nanoseconds.
    pub pop: f64,
    /// Sum of both, relative to the least of all rows.
    pub times_least: f64,
}

impl Cost {
    /// Returns the bars, and whether each is met.
    pub fn wanted(&self) -> String {
        let found = Found { times_least: Some(self.times_least), ..Found::default() };
        verdicts(&[Bar::Flat(0.2)], &found)
    }
}

/// A ring on the disk of the guest's kernel.
pub const KERNEL: &str = "ring";

/// A ring on the same disk, driven by the program.
pub const USERSPACE: &str = "ring, userspace";

/// A port to the host.
pub const PORT: &str = "virtio-serial";

/// State of a batch before the next one is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Accepted by the channel.
    Sent,
    /// Safe from a power failure.
    Durable,
    /// Popped by the host, and seen to be in the guest.
    Popped,
}

impl Until {
    /// Returns the name in a table, which is also an option of the guest's program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Durable => "durable",
            Self::Popped => "popped",
        }
    }
}

/// Figures of messages out of a guest.
#[derive(Debug, Clone, Serialize)]
pub struct Carried {
    /// Accelerator of the guest.
    pub machine: &'static str,
    /// The channel.
    pub way: &'static str,
    /// Bytes of a message.
    pub bytes: usize,
    /// Messages in a batch.
    pub batch: usize,
    /// State of a batch before the next one is sent.
    pub until: Until,
    /// Messages per second: the median of the rounds.
    pub rate: f64,
}

impl Carried {
    /// Returns the bars of a ring's disk without the guest's kernel, relative to other rows of the
    /// same guest, and whether each is met.
    pub fn wanted(&self, all: &[Self]) -> String {
        let (way, batch, bar) = match (self.way, self.bytes, self.batch, self.until) {
            (USERSPACE, 64, 64, Until::Sent) => (PORT, 1, Bar::Way(10.0, "the port's single ones")),
            (USERSPACE, 64, 1, Until::Popped) => (KERNEL, 1, Bar::Way(5.0, "the kernel's")),
            _ => return String::new(),
        };
        let is_other = |row: &&Self| {
            (row.way, row.bytes, row.batch, row.until) == (way, self.bytes, batch, self.until)
        };
        let times_way = all.iter().find(is_other).map(|other| self.rate / other.rate);
        verdicts(&[bar], &Found { times_way, ..Found::default() })
    }
}

/// All figures.
#[derive(Debug, Default, Serialize)]
pub struct Ring {
    /// Requests, beside a bare loop.
    pub reference: Vec<Against>,
    /// Items from end to end.
    pub items: Vec<Items>,
    /// Durable items.
    pub durable: Vec<Durable>,
    /// Cost by size of the ring.
    pub costs: Vec<Cost>,
    /// Messages out of a guest.
    pub guest: Vec<Carried>,
    /// A daemon of many rings.
    pub rings: Option<Rings>,
    /// A model of many hosts.
    pub fleet: Option<Fleet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_batches_are_compared_with_the_disk_alone() {
        let said = |batch, pointer, push, raw| {
            let [push, raw] = [push, raw].map(|time| Distribution::of(&mut [time]));
            Durable { bytes: 64, batch, pointer, push, raw }.wanted()
        };
        assert_eq!(said(64, WITH_THE_NEXT, 100.0, 90.0), ">= 90 % of raw: yes");
        assert_eq!(said(64, WITH_THE_NEXT, 100.0, 89.0), ">= 90 % of raw: NO");
        assert_eq!(said(1, WITH_THE_NEXT, 200.0, 89.0), "");
        assert_eq!(said(64, AT_ONCE, 200.0, 89.0), "");
    }

    #[test]
    fn file_meets_or_misses_its_bar_in_items() {
        let said = |rate| {
            let load = Load { bytes: 64, batch: 64, checksums: true };
            let bars = &[Bar::Rate(5.8e6)];
            Items { way: "a file", load, rate, latency: None, beside: None, bars }.wanted()
        };
        assert_eq!(said(5.8e6), ">= 5.8 M items/s: yes");
        assert_eq!(said(5.7e6), ">= 5.8 M items/s: NO");
    }

    #[test]
    fn kernel_bypass_is_compared_with_other_ways_of_the_same_guest() {
        let row = |way, batch, until, rate| {
            let machine = "emulated";
            Carried { machine, way, bytes: 64, batch, until, rate }
        };
        let others = [
            row(PORT, 64, Until::Sent, 1e9),
            row(PORT, 1, Until::Sent, 100.0),
            row(KERNEL, 1, Until::Sent, 1e9),
            row(KERNEL, 1, Until::Popped, 100.0),
        ];
        let stream = |rate| row(USERSPACE, 64, Until::Sent, rate).wanted(&others);
        assert_eq!(stream(1000.0), ">= 10 x the port's single ones: yes");
        assert_eq!(stream(999.0), ">= 10 x the port's single ones: NO");
        let single = |rate| row(USERSPACE, 1, Until::Popped, rate).wanted(&others);
        assert_eq!(single(500.0), ">= 5 x the kernel's: yes");
        assert_eq!(single(499.0), ">= 5 x the kernel's: NO");
        let alone = row(USERSPACE, 1, Until::Popped, 500.0).wanted(&[]);
        assert_eq!(alone, ">= 5 x the kernel's: NO");
        assert_eq!(others[0].wanted(&others), "");
    }
}
