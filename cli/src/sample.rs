//! One look at a ring, beside its producer and consumer, for `health` and `top`.

use super::address::{Address, Device};
use super::failure::{Failure, Outcome};
use serde_json::Value;
use shared_block_ring::device::{holder, is_role_held};
use shared_block_ring::format::{FormatError, Position, Side};
use shared_block_ring::survey::{Pointer, Survey};
use shared_block_ring::{BlockDevice, Error, RingDevice};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The state of a ring at one time.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The time of the look.
    pub at: SystemTime,
    pub uuid: Option<String>,
    /// Bytes of the data area.
    pub capacity: u64,
    pub producer: Position,
    pub consumer: Position,
    /// Items since the ring's creation, where the ring tells.
    pub published_items: Option<u64>,
    pub consumed_items: Option<u64>,
    /// Times of the last advances, in nanoseconds since 1970.
    pub producer_ns: Option<u64>,
    pub consumer_ns: Option<u64>,
    /// Time of the ring's creation.
    pub created_ns: Option<u64>,
    /// Position and time of the producer's advance before the last one.
    pub earlier: Option<(Position, u64)>,
    /// Whether the producer is asked to stop.
    pub suspend: bool,
    /// Whether the producer has stopped.
    pub suspended: bool,
    /// Whether a process of this machine has the role; `None` if that is unknown.
    pub has_producer: Option<bool>,
    pub has_consumer: Option<bool>,
    /// The processes that have the roles of producer and consumer, if they were searched, as far as
    /// this user may see them.
    pub holders: Option<[Option<i32>; 2]>,
    /// The counters of the backend, if one serves the ring.
    pub backend: Option<Value>,
}

/// The age of the oldest item, as far as the ring tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oldest {
    /// There is no item.
    None,
    /// The age.
    Exactly(Duration),
    /// The least age: only the last two times of publishing are in the ring.
    AtLeast(Duration),
}

impl Sample {
    /// Looks at a ring. A backend is given `patience` to answer. To search the holders of the roles
    /// takes a look at every process.
    pub fn take(
        address: &Address,
        patience: Duration,
        with_holders: bool,
    ) -> Result<Self, Failure> {
        const SIDES: [Side; 2] = [Side::Producer, Side::Consumer];
        refuse_driven(address)?;
        let about = Failure::about(address.name());
        let (sample, holders) = if address.socket().is_some() {
            let survey = Survey::open(address.connect_within(patience)?).map_err(&about)?;
            let device = survey.device();
            let (held, counters) = (SIDES.map(|side| device.is_held(side).ok()), device.counters());
            let holders = with_holders.then(|| SIDES.map(|side| device.holder(side)));
            (Self::of(&survey, held, Some(counters)), holders)
        } else {
            let survey: Survey<Device> = Survey::open(address.open_read_only()?).map_err(&about)?;
            let device = survey.device();
            let held = |side| is_role_held(device.lock_file()?, device.geometry(), side).ok();
            let holders = with_holders.then(|| SIDES.map(|side| holder(device, side)));
            (Self::of(&survey, SIDES.map(held), None), holders)
        };
        let sample = sample.map_err(|damage| about(Error::from(damage)))?;
        Ok(Self { holders, ..sample })
    }

    fn of<D: RingDevice>(
        survey: &Survey<D>,
        [has_producer, has_consumer]: [Option<bool>; 2],
        backend: Option<Value>,
    ) -> Result<Self, FormatError> {
        let producer = survey.pointer(Side::Producer)?;
        let consumer = survey.pointer(Side::Consumer)?;
        survey.contradiction().map_or(Ok(()), Err)?;
        let items = |pointer: &Pointer| {
            pointer.slot.filter(|slot| !slot.tally.since_base).map(|slot| slot.tally.items)
        };
        Ok(Self {
            at: SystemTime::now(),
            uuid: survey.uuid(),
            capacity: survey.geometry().capacity().get(),
            producer: producer.sector.position,
            consumer: consumer.sector.position,
            published_items: items(&producer),
            consumed_items: items(&consumer),
            producer_ns: producer.slot.map(|slot| slot.time_ns),
            consumer_ns: consumer.slot.map(|slot| slot.time_ns),
            created_ns: survey.created_ns(),
            earlier: producer.earlier.map(|slot| (slot.position, slot.time_ns)),
            suspend: consumer.sector.flag,
            suspended: producer.sector.flag,
            has_producer,
            has_consumer,
            holders: None,
            backend,
        })
    }

    /// Returns the bytes that are published and not consumed.
    pub fn used(&self) -> u64 {
        self.producer.since(self.consumer).unwrap_or(0)
    }

    /// Returns the used part of the data area, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn share(&self) -> f64 {
        self.used() as f64 / self.capacity.max(1) as f64
    }

    /// Returns the items that are published and not consumed, where the ring tells.
    pub fn items(&self) -> Option<u64> {
        // An empty ring whose consumer never advanced has no count for it.
        let consumed =
            self.consumed_items.or_else(|| (self.consumer == Position::ZERO).then_some(0))?;
        if self.used() == 0 { Some(0) } else { self.published_items?.checked_sub(consumed) }
    }

    /// Returns the time of the look, in nanoseconds since 1970.
    pub fn at_ns(&self) -> u64 {
        let now = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the time since `time_ns`; zero for a clock that is ahead of this one.
    pub fn since(&self, time_ns: u64) -> Duration {
        Duration::from_nanos(self.at_ns().saturating_sub(time_ns))
    }

    /// Returns the age of the oldest item, as far as the ring tells it.
    pub fn oldest(&self) -> Oldest {
        if self.used() == 0 {
            return Oldest::None;
        }
        let last = self.producer_ns.map(|time| self.since(time)).unwrap_or_default();
        match self.earlier {
            // Everything was published by the last advance.
            Some((position, _)) if position <= self.consumer => Oldest::Exactly(last),
            Some((_, time)) => Oldest::AtLeast(self.since(time)),
            None => Oldest::AtLeast(last),
        }
    }

    /// Returns the time since the consumer moved, where the ring tells it.
    pub fn consumer_idle(&self) -> Option<Duration> {
        // A consumer that never moved has not done so since the ring was made.
        self.consumer_ns.or(self.created_ns).map(|time| self.since(time))
    }

    /// Returns what is wrong with the ring, as its backend says.
    pub fn fault(&self) -> Option<&str> {
        self.backend.as_ref()?["fault"].as_str()
    }

    /// Returns the numbers of requests that the backend has refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&str, u64)> {
        let counts = self.backend.as_ref().and_then(|counters| counters["refused"].as_object());
        let counts = counts.into_iter().flatten();
        counts.map(|(reason, count)| (reason.as_str(), count.as_u64().unwrap_or(0)))
    }
}

/// Refuses a disk that this process would drive by itself: it has one user at a time.
pub fn refuse_driven(address: &Address) -> Outcome {
    if address.is_served() && address.socket().is_none() {
        let text = format!(
            "{}: only one process can use it, which this command would take it from",
            address.name()
        );
        return Err(Failure::Refused(text));
    }
    Ok(())
}

/// Returns a time in words: `850 ms`, `3.2 s`, `4 min`, `2.5 h`, `3 d`.
pub fn age_in_words(age: Duration) -> String {
    let seconds = age.as_secs_f64();
    match seconds {
        ..1.0 => format!("{} ms", age.as_millis()),
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => format!("{:.0} min", (seconds / 60.0).floor()),
        ..86400.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.0} d", (seconds / 86400.0).floor()),
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A ring of 1000 bytes that was looked at 1000 s after 1970.
    pub fn sample(consumer: u64, producer: u64) -> Sample {
        let at = |bytes| Position::new(bytes).unwrap();
        Sample {
            at: UNIX_EPOCH + Duration::from_secs(1000),
            uuid: None,
            capacity: 1000,
            producer: at(producer),
            consumer: at(consumer),
            published_items: Some(producer / 4),
            consumed_items: Some(consumer / 4),
            producer_ns: Some(990_000_000_000),
            consumer_ns: Some(900_000_000_000),
            created_ns: Some(0),
            earlier: None,
            suspend: false,
            suspended: false,
            has_producer: Some(true),
            has_consumer: Some(true),
            holders: None,
            backend: None,
        }
    }

    #[test]
    fn age_is_exact_if_everything_was_published_at_once() {
        let (second, at) = (Duration::from_secs(1), |bytes| Position::new(bytes).unwrap());
        assert_eq!(sample(8, 8).oldest(), Oldest::None);
        let mut ring = sample(8, 400);
        assert_eq!(ring.oldest(), Oldest::AtLeast(10 * second));
        ring.earlier = Some((at(8), 950_000_000_000));
        assert_eq!(ring.oldest(), Oldest::Exactly(10 * second));
        ring.earlier = Some((at(12), 950_000_000_000));
        assert_eq!(ring.oldest(), Oldest::AtLeast(50 * second));
        ring.earlier = Some((at(12), 2_000_000_000_000));
        assert_eq!(ring.oldest(), Oldest::AtLeast(Duration::ZERO), "a clock that is ahead");
    }

    #[test]
    fn age_in_words_has_a_unit() {
        let words = |seconds| age_in_words(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.85, 3.21, 299.0, 9000.0, 300_000.0].map(words),
            ["850 ms", "3.2 s", "4 min", "2.5 h", "3 d"]
        );
    }
}
