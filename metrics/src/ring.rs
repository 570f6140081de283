//! The metrics that every ring has, and the age of its oldest item.

use crate::Scrape;
use crate::catalogue::{
    CAPACITY, CONSUMED_BYTES, CONSUMED_ITEMS, CONSUMER_ATTACHED, CONSUMER_IDLE, FREE,
    OLDEST_ITEM_AGE, PRODUCED_BYTES, PRODUCED_ITEMS, PRODUCER_ATTACHED, PRODUCER_IDLE, RING_UP,
    SUSPEND_ACKNOWLEDGED, SUSPEND_REQUESTED, USED,
};
use shared_block_ring::{DebugInfo, Position};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Readings of the producer that are kept: beyond that every second one is dropped.
const MOST: usize = 256;

/// Positions of the producer with the times at which they were published, as earlier scrapes have
/// found them. The ring itself tells the time of the last publication alone.
#[derive(Debug, Default)]
pub struct Ages {
    known: VecDeque<(Position, u64)>,
}

impl Ages {
    /// Notes that everything before `produced` was published by then, in nanoseconds since 1970.
    pub fn note(&mut self, produced: Position, time_ns: u64) {
        match self.known.back() {
            // Another ring, or an older copy of it.
            Some((last, _)) if produced < *last => self.known.clear(),
            Some((last, _)) if produced == *last => return,
            _ => {}
        }
        if self.known.len() == MOST {
            // What stays was published later: ages are never overstated.
            let mut index = 0;
            self.known.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
        self.known.push_back((produced, time_ns));
    }

    /// Returns the least age of the oldest item behind `consumed`: zero if there is none, `None` if
    /// the ring tells no times. Forgets what is older.
    pub fn oldest(&mut self, consumed: Position, now: SystemTime) -> Option<Duration> {
        self.known.back()?;
        // The last one stays: it says that there is nothing behind it.
        while self.known.len() > 1 && self.known.front()?.0 <= consumed {
            self.known.pop_front();
        }
        let (produced, time) = *self.known.front()?;
        Some(if produced <= consumed { Duration::ZERO } else { since(time, now) })
    }
}

/// Returns the time since `time_ns`; zero for a clock that is ahead of ours.
fn since(time_ns: u64, now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(Duration::from_nanos(time_ns))
}

/// The state of a ring, read for one scrape.
#[derive(Debug)]
pub struct RingReading {
    /// Its pointer sectors.
    pub info: DebugInfo,
    /// Whether a process holds the producer's role; `None` if that is unknown.
    pub producer_attached: Option<bool>,
    /// Whether a process holds the consumer's role; `None` if that is unknown.
    pub consumer_attached: Option<bool>,
}

impl RingReading {
    /// Adds the samples of the ring `name`; without a reading only that there is none.
    pub fn report(reading: Option<&Self>, name: &str, ages: &mut Ages, scrape: &mut Scrape) {
        scrape.flag(&RING_UP, &[name], reading.is_some());
        let Some(Self { info, producer_attached, consumer_attached }) = reading else { return };
        let (ring, now) = (&[name], SystemTime::now());
        scrape.whole(&CAPACITY, ring, info.capacity);
        scrape.whole(&USED, ring, info.used);
        scrape.whole(&FREE, ring, info.capacity.saturating_sub(info.used));
        scrape.whole(&PRODUCED_BYTES, ring, info.producer.get());
        scrape.whole(&CONSUMED_BYTES, ring, info.consumer.get());
        for (metric, items) in
            [(&PRODUCED_ITEMS, info.producer_items), (&CONSUMED_ITEMS, info.consumer_items)]
        {
            if let Some(items) = items {
                scrape.whole(metric, ring, items);
            }
        }
        if let Some(time) = info.producer_time_ns {
            ages.note(info.producer, time);
        }
        let none = (info.used == 0).then_some(Duration::ZERO);
        if let Some(age) = ages.oldest(info.consumer, now).or(none) {
            scrape.fraction(&OLDEST_ITEM_AGE, ring, age.as_secs_f64());
        }
        for (metric, time) in
            [(&PRODUCER_IDLE, info.producer_time_ns), (&CONSUMER_IDLE, info.consumer_time_ns)]
        {
            if let Some(time) = time {
                scrape.fraction(metric, ring, since(time, now).as_secs_f64());
            }
        }
        for (metric, attached) in
            [(&PRODUCER_ATTACHED, producer_attached), (&CONSUMER_ATTACHED, consumer_attached)]
        {
            if let Some(attached) = *attached {
                scrape.flag(metric, ring, attached);
            }
        }
        scrape.flag(&SUSPEND_REQUESTED, ring, info.suspend);
        scrape.flag(&SUSPEND_ACKNOWLEDGED, ring, info.suspend_ack);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    fn second(number: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(number)
    }

    fn oldest(ages: &mut Ages, consumed: u64, now: u64) -> Option<u64> {
        ages.oldest(at(consumed), second(now)).map(|age| age.as_secs())
    }

    fn note(ages: &mut Ages, produced: u64, time: u64) {
        ages.note(at(produced), time * 1_000_000_000);
    }

    #[test]
    fn oldest_item_is_as_old_as_the_first_reading_that_has_it() {
        let mut ages = Ages::default();
        assert_eq!(oldest(&mut ages, 0, 1), None);
        note(&mut ages, 8, 10);
        note(&mut ages, 8, 10);
        note(&mut ages, 16, 20);
        note(&mut ages, 24, 30);
        assert_eq!(oldest(&mut ages, 0, 31), Some(21));
        assert_eq!(oldest(&mut ages, 4, 32), Some(22));
        assert_eq!(oldest(&mut ages, 8, 33), Some(13));
        assert_eq!(oldest(&mut ages, 24, 34), Some(0));
        note(&mut ages, 32, 40);
        assert_eq!(oldest(&mut ages, 24, 45), Some(5));
        assert_eq!(oldest(&mut ages, 24, 39), Some(0), "a clock that is ahead");
    }

    #[test]
    fn ages_have_a_bound_and_are_never_overstated() {
        let mut ages = Ages::default();
        for number in 1..10_000 {
            note(&mut ages, number * 8, number);
        }
        assert!(ages.known.len() <= MOST);
        assert!(oldest(&mut ages, 0, 10_000).unwrap() < 10_000);
        // Another ring has taken the place of this one.
        note(&mut ages, 8, 20_000);
        assert_eq!(oldest(&mut ages, 0, 20_001), Some(1));
    }
}
