//! What all workloads against a broker share: threads, the live line, and the merge of what they found.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::clock;
use crate::report::with_commas;
use crate::rt;
use crate::setup::Lane;
use crate::stats::{Live, Tally, histogram, quantile_ms};

/// From the start of the threads to the first record: time to connect.
const LEAD: Duration = Duration::from_millis(200);
/// Between two updates of the live line.
const UPDATE: Duration = Duration::from_secs(1);

/// When a run begins, when it is measured from, and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub start_ns: u64,
    pub measured_from_ns: u64,
    pub end_ns: u64,
}

impl Window {
    pub fn new(warm_up: Duration, duration: Duration) -> Window {
        let start_ns = clock::now_ns() + LEAD.as_nanos() as u64;
        let measured_from_ns = start_ns + warm_up.as_nanos() as u64;
        Window { start_ns, measured_from_ns, end_ns: measured_from_ns + duration.as_nanos() as u64 }
    }

    pub fn duration_ns(&self) -> u64 {
        self.end_ns - self.start_ns
    }
}

/// What a run found, and how busy its busiest thread was.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tally: Tally,
    pub thread_cpu_share_max: f64,
}

/// Runs one future per lane, spread over the threads; shows progress until all have ended.
pub fn drive<F>(
    threads: usize,
    cpus: &[usize],
    lanes: Vec<Lane>,
    window: Window,
    work: impl Fn(usize, Lane, Arc<Live>) -> F + Clone + Send + 'static,
) -> io::Result<Outcome>
where
    F: Future<Output = Tally> + 'static,
{
    let thread_count = threads.min(lanes.len());
    let lives: Vec<Arc<Live>> = (0..thread_count).map(|_| Arc::default()).collect();
    let mut shares: Vec<Vec<(usize, Lane)>> = vec![Vec::new(); thread_count];
    for (index, lane) in lanes.into_iter().enumerate() {
        shares[index % thread_count].push((index, lane));
    }
    let (ended, all_ended) = mpsc::channel::<()>();
    let mut threads = Vec::new();
    for (thread, share) in shares.into_iter().enumerate() {
        let (live, work, ended) = (lives[thread].clone(), work.clone(), ended.clone());
        let cpu = cpus.get(thread % cpus.len().max(1)).copied();
        threads.push(rt::spawn_thread(&format!("load-{thread}"), cpu, move || async move {
            // Dropped when the thread's work is done, or has panicked.
            let _ended = ended;
            let cpu_ns = clock::thread_cpu_ns();
            let tasks: Vec<_> = share.into_iter().map(|(i, lane)| rt::spawn(work(i, lane, live.clone()))).collect();
            let mut tally = Tally::default();
            for task in tasks {
                tally.add(task.join().await);
            }
            tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
            tally
        })?);
    }
    drop(ended);
    show_until(&all_ended, &lives, window);
    let mut outcome = Outcome::default();
    for thread in threads {
        let tally = thread.join()?;
        // The CPU time is that of the whole thread, the span only the measured part: at most a slight overstatement.
        let wall_ns = (tally.span_ns + (window.measured_from_ns - window.start_ns)).max(1);
        outcome.thread_cpu_share_max = outcome.thread_cpu_share_max.max(tally.cpu_ns as f64 / wall_ns as f64);
        outcome.tally.add(tally);
    }
    Ok(outcome)
}

/// The live line on standard error: overwritten on a terminal, else one line every few seconds.
fn show_until(ended: &mpsc::Receiver<()>, lives: &[Arc<Live>], window: Window) {
    let terminal = io::stderr().is_terminal();
    let (mut before, mut before_ns, mut updates) = ((0, 0), clock::now_ns(), 0u64);
    while ended.recv_timeout(UPDATE) == Err(RecvTimeoutError::Timeout) {
        let sum = |field: fn(&Live) -> u64| lives.iter().map(|live| field(live)).sum::<u64>();
        let records = sum(|live| live.records.load(Ordering::Relaxed));
        let bytes = sum(|live| live.bytes.load(Ordering::Relaxed));
        let errors = sum(|live| live.errors.load(Ordering::Relaxed));
        let mut recent = histogram();
        for taken in lives.iter().filter_map(|live| live.take()) {
            recent.add(&taken).expect("all have the same bounds");
        }
        let now_ns = clock::now_ns();
        let seconds = (now_ns - before_ns) as f64 / 1e9;
        let line = format!(
            "{:>4} s{}  {:>11} records/s  {:>8.1} MB/s  p50 {:.3} ms  p99 {:.3} ms  max {:.3} ms  errors {errors}",
            now_ns.saturating_sub(window.start_ns) / 1_000_000_000,
            if now_ns < window.measured_from_ns { " (warm-up)" } else { "" },
            with_commas(((records - before.0) as f64 / seconds) as u64),
            (bytes - before.1) as f64 / seconds / 1e6,
            quantile_ms(&recent, 0.5),
            quantile_ms(&recent, 0.99),
            quantile_ms(&recent, 1.0),
        );
        (before, before_ns, updates) = ((records, bytes), now_ns, updates + 1);
        if terminal {
            eprint!("\r\x1b[K{line}");
            _ = io::stderr().flush();
        } else if updates.is_multiple_of(5) {
            eprintln!("{line}");
        }
    }
    if terminal && updates > 0 {
        eprintln!();
    }
}
