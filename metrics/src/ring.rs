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

/// Bound on the positions that are remembered. When it is reached, every second one is dropped.
const MOST: usize = 256;

/// Positions of a ring's producer with the times at which they were published, as earlier scrapes
/// have found them. The ring itself tells the time of the last publication alone.
#[derive(Debug, Default)]
pub struct Ages {
    /// The ring's UUID; `None` for a plain ring.
    ring: Option<String>,
    known: VecDeque<(Position, u64)>,
}

impl Ages {
    /// Notes what a ring tells of itself. Returns the least age of the oldest item behind
    /// `consumed`: zero if there is none, `None` if the ring tells no times.
    pub fn update(
        &mut self,
        info: &DebugInfo,
        consumed: Position,
        now: SystemTime,
    ) -> Option<Duration> {
        match info.producer_time_ns {
            Some(time) => self.note(info.uuid.as_deref(), info.producer, time),
            // The times that are remembered are those of another ring.
            None => *self = Self::default(),
        }
        if info.producer <= consumed { Some(Duration::ZERO) } else { self.oldest(consumed, now) }
    }

    /// Notes that everything before `produced` was published by `time_ns`, in nanoseconds since
    /// 1970, in the ring of this UUID.
    pub fn note(&mut self, ring: Option<&str>, produced: Position, time_ns: u64) {
        if self.ring.as_deref() != ring {
            *self = Self { ring: ring.map(str::to_owned), known: VecDeque::new() };
        }
        match self.known.back() {
            // An older copy of the ring, or another plain one.
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
    /// Contents of its pointer sectors.
    pub info: DebugInfo,
    /// Whether a process holds the producer's role; `None` if that is unknown.
    pub producer_attached: Option<bool>,
    /// Whether a process holds the consumer's role; `None` if that is unknown.
    pub consumer_attached: Option<bool>,
}

impl RingReading {
    /// Adds the samples of the ring `name`. Without a reading that is `blockring_ring_up` alone.
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
        if let Some(age) = ages.update(info, info.consumer, now) {
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
    use shared_block_ring::{CreateOptions, OpenOptions, Producer, create, make_file};

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
        ages.note(Some("a ring"), at(produced), time * 1_000_000_000);
    }

    /// Returns the state of a new ring in which `items` are published.
    fn info(options: CreateOptions, items: u32) -> DebugInfo {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        make_file(&path, 64 << 10).unwrap();
        let open = || OpenOptions::default().open(&path).unwrap();
        create(&open(), options).unwrap();
        if items > 0 {
            let mut producer = Producer::attach(open(), "q", "p").unwrap();
            for _ in 0..items {
                producer.push(&[7; 60][..]).unwrap();
            }
            producer.advance(producer.position()).unwrap();
        }
        DebugInfo::read(&open()).unwrap()
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
        // An older copy has taken the place of this ring.
        note(&mut ages, 8, 20_000);
        assert_eq!(oldest(&mut ages, 0, 20_001), Some(1));
    }

    #[test]
    fn ring_in_the_place_of_another_has_none_of_its_ages() {
        let now = SystemTime::now();
        for (options, items) in [
            (CreateOptions::new(), 0),
            (CreateOptions::new(), 2),
            (CreateOptions::new().plain(true), 0),
            (CreateOptions::new().plain(true), 2),
        ] {
            let mut ages = Ages::default();
            note(&mut ages, 8, 10);
            note(&mut ages, 16, 20);
            let info = info(options, items);
            let age = ages.update(&info, info.consumer, now);
            match (items, &info.uuid) {
                (0, _) => assert_eq!(age, Some(Duration::ZERO)),
                (_, Some(_)) => assert!(age.unwrap() < Duration::from_secs(600), "{age:?}"),
                (_, None) => assert_eq!(age, None, "a plain ring tells no times"),
            }
        }
    }
}
