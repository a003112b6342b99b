//! Running seeds: one, or many on all CPUs, with progress.

use crate::{
    cluster::run,
    exec,
    ledger::Violation,
    options::{Options, bug_name},
    summary::Summary,
};
use std::{
    fmt::Write as _,
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{self, format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use types::planted::Bug;

/// Where the seeds for planted bugs begin: other seeds than those that are usually run.
pub(crate) const PLANTED_FROM: u64 = 1_000_000;
/// How often progress is printed.
const PROGRESS: Duration = Duration::from_secs(10);

/// Prefixes log lines with the broker, and with the virtual time since the beginning.
struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        match exec::present() {
            Some((process, time)) => write!(out, "{:>10.6} broker {process}", time.as_secs_f64()),
            None => out.write_str("nobody"),
        }
    }
}

/// Prints the brokers' logs that pass this filter.
pub(crate) fn log(filter: Option<&str>) {
    let Some(filter) = filter else { return };
    let filter: Targets = filter.parse().unwrap_or_else(|error| {
        eprintln!("sim: --log {filter}: {error}; a filter is, for example, engine=debug,wal=info");
        std::process::exit(2);
    });
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_timer(Virtual).with_filter(filter);
    tracing_subscriber::registry().with(lines).init();
}

/// Runs a seed, and turns a panic into a violation.
pub(crate) fn run_caught(seed: u64, cores: Option<u8>, bug: Option<Bug>) -> Result<Summary, Violation> {
    catch_unwind(AssertUnwindSafe(|| run(seed, cores, bug))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    })
}

/// The command that runs this seed again.
pub(crate) fn replay(seed: u64, cores: Option<u8>, bug: Option<Bug>) -> String {
    let mut command = format!("cargo run --release -p sim -- --seed {seed}");
    if let Some(cores) = cores {
        _ = write!(command, " --cores {cores}");
    }
    if let Some(bug) = bug {
        _ = write!(command, " --planted {}", bug_name(bug));
    }
    command
}

/// The runs of all threads.
struct Runs<'a> {
    options: &'a Options,
    /// The next seed to run.
    next: AtomicU64,
    /// Runs that have ended.
    done: AtomicU64,
    /// No further seed is begun.
    over: AtomicBool,
    total: Mutex<Summary>,
    /// By seed.
    violations: Mutex<Vec<(u64, Violation)>>,
}

impl Runs<'_> {
    /// Runs one seed after the other until `until`, or `last` was run.
    fn go_on(&self, last: Option<u64>, until: Option<Instant>) {
        while !self.over.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if last.is_some_and(|last| seed > last) {
                return;
            }
            match run_caught(seed, self.options.cores, self.options.planted) {
                Ok(summary) => self.total.lock().unwrap_or_else(PoisonError::into_inner).add(&summary),
                Err(violation) => {
                    self.over.fetch_or(self.options.planted.is_some(), Ordering::Relaxed);
                    self.tell(seed, &violation);
                    self.violations.lock().unwrap_or_else(PoisonError::into_inner).push((seed, violation));
                }
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell(&self, seed: u64, violation: &Violation) {
        let Options { cores, planted, .. } = self.options;
        match planted {
            Some(bug) => println!("{} is seen by seed {seed}: {violation}", bug_name(*bug)),
            None => println!("seed {seed}: {violation}\n  replay: {}", replay(seed, *cores, *planted)),
        }
    }
}

/// The runs that have ended.
pub(crate) struct Ran {
    first: u64,
    pub(crate) done: u64,
    pub(crate) total: Summary,
    pub(crate) violations: Vec<(u64, Violation)>,
}

/// Runs the seeds that the options ask for, and exits as the program does.
pub(crate) fn run_many(options: &Options) -> ExitCode {
    // Panics are violations, and told as such.
    if options.seed.is_none() {
        panic::set_hook(Box::new(|_| {}));
    }
    let Ran { first, done, total, violations } = run_all(options);
    println!("{total:?}");
    println!("seeds {first} to {}: {done} runs, {} violations", (first + done).max(first + 1) - 1, violations.len());
    let well = violations.is_empty() != options.planted.is_some();
    if !well && options.planted.is_some() {
        println!("no seed has shown the planted bug");
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds that the options ask for.
pub(crate) fn run_all(options: &Options) -> Ran {
    let usual = if options.planted.is_some() { PLANTED_FROM } else { 0 };
    let first = options.seed.or(options.from).unwrap_or(usual);
    let count = if options.seed.is_some() { 1 } else { options.seeds };
    let last = options.minutes.is_none().then(|| first + count - 1);
    let begun = Instant::now();
    let until = options.minutes.map(|minutes| begun + Duration::from_secs(60 * minutes));
    let threads = match options.threads {
        Some(threads) => usize::from(threads),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let runs = Runs {
        options,
        next: AtomicU64::new(first),
        done: AtomicU64::new(0),
        over: AtomicBool::new(false),
        total: Mutex::default(),
        violations: Mutex::default(),
    };
    thread::scope(|scope| {
        let working: Vec<_> = (0..threads).map(|_| scope.spawn(|| runs.go_on(last, until))).collect();
        let mut told = Instant::now();
        while !working.iter().all(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let violations = runs.violations.lock().unwrap_or_else(PoisonError::into_inner).len();
                let done = runs.done.load(Ordering::Relaxed);
                eprintln!("{done} seeds, {violations} violations, {} s", begun.elapsed().as_secs());
            }
        }
    });
    Ran {
        first,
        done: runs.done.into_inner(),
        total: runs.total.into_inner().unwrap_or_else(PoisonError::into_inner),
        violations: runs.violations.into_inner().unwrap_or_else(PoisonError::into_inner),
    }
}
