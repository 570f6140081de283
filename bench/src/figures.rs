//! What is measured of a ring from end to end, as numbers with a name.

use crate::bars::{Bar, Found, verdicts};
use crate::machine::quantile;
use serde::Serialize;

/// Quantiles that describe a distribution, and that are plotted.
pub const QUANTILES: [f64; 9] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];

/// Times of single operations, in nanoseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Distribution {
    /// At each of [`QUANTILES`].
    pub at: [f64; 9],
    /// How many there were.
    pub count: usize,
}

impl Distribution {
    /// Of these.
    pub fn of(times: &mut [f64]) -> Self {
        Self { at: QUANTILES.map(|part| quantile(times, part)), count: times.len() }
    }

    /// Half of them took at most this.
    pub fn p50(&self) -> f64 {
        self.at[3]
    }

    /// All but a hundredth.
    pub fn p99(&self) -> f64 {
        self.at[6]
    }
}

/// What passes a ring.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Bytes of an item.
    pub bytes: usize,
    /// Items pushed at once.
    pub batch: usize,
    /// Whether both ends compute them.
    pub checksums: bool,
}

/// Items from one end of a ring to the other.
#[derive(Debug, Clone, Serialize)]
pub struct Items {
    /// Where the ends are.
    pub way: &'static str,
    /// The items.
    #[serde(flatten)]
    pub load: Load,
    /// Items in a second: the median of the rounds.
    pub rate: f64,
    /// From before the push until the item was popped, of one item at a time.
    pub latency: Option<Distribution>,
    /// What else was measured, in turns with it.
    pub beside: Option<Beside>,
    /// What is wanted.
    #[serde(skip)]
    pub bars: &'static [Bar],
}

/// The machine's limits and the peer: medians of the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Beside {
    /// There and back between the processors, nanoseconds.
    pub line: f64,
    /// Whether the rounds were near.
    pub near: bool,
    /// The peer's requests in a second: writes of 512 bytes, 32 at once.
    pub peer: f64,
    /// Items in a second, to the peer's requests: of pairs of rounds.
    pub times_peer: f64,
    /// From before the push of one item until the consumer could see it, nanoseconds: half of them at most.
    pub visible: Option<f64>,
    /// Bytes in a second of a copy alone, beyond the caches.
    pub copy: f64,
    /// Bytes of items in a second, of those: of pairs of rounds.
    pub of_copy: f64,
}

impl Items {
    /// What bars are held against.
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

    /// What is wanted of them, and whether it is so.
    pub fn wanted(&self) -> String {
        verdicts(self.bars, &self.found())
    }
}

/// Of durable items: two flushes each, or one.
pub const AT_ONCE: &str = "at once";
pub const WITH_THE_NEXT: &str = "with the next";

/// A push that is durable when it returns, or when the next one does, and the least that a disk asks for the same bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Durable {
    /// Bytes of an item.
    pub bytes: usize,
    /// Items pushed at once.
    pub batch: usize,
    /// When their pointer is durable.
    pub pointer: &'static str,
    /// Of a batch, nanoseconds.
    pub push: Distribution,
    /// `pwrite` and `fdatasync` of the same bytes, nanoseconds.
    pub raw: Distribution,
}

impl Durable {
    /// Batches in a second, of those that are only written and flushed.
    pub fn of_raw(&self) -> f64 {
        self.raw.p50() / self.push.p50()
    }

    /// What is wanted of batches in a row, and whether it is so.
    pub fn wanted(&self) -> String {
        let in_a_row = self.batch > 1 && self.pointer == WITH_THE_NEXT;
        let bars: &[Bar] = if in_a_row { &[Bar::Raw(0.9)] } else { &[] };
        verdicts(bars, &Found { of_raw: Some(self.of_raw()), ..Found::default() })
    }
}

/// What one item costs in a ring of that size that holds so many others.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// Bytes of the ring.
    pub size: u64,
    /// Items in it.
    pub items: u64,
    /// Push, advance, nanoseconds: half of them at most.
    pub push: f64,
    /// Pop, advance.
    pub pop: f64,
    /// Both together, to the least of all.
    pub times_least: f64,
}

impl Cost {
    /// What is wanted of it, and whether it is so.
    pub fn wanted(&self) -> String {
        let found = Found { times_least: Some(self.times_least), ..Found::default() };
        verdicts(&[Bar::Flat(0.2)], &found)
    }
}

/// A ring's disk by the guest's kernel.
pub const KERNEL: &str = "ring";

/// The same disk, driven by the program.
pub const USERSPACE: &str = "ring, userspace";

/// A port to the host.
pub const PORT: &str = "virtio-serial";

/// What a batch is before the next one is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Taken by the way.
    Sent,
    /// Safe from a power cut.
    Durable,
    /// Popped by the host, and seen to be in the guest.
    Popped,
}

impl Until {
    /// As in a table, and as the guest's program has its options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Durable => "durable",
            Self::Popped => "popped",
        }
    }
}

/// Messages out of a guest.
#[derive(Debug, Clone, Serialize)]
pub struct Carried {
    /// What the guest's processor is.
    pub machine: &'static str,
    /// Where they go.
    pub way: &'static str,
    /// Bytes of a message.
    pub bytes: usize,
    /// Messages sent at once.
    pub batch: usize,
    /// What each batch is before the next is sent.
    pub until: Until,
    /// Messages in a second: the median of the rounds.
    pub rate: f64,
}

impl Carried {
    /// What is wanted of a ring's disk without the guest's kernel beside other rows of the same guest, and whether it is so.
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

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Ring {
    /// From end to end.
    pub items: Vec<Items>,
    /// Durable.
    pub durable: Vec<Durable>,
    /// By size.
    pub costs: Vec<Cost>,
    /// Out of a guest.
    pub guest: Vec<Carried>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_batches_are_held_against_what_the_disk_reaches() {
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
    fn a_file_takes_so_many_items_or_not() {
        let said = |rate| {
            let load = Load { bytes: 64, batch: 64, checksums: true };
            let bars = &[Bar::Rate(5.8e6)];
            Items { way: "a file", load, rate, latency: None, beside: None, bars }.wanted()
        };
        assert_eq!(said(5.8e6), ">= 5.8 M items/s: yes");
        assert_eq!(said(5.7e6), ">= 5.8 M items/s: NO");
    }

    #[test]
    fn a_ring_past_the_kernel_is_held_against_other_ways_of_the_same_guest() {
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
