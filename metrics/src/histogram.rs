//! A histogram of durations that one thread writes with plain additions, and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Binary logarithm of the first bucket's upper bound in nanoseconds: 256 ns.
const FIRST: u32 = 8;

/// Buckets with an upper bound, each of twice the one before: the last ends at 17 s.
const BOUNDED: usize = 27;

/// Durations in buckets whose bounds are powers of two: the leading zeros of a duration tell its
/// bucket. Only one thread may write to it.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no upper bound.
    buckets: [AtomicU64; BOUNDED + 1],
    /// Sum of all durations in nanoseconds.
    sum: AtomicU64,
}

/// Adds without a locked instruction: there is one writer.
fn add(number: &AtomicU64, n: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        self.observe_parts(duration, 1);
    }

    /// Counts the mean of `parts` equal parts of a duration, once for each of them. It allocates
    /// nothing and takes no lock.
    pub fn observe_parts(&self, duration: Duration, parts: u64) {
        let total = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let Some(mean) = total.checked_div(parts) else { return };
        // A bucket includes its bound, so that one less than the mean decides.
        let bits = u64::BITS - mean.saturating_sub(1).leading_zeros();
        let index = bits.saturating_sub(FIRST) as usize;
        add(&self.buckets[index.min(BOUNDED)], parts);
        add(&self.sum, total);
    }

    /// Returns the sum of all durations in seconds.
    pub fn sum(&self) -> f64 {
        Duration::from_nanos(self.sum.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Returns the buckets, each as its upper bound in seconds and its count. The last bound is
    /// infinity.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bound = |index: usize| match index {
            BOUNDED => f64::INFINITY,
            index => Duration::from_nanos(1 << (FIRST as usize + index)).as_secs_f64(),
        };
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        counts.enumerate().map(|(index, count)| (bound(index), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the place of the only bucket that is not empty.
    fn bucket_of(nanoseconds: u64) -> usize {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_nanos(nanoseconds));
        histogram.buckets().iter().position(|(_, count)| *count == 1).unwrap_or(usize::MAX)
    }

    #[test]
    fn bucket_holds_durations_up_to_and_with_its_bound() {
        assert_eq!([0, 1, 256].map(bucket_of), [0; 3]);
        assert_eq!([257, 512].map(bucket_of), [1; 2]);
        assert_eq!([513, 1024, 1025].map(bucket_of), [2, 2, 3]);
        assert_eq!([1 << 34, (1 << 34) + 1, u64::MAX].map(bucket_of), [26, 27, 27]);
    }

    #[test]
    fn parts_of_a_duration_are_counted_each_and_its_sum_is_kept() {
        let histogram = Histogram::default();
        histogram.observe_parts(Duration::from_micros(1024), 4);
        histogram.observe_parts(Duration::from_micros(1), 0);
        assert_eq!(histogram.buckets()[10], (262_144e-9, 4));
        assert!((histogram.sum() - 1024e-6).abs() < 1e-12);
    }
}
