//! Formats results as tables: for a terminal, and as Markdown for bench/RESULTS.md. Pure.

use crate::figures::with_commas;
use crate::machine::environment::Environment;
use crate::options::suite::Set;
use crate::report::Report;
use crate::report::shares;

/// A result as one line of text.
pub fn one_line(report: &Report) -> String {
    let mut line = format!(
        "{} {}/s, {:.1} MB/s, p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms",
        with_commas(report.per_s().round() as u64),
        report.unit(),
        report.mb_per_s,
        report.p50_ms,
        report.p99_ms,
        report.p999_ms
    );
    for found in found(report) {
        line += &format!(", {found}");
    }
    if report.errors > 0 {
        line += &format!(", {} ERRORS ({})", report.errors, report.first_error.as_deref().unwrap_or_default());
    }
    if report.client_limited {
        line += ", the client may have been the limit";
    }
    line
}

/// The extra figures of some workloads.
fn found(report: &Report) -> Vec<String> {
    let number = |name: &str| report.extra.get(name).and_then(serde_json::Value::as_f64);
    let mut found = Vec::new();
    if let (Some(p50), Some(max)) = (number("gap_p50_ms"), number("gap_max_ms")) {
        found.push(format!("gap p50 {p50:.0} ms, max {max:.0} ms"));
    }
    if let Some(times) = number("p99_times_first_step") {
        found.push(format!("p99 {times:.2} x that of the first step"));
    }
    if let Some(times) = number("tail_p99_times_alone") {
        found.push(format!("the tail's p99 {times:.2} x that without the drain"));
    }
    if let Some(times) = number("p50_to_raw") {
        found.push(format!("the ring's p50 {times:.2} x raw"));
    }
    if let (Some(p50), Some(p99)) = (number("turn_cpu_p50_ms"), number("turn_cpu_p99_ms")) {
        found.push(format!("CPU of a turn p50 {:.1} us, p99 {:.1} us", p50 * 1e3, p99 * 1e3));
    }
    if report.workload == "mesh" {
        found.push(format!("p50 {:.1} us, p99 {:.1} us", report.p50_ms * 1e3, report.p99_ms * 1e3));
    }
    found
}

/// The most telling share: for a run with a rate a latency, otherwise a throughput if one was measured.
fn share(report: &Report) -> String {
    let paced = report.config.get("rate").is_some_and(|rate| rate != "0") || report.workload == "many-partitions";
    let names: &[&str] = if paced {
        &["p99_times_paced_bound", "p99_times_raw_write_sync_p99", "p99_times_loopback_p99"]
    } else {
        &[
            "rate_share_of_client_cap",
            "mb_share_of_disk_read",
            "mb_share_of_disk_write",
            "p50_times_core_wake_p50",
            "p50_times_raw_write_sync_p50",
            "p50_times_loopback_p50",
        ]
    };
    let share = names.iter().find_map(|name| report.shares.get(*name).map(|value| (*name, *value)));
    share.map_or_else(String::new, |(name, value)| {
        let value = shares::written(name, value);
        match name.split_once("_share_of_") {
            Some((_, of)) => format!("{value} of {}", of.replace('_', " ")),
            None => format!(
                "{} {value} x {}",
                &name[..3],
                name.split_once("_times_").map_or("", |(_, of)| of).replace('_', " ")
            ),
        }
    })
}

/// The table for a terminal.
pub fn text(reports: &[Report]) -> String {
    let name = |report: &Report| report.case.clone().unwrap_or_else(|| report.workload.clone());
    let width = reports.iter().map(|report| name(report).len()).max().unwrap_or(0);
    let mut text = format!(
        "{:<width$}  {:>12}  {:>9}  {:>9}  {:>9}  {:>9}  beside the ceiling\n",
        "case", "per second", "MB/s", "p50 ms", "p99 ms", "p99.9 ms"
    );
    for report in reports {
        let beside = [vec![share(report)], found(report)].concat();
        let mut notes: Vec<String> = beside.into_iter().filter(|note| !note.is_empty()).collect();
        if report.errors > 0 {
            notes.push(format!("{} ERRORS", report.errors));
        }
        if report.client_limited {
            notes.push("client limited".to_owned());
        }
        text += &format!(
            "{:<width$}  {:>12}  {:>9.1}  {:>9.3}  {:>9.3}  {:>9.3}  {}\n",
            name(report),
            with_commas(report.per_s().round() as u64),
            report.mb_per_s,
            report.p50_ms,
            report.p99_ms,
            report.p999_ms,
            notes.join("; ")
        );
    }
    text
}

/// The Markdown tables, with the commands that reproduce the figures.
pub fn markdown(set: Set, reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    [made_on(set, &first.environment), results(reports), ceilings(reports)].concat()
}

/// The command and the machine that the figures come from.
fn made_on(set: Set, at: &Environment) -> String {
    let mut text = format!(
        "\nBy `cargo run --release -p bench -- suite {} --markdown` on {} ({} CPUs, {} allowed, {} GB), Linux {}, {}; commit {}{}.\n\n",
        set.name(),
        at.machine,
        at.cpus,
        at.cpuset,
        at.memory_bytes / 1_000_000_000,
        at.kernel,
        at.disk,
        at.commit,
        at.broker.as_ref().map_or_else(String::new, |broker| format!(", {broker}")),
    );
    if at.is_busy() {
        text += &format!(
            "The machine was busy with something else: load {:.1} before the first case.\n\n",
            at.load_average
        );
    }
    text
}

/// The Markdown table of the results.
fn results(reports: &[Report]) -> String {
    let mut text =
        "| case | per second | MB/s | p50 ms | p99 ms | p99.9 ms | beside the ceiling | found |\n".to_owned();
    text += "|---|---:|---:|---:|---:|---:|---|---|\n";
    for report in reports {
        let mut notes = found(report);
        if report.errors > 0 {
            notes.push(format!("**{} errors**", report.errors));
        }
        if report.client_limited {
            notes.push("client limited".to_owned());
        }
        text += &format!(
            "| {} | {} {} | {:.1} | {:.3} | {:.3} | {:.3} | {} | {} |\n",
            report.case.as_deref().unwrap_or(&report.workload),
            with_commas(report.per_s().round() as u64),
            report.unit(),
            report.mb_per_s,
            report.p50_ms,
            report.p99_ms,
            report.p999_ms,
            share(report),
            notes.join("; ")
        );
    }
    text
}

/// The Markdown table of the machine's limits, which were measured before each case.
fn ceilings(reports: &[Report]) -> String {
    let mut text = "\n| ceiling, each time measured just before the case | write + fdatasync p50 / p99 ms | write / read MB/s | loopback p50 ms | client's cap |\n|---|---:|---:|---:|---:|\n".to_owned();
    for report in reports {
        let ceiling = &report.ceiling;
        let number =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        text += &format!(
            "| {} | {} / {} | {} / {} | {} | {} |\n",
            report.case.as_deref().unwrap_or(&report.workload),
            number(ceiling.raw_write_sync_p50_ms, 3),
            number(ceiling.raw_write_sync_p99_ms, 3),
            number(ceiling.raw_write_mb_per_s, 0),
            number(ceiling.raw_read_mb_per_s, 0),
            number(ceiling.loopback_p50_ms, 3),
            ceiling.client_cap_per_s.map_or("-".to_owned(), |per_s| format!("{}/s", with_commas(per_s as u64))),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_its_row() {
        let mut report = Report {
            workload: "produce".to_owned(),
            case: Some("produce 100 B".to_owned()),
            records_per_s: Some(1_234_567.0),
            errors: 3,
            ..Report::default()
        };
        report.shares.insert("rate_share_of_client_cap".to_owned(), 0.5);
        report.extra.insert("gap_p50_ms".to_owned(), 500.0.into());
        report.extra.insert("gap_max_ms".to_owned(), 700.0.into());
        let text = text(std::slice::from_ref(&report));
        for part in ["produce 100 B", "1,234,567", "50.0 % of client cap", "3 ERRORS", "gap p50 500 ms"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let markdown = markdown(Set::Full, &[report]);
        assert!(markdown.contains("| produce 100 B | 1,234,567 records | "), "{markdown}");
        assert!(markdown.contains("**3 errors**"), "{markdown}");
    }
}
