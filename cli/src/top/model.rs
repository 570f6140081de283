//! The rings of the live view, their histories, and the order in which they are shown. Samples in,
//! rows out; no I/O and no drawing.

use super::super::failure::Failure;
use super::super::sample::{Oldest, Sample};
use super::state::{self, Alarm};
use ring_metrics::Ages;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Samples that a ring's history keeps: five minutes at one a second.
pub const HISTORY: usize = 300;

/// The time that a ring stays in sight after it has gone.
const KEPT: Duration = Duration::from_secs(3600);

/// Refusals that a ring keeps for its detail page.
const REFUSALS: usize = 6;

/// Rates of a ring between two samples, and its figures at the second one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Bytes a second, with the items' framing.
    pub bytes_in: f64,
    pub bytes_out: f64,
    /// Items a second, where the ring tells.
    pub items_in: Option<f64>,
    pub items_out: Option<f64>,
    /// Refused requests a second.
    pub refusals: f64,
    /// Used part of the ring, from 0 to 1.
    pub share: f64,
    /// Age of the oldest item in seconds.
    pub oldest: f64,
}

/// Refusals of one reason between two samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Time of the second sample.
    pub at: SystemTime,
    pub reason: String,
    pub count: u64,
}

/// The failure of the last looks at a ring.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// The state in a word.
    pub word: &'static str,
    /// The error in words.
    pub reason: String,
    /// Time of the first look that failed.
    pub since: SystemTime,
}

/// A ring, with the results of the looks at it.
#[derive(Debug, Default)]
pub struct Ring {
    /// The last look that succeeded.
    pub sample: Option<Sample>,
    pub trouble: Option<Trouble>,
    pub history: VecDeque<Rates>,
    /// The last refusals, the newest first.
    pub refusals: VecDeque<Refused>,
    /// The processes that had the roles of producer and consumer when they were last searched.
    pub holders: Option<[Option<i32>; 2]>,
    ages: Ages,
    /// The age of the oldest item, and whether it can be older.
    pub oldest: Option<(Duration, bool)>,
    /// The producer's position at the first sample: items before it can be older than that sample.
    first: Option<u64>,
}

impl Ring {
    /// Takes the result of a look.
    fn note(&mut self, seen: Result<Sample, Failure>, now: SystemTime) {
        match seen {
            Ok(sample) => self.accept(sample),
            Err(failure) => {
                let word = match failure.code() {
                    5 => "damaged",
                    3 => "no answer",
                    _ if failure.is_missing() => "gone",
                    _ => "failed",
                };
                let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
                self.trouble = Some(Trouble { word, reason: failure.words(), since });
            }
        }
    }

    fn accept(&mut self, sample: Sample) {
        self.trouble = None;
        let before = self.sample.take().filter(|before| {
            before.uuid == sample.uuid
                && before.producer <= sample.producer
                && before.consumer <= sample.consumer
        });
        if before.is_none() {
            // Another ring, or an older copy of it: its history begins anew.
            *self = Self { holders: self.holders, ..Self::default() };
        }
        self.first.get_or_insert(sample.producer.get());
        self.oldest = self.age(&sample);
        let mut rates = Rates {
            share: sample.share(),
            oldest: self.oldest.map_or(0.0, |(age, _)| age.as_secs_f64()),
            ..Rates::default()
        };
        if let Some(before) = &before {
            self.rate(&mut rates, before, &sample);
        }
        if let Some(holders) = sample.holders {
            self.holders = Some(holders);
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(rates);
        self.sample = Some(sample);
    }

    /// Returns the age of the oldest item, and whether it can be older.
    fn age(&mut self, sample: &Sample) -> Option<(Duration, bool)> {
        if let Some((position, time)) = sample.earlier {
            self.ages.note(sample.uuid.as_deref(), position, time);
        }
        // Where the ring tells no times: what is published now was so at this look.
        let time = sample.producer_ns.unwrap_or_else(|| sample.at_ns());
        self.ages.note(sample.uuid.as_deref(), sample.producer, time);
        let told = match sample.oldest() {
            Oldest::None => return None,
            Oldest::Exactly(age) => return Some((age, false)),
            Oldest::AtLeast(age) => age,
        };
        let seen = self.ages.oldest(sample.consumer, sample.at).unwrap_or_default();
        // Items that were there at the first look can be older than every time that was noted.
        let was_there = self.first.is_some_and(|first| sample.consumer.get() < first);
        Some((told.max(seen), was_there))
    }

    fn rate(&mut self, rates: &mut Rates, before: &Sample, sample: &Sample) {
        let elapsed = sample.at.duration_since(before.at).unwrap_or_default().as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / elapsed;
        let items = |from: Option<u64>, to: Option<u64>| Some(rate(from?, to?));
        rates.bytes_in = rate(before.producer.get(), sample.producer.get());
        rates.bytes_out = rate(before.consumer.get(), sample.consumer.get());
        rates.items_in = items(before.published_items, sample.published_items);
        rates.items_out = items(before.consumed_items, sample.consumed_items);
        let earlier: BTreeMap<_, _> = before.refusals().collect();
        for (reason, count) in sample.refusals() {
            let new = count.saturating_sub(earlier.get(reason).copied().unwrap_or(0));
            if new > 0 {
                let reason = reason.to_owned();
                rates.refusals += rate(0, new);
                self.refusals.push_front(Refused { at: sample.at, reason, count: new });
                self.refusals.truncate(REFUSALS);
            }
        }
    }

    /// Returns the rates and figures of the last sample.
    pub fn rates(&self) -> Rates {
        self.history.back().copied().unwrap_or_default()
    }

    /// Returns what is wrong with the ring, as its backend said at the last look, if that succeeded.
    pub fn fault(&self) -> Option<&str> {
        self.sample.as_ref().filter(|_| self.trouble.is_none())?.fault()
    }

    /// Returns the number of requests that the backend has refused.
    pub fn refused(&self) -> Option<u64> {
        let sample = self.sample.as_ref().filter(|sample| sample.backend.is_some())?;
        Some(sample.refusals().map(|(_, count)| count).sum())
    }
}

/// The column that rings are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    #[default]
    Name,
    State,
    In,
    Out,
    Used,
    Oldest,
    Refused,
}

impl Sort {
    pub const ALL: [Self; 7] =
        [Self::Name, Self::State, Self::In, Self::Out, Self::Used, Self::Oldest, Self::Refused];

    /// Returns the name, and the key that chooses it.
    pub fn name(self) -> (&'static str, char) {
        match self {
            Self::Name => ("name", 'n'),
            Self::State => ("state", 's'),
            Self::In => ("in", 'i'),
            Self::Out => ("out", 'o'),
            Self::Used => ("used", 'u'),
            Self::Oldest => ("oldest", 'a'),
            Self::Refused => ("refused", 'r'),
        }
    }
}

/// All rings, and which of them are shown in which order.
#[derive(Debug, Default)]
pub struct Model {
    rings: BTreeMap<PathBuf, Ring>,
    pub sort: Sort,
    pub reversed: bool,
    /// Only rings whose names contain this are shown.
    pub filter: String,
}

impl Model {
    /// Adds a ring that is not known yet.
    pub fn add(&mut self, address: PathBuf) {
        self.rings.entry(address).or_default();
    }

    /// Forgets rings that are not among `there`, and could not be seen for long: their number is
    /// bounded then, however many guests come and go.
    pub fn forget(&mut self, there: &BTreeSet<PathBuf>, now: SystemTime) {
        self.rings.retain(|address, ring| {
            let trouble = ring.trouble.as_ref();
            let gone = trouble.and_then(|trouble| now.duration_since(trouble.since).ok());
            there.contains(address) || gone.is_none_or(|gone| gone < KEPT)
        });
    }

    /// Takes the result of a look at a ring.
    pub fn note(&mut self, address: &Path, seen: Result<Sample, Failure>, now: SystemTime) {
        if let Some(ring) = self.rings.get_mut(address) {
            ring.note(seen, now);
        }
    }

    pub fn addresses(&self) -> impl Iterator<Item = &PathBuf> {
        self.rings.keys()
    }

    pub fn get(&self, address: &Path) -> Option<&Ring> {
        self.rings.get(address)
    }

    pub fn count(&self) -> usize {
        self.rings.len()
    }

    /// Returns the number of rings that ask for attention.
    pub fn alarms(&self) -> usize {
        self.rings.values().filter(|ring| state::of(ring).1 >= Alarm::Warning).count()
    }

    /// Returns the rings that are shown, in their order. What stands out comes first, unless the
    /// order is reversed.
    pub fn rows(&self) -> Vec<(&Path, &Ring)> {
        let shown = |(address, _): &(&PathBuf, &Ring)| {
            self.filter.is_empty() || address.to_string_lossy().contains(&self.filter)
        };
        let key = |ring: &Ring| -> f64 {
            let rates = ring.rates();
            match self.sort {
                Sort::Name => 0.0,
                Sort::State => -f64::from(state::of(ring).1 as u8),
                Sort::In => -rates.bytes_in,
                Sort::Out => -rates.bytes_out,
                Sort::Used => -rates.share,
                Sort::Oldest => -rates.oldest,
                #[expect(clippy::cast_precision_loss, reason = "an order")]
                Sort::Refused => -(ring.refused().unwrap_or(0) as f64),
            }
        };
        let mut rows: Vec<_> = self
            .rings
            .iter()
            .filter(shown)
            .map(|(address, ring)| (key(ring), (address.as_path(), ring)))
            .collect();
        // Stable: rings that are equal stay in the order of their names.
        rows.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        if self.reversed {
            rows.reverse();
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

#[cfg(test)]
mod tests;
