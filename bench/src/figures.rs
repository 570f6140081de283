//! What is measured of a ring from end to end, as numbers with a name.

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

/// Items from one end of a ring to the other.
#[derive(Debug, Clone, Serialize)]
pub struct Items {
    /// Where the ends are.
    pub way: &'static str,
    /// Bytes of an item.
    pub bytes: usize,
    /// Items pushed at once.
    pub batch: usize,
    /// Items in a second: the median of the rounds.
    pub rate: f64,
    /// From before the push to after the pop, of one item at a time.
    pub latency: Option<Distribution>,
}

/// A push that is durable when it returns, and the least that a disk asks for the same bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Durable {
    /// Bytes of an item.
    pub bytes: usize,
    /// Items pushed at once.
    pub batch: usize,
    /// Of a batch, nanoseconds.
    pub push: Distribution,
    /// `pwrite` and `fdatasync` of the same bytes, nanoseconds.
    pub raw: Distribution,
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
    /// Whether each batch survives a power cut before the next.
    pub durable: bool,
    /// Messages in a second: the median of the rounds.
    pub rate: f64,
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
