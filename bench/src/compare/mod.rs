//! `compare`: compares two files of results figure by figure, with confidence bounds.

pub(crate) mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::compare::stats::{REPEATS_MIN, Ratio};
use crate::error::AnyError;
use crate::options::compare::CompareOptions;
use crate::report::Report;

/// Confidence that a whole table contains no false difference.
const CONFIDENCE: f64 = 0.98;
/// Options that say where a run happened, not what it measured.
const NO_PART_OF_THE_CASE: [&str; 12] = [
    "bootstrap",
    "peer",
    "topic",
    "json",
    "out",
    "report",
    "repeat",
    "no-ceiling",
    "disk-dir",
    "data-dir",
    "pid-dir",
    "binary",
];

pub fn run(options: &CompareOptions) -> Result<(), AnyError> {
    if let (Some(a), Some(b)) = (&options.run_a, &options.run_b) {
        run_in_turns(options, a, b)?;
    }
    let rows = rows(&read(&options.a)?, &read(&options.b)?);
    if rows.is_empty() {
        let (a, b) = (options.a.display(), options.b.display());
        return Err(format!("{a} and {b} have no workload in common").into());
    }
    let text = table(&rows);
    if options.json {
        eprint!("{text}");
        println!("{}", serde_json::to_string(&Verdicts { differences: differences(&rows), rows })?);
    } else {
        print!("{text}");
    }
    Ok(())
}

/// Runs both command lines `repeat` times each, in the order A B B A A B B A. Each run appends to its own file.
fn run_in_turns(options: &CompareOptions, a: &str, b: &str) -> Result<(), AnyError> {
    for number in 0..options.repeat {
        let mut turn = [(a, &options.a), (b, &options.b)];
        if number % 2 == 1 {
            turn.reverse();
        }
        for (line, file) in turn {
            eprintln!("run {} of {}: {line}", number + 1, options.repeat);
            let mut command = Command::new(std::env::current_exe()?);
            command.args(line.split_whitespace()).arg("--out").arg(file).stdout(Stdio::null()).stderr(Stdio::piped());
            let output = command.output()?;
            if !output.status.success() {
                return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim_end()).into());
            }
        }
    }
    Ok(())
}

/// Reads the results of a file: one JSON object per line. Other lines are terminal output and are skipped.
pub fn read(file: &Path) -> Result<Vec<Report>, AnyError> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let objects = text.lines().enumerate().filter(|(_, line)| line.starts_with('{'));
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| format!("{}:{}: {e}", file.display(), at + 1))
    };
    let reports: Vec<Report> = objects.map(parse).collect::<Result<_, _>>()?;
    if reports.is_empty() {
        return Err(format!("{}: it has no result; runs write them with --out FILE or --json", file.display()).into());
    }
    Ok(reports)
}

/// The JSON object that --json prints.
#[derive(Debug, Serialize)]
struct Verdicts {
    differences: usize,
    rows: Vec<Row>,
}

/// One figure of one workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub case: String,
    pub figure: String,
    pub a_median: f64,
    pub b_median: f64,
    pub a_runs: usize,
    pub b_runs: usize,
    pub interleaved: bool,
    pub ratio: f64,
    /// `None` if there are too few repeats.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub verdict: &'static str,
}

/// A figure's name, whether a higher value is better, and how to read it.
type Figure = (&'static str, bool, fn(&Report) -> f64);

const FIGURES: [Figure; 3] =
    [("per second", true, Report::per_s), ("p50 ms", false, |r| r.p50_ms), ("p99 ms", false, |r| r.p99_ms)];

pub fn rows(a: &[Report], b: &[Report]) -> Vec<Row> {
    let (a, b) = (by_case(a), by_case(b));
    let common: Vec<&String> = a.keys().filter(|case| b.contains_key(*case)).collect();
    // Bonferroni correction: CONFIDENCE holds for all verdicts together.
    let verdicts = (common.len() * FIGURES.len()).max(1) as f64;
    let confidence = 1.0 - (1.0 - CONFIDENCE) / verdicts;
    let mut rows = Vec::new();
    for case in common {
        let (a, b) = (in_time(&a[case]), in_time(&b[case]));
        let times = |runs: &[&Report]| -> Vec<f64> { runs.iter().map(|run| run.unix_seconds).collect() };
        let interleaved = stats::are_interleaved(&times(&a), &times(&b));
        for (figure, more_is_better, of) in FIGURES {
            let values = |runs: &[&Report]| -> Vec<f64> { runs.iter().map(|run| of(run)).collect() };
            let (a_values, b_values) = (values(&a), values(&b));
            let ratio = stats::ratio(&a_values, &b_values, interleaved, confidence);
            rows.push(Row {
                case: case.clone(),
                figure: figure.to_owned(),
                a_median: median(&a_values),
                b_median: median(&b_values),
                a_runs: a.len(),
                b_runs: b.len(),
                interleaved,
                ratio: ratio.map_or(median(&b_values) / median(&a_values), |ratio| ratio.ratio),
                low: ratio.map(|ratio| ratio.low),
                high: ratio.map(|ratio| ratio.high),
                verdict: verdict(ratio, more_is_better),
            });
        }
    }
    rows
}

fn verdict(ratio: Option<Ratio>, more_is_better: bool) -> &'static str {
    match ratio {
        None => "too few repeats",
        Some(ratio) if !ratio.is_difference() => "no difference",
        Some(ratio) if (ratio.ratio > 1.0) == more_is_better => "B is better",
        Some(_) => "B is worse",
    }
}

pub fn differences(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.verdict.starts_with("B is")).count()
}

fn in_time<'a>(runs: &[&'a Report]) -> Vec<&'a Report> {
    let mut runs = runs.to_vec();
    runs.sort_by(|x, y| x.unix_seconds.total_cmp(&y.unix_seconds));
    runs
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// Groups runs of the same thing: the same case of a suite, or the same workload with the same options. Only options
/// that vary within the file count.
fn by_case(reports: &[Report]) -> BTreeMap<String, Vec<&Report>> {
    let mut varying: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for report in reports.iter().filter(|report| report.case.is_none()) {
        let others = reports.iter().filter(|other| other.case.is_none() && other.workload == report.workload);
        for other in others {
            let differ = |option: &&String| report.config.get(*option) != other.config.get(*option);
            let names = report.config.keys().filter(differ).map(String::as_str);
            varying
                .entry(&report.workload)
                .or_default()
                .extend(names.filter(|option| !NO_PART_OF_THE_CASE.contains(option)));
        }
    }
    let mut cases: BTreeMap<String, Vec<&Report>> = BTreeMap::new();
    for report in reports {
        let name = report.case.clone().unwrap_or_else(|| {
            let mut name = report.workload.clone();
            for option in varying.get(report.workload.as_str()).into_iter().flatten() {
                let value = report.config.get(*option).map_or("", String::as_str);
                name += &format!(" {option}={value}");
            }
            name
        });
        cases.entry(name).or_default().push(report);
    }
    cases
}

pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.case.len()).max().unwrap_or(0).max(8);
    let mut text = format!(
        "{:<width$}  {:<10}  {:>12}  {:>12}  {:>7}  {:>17}  verdict\n",
        "workload", "figure", "A (median)", "B (median)", "B / A", "bounds"
    );
    for row in rows {
        let number = |value: f64| if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        let ratio = format!("{:.3}", row.ratio);
        let bounds = row.low.zip(row.high).map_or_else(|| "-".to_owned(), |(l, h)| format!("{l:.3} … {h:.3}"));
        text += &format!(
            "{:<width$}  {:<10}  {:>12}  {:>12}  {ratio:>7}  {bounds:>17}  {}\n",
            row.case,
            row.figure,
            number(row.a_median),
            number(row.b_median),
            row.verdict
        );
    }
    let (fewest, most) = (
        rows.iter().map(|row| row.a_runs.min(row.b_runs)).min().unwrap_or(0),
        rows.iter().map(|row| row.a_runs.max(row.b_runs)).max().unwrap_or(0),
    );
    if fewest >= REPEATS_MIN {
        text += &format!(
            "{} of {} figures differ; {fewest} to {most} runs of each; bounds hold for all of them with {:.0} % confidence\n",
            differences(rows),
            rows.len(),
            CONFIDENCE * 100.0
        );
    } else {
        text +=
            &format!("bounds need at least {REPEATS_MIN} runs of each, and 12 for good ones; give more by --repeat\n");
    }
    if fewest >= REPEATS_MIN && rows.iter().any(|row| !row.interleaved) {
        text += "runs were not made in turns, so machine drift looks like a difference; use --run-a and --run-b\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(workload: &str, per_s: f64, at: f64, options: &[(&str, &str)]) -> Report {
        let config = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (p50_ms, p99_ms) = (1e6 / per_s, 2e6 / per_s);
        Report {
            workload: workload.to_owned(),
            records_per_s: Some(per_s),
            p50_ms,
            p99_ms,
            unix_seconds: at,
            config,
            ..Report::default()
        }
    }

    fn runs(factor: f64, at: f64) -> Vec<Report> {
        let noise = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03];
        let run = |(n, noise): (usize, &f64)| report("produce", 1e6 * noise * factor, at + n as f64, &[]);
        noise.iter().enumerate().map(run).collect()
    }

    #[test]
    fn a_slower_broker_is_worse_in_every_figure() {
        let verdicts = |b: &[Report]| -> Vec<&str> { rows(&runs(1.0, 0.0), b).iter().map(|row| row.verdict).collect() };
        assert_eq!(verdicts(&runs(1.0, 0.5)), ["no difference"; 3]);
        assert_eq!(verdicts(&runs(0.9, 0.5)), ["B is worse"; 3]);
        assert_eq!(verdicts(&runs(1.1, 100.0)), ["B is better"; 3]);
        assert_eq!(verdicts(&runs(0.5, 0.5)[..2]), ["too few repeats"; 3]);
    }

    #[test]
    fn an_option_that_varies_in_a_file_is_part_of_the_case() {
        let file = [
            report("produce", 1.0, 0.0, &[("partitions", "1"), ("linger", "5ms"), ("topic", "x")]),
            report("produce", 1.0, 1.0, &[("partitions", "16"), ("linger", "5ms"), ("topic", "y")]),
            report("consume", 1.0, 2.0, &[("partitions", "1")]),
        ];
        let cases: Vec<String> = by_case(&file).into_keys().collect();
        assert_eq!(cases, ["consume", "produce partitions=1", "produce partitions=16"]);
    }

    #[test]
    fn missing_repeats_and_turns_are_named() {
        let rows = rows(&runs(1.0, 0.0)[..1], &runs(1.0, 0.5)[..1]);
        assert!(table(&rows).contains("give more by --repeat"), "{}", table(&rows));
        let apart = super::rows(&runs(1.0, 0.0), &runs(1.0, 100.0));
        assert!(table(&apart).contains("not made in turns"), "{}", table(&apart));
    }
}
