//! A histogram of durations with fixed buckets: log-linear, as in HdrHistogram.
//! Lives on: the core that records. The admin thread reads.
//!
//! ```text
//! bucket   0 │ 1 … 4 linear steps │ 5 … 8          │ … │ 92 steps in all │ the rest
//! up to    4 µs  5, 6, 7, 8.2 µs    10, 12, 14, 16 µs    34 s              ∞
//! ```
//! Each power of two of nanoseconds is divided into four buckets, so a bound is off by at most a quarter.
//!
//! This is not the crate `hdrhistogram`, which `bench` uses: two threads share one of its histograms only under a lock,
//! and a core would wait until the kernel runs the admin thread again.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Buckets per power of two, in bits.
const STEP_BITS: u32 = 2;
const STEPS: usize = 1 << STEP_BITS;
/// The first bucket ends at 2^12 ns (4 µs).
const FIRST_BITS: u32 = 12;
/// The last bucket but one ends at 2^35 ns (34 s).
const LAST_BITS: u32 = 35;
const BUCKETS: usize = 1 + (LAST_BITS - FIRST_BITS) as usize * STEPS + 1;

#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Only one thread may call this.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let cell = &self.counts[bucket_of(ns)];
        cell.store(cell.load(Relaxed) + 1, Relaxed);
        self.sum_ns.store(self.sum_ns.load(Relaxed).saturating_add(ns), Relaxed);
    }

    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Relaxed)
    }

    /// The upper bound (inclusive) and the count of each bucket. The last bucket has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.counts.iter().enumerate().map(|(bucket, count)| (upper_bound(bucket), count.load(Relaxed)))
    }
}

/// Bounds are inclusive, so 4096 ns belong to the first bucket.
fn bucket_of(ns: u64) -> usize {
    let below = ns.saturating_sub(1);
    if below < 1 << FIRST_BITS {
        return 0;
    }
    if below >= 1 << LAST_BITS {
        return BUCKETS - 1;
    }
    let bits = below.ilog2();
    let step = (below >> (bits - STEP_BITS)) as usize & (STEPS - 1);
    1 + (bits - FIRST_BITS) as usize * STEPS + step
}

fn upper_bound(bucket: usize) -> Option<u64> {
    if bucket == BUCKETS - 1 {
        return None;
    }
    let Some(at) = bucket.checked_sub(1) else { return Some(1 << FIRST_BITS) };
    let bits = FIRST_BITS + (at / STEPS) as u32;
    Some((1 << bits) + ((at % STEPS) as u64 + 1) * (1 << (bits - STEP_BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_the_bucket_that_bounds_it() {
        let mut lower = 0;
        for bucket in 0..BUCKETS {
            match upper_bound(bucket) {
                Some(upper) => {
                    assert!(upper > lower, "bounds rise");
                    assert_eq!((bucket_of(lower + 1), bucket_of(upper)), (bucket, bucket), "{lower}..={upper}");
                    // A bound is at most a quarter off.
                    assert!(bucket == 0 || upper - lower <= lower.div_ceil(STEPS as u64));
                    lower = upper;
                }
                None => assert_eq!((bucket_of(lower + 1), bucket_of(u64::MAX)), (bucket, bucket)),
            }
        }
        assert_eq!(lower, 1 << LAST_BITS);
        assert_eq!((bucket_of(0), bucket_of(1)), (0, 0));
    }

    #[test]
    fn count_and_sum_add_up() {
        let histogram = Histogram::default();
        for ns in [1, 5_000, 1_000_000, 60_000_000_000] {
            histogram.record(Duration::from_nanos(ns));
        }
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 4);
        assert_eq!(histogram.sum_ns(), 60_001_005_001);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.sum_ns(), u64::MAX);
    }
}
