//! The common part of all workloads against a broker: threads, the live line, and the merge of the results.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::clock;
use crate::figures::outcome::{Outcome, Sample};
use crate::figures::stats::{Live, Tally, histogram, quantile_ms};
use crate::figures::with_commas;
use crate::load::setup::Lane;
use crate::load::window::Window;
use crate::machine::cpu_load::CpuTimes;
use crate::machine::environment;
use crate::options::ThreadOptions;
use crate::rt;

/// Bounds of the sample interval, which is a fortieth of the run.
const SAMPLE_MIN: Duration = Duration::from_millis(250);
const SAMPLE_MAX: Duration = Duration::from_secs(1);
/// Interval between two live lines, on a terminal and elsewhere.
const LINE_ON_TERMINAL_NS: u64 = 1_000_000_000;
const LINE_NS: u64 = 5_000_000_000;

/// Distributes the lanes over the threads and runs one future per lane. Shows progress until all threads have ended.
pub fn drive<F>(
    options: &ThreadOptions,
    lanes: Vec<Lane>,
    window: Window,
    work: impl Fn(usize, Lane, Arc<Live>) -> F + Clone + Send + 'static,
) -> io::Result<Outcome>
where
    F: Future<Output = Tally> + 'static,
{
    check_cpus(options)?;
    let thread_count = options.threads.min(lanes.len());
    let lives: Vec<Arc<Live>> = (0..thread_count).map(|_| Arc::default()).collect();
    let mut shares: Vec<Vec<(usize, Lane)>> = vec![Vec::new(); thread_count];
    for (index, lane) in lanes.into_iter().enumerate() {
        shares[index % thread_count].push((index, lane));
    }
    let (ended, all_ended) = mpsc::channel::<()>();
    let mut threads = Vec::new();
    for (thread, share) in shares.into_iter().enumerate() {
        let (live, work, ended) = (lives[thread].clone(), work.clone(), ended.clone());
        let cpu = options.cpus.get(thread % options.cpus.len().max(1)).copied();
        threads.push(rt::spawn_thread(&format!("load-{thread}"), cpu, move || async move {
            // Dropped when the thread's work ends or panics; the last drop ends `watch`.
            let _ended = ended;
            let (begin_ns, cpu_ns) = (clock::now_ns(), clock::thread_cpu_ns());
            let tasks: Vec<_> = share.into_iter().map(|(i, lane)| rt::spawn(work(i, lane, live.clone()))).collect();
            let mut tally = Tally::default();
            for task in tasks {
                tally.add(task.join().await);
            }
            tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
            (tally, clock::now_ns().saturating_sub(begin_ns.max(window.start_ns)))
        })?);
    }
    drop(ended);
    let mut outcome = Outcome { series: watch(&all_ended, &lives, window), ..Outcome::default() };
    for thread in threads {
        let (tally, wall_ns) = thread.join()?;
        let share = tally.cpu_ns as f64 / wall_ns.max(1) as f64;
        outcome.thread_cpu_share_max = outcome.thread_cpu_share_max.max(share);
        outcome.tally.add(tally);
    }
    Ok(outcome)
}

/// Rejects CPUs that this process may not use.
pub fn check_cpus(options: &ThreadOptions) -> io::Result<()> {
    let allowed = environment::allowed_cpu_numbers();
    match options.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => Err(io::Error::other(format!("--cpus {cpu}: this process may run on {allowed:?} only"))),
    }
}

/// Takes samples and shows them until all threads have ended.
pub fn watch(ended: &mpsc::Receiver<()>, lives: &[Arc<Live>], window: Window) -> Vec<Sample> {
    let every = (Duration::from_nanos(window.duration_ns()) / 40).clamp(SAMPLE_MIN, SAMPLE_MAX);
    let mut line = Line::new();
    let mut sampler = Sampler::new(window);
    let mut series = Vec::new();
    while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let sample = sampler.sample(lives);
        // After the end, threads only wait for outstanding answers; there is nothing more to show.
        if clock::now_ns() <= window.end_ns {
            line.show(&sample, window);
            series.push(sample);
        }
    }
    line.end();
    series
}

struct Sampler {
    window: Window,
    before: (u64, u64),
    before_ns: u64,
    cpu_times: CpuTimes,
}

impl Sampler {
    fn new(window: Window) -> Sampler {
        Sampler { window, before: (0, 0), before_ns: clock::now_ns(), cpu_times: CpuTimes::now() }
    }

    fn sample(&mut self, lives: &[Arc<Live>]) -> Sample {
        let sum = |field: fn(&Live) -> u64| lives.iter().map(|live| field(live)).sum::<u64>();
        let records = sum(|live| live.records.load(Ordering::Relaxed));
        let bytes = sum(|live| live.bytes.load(Ordering::Relaxed));
        let mut recent = histogram();
        for taken in lives.iter().filter_map(|live| live.take()) {
            recent.add(&taken).expect("all have the same bounds");
        }
        let now_ns = clock::now_ns();
        let seconds = (now_ns - self.before_ns) as f64 / 1e9;
        let cpu_times = CpuTimes::now();
        let sample = Sample {
            seconds: now_ns.saturating_sub(self.window.start_ns) as f64 / 1e9,
            per_s: (records - self.before.0) as f64 / seconds,
            mb_per_s: (bytes - self.before.1) as f64 / seconds / 1e6,
            p50_ms: quantile_ms(&recent, 0.5),
            p99_ms: quantile_ms(&recent, 0.99),
            max_ms: quantile_ms(&recent, 1.0),
            errors: sum(|live| live.errors.load(Ordering::Relaxed)),
            cpus: cpu_times.busy_since(&self.cpu_times),
        };
        (self.before, self.before_ns, self.cpu_times) = ((records, bytes), now_ns, cpu_times);
        sample
    }
}

/// The live line on standard error. A terminal shows one line that is overwritten; otherwise a line is printed every
/// few seconds.
struct Line {
    on_terminal: bool,
    shown_ns: u64,
    any: bool,
}

impl Line {
    fn new() -> Line {
        Line { on_terminal: io::stderr().is_terminal(), shown_ns: clock::now_ns(), any: false }
    }

    fn show(&mut self, sample: &Sample, window: Window) {
        let now_ns = clock::now_ns();
        if now_ns - self.shown_ns < if self.on_terminal { LINE_ON_TERMINAL_NS } else { LINE_NS } {
            return;
        }
        (self.shown_ns, self.any) = (now_ns, true);
        let line = format!(
            "{:>4.0} s{}  {:>11}/s  {:>8.1} MB/s  p50 {:.3} ms  p99 {:.3} ms  max {:.3} ms  errors {}",
            sample.seconds,
            if now_ns < window.measured_from_ns { " (warm-up)" } else { "" },
            with_commas(sample.per_s as u64),
            sample.mb_per_s,
            sample.p50_ms,
            sample.p99_ms,
            sample.max_ms,
            sample.errors,
        );
        if self.on_terminal {
            eprint!("\r\x1b[K{line}");
            _ = io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        if self.on_terminal && self.any {
            eprintln!();
        }
    }
}
