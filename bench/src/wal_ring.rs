//! Workload `wal`: appends through the ring on each disk backend, beside raw O_DIRECT write + fdatasync by plain system
//! calls, in the same directory and one after the other. Needs no broker.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use wal::disk::Disk;
use wal::disk_uring::UringDisk;
use wal::journal::Journal;
use wal::record::{Entry, GroupId, HardState, Span};
use wal::ring::RingConfig;
use wal::store::Admission;

use crate::ceiling::{Ceiling, RawDisk};
use crate::clock;
use crate::options::WalOptions;
use crate::report::with_commas;
use crate::rt;
use crate::stats::{histogram, quantile_ms};

const RING_BYTES: u64 = 256 << 20;
/// Stands for the descriptor that rides with each batch.
const DESCRIPTOR_BYTES: usize = 40;

/// One backend's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    backend: &'static str,
    ops_per_s: f64,
    mb_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    /// Writes to the disk, each with its sync: fewer than appends where those that waited together shared one.
    writes: u64,
    errors: u64,
}

/// The JSON object: the figures of the backend that a broker uses, then all of them.
#[derive(Debug, Serialize)]
struct WalReport {
    workload: &'static str,
    #[serde(flatten)]
    first: Figures,
    /// The ring's median, as a multiple of the raw write's.
    p50_to_raw: f64,
    backends: Vec<Figures>,
    ceiling: Ceiling,
}

pub fn run(options: &WalOptions) -> Result<(), Box<dyn Error>> {
    let ceiling = Ceiling::measure(&options.run);
    // Half before the ring and half after it: a disk's mood changes within a minute.
    let mut raw_disk = RawDisk::create(&options.run.disk_dir)?;
    let mut raw_ns = raw_disk.write_sync_for(options.record_size, options.run.duration / 2)?;
    let mut backends = vec![measure("uring", options, UringDisk::new)?];
    raw_ns.add(&raw_disk.write_sync_for(options.record_size, options.run.duration / 2)?)?;
    drop(raw_disk);
    backends.push(figures("raw", &raw_ns, options, raw_ns.len(), options.run.duration.as_nanos() as u64));
    print(options, backends, ceiling);
    Ok(())
}

/// Runs one backend on a thread of its own.
fn measure<D: Disk>(
    backend: &'static str,
    options: &WalOptions,
    disk: impl FnOnce() -> io::Result<D> + Send + 'static,
) -> Result<Figures, Box<dyn Error>> {
    let dir = Scratch::new(&options.run.disk_dir, backend)?;
    let (path, size, lanes, duration) = (dir.0.clone(), options.record_size, options.in_flight, options.run.duration);
    let work = move || async move { load(disk, &path, size, lanes, duration).await.map_err(|e| e.to_string()) };
    let (latency_ns, writes, span_ns) = rt::spawn_thread(backend, None, work)?.join()??;
    Ok(figures(backend, &latency_ns, options, writes, span_ns))
}

/// Keeps `lanes` appends outstanding for so long. Returns how long each took, how many writes there were, and the time.
async fn load<D: Disk>(
    disk: impl FnOnce() -> io::Result<D>,
    dir: &Path,
    size: usize,
    lanes: usize,
    duration: Duration,
) -> Result<(Histogram<u64>, u64, u64), Box<dyn Error>> {
    let disk = disk()?;
    disk.create_dir(dir).await?;
    let (journal, _) = Journal::open(disk, dir, 0, RingConfig::of_bytes(RING_BYTES)).await?;
    let writer = rt::spawn({
        let journal = journal.clone();
        async move { journal.run().await }
    });
    let begin_ns = clock::now_ns();
    let end_ns = begin_ns + duration.as_nanos() as u64;
    let latency_ns = Rc::new(RefCell::new(histogram()));
    let writes_before = journal.stats().writes;
    let tasks: Vec<_> = (0..lanes as u64)
        .map(|lane| rt::spawn(append_until(journal.clone(), GroupId(lane + 1), size, end_ns, latency_ns.clone())))
        .collect();
    for task in tasks {
        task.join().await?;
    }
    let (writes, span_ns) = (journal.stats().writes - writes_before, clock::now_ns() - begin_ns);
    journal.close_clean().await?;
    writer.join().await?;
    let latency_ns = latency_ns.borrow().clone();
    Ok((latency_ns, writes, span_ns))
}

/// One lane: an append, its durability, the next. What is durable is given back at once, as if it had been flushed.
async fn append_until<D: Disk>(
    journal: Journal<D>,
    group: GroupId,
    size: usize,
    end_ns: u64,
    latency_ns: Rc<RefCell<Histogram<u64>>>,
) -> Result<(), Box<dyn Error>> {
    let data = Bytes::from(vec![0x5a; DESCRIPTOR_BYTES]);
    let payload = Bytes::from(vec![0xa5; size]);
    let mut index = 0;
    loop {
        let begin_ns = clock::now_ns();
        if begin_ns >= end_ns {
            return Ok(());
        }
        while journal.admit(DESCRIPTOR_BYTES + size) == Admission::Wait {
            journal.space_freed().await;
        }
        index += 1;
        let span = Span { base_offset: index - 1, count: 1, max_timestamp: -1 };
        let payload = Some((span, payload.clone()));
        let entry = Entry { index, term: 1, entry_type: 0, data: data.clone(), payload };
        let staged = journal.append(group, HardState { term: 1, vote: 1, commit: index - 1 }, &entry)?;
        while journal.durable() < staged.pos {
            journal.durable_past(journal.durable()).await?;
        }
        latency_ns.borrow_mut().saturating_record(clock::now_ns() - begin_ns);
        journal.release_below(staged.pos);
    }
}

fn figures(
    backend: &'static str,
    latency_ns: &Histogram<u64>,
    options: &WalOptions,
    writes: u64,
    span_ns: u64,
) -> Figures {
    let ops_per_s = latency_ns.len() as f64 * 1e9 / span_ns.max(1) as f64;
    Figures {
        backend,
        ops_per_s,
        mb_per_s: ops_per_s * options.record_size as f64 / 1e6,
        p50_ms: quantile_ms(latency_ns, 0.5),
        p99_ms: quantile_ms(latency_ns, 0.99),
        p999_ms: quantile_ms(latency_ns, 0.999),
        max_ms: latency_ns.max() as f64 / 1e6,
        writes,
        errors: 0,
    }
}

/// `backends`: the one that a broker uses first, the raw writes last.
fn print(options: &WalOptions, backends: Vec<Figures>, ceiling: Ceiling) {
    let (first, raw) = (backends[0].clone(), &backends[backends.len() - 1]);
    let p50_to_raw = if raw.p50_ms > 0.0 { first.p50_ms / raw.p50_ms } else { 0.0 };
    if options.run.json {
        let report = WalReport { workload: "wal", first, p50_to_raw, backends, ceiling };
        println!("{}", serde_json::to_string(&report).expect("numbers and strings"));
        return;
    }
    println!("{} bytes per append, {} at a time (raw: one at a time)", options.record_size, options.in_flight);
    for figures in &backends {
        println!(
            "{:<8} {:>9} appends/s  {:>8.1} MB/s  p50 {:.3} ms  p99 {:.3} ms  p99.9 {:.3} ms  max {:.3} ms  in {} writes",
            figures.backend,
            with_commas(figures.ops_per_s as u64),
            figures.mb_per_s,
            figures.p50_ms,
            figures.p99_ms,
            figures.p999_ms,
            figures.max_ms,
            with_commas(figures.writes),
        );
    }
    println!("the ring's median is {p50_to_raw:.2} times that of a raw write + fdatasync");
    ceiling.print();
}

/// A directory of this run's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path, name: &str) -> io::Result<Scratch> {
        let dir = parent.join(format!("millrace-bench-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is left behind; there is nobody to tell.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::RunOptions;

    fn options(dir: &Path) -> WalOptions {
        let duration = Duration::from_millis(100);
        let run = RunOptions { duration, json: false, no_ceiling: true, disk_dir: dir.to_owned() };
        WalOptions { run, record_size: 1000, in_flight: 4 }
    }

    #[test]
    fn figures_follow_from_the_histogram() {
        let mut latency_ns = histogram();
        latency_ns.record_n(2_000_000, 500).unwrap();
        let figures = figures("raw", &latency_ns, &options(Path::new(".")), 500, 500_000_000);
        assert_eq!((figures.ops_per_s, figures.mb_per_s, figures.writes), (1000.0, 1.0, 500));
        assert!((figures.p50_ms - 2.0).abs() < 0.01, "{figures:?}");
    }

    #[test]
    fn appends_that_wait_together_share_writes() {
        let dir = std::env::current_dir().unwrap();
        let figures = measure("test", &options(&dir), UringDisk::new).unwrap();
        assert!(figures.ops_per_s > 0.0 && figures.p50_ms > 0.0, "{figures:?}");
        let appends = figures.ops_per_s * 0.1;
        assert!((figures.writes as f64) < appends, "{figures:?}");
        assert!(!dir.join(format!("millrace-bench-test-{}", std::process::id())).exists());
    }
}
