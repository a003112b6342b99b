//! `suite peers`: runs the same workloads against Millrace and other systems in turns, so that one run yields the
//! comparison.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::brokers::local::{Local, Scratch};
use crate::compare;
use crate::error::AnyError;
use crate::options::suite::{Peer, SuiteOptions};
use crate::report::Report;
use crate::suite::cases::{self, Against, Case};
use crate::suite::system::System;
use crate::suite::{self, Place};

/// Heap of each broker in a cluster of three Kafka brokers. For a single broker the script sets it.
const HEAP_OF_THREE: &str = "512m";
/// Ports to choose from for peers. A peer needs two ranges of ports, 100 apart.
const PORTS: std::ops::Range<u16> = 21_000..29_000;

const ALL: [Peer; 3] = [Peer::Kafka, Peer::KafkaFlush, Peer::Etcd];

/// A running system. Dropping this stops it.
enum Running {
    Millrace(Local),
    Script { script: PathBuf, dir: Scratch, bootstrap: String },
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Running::Script { script, dir, .. } = self {
            // A process that does not stop can be found by its directory; a destructor has nobody to report the error
            // to.
            _ = Command::new(script).arg("stop").arg("--dir").arg(dir.path()).stdout(Stdio::null()).status();
        }
    }
}

impl Running {
    fn bootstrap(&self) -> String {
        match self {
            Running::Millrace(local) => local.bootstrap()[0].clone(),
            Running::Script { bootstrap, .. } => bootstrap.clone(),
        }
    }

    fn fill_in(&self, line: &str, place: &Place) -> String {
        let line = suite::fill_in_place(line, place).replace("{bootstrap}", &self.bootstrap());
        match self {
            Running::Millrace(local) => line.replace("{peer}", &local.peer_options(1)),
            Running::Script { .. } => line,
        }
    }
}

pub fn run(options: &SuiteOptions, place: &Place, failures: &mut Vec<String>) -> Result<Vec<Report>, AnyError> {
    let mut systems = vec![System::Millrace];
    let named = if options.peers.is_empty() { &ALL } else { &options.peers[..] };
    for peer in named.iter().map(|peer| System::of(*peer)) {
        match missing(peer) {
            None => systems.push(peer),
            Some(why) => eprintln!("skipped {}: {why}", peer.name()),
        }
    }
    if systems.len() == 1 {
        return Err("none of --peers is available here; the reasons are above".into());
    }
    let wanted = |case: &Case| options.only.as_ref().is_none_or(|only| case.name.contains(only));
    let mut reports = Vec::new();
    for against in [Against::One, Against::Three] {
        // Each case, with the systems that support it.
        let mut turns: BTreeMap<usize, Vec<(System, Case)>> = BTreeMap::new();
        let mut names: Vec<String> = Vec::new();
        for system in &systems {
            for case in cases::peer_cases(*system).into_iter().filter(|c| c.against == against && wanted(c)) {
                let at = names.iter().position(|name| *name == case.name).unwrap_or_else(|| {
                    names.push(case.name.clone());
                    names.len() - 1
                });
                turns.entry(at).or_default().push((*system, case));
            }
        }
        // A case that only one system supports gives no comparison.
        turns.retain(|_, turn| turn.len() > 1);
        let mut running = BTreeMap::new();
        for system in &systems {
            if turns.values().flatten().any(|(of, _)| of == system) {
                eprintln!("starting {}", system.name());
                running.insert(*system, start(*system, against, place)?);
            }
        }
        for turn in turns.values_mut() {
            for number in 0..options.repeat {
                // Rotate the order, so that no system always comes first.
                turn.rotate_left(usize::from(number > 0));
                for (system, case) in turn.iter() {
                    let running = &running[system];
                    let of = format!(": {}", system.name());
                    let mut environment = place.environment.clone();
                    if *system != System::Millrace {
                        environment.broker = Some(system.name().to_owned());
                    }
                    let fill = |line: &str| running.fill_in(line, place);
                    suite::perform(case, &of, &fill, &environment, &mut reports, failures);
                    suite::delete_topic(case, &running.bootstrap());
                }
            }
        }
    }
    for system in &systems[1..] {
        print_beside(*system, &reports);
    }
    Ok(reports)
}

/// Prints Millrace as a multiple of another system, on standard error.
fn print_beside(system: System, reports: &[Report]) {
    let of = |system: System| -> Vec<Report> {
        let suffix = format!(": {}", system.name());
        let of_system = |report: &Report| {
            let case = report.case.as_ref()?.strip_suffix(&suffix)?.to_owned();
            Some(Report { case: Some(case), ..report.clone() })
        };
        reports.iter().filter_map(of_system).collect()
    };
    let rows = compare::rows(&of(system), &of(System::Millrace));
    if !rows.is_empty() {
        eprintln!("\nA is {}, B is Millrace", system.name());
        eprint!("{}", compare::table(&rows));
    }
}

/// Why a system can't be measured here; `None` if it can.
fn missing(system: System) -> Option<String> {
    let needs: &[&str] = match system {
        System::Millrace => &[],
        System::Kafka | System::KafkaFlush => &["java", "mvn", "bash", "taskset"],
        System::Etcd if !cfg!(feature = "etcd") => return Some("build with --features etcd".to_owned()),
        System::Etcd => &["etcd", "bash", "taskset"],
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&&str| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    needs.iter().find(has).map(|tool| format!("there is no program {tool}"))
}

fn start(system: System, against: Against, place: &Place) -> Result<Running, AnyError> {
    let count = if against == Against::Three { 3 } else { 1 };
    let cpus = if count == 3 { &place.all_cpus } else { &place.broker_cpus };
    let (script, flush) = match system {
        System::Millrace => return Ok(Running::Millrace(Local::start(&place.binary, &place.dir, count, cpus)?)),
        System::Kafka => ("kafka.sh", false),
        System::KafkaFlush => ("kafka.sh", true),
        System::Etcd => ("etcd.sh", false),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
    let dir = Scratch::new(&place.dir, "millrace-bench-peer")?;
    let port = free_port(count)?;
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    let mut command = Command::new(&script);
    command.args(["start", "--port", &port.to_string(), "--brokers", &count.to_string(), "--cpus", &cpus.join(",")]);
    command.arg("--dir").arg(dir.path()).args(flush.then_some("--flush")).stdin(Stdio::null());
    // The script also stops the system when this process is killed and can't stop it itself.
    command.args(["--until", &std::process::id().to_string()]);
    if count == 3 {
        command.env("HEAP", HEAP_OF_THREE);
    }
    // Create this before the script runs: if only some processes start, dropping it stops them.
    let mut running = Running::Script { script, dir, bootstrap: String::new() };
    let output = command.stderr(Stdio::inherit()).output()?;
    let address = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    match &mut running {
        Running::Script { bootstrap, .. } if output.status.success() => *bootstrap = address,
        _ => return Err(format!("cannot start {}; the reason is above", system.name()).into()),
    }
    Ok(running)
}

/// The first of `count` consecutive ports that are free now, with the ports 100 above them free too.
fn free_port(count: usize) -> Result<u16, AnyError> {
    let begin = PORTS.start + (std::process::id() as u16 % 4000);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let all = |port: &u16| (0..count as u16).all(|n| free(port + n) && free(port + 100 + n));
    (begin..PORTS.end).step_by(8).find(all).ok_or_else(|| format!("no free ports from {begin} to {}", PORTS.end).into())
}
