//! The report: one HTML page with tables and charts that needs no other file.

use std::fs;
use std::path::Path;

use crate::error::AnyError;
use crate::figures::outcome::Sample;
use crate::figures::with_commas;
use crate::report::Report;
use crate::report::chart::{self, Line, Scale};
use crate::report::shares;

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;color:#222;background:#fafafa;margin:2em auto;max-width:1320px;padding:0 1em}
h1{font-size:22px;margin:0 0 .2em}h2{font-size:17px;margin:1.8em 0 .4em;border-bottom:1px solid #ddd;padding-bottom:.2em}
table{border-collapse:collapse;margin:.6em 0;background:#fff}th,td{padding:.25em .7em;border:1px solid #ddd;text-align:right}
th{background:#f0f0f0;font-weight:600}td:first-child,th:first-child{text-align:left}
.charts{display:flex;flex-wrap:wrap;gap:12px}.charts svg{background:#fff;border:1px solid #ddd;max-width:100%;height:auto}
.warn{color:#b00020;font-weight:600}.note{color:#666}code{font-size:12px;overflow-wrap:anywhere}details{margin:.4em 0}";

/// Writes the page.
pub fn write(file: &Path, title: &str, reports: &[Report]) -> Result<(), AnyError> {
    let page = page(title, reports)?;
    fs::write(file, page).map_err(|e| format!("cannot write the report to {}: {e}", file.display()).into())
}

fn page(title: &str, reports: &[Report]) -> Result<String, AnyError> {
    let title = escaped(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
    );
    page += &machine(reports);
    page += &summary(reports);
    // Repeats of the same case share their charts.
    let mut shown: Vec<String> = Vec::new();
    for report in reports {
        let name = name(report);
        if shown.contains(&name) {
            continue;
        }
        let repeats: Vec<&Report> = reports.iter().filter(|other| self::name(other) == name).collect();
        page += &section(&name, &repeats)?;
        shown.push(name);
    }
    page += "</body></html>\n";
    Ok(page)
}

fn name(report: &Report) -> String {
    report.case.clone().unwrap_or_else(|| report.workload.clone())
}

fn machine(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return "<p>Nothing was run.</p>".to_owned() };
    let at = &first.environment;
    let mut text = format!(
        "<p class=\"note\">{} ({} CPUs, {} allowed, {} GB), Linux {}, {}; millrace-bench {} of {}",
        escaped(&at.machine),
        at.cpus,
        escaped(&at.cpuset),
        at.memory_bytes / 1_000_000_000,
        escaped(&at.kernel),
        escaped(&at.disk),
        escaped(&at.bench_version),
        escaped(&at.commit)
    );
    for (what, version) in [("librdkafka", &at.librdkafka_version), ("broker", &at.broker)] {
        if let Some(version) = version {
            text += &format!("; {what} {}", escaped(version));
        }
    }
    text += "</p>\n";
    if at.is_busy() {
        text += &format!(
            "<p class=\"warn\">The machine was busy with something else before: load {:.1} on {} CPUs.</p>\n",
            at.load_average, at.cpus
        );
    }
    text
}

fn summary(reports: &[Report]) -> String {
    let mut text =
        "<table><tr><th>run</th><th>per second</th><th>MB/s</th><th>p50 ms</th><th>p90 ms</th><th>p99 ms</th>\
                    <th>p99.9 ms</th><th>max ms</th><th>errors</th><th>client</th></tr>\n"
            .to_owned();
    for report in reports {
        text += &format!(
            "<tr><td>{}</td><td>{} {}</td><td>{:.1}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td>\
             <td>{:.3}</td><td{}>{}</td><td{}>{:.0} %</td></tr>\n",
            escaped(&name(report)),
            with_commas(report.per_s().round() as u64),
            report.unit(),
            report.mb_per_s,
            report.p50_ms,
            report.p90_ms,
            report.p99_ms,
            report.p999_ms,
            report.max_ms,
            if report.errors > 0 { " class=\"warn\"" } else { "" },
            with_commas(report.errors),
            if report.client_limited { " class=\"warn\" title=\"may have been the limit\"" } else { "" },
            report.client_cpu_share * 100.0,
        );
    }
    text + "</table>\n<p class=\"note\">client: CPU of its busiest thread; red where the client may have been the limit. \
            Latency counts from when a record was meant to be sent.</p>\n"
}

fn section(name: &str, repeats: &[&Report]) -> Result<String, AnyError> {
    let mut text = format!("<h2>{}</h2>\n", escaped(name));
    let last = repeats[repeats.len() - 1];
    if let Some(error) = &last.first_error {
        text += &format!("<p class=\"warn\">{} errors, the first: {}</p>\n", last.errors, escaped(error));
    }
    text += &shares_table(last);
    let options: Vec<String> = last.config.iter().map(|(option, value)| format!("--{option} {value}")).collect();
    text += &format!("<details><summary>options</summary><code>{}</code></details>\n", escaped(&options.join(" ")));
    text += "<div class=\"charts\">\n";
    let labelled = |index: usize, what: &str| match repeats.len() {
        1 => what.to_owned(),
        _ => format!("{what} run {}", index + 1).trim().to_owned(),
    };
    let lines = |what: &str, of: &dyn Fn(&Report) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |(index, report): (usize, &&Report)| Line { name: labelled(index, what), points: of(report) };
        repeats.iter().enumerate().map(line).collect()
    };
    let curve = lines("", &|report| report.quantiles.clone());
    text += &chart::svg("latency by quantile", "quantile", "ms", Scale::Quantile, Scale::Log, &curve)?;
    if repeats.iter().any(|report| !report.series.is_empty()) {
        let over_time = |of: fn(&Sample) -> f64| {
            move |report: &Report| report.series.iter().map(|sample| (sample.seconds, of(sample))).collect::<Vec<_>>()
        };
        let throughput = lines("", &over_time(|sample| sample.per_s));
        let unit = format!("{}/s", last.unit());
        text += &chart::svg("throughput over time", "seconds", &unit, Scale::Linear, Scale::Linear, &throughput)?;
        let mut latency = lines("p50", &over_time(|sample| sample.p50_ms));
        latency.extend(lines("p99", &over_time(|sample| sample.p99_ms)));
        text += &chart::svg("latency over time", "seconds", "ms", Scale::Linear, Scale::Log, &latency)?;
        text += &chart::svg("load of each CPU", "seconds", "% busy", Scale::Linear, Scale::Linear, &cpus(last))?;
    }
    Ok(text + "</div>\n")
}

/// The load of each CPU over time. The caller passes the last run.
fn cpus(report: &Report) -> Vec<Line> {
    let count = report.series.iter().map(|sample| sample.cpus.len()).max().unwrap_or(0);
    let points = |cpu: usize| {
        let point = |sample: &Sample| Some((sample.seconds, sample.cpus.get(cpu)? * 100.0));
        report.series.iter().filter_map(point).collect()
    };
    (0..count).map(|cpu| Line { name: format!("CPU {cpu}"), points: points(cpu) }).collect()
}

/// The machine's limits, the shares of them, and the workload's extra figures.
fn shares_table(report: &Report) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    for line in report.ceiling.to_text().lines() {
        let (what, value) = line.split_once(": ").unwrap_or((line, ""));
        rows.push((what.to_owned(), value.to_owned()));
    }
    let spaced = |name: &str| name.replace('_', " ");
    rows.extend(report.shares.iter().map(|(name, value)| (spaced(name), shares::written(name, *value))));
    let scalars = report.extra.iter().filter(|(_, value)| !value.is_array() && !value.is_object());
    rows.extend(
        scalars.map(|(name, value)| (spaced(name), value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
    );
    if rows.is_empty() {
        return String::new();
    }
    let row =
        |(what, value): &(String, String)| format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(what), escaped(value));
    format!("<table>{}</table>\n", rows.iter().map(row).collect::<String>())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_every_run_and_nothing_from_elsewhere() {
        let sample =
            Sample { seconds: 1.0, per_s: 10.0, p50_ms: 1.0, p99_ms: 2.0, cpus: vec![0.5], ..Sample::default() };
        let report = |workload: &str| Report {
            workload: workload.to_owned(),
            records_per_s: Some(1234.0),
            quantiles: vec![(0.5, 1.0), (0.99, 2.0)],
            series: vec![sample.clone(), Sample { seconds: 2.0, ..sample.clone() }],
            first_error: Some("<b>".to_owned()),
            ..Report::default()
        };
        let page = page("t & t", &[report("produce"), report("produce"), report("consume")]).unwrap();
        assert_eq!(page.matches("<h2>").count(), 2, "repeats share a section");
        assert_eq!(page.matches("<svg").count(), 8);
        assert!(page.contains("t &amp; t") && page.contains("run 2") && page.contains("1,234 records"));
        assert!(!page.contains("<b>") && !page.contains("src=") && !page.contains("href="));
    }
}
