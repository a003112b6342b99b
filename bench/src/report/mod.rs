//! The results of a run, as one JSON object and as text.

pub(crate) mod chart;
pub(crate) mod html;
pub(crate) mod shares;
pub(crate) mod tables;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock;
use crate::figures::outcome::{Outcome, Sample};
use crate::figures::stats::{Tally, quantile_ms};
use crate::figures::with_commas;
use crate::machine::ceiling::Ceiling;
use crate::machine::environment::Environment;
use crate::report::shares::Share;

/// Above these limits, the client rather than the broker may have determined the figures.
const CPU_SHARE_MAX: f64 = 0.9;
const LATE_MS_MAX: f64 = 1.0;

/// The unit that a workload counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Records,
    Operations,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub workload: String,
    /// The case's name, if the run is part of a suite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Either this or `ops_per_s` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<f64>,
    pub mb_per_s: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    pub mean_ms: f64,
    /// Number of records or operations that were counted.
    pub count: u64,
    pub requests: u64,
    pub errors: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    pub seconds: f64,
    /// CPU time of the busiest load thread per second of the run.
    pub client_cpu_share: f64,
    /// Lateness of the 99th percentile of records that only the client delayed.
    pub client_late_p99_ms: f64,
    /// The client may have been the limit, so that the run does not show what the broker can do.
    pub client_limited: bool,
    /// Further figures of the workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Value>,
    /// The limits of the machine.
    pub ceiling: Ceiling,
    /// The figures as shares and multiples of those limits.
    #[serde(default)]
    pub shares: BTreeMap<String, f64>,
    /// Seconds since 1970 at the end of the run.
    #[serde(default)]
    pub unix_seconds: f64,
    #[serde(default)]
    pub environment: Environment,
    /// The effective values of all options.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Quantiles with their latency in milliseconds, for the percentile curve.
    #[serde(default)]
    pub quantiles: Vec<(f64, f64)>,
    #[serde(default)]
    pub series: Vec<Sample>,
}

impl Report {
    pub fn new(workload: &str, unit: Unit, outcome: Outcome, ceiling: Ceiling) -> Report {
        let Outcome { tally, thread_cpu_share_max, series } = outcome;
        let Tally { records, requests, errors, bytes, ref latency_ns, ref client_late_ns, .. } = tally;
        let client_late_p99_ms = quantile_ms(client_late_ns, 0.99);
        let per_s = tally.per_second(records);
        Report {
            workload: workload.to_owned(),
            case: None,
            records_per_s: (unit == Unit::Records).then_some(per_s),
            ops_per_s: (unit == Unit::Operations).then_some(per_s),
            mb_per_s: tally.per_second(bytes) / 1e6,
            p50_ms: quantile_ms(latency_ns, 0.5),
            p90_ms: quantile_ms(latency_ns, 0.9),
            p99_ms: quantile_ms(latency_ns, 0.99),
            p999_ms: quantile_ms(latency_ns, 0.999),
            max_ms: latency_ns.max() as f64 / 1e6,
            mean_ms: latency_ns.mean() / 1e6,
            count: records,
            requests,
            errors,
            seconds: tally.span_ns as f64 / 1e9,
            client_cpu_share: thread_cpu_share_max,
            client_late_p99_ms,
            client_limited: thread_cpu_share_max > CPU_SHARE_MAX || client_late_p99_ms > LATE_MS_MAX,
            quantiles: curve(latency_ns),
            first_error: tally.first_error,
            extra: BTreeMap::new(),
            ceiling,
            shares: BTreeMap::new(),
            unix_seconds: clock::unix_ms() as f64 / 1e3,
            environment: Environment::default(),
            config: BTreeMap::new(),
            series,
        }
    }

    /// Adds the figures as shares of the machine's limits.
    pub fn against(mut self, wanted: &[Share]) -> Report {
        self.shares = shares::of(&self, wanted);
        self
    }

    pub fn with_extra(mut self, name: &str, value: impl Into<Value>) -> Report {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Records or operations per second.
    pub fn per_s(&self) -> f64 {
        self.records_per_s.or(self.ops_per_s).unwrap_or(0.0)
    }

    pub fn unit(&self) -> &'static str {
        if self.ops_per_s.is_some() { "ops" } else { "records" }
    }

    /// The JSON object, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings")
    }

    /// The text for people.
    pub fn to_text(&self) -> String {
        let unit = self.unit();
        let mut text = format!(
            "{}: {} {unit}/s, {:.1} MB/s over {:.1} s ({} {unit} in {} requests)\n",
            self.workload,
            with_commas(self.per_s().round() as u64),
            self.mb_per_s,
            self.seconds,
            with_commas(self.count),
            with_commas(self.requests),
        );
        text += &format!(
            "latency: p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms, mean {:.3} ms\n",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms, self.mean_ms
        );
        for (name, value) in self.extra.iter().filter(|(_, value)| !value.is_array() && !value.is_object()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("{}: {value}\n", name.replace('_', " "));
        }
        text += &format!(
            "client: busiest thread {:.0} % of a CPU, records left {:.3} ms late at p99{}\n",
            self.client_cpu_share * 100.0,
            self.client_late_p99_ms,
            if self.client_limited { " (THE CLIENT MAY HAVE BEEN THE LIMIT)" } else { "" }
        );
        if let Some(error) = &self.first_error {
            text += &format!("errors: {}, the first: {error}\n", with_commas(self.errors));
        }
        text += &self.ceiling.to_text();
        for (name, value) in &self.shares {
            text += &format!("{}: {}\n", name.replace('_', " "), shares::written(name, *value));
        }
        text
    }
}

/// Points of the percentile curve, denser towards the maximum.
fn curve(latency_ns: &Histogram<u64>) -> Vec<(f64, f64)> {
    let points = latency_ns.iter_quantiles(4);
    points.map(|point| (point.quantile(), point.value_iterated_to() as f64 / 1e6)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(tally: Tally, thread_cpu_share_max: f64) -> Outcome {
        Outcome { tally, thread_cpu_share_max, series: Vec::new() }
    }

    #[test]
    fn the_report_holds_the_tally() {
        let mut tally =
            Tally { records: 1000, bytes: 1_000_000, requests: 10, span_ns: 500_000_000, ..Tally::default() };
        tally.latency_ns.record_n(2_000_000, 999).unwrap();
        tally.latency_ns.record(9_000_000).unwrap();
        let report = Report::new("produce", Unit::Records, outcome(tally, 0.5), Ceiling::default());
        assert_eq!((report.records_per_s, report.ops_per_s, report.mb_per_s), (Some(2000.0), None, 2.0));
        assert!((report.p50_ms - 2.0).abs() < 0.01 && (report.p99_ms - 2.0).abs() < 0.01, "{report:?}");
        assert!((report.max_ms - 9.0).abs() < 0.01, "{report:?}");
        assert!(!report.client_limited);
        assert_eq!(report.quantiles.last().map(|point| point.0), Some(1.0));
        let json = serde_json::to_value(&report).unwrap();
        for key in ["records_per_s", "mb_per_s", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "errors", "ceiling"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(json.get("ops_per_s").is_none());
        assert_eq!(serde_json::from_str::<Report>(&report.to_json()).unwrap(), report);
    }

    #[test]
    fn a_busy_or_late_client_is_named() {
        let report = |tally, cpu| Report::new("produce", Unit::Records, outcome(tally, cpu), Ceiling::default());
        assert!(report(Tally::default(), 0.95).client_limited);
        let mut tally = Tally::default();
        tally.client_late_ns.record(5_000_000).unwrap();
        let late = report(tally, 0.1);
        assert!(late.client_limited);
        assert!(late.to_text().contains("THE CLIENT MAY HAVE BEEN THE LIMIT"));
    }
}
