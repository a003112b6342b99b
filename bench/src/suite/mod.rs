//! `suite`: starts its own brokers, runs a set of cases against them, and writes the results.

pub(crate) mod cases;
pub(crate) mod peers;
pub(crate) mod system;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::Instant;

use serde_json::json;

use crate::brokers::binary;
use crate::brokers::local::Local;
use crate::error::AnyError;
use crate::load::setup;
use crate::machine::environment::{self, Environment};
use crate::options::Command;
use crate::options::suite::{Set, SuiteOptions};
use crate::report::Report;
use crate::report::html;
use crate::report::tables;
use crate::session;
use crate::suite::cases::{Against, Case};
use crate::workloads;

/// Directory of results and data, the broker's program, and the CPUs for brokers and clients.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    pub binary: PathBuf,
    pub environment: Environment,
    /// CPUs of a broker that gets half of the machine; `client_cpus` are those of its clients.
    pub broker_cpus: Vec<usize>,
    pub client_cpus: Vec<usize>,
    pub all_cpus: Vec<usize>,
}

pub fn run(options: &SuiteOptions) -> Result<(), AnyError> {
    let begin = Instant::now();
    if options.set != Set::Peers && !options.peers.is_empty() {
        return Err(format!("--peers is for the set peers, not {}", options.set.name()).into());
    }
    let place = place(options)?;
    place.environment.print();
    let mut failures = Vec::new();
    let reports = match options.set {
        Set::Quick | Set::Full => own(options, &place, &mut failures)?,
        Set::Peers => peers::run(options, &place, &mut failures)?,
    };
    let name = options.set.name();
    let (page, results) = (place.dir.join(format!("{name}.html")), place.dir.join(format!("{name}.json")));
    html::write(&page, &format!("millrace-bench suite {name}"), &reports)?;
    if results.exists() {
        fs::remove_file(&results)?;
    }
    for report in &reports {
        session::append(&results, report)?;
    }
    let text = tables::text(&reports);
    if options.json {
        eprint!("{text}")
    } else {
        print!("{text}")
    }
    if options.markdown {
        let tables = tables::markdown(options.set, &reports);
        if options.json { eprint!("{tables}") } else { print!("{tables}") }
    }
    eprintln!("{} runs in {} s; report: {}", reports.len(), begin.elapsed().as_secs(), page.display());
    eprintln!("results, as compare reads them: {}", results.display());
    for failure in &failures {
        eprintln!("FAILED {failure}");
    }
    if options.json {
        let errors: u64 = reports.iter().map(|report| report.errors).sum();
        println!(
            "{}",
            json!({ "set": name, "runs": reports.len(), "errors": errors, "failures": failures,
                    "seconds": begin.elapsed().as_secs(), "report": page, "results": results })
        );
    }
    if failures.is_empty() { Ok(()) } else { Err(format!("{} cases failed", failures.len()).into()) }
}

fn place(options: &SuiteOptions) -> Result<Place, AnyError> {
    let tree = Path::new("target");
    let default = if tree.is_dir() { tree.join("bench") } else { PathBuf::from(".") };
    let dir = options.dir.clone().unwrap_or(default);
    fs::create_dir_all(&dir).map_err(|e| format!("--dir {}: {e}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let binary = binary::millrace(options.binary.as_deref())?;
    let mut environment = Environment::of_this_machine(&dir);
    environment.broker = version(&binary);
    let all_cpus = environment::allowed_cpu_numbers();
    // The broker gets half of the CPUs. If there is only one, the broker and the client share it.
    let half = (all_cpus.len() / 2).max(1);
    let broker_cpus = all_cpus[..half].to_vec();
    let client_cpus = if all_cpus.len() > half { all_cpus[half..].to_vec() } else { all_cpus.clone() };
    Ok(Place { dir, binary, environment, broker_cpus, client_cpus, all_cpus })
}

fn version(binary: &Path) -> Option<String> {
    let output = Process::new(binary).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Quick and full: Millrace alone. Each kind of brokers is started once and runs all of its cases: one broker first,
/// then three, and so on.
fn own(options: &SuiteOptions, place: &Place, failures: &mut Vec<String>) -> Result<Vec<Report>, AnyError> {
    let wanted = |case: &Case| options.only.as_ref().is_none_or(|only| case.name.contains(only));
    let cases: Vec<Case> = cases::cases(options.set).into_iter().filter(wanted).collect();
    if cases.is_empty() {
        let names: Vec<String> = cases::cases(options.set).into_iter().map(|case| case.name).collect();
        return Err(format!("--only matches none of these cases: {}", names.join("; ")).into());
    }
    let mut reports = Vec::new();
    for _ in 0..options.repeat {
        for against in [Against::One, Against::Three, Against::OneOnAll, Against::Nothing] {
            let cases: Vec<&Case> = cases.iter().filter(|case| case.against == against).collect();
            if cases.is_empty() {
                continue;
            }
            if against == Against::OneOnAll && place.all_cpus.len() < 2 {
                cases.iter().for_each(|case| eprintln!("--- {}: not run, a broker has one core here", case.name));
                continue;
            }
            let local = match against {
                Against::Nothing => None,
                Against::One => Some(Local::start(&place.binary, &place.dir, 1, &place.broker_cpus)?),
                Against::Three => Some(Local::start(&place.binary, &place.dir, 3, &place.all_cpus)?),
                Against::OneOnAll => Some(Local::start(&place.binary, &place.dir, 1, &place.all_cpus)?),
            };
            for (at, case) in cases.iter().enumerate() {
                let fill = |line: &str| fill_in(line, place, local.as_ref());
                perform(case, "", &fill, &place.environment, &mut reports, failures);
                let is_read_later = cases[at + 1..].iter().any(|later| later.topic() == case.topic());
                if let Some(local) = local.as_ref().filter(|_| !is_read_later) {
                    delete_topic(case, &local.bootstrap()[0]);
                }
            }
        }
    }
    Ok(reports)
}

fn fill_in(line: &str, place: &Place, local: Option<&Local>) -> String {
    let line = fill_in_place(line, place);
    let Some(local) = local else { return line };
    line.replace("{bootstrap}", &local.bootstrap()[0])
        .replace("{peer}", &local.peer_options(1))
        .replace("{admin}", &local.admin().join(","))
        .replace("{data}", &local.data_dir().display().to_string())
}

/// Replaces the placeholders that do not depend on the brokers.
pub fn fill_in_place(line: &str, place: &Place) -> String {
    let cpus: Vec<String> = place.client_cpus.iter().map(usize::to_string).collect();
    line.replace("{disk}", &place.dir.display().to_string())
        .replace("{binary}", &place.binary.display().to_string())
        .replace("{cpus}", &cpus.join(","))
}

/// Deletes the topic that a case has written: the topics of all cases together would fill a disk.
pub fn delete_topic(case: &Case, bootstrap: &str) {
    if let Some(topic) = case.topic()
        && let Err(e) = setup::delete(bootstrap, topic)
    {
        eprintln!("    its topic stays: {e}");
    }
}

/// Runs one case. A failure is recorded, and the other cases still run.
pub fn perform(
    case: &Case,
    of: &str,
    fill: &dyn Fn(&str) -> String,
    environment: &Environment,
    reports: &mut Vec<Report>,
    failures: &mut Vec<String>,
) {
    let name = format!("{}{of}", case.name);
    let line = fill(&case.line);
    eprintln!("--- {name}\n    millrace-bench {line}");
    let words = std::iter::once("millrace-bench").chain(line.split_whitespace()).map(str::to_owned);
    let once = || -> Result<Report, AnyError> {
        let mut command = Command::parse_all(words.clone())?;
        let config = command.workload.run_options().map(|run| run.config.clone()).unwrap_or_default();
        let mut report = workloads::run_once(&command.workload)?;
        (report.case, report.config, report.environment) = (Some(name.clone()), config, environment.clone());
        match report.first_error.as_ref().filter(|_| report.count == 0) {
            Some(error) => Err(error.clone().into()),
            None => Ok(report),
        }
    };
    match once() {
        Ok(report) => {
            eprintln!("    {}", tables::one_line(&report));
            reports.push(report);
        }
        Err(e) => {
            eprintln!("    FAILED: {e}");
            failures.push(format!("{name}: {e}"));
        }
    }
}
