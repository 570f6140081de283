//! Limits of what a ring's guest has done per second, as token buckets.
//!
//! A bucket fills at the rate of its limit, up to its burst. A request is taken while there is at
//! least one token, and its size is known afterwards: it may leave the bucket in debt. So a request
//! of any size passes, and the next one waits until the debt is paid.
//!
//! Nothing here reads a clock or does I/O: the time comes from the caller.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// The part of a second whose tokens a bucket holds at most: what a guest that was idle may have
/// done at once. A wake-up that is later than this costs the guest a part of its rate.
const BURSTS_PER_SECOND: u64 = 10;

/// Parts of a token, so that a nanosecond at a rate of one token per second is a whole number.
const PARTS: i128 = 1_000_000_000;

/// The limits of a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Bytes per second that the guest reads and writes.
    pub bytes: Option<NonZeroU64>,
    /// Requests per second that are taken from its queues.
    pub requests: Option<NonZeroU64>,
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bytes, self.requests) {
            (None, None) => f.write_str("as much as it asks for"),
            (Some(bytes), None) => write!(f, "at most {bytes} bytes a second"),
            (None, Some(requests)) => write!(f, "at most {requests} requests a second"),
            (Some(bytes), Some(requests)) => {
                write!(f, "at most {bytes} bytes and {requests} requests a second")
            }
        }
    }
}

/// Tokens that come at a rate, up to a burst.
#[derive(Debug)]
struct Bucket {
    /// Tokens per second.
    rate: NonZeroU64,
    /// The tokens at the time `at`, in [`PARTS`]; negative where there is a debt.
    level: i128,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        let mut bucket = Self { rate, level: 0, at: now };
        bucket.level = bucket.burst();
        bucket
    }

    /// The most that the bucket holds, in [`PARTS`]: at least one token.
    fn burst(&self) -> i128 {
        PARTS * i128::from((self.rate.get() / BURSTS_PER_SECOND).max(1))
    }

    /// Adds the tokens that have come until `now`.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let elapsed = i128::try_from(elapsed).unwrap_or(i128::MAX);
        let come = elapsed.saturating_mul(self.rate.get().into());
        self.level = self.level.saturating_add(come).min(self.burst());
        self.at = self.at.max(now);
    }

    /// Takes out tokens, whether they are there or not.
    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(PARTS * i128::from(tokens));
    }

    /// Whether there is a token.
    fn admits(&self) -> bool {
        self.level >= PARTS
    }

    /// When there is a token, if no more are taken out.
    fn admits_at(&self) -> Instant {
        let (missing, rate) = ((PARTS - self.level).max(0), i128::from(self.rate.get()));
        let nanoseconds = u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX);
        self.at + Duration::from_nanos(nanoseconds)
    }
}

/// The limits of a ring, and how much of them is used up.
#[derive(Debug)]
pub struct Limiter {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    /// The requests and bytes that were charged, of all that there were.
    charged: (u64, u64),
    /// Nothing was admitted when it was last asked.
    rests: bool,
}

impl Limiter {
    /// Makes the limiter of a ring, if it has a limit, with full buckets.
    pub fn new(rates: Rates, now: Instant) -> Option<Self> {
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        let (requests, bytes) = (bucket(rates.requests), bucket(rates.bytes));
        let is_limited = requests.is_some() || bytes.is_some();
        is_limited.then_some(Self { requests, bytes, charged: (0, 0), rests: false })
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.requests.iter_mut().chain(&mut self.bytes)
    }

    /// Returns until when nothing may be taken, if that is so `now`; and whether that rest begins
    /// with this call.
    pub fn rests(&mut self, now: Instant) -> Option<(Instant, bool)> {
        let mut until = None;
        for bucket in self.buckets() {
            bucket.refill(now);
            if !bucket.admits() {
                until = until.max(Some(bucket.admits_at()));
            }
        }
        let begins = !std::mem::replace(&mut self.rests, until.is_some());
        until.map(|until| (until, begins))
    }

    /// Charges what was done since the last call: `requests` and `bytes` are those of all time.
    /// Returns whether another request may be taken.
    pub fn charge(&mut self, requests: u64, bytes: u64) -> bool {
        let (requests_before, bytes_before) =
            std::mem::replace(&mut self.charged, (requests, bytes));
        if let Some(bucket) = &mut self.requests {
            bucket.take(requests.wrapping_sub(requests_before));
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes.wrapping_sub(bytes_before));
        }
        self.buckets().all(|bucket| bucket.admits())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn rates(requests: u64, bytes: u64) -> Rates {
        Rates { bytes: NonZeroU64::new(bytes), requests: NonZeroU64::new(requests) }
    }

    fn ns(nanoseconds: u64) -> Duration {
        Duration::from_nanos(nanoseconds)
    }

    #[test]
    fn ring_without_a_limit_has_no_limiter() {
        assert!(Limiter::new(Rates::default(), Instant::now()).is_none());
    }

    #[test]
    fn burst_is_a_tenth_of_a_second_and_then_the_rate_counts() {
        let start = Instant::now();
        let mut limiter = Limiter::new(rates(100, 0), start).unwrap();
        assert_eq!(limiter.rests(start), None);
        let admitted = (1..100).take_while(|taken| limiter.charge(*taken, 0)).count();
        assert_eq!(admitted, 9, "the tenth is the last");
        let until = start + ns(SECOND / 100);
        assert_eq!(limiter.rests(start), Some((until, true)));
        let before = until.checked_sub(ns(1)).unwrap();
        assert_eq!(limiter.rests(before), Some((until, false)), "the same rest");
        assert_eq!(limiter.rests(until), None);
        assert!(!limiter.charge(11, 0));
        assert_eq!(limiter.rests(until), Some((until + ns(SECOND / 100), true)));
        // However long it was idle.
        assert_eq!(limiter.rests(start + ns(1000 * SECOND)), None);
        let admitted = (12..100).take_while(|taken| limiter.charge(*taken, 0)).count();
        assert_eq!(admitted, 9);
    }

    #[test]
    fn request_larger_than_the_burst_passes_and_the_next_one_waits_for_it() {
        let start = Instant::now();
        let mut limiter = Limiter::new(rates(0, 1000), start).unwrap();
        assert_eq!(limiter.rests(start), None);
        assert!(!limiter.charge(1, 100 + 5000));
        // The debt, and a token.
        assert_eq!(limiter.rests(start), Some((start + ns(5_001_000_000), true)));
    }

    #[test]
    fn limit_that_is_used_up_first_counts() {
        let start = Instant::now();
        let mut limiter = Limiter::new(rates(10, 1000), start).unwrap();
        assert!(!limiter.charge(1, 1), "the requests");
        assert_eq!(limiter.rests(start), Some((start + ns(SECOND / 10), true)));
        assert_eq!(limiter.rests(start + ns(SECOND)), None);
        assert!(!limiter.charge(1, 1001), "the bytes");
        assert_eq!(limiter.rests(start), Some((start + ns(SECOND + 901_000_000), true)));
    }

    #[test]
    fn clock_that_stands_still_or_goes_back_gives_no_token() {
        let before = Instant::now();
        let start = before + ns(SECOND);
        let mut limiter = Limiter::new(rates(1, 0), start).unwrap();
        assert!(!limiter.charge(1, 0));
        let until = start + ns(SECOND);
        assert_eq!(limiter.rests(before), Some((until, true)));
        assert_eq!(limiter.rests(start), Some((until, false)));
    }

    /// A bucket of this rate, and a time from which its tokens are counted.
    fn bucket(rate: u64) -> (Bucket, Instant) {
        let start = Instant::now();
        (Bucket::new(NonZeroU64::new(rate).unwrap(), start), start)
    }

    /// The most that an interval lets pass in front of its last request.
    fn bound(rate: u64, time: Duration) -> u128 {
        let burst = (rate / BURSTS_PER_SECOND).max(1);
        u128::from(burst) + u128::from(rate) * time.as_nanos() / u128::from(SECOND)
    }

    fn any_rate() -> impl Strategy<Value = u64> {
        prop_oneof![1..50u64, 50..10_000u64, Just(u64::MAX >> 1)]
    }

    proptest! {
        #[test]
        fn no_interval_lets_more_pass_than_its_rate_and_a_burst(
            rate in any_rate(),
            offers in vec((0..SECOND / 4, 1..3000u64), 1..60),
        ) {
            let (mut bucket, mut now) = bucket(rate);
            let mut passed = Vec::new();
            for (gap, size) in offers {
                now += ns(gap);
                bucket.refill(now);
                if bucket.admits() {
                    bucket.take(size);
                    passed.push((now, size));
                }
            }
            for (first, (from, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (until, size) in &passed[first..] {
                    // A token was left for this one, and its size has left a debt at most.
                    prop_assert!(sum < bound(rate, until.duration_since(*from)));
                    sum += u128::from(*size);
                }
            }
        }

        #[test]
        fn who_asks_for_less_than_the_rate_never_waits(
            rate in any_rate(),
            sizes in vec((1..3000u64, 0..SECOND), 1..60),
        ) {
            let (mut bucket, mut now) = bucket(rate);
            for (size, more) in sizes {
                bucket.refill(now);
                prop_assert!(bucket.admits());
                bucket.take(size);
                let paid = u128::from(size) * u128::from(SECOND);
                let paid = u64::try_from(paid.div_ceil(u128::from(rate))).unwrap();
                now += ns(paid + more);
            }
        }

        #[test]
        fn rest_ends_when_there_is_a_token_and_no_earlier(
            rate in any_rate(),
            // Centuries, at the lowest rate.
            size in 1..1u64 << 34,
        ) {
            let (mut bucket, now) = bucket(rate);
            bucket.take(size);
            if !bucket.admits() {
                let until = bucket.admits_at();
                bucket.refill(until.checked_sub(ns(1)).unwrap().max(now));
                prop_assert!(!bucket.admits());
                bucket.refill(until);
                prop_assert!(bucket.admits());
            }
        }
    }
}
