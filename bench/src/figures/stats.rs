//! A run's counts and latencies. Each thread gathers its own; they are merged at the end and shown live during the
//! run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

/// A histogram of nanoseconds with three significant digits, up to a day.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 86_400_000_000_000, 3).expect("the bounds are in order")
}

/// The results of one thread, or, merged with [`Tally::add`], of one run. Counts and latencies exclude the warm-up;
/// errors and CPU time include it.
#[derive(Debug, Clone)]
pub struct Tally {
    pub records: u64,
    pub bytes: u64,
    /// Records that the broker rejected or did not answer in time, warm-up included.
    pub errors: u64,
    pub requests: u64,
    pub latency_ns: Histogram<u64>,
    /// How late records left when nothing but the client delayed them.
    pub client_late_ns: Histogram<u64>,
    /// From the start of the measurement to the last answer.
    pub span_ns: u64,
    pub cpu_ns: u64,
    /// The first error, as text.
    pub first_error: Option<String>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            records: 0,
            bytes: 0,
            errors: 0,
            requests: 0,
            latency_ns: histogram(),
            client_late_ns: histogram(),
            span_ns: 0,
            cpu_ns: 0,
            first_error: None,
        }
    }
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.requests += other.requests;
        self.latency_ns.add(&other.latency_ns).expect("both have the same bounds");
        self.client_late_ns.add(&other.client_late_ns).expect("both have the same bounds");
        self.span_ns = self.span_ns.max(other.span_ns);
        self.cpu_ns += other.cpu_ns;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    pub fn fail(&mut self, records: u64, why: impl FnOnce() -> String) {
        self.errors += records;
        if records > 0 && self.first_error.is_none() {
            self.first_error = Some(why());
        }
    }

    pub fn per_second(&self, count: u64) -> f64 {
        if self.span_ns == 0 { 0.0 } else { count as f64 * 1e9 / self.span_ns as f64 }
    }
}

/// A quantile in milliseconds; 0 if nothing was recorded.
pub fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    if histogram.is_empty() { 0.0 } else { histogram.value_at_quantile(quantile) as f64 / 1e6 }
}

/// Live figures of one load thread. The thread updates them now and then and waits only briefly for the reader.
#[derive(Debug, Default)]
pub struct Live {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub errors: AtomicU64,
    interval: Mutex<Option<Histogram<u64>>>,
}

impl Live {
    pub fn count(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Hands the latencies since the last call over to the reader.
    pub fn publish(&self, recent: &mut Histogram<u64>) {
        let mut interval = self.interval.lock().expect("neither side panics while it holds this");
        match interval.as_mut() {
            Some(histogram) => histogram.add(&*recent).expect("both have the same bounds"),
            None => *interval = Some(recent.clone()),
        }
        recent.reset();
    }

    /// The latencies since the last call.
    pub fn take(&self) -> Option<Histogram<u64>> {
        self.interval.lock().expect("neither side panics while it holds this").take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut tally = Tally::default();
        for ms in 1..=1000u64 {
            tally.latency_ns.record(ms * 1_000_000).unwrap();
        }
        // Three significant digits: within 0.1 %.
        for (quantile, want) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let got = quantile_ms(&tally.latency_ns, quantile);
            assert!((got - want).abs() <= want * 1e-3, "p{quantile}: {got} for {want}");
        }
        assert_eq!(quantile_ms(&histogram(), 0.5), 0.0);
    }

    #[test]
    fn threads_add_up_and_the_longest_counts_the_time() {
        let one = |records, span_ns, error: Option<&str>| {
            let mut tally = Tally { records, bytes: records * 100, requests: 1, span_ns, ..Tally::default() };
            tally.latency_ns.record_n(5, records).unwrap();
            tally.fail(error.is_some().into(), || error.unwrap_or_default().to_owned());
            tally
        };
        let mut sum = one(1000, 1_000_000_000, None);
        sum.add(one(3000, 2_000_000_000, Some("first")));
        sum.add(one(0, 0, Some("second")));
        assert_eq!((sum.records, sum.bytes, sum.requests, sum.errors), (4000, 400_000, 3, 2));
        assert_eq!(sum.per_second(sum.records), 2000.0);
        assert_eq!(sum.latency_ns.len(), 4000);
        assert_eq!(sum.first_error.as_deref(), Some("first"));
        assert_eq!(Tally::default().per_second(7), 0.0);
    }

    #[test]
    fn published_times_are_taken_once() {
        let live = Live::default();
        let mut recent = histogram();
        for _ in 0..2 {
            recent.record(7).unwrap();
            live.publish(&mut recent);
            assert!(recent.is_empty());
        }
        assert_eq!(live.take().map(|h| h.len()), Some(2));
        assert_eq!(live.take(), None);
    }
}
