//! One invocation of a workload: its repeats, and the output of its results.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::error::AnyError;
use crate::machine::environment::Environment;
use crate::options::RunOptions;
use crate::report::Report;
use crate::report::html;

/// Runs a workload as often as the options say. Prints and stores its results.
pub fn run(options: &RunOptions, mut once: impl FnMut() -> Result<Report, AnyError>) -> Result<(), AnyError> {
    let environment = Environment::of_this_machine(&options.disk_dir);
    environment.print();
    let mut reports = Vec::with_capacity(options.repeat);
    for number in 1..=options.repeat {
        let mut report = once()?;
        report.environment = environment.clone();
        report.config = options.config.clone();
        if let Some(error) = report.first_error.as_ref().filter(|_| report.count == 0) {
            return Err(error.clone().into());
        }
        let of = if options.repeat > 1 { format!("run {number} of {}\n", options.repeat) } else { String::new() };
        let text = format!("{of}{}", report.to_text());
        if options.json {
            eprint!("{text}")
        } else {
            print!("{text}")
        }
        if let Some(file) = &options.out {
            append(file, &report)?;
        }
        reports.push(report);
    }
    if let (Some(file), Some(first)) = (&options.report, reports.first()) {
        html::write(file, &format!("millrace-bench {}", first.workload), &reports)?;
    }
    if options.json
        && let Some(median) = median(&reports)
    {
        println!("{}", median.to_json());
    }
    Ok(())
}

/// Appends the report's JSON object to the file as one line.
pub fn append(file: &Path, report: &Report) -> Result<(), AnyError> {
    let failed = |e: std::io::Error| format!("cannot write results to {}: {e}", file.display());
    let mut out = OpenOptions::new().create(true).append(true).open(file).map_err(failed)?;
    out.write_all(format!("{}\n", report.to_json()).as_bytes()).map_err(failed)?;
    Ok(())
}

/// The run with the median throughput. For an even number of runs, the lower of the two middle ones.
fn median(reports: &[Report]) -> Option<&Report> {
    let mut by_rate: Vec<&Report> = reports.iter().collect();
    by_rate.sort_by(|a, b| a.per_s().total_cmp(&b.per_s()));
    by_rate.get(by_rate.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_run_is_in_the_middle() {
        let reports = |rates: &[f64]| -> Vec<Report> {
            rates.iter().map(|rate| Report { records_per_s: Some(*rate), ..Report::default() }).collect()
        };
        for (rates, want) in [
            ([3.0, 1.0, 2.0].as_slice(), Some(2.0)),
            (&[4.0, 1.0, 2.0, 3.0], Some(2.0)),
            (&[7.0], Some(7.0)),
            (&[], None),
        ] {
            assert_eq!(median(&reports(rates)).map(Report::per_s), want, "{rates:?}");
        }
    }
}
