//! Workload `wal`: appends through the ring on each disk backend, compared with raw O_DIRECT write + fdatasync by
//! plain system calls. All use the same directory, one after the other. Needs no broker.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use types::{GroupId, HardState, RaftIndex, Term};
use wal::disk::Disk;
use wal::disk::glommio::GlommioDisk;
use wal::disk::uring::UringDisk;
use wal::record::{Entry, Span};
use wal::ring::RingConfig;
use wal::ring::journal::Journal;
use wal::store::Admission;

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Tally, histogram, quantile_ms};
use crate::figures::with_commas;
use crate::machine::ceiling::{Ceiling, RawDisk};
use crate::options::workloads::WalOptions;
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::rt;

const RING_BYTES: u64 = 256 << 20;
/// Stands for the descriptor that accompanies each batch.
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
    /// Writes to the disk, each followed by a sync. There are fewer writes than appends if appends that waited
    /// together shared one.
    writes: u64,
}

pub fn run(options: &WalOptions) -> Result<Report, AnyError> {
    let ceiling = Ceiling::measure(&options.run);
    // Measure raw writes half before and half after the rings: a disk's performance changes within a minute.
    let mut raw_disk = RawDisk::create(&options.run.disk_dir)?;
    let mut raw_ns = raw_disk.write_sync_for(options.record_size, options.run.duration / 2)?;
    let first = measure("uring", options, UringDisk::new)?;
    let mut backends = vec![first.figures(options)];
    backends.push(measure("glommio", options, || Ok(GlommioDisk))?.figures(options));
    #[cfg(feature = "rio")]
    backends.push(measure("rio", options, wal::disk::rio::RioDisk::new)?.figures(options));
    raw_ns.add(&raw_disk.write_sync_for(options.record_size, options.run.duration / 2)?)?;
    drop(raw_disk);
    let span_ns = options.run.duration.as_nanos() as u64;
    let raw = Measured { backend: "raw", writes: raw_ns.len(), latency_ns: raw_ns, span_ns, cpu_ns: 0 };
    let raw = raw.figures(options);
    let p50_to_raw = if raw.p50_ms > 0.0 { backends[0].p50_ms / raw.p50_ms } else { 0.0 };
    eprintln!("{} bytes per append, {} at a time (raw: one at a time)", options.record_size, options.in_flight);
    let backends: Vec<Figures> = backends.into_iter().chain([raw]).collect();
    backends.iter().for_each(Figures::print);
    let tally = Tally {
        records: first.latency_ns.len(),
        bytes: first.latency_ns.len() * options.record_size as u64,
        requests: first.writes,
        latency_ns: first.latency_ns,
        span_ns: first.span_ns,
        cpu_ns: first.cpu_ns,
        ..Tally::default()
    };
    let outcome = Outcome { tally, ..Outcome::default() };
    let report = Report::new("wal", Unit::Operations, outcome, ceiling).against(&[Share::DiskWrite, Share::WriteSync]);
    Ok(report.with_extra("p50_to_raw", p50_to_raw).with_extra("backends", serde_json::to_value(&backends)?))
}

/// Results of one backend in the measured time.
#[derive(Debug)]
struct Measured {
    backend: &'static str,
    latency_ns: Histogram<u64>,
    writes: u64,
    span_ns: u64,
    cpu_ns: u64,
}

/// Measures one backend on a thread of its own.
fn measure<D: Disk>(
    backend: &'static str,
    options: &WalOptions,
    disk: impl FnOnce() -> io::Result<D> + Send + 'static,
) -> Result<Measured, AnyError> {
    let dir = Scratch::new(&options.run.disk_dir, backend)?;
    let (path, options) = (dir.0.clone(), options.clone());
    let work = move || async move { load(backend, disk, &path, &options).await };
    rt::spawn_thread(backend, None, work)?.join()?
}

/// Keeps `in_flight` appends outstanding during the warm-up and the duration. Only the duration counts.
async fn load<D: Disk>(
    backend: &'static str,
    disk: impl FnOnce() -> io::Result<D>,
    dir: &Path,
    options: &WalOptions,
) -> Result<Measured, AnyError> {
    let disk = disk()?;
    disk.create_dir(dir).await?;
    let (journal, _) = Journal::open(disk, dir, 0, RingConfig::of_bytes(RING_BYTES)).await?;
    let writer = rt::spawn({
        let journal = journal.clone();
        async move { journal.run().await }
    });
    let latency_ns = Rc::new(RefCell::new(histogram()));
    // Each lane is a Raft group of its own. Its next index continues where the warm-up stopped.
    let last_index: Rc<RefCell<Vec<u64>>> = Rc::new(RefCell::new(vec![0; options.in_flight]));
    let mut begin_ns = clock::now_ns();
    let (mut writes_before, mut cpu_before_ns) = (journal.stats().writes, clock::thread_cpu_ns());
    for part in [options.run.warm_up, options.run.duration] {
        begin_ns = clock::now_ns();
        (writes_before, cpu_before_ns) = (journal.stats().writes, clock::thread_cpu_ns());
        latency_ns.borrow_mut().reset();
        let end_ns = begin_ns + part.as_nanos() as u64;
        let lane = |lane| {
            append_until(journal.clone(), lane, options.record_size, end_ns, last_index.clone(), latency_ns.clone())
        };
        let tasks: Vec<_> = (0..options.in_flight).map(|at| rt::spawn(lane(at))).collect();
        for task in tasks {
            task.join().await?;
        }
    }
    let (writes, span_ns) = (journal.stats().writes - writes_before, clock::now_ns() - begin_ns);
    let cpu_ns = clock::thread_cpu_ns() - cpu_before_ns;
    journal.close_clean().await?;
    writer.join().await?;
    let latency_ns = latency_ns.borrow().clone();
    Ok(Measured { backend, latency_ns, writes, span_ns, cpu_ns })
}

/// One lane: appends an entry, waits until it is durable, and repeats. Releases durable entries at once, as if they
/// had been flushed.
async fn append_until<D: Disk>(
    journal: Journal<D>,
    lane: usize,
    size: usize,
    end_ns: u64,
    last_index: Rc<RefCell<Vec<u64>>>,
    latency_ns: Rc<RefCell<Histogram<u64>>>,
) -> Result<(), AnyError> {
    let data = Bytes::from(vec![0x5a; DESCRIPTOR_BYTES]);
    let payload = Bytes::from(vec![0xa5; size]);
    let group = GroupId(lane as u64 + 1);
    let mut index = last_index.borrow()[lane];
    loop {
        let begin_ns = clock::now_ns();
        if begin_ns >= end_ns {
            last_index.borrow_mut()[lane] = index;
            return Ok(());
        }
        while journal.admit(DESCRIPTOR_BYTES + size) == Admission::Wait {
            journal.space_freed().await;
        }
        index += 1;
        let span = Span { base_offset: index - 1, count: 1, max_timestamp: -1 };
        let payload = Some((span, payload.clone()));
        let entry = Entry { index: RaftIndex::new(index), term: Term(1), entry_type: 0, data: data.clone(), payload };
        let staged =
            journal.append(group, HardState { term: Term(1), vote: 1, commit: RaftIndex::new(index - 1) }, &entry)?;
        while journal.durable() < staged.pos {
            journal.durable_past(journal.durable()).await?;
        }
        latency_ns.borrow_mut().saturating_record(clock::now_ns() - begin_ns);
        journal.release_below(staged.pos);
    }
}

impl Measured {
    fn figures(&self, options: &WalOptions) -> Figures {
        let ops_per_s = self.latency_ns.len() as f64 * 1e9 / self.span_ns.max(1) as f64;
        Figures {
            backend: self.backend,
            ops_per_s,
            mb_per_s: ops_per_s * options.record_size as f64 / 1e6,
            p50_ms: quantile_ms(&self.latency_ns, 0.5),
            p99_ms: quantile_ms(&self.latency_ns, 0.99),
            p999_ms: quantile_ms(&self.latency_ns, 0.999),
            max_ms: self.latency_ns.max() as f64 / 1e6,
            writes: self.writes,
        }
    }
}

impl Figures {
    fn print(&self) {
        eprintln!(
            "{:<8} {:>9} appends/s  {:>8.1} MB/s  p50 {:.3} ms  p99 {:.3} ms  p99.9 {:.3} ms  max {:.3} ms  in {} writes",
            self.backend,
            with_commas(self.ops_per_s as u64),
            self.mb_per_s,
            self.p50_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
            with_commas(self.writes),
        );
    }
}

/// A temporary directory of this run. It is removed on drop.
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
        // A directory that can't be removed stays; a destructor has nobody to report the error to.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, Workload};

    fn options(dir: &Path) -> WalOptions {
        let line = "millrace-bench wal --duration 100ms --warm-up 20ms --no-ceiling --record-size 1000 --in-flight 4";
        let dir = ["--disk-dir".to_owned(), dir.display().to_string()];
        let command = Command::parse_all(line.split(' ').map(str::to_owned).chain(dir)).unwrap();
        let Workload::Wal(options) = command.workload else { panic!("it is wal") };
        options
    }

    #[test]
    fn figures_follow_from_the_histogram() {
        let mut latency_ns = histogram();
        latency_ns.record_n(2_000_000, 500).unwrap();
        let raw = Measured { backend: "raw", latency_ns, writes: 500, span_ns: 500_000_000, cpu_ns: 0 };
        let figures = raw.figures(&options(Path::new(".")));
        assert_eq!((figures.ops_per_s, figures.mb_per_s, figures.writes), (1000.0, 1.0, 500));
        assert!((figures.p50_ms - 2.0).abs() < 0.01, "{figures:?}");
    }

    #[test]
    fn appends_that_wait_together_share_writes() {
        let dir = std::env::current_dir().unwrap();
        let ring = measure("test", &options(&dir), UringDisk::new).unwrap();
        let appends = ring.latency_ns.len();
        assert!(appends > 0 && ring.writes < appends, "{ring:?}");
        assert!(!dir.join(format!("millrace-bench-test-{}", std::process::id())).exists());
    }
}
