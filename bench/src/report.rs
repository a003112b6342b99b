//! What a run prints at its end: text for people, or one line of JSON.

use serde::Serialize;

use crate::ceiling::Ceiling;
use crate::run::Outcome;
use crate::stats::{Tally, quantile_ms};

/// Above these the client, not the broker, may have set the figures.
const CPU_SHARE_MAX: f64 = 0.9;
const LATE_MS_MAX: f64 = 1.0;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub workload: &'static str,
    pub records_per_s: f64,
    pub mb_per_s: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    pub mean_ms: f64,
    pub records: u64,
    pub requests: u64,
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    pub seconds: f64,
    /// CPU time of the busiest load thread per second of the run.
    pub client_cpu_share: f64,
    /// How late the 99th percentile of records left for no reason but the client's own.
    pub client_late_p99_ms: f64,
    /// The client may have been the limit: what the broker can do is not known from this run.
    pub client_limited: bool,
    pub ceiling: Ceiling,
}

impl Report {
    pub fn new(workload: &'static str, outcome: Outcome, ceiling: Ceiling) -> Report {
        let Outcome { tally, thread_cpu_share_max } = outcome;
        let Tally { records, requests, errors, bytes, ref latency_ns, ref client_late_ns, .. } = tally;
        let client_late_p99_ms = quantile_ms(client_late_ns, 0.99);
        Report {
            workload,
            records_per_s: tally.per_second(records),
            mb_per_s: tally.per_second(bytes) / 1e6,
            p50_ms: quantile_ms(latency_ns, 0.5),
            p90_ms: quantile_ms(latency_ns, 0.9),
            p99_ms: quantile_ms(latency_ns, 0.99),
            p999_ms: quantile_ms(latency_ns, 0.999),
            max_ms: latency_ns.max() as f64 / 1e6,
            mean_ms: latency_ns.mean() / 1e6,
            records,
            requests,
            errors,
            seconds: tally.span_ns as f64 / 1e9,
            client_cpu_share: thread_cpu_share_max,
            client_late_p99_ms,
            client_limited: thread_cpu_share_max > CPU_SHARE_MAX || client_late_p99_ms > LATE_MS_MAX,
            first_error: tally.first_error,
            ceiling,
        }
    }

    pub fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::to_string(self).expect("numbers and strings"));
            return;
        }
        println!(
            "{}: {} records/s, {:.1} MB/s over {:.1} s ({} records in {} requests)",
            self.workload,
            with_commas(self.records_per_s as u64),
            self.mb_per_s,
            self.seconds,
            with_commas(self.records),
            with_commas(self.requests),
        );
        println!(
            "latency: p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms, mean {:.3} ms",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms, self.mean_ms
        );
        println!(
            "client: busiest thread {:.0} % of a CPU, records left {:.3} ms late at p99{}",
            self.client_cpu_share * 100.0,
            self.client_late_p99_ms,
            if self.client_limited { " (the client may have been the limit)" } else { "" }
        );
        if let Some(error) = &self.first_error {
            println!("errors: {}, the first: {error}", with_commas(self.errors));
        }
        self.ceiling.print();
    }
}

/// 1234567 as 1,234,567.
pub fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let groups: Vec<String> = [0, 999, 1000, 1_234_567].into_iter().map(with_commas).collect();
        assert_eq!(groups, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_report_holds_the_tally() {
        let mut tally =
            Tally { records: 1000, bytes: 1_000_000, requests: 10, span_ns: 500_000_000, ..Tally::default() };
        tally.latency_ns.record_n(2_000_000, 999).unwrap();
        tally.latency_ns.record(9_000_000).unwrap();
        let report = Report::new("produce", Outcome { tally, thread_cpu_share_max: 0.5 }, Ceiling::default());
        assert_eq!((report.records_per_s, report.mb_per_s), (2000.0, 2.0));
        assert!((report.p50_ms - 2.0).abs() < 0.01 && (report.p99_ms - 2.0).abs() < 0.01, "{report:?}");
        assert!((report.max_ms - 9.0).abs() < 0.01, "{report:?}");
        assert!(!report.client_limited);
        let json = serde_json::to_value(&report).unwrap();
        for key in ["records_per_s", "mb_per_s", "p50_ms", "p99_ms", "p999_ms", "errors", "ceiling"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_busy_or_late_client_is_named() {
        let busy = Outcome { tally: Tally::default(), thread_cpu_share_max: 0.95 };
        assert!(Report::new("produce", busy, Ceiling::default()).client_limited);
        let mut tally = Tally::default();
        tally.client_late_ns.record(5_000_000).unwrap();
        let late = Outcome { tally, thread_cpu_share_max: 0.1 };
        assert!(Report::new("produce", late, Ceiling::default()).client_limited);
    }
}
