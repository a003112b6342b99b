//! Workload `many-partitions`: runs the same producer against topics with more and more partitions.

use serde_json::json;

use crate::error::AnyError;
use crate::options::workloads::{ManyPartitionsOptions, ProduceOptions};
use crate::options::{RunOptions, TargetOptions};
use crate::report::Report;
use crate::workloads::produce;

/// Default rate in records per second, over all partitions together.
const RATE: u64 = 10_000;

/// Runs one step per number of partitions. The report is that of the last step, with all steps as extra figures.
pub fn run(options: &ManyPartitionsOptions) -> Result<Report, AnyError> {
    let mut steps = Vec::new();
    let mut last: Option<Report> = None;
    let (mut p99_first_ms, mut errors) = (0.0, 0);
    for partitions in &options.partitions {
        let rate = match options.rate_each {
            Some(each) => each * *partitions as u64,
            None => options.records.rate.unwrap_or(RATE),
        };
        let mut records = options.records.clone();
        records.rate = Some(rate);
        let target = TargetOptions {
            bootstrap: options.bootstrap.clone(),
            topic: format!("{}-{partitions}", options.topic),
            partitions: Some(*partitions),
            replication_factor: options.replication_factor,
            threads: options.threads.clone(),
        };
        // All steps share the machine's limits, so only the first step measures them.
        let run = RunOptions { no_ceiling: options.run.no_ceiling || last.is_some(), ..options.run.clone() };
        eprintln!("{partitions} partitions, {rate} records/s in total");
        let mut report = produce::run(&ProduceOptions { run, target, records, client: options.client })?;
        eprintln!("  p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms", report.p50_ms, report.p99_ms, report.p999_ms);
        steps.push(json!({
            "partitions": partitions,
            "rate": rate,
            "records_per_s": report.per_s(),
            "p50_ms": report.p50_ms,
            "p99_ms": report.p99_ms,
            "p999_ms": report.p999_ms,
            "errors": report.errors,
            "client_limited": report.client_limited,
        }));
        errors += report.errors;
        match &last {
            None => p99_first_ms = report.p99_ms,
            Some(before) => report.ceiling = before.ceiling.clone(),
        }
        report.first_error = report.first_error.or_else(|| last.and_then(|before| before.first_error));
        last = Some(report);
    }
    let mut report = last.ok_or("--partitions names no number")?;
    report.workload = "many-partitions".to_owned();
    report.errors = errors;
    let times = if p99_first_ms > 0.0 { report.p99_ms / p99_first_ms } else { 0.0 };
    Ok(report.against(&produce::SHARES).with_extra("steps", steps).with_extra("p99_times_first_step", times))
}
