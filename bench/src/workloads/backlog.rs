//! Workload `backlog`: a consumer drains a cold log while others produce and read at its tail.
//!
//! Fills the topic first. Then measures the tail alone for half the duration, and finally the drain beside the tail.
//! The report holds the drain's throughput, and the tail's end-to-end latency during the drain.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use net::StrBytes;
use net::codec::api::ApiKey;

use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram, quantile_ms};
use crate::load::fetcher::{self, At, Offsets};
use crate::load::setup::{self, Lane, Target};
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::options::RecordOptions;
use crate::options::workloads::BacklogOptions;
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;
use crate::workloads::consume;
use crate::workloads::end_to_end;
use crate::workloads::produce;
use crate::workloads::produce::lane as produce_lane;
use crate::workloads::tail::{self, Flow};

/// The topic is filled in runs of this length until it holds enough.
const FILL: Duration = Duration::from_secs(1);

pub fn run(options: &BacklogOptions) -> Result<Report, AnyError> {
    end_to_end::check_sizes(&options.records)?;
    let produce = setup::prepare(&options.target, ApiKey::Produce)?;
    let fetch_version = setup::prepare(&options.target, ApiKey::Fetch)?.version;
    let begin = fetcher::offsets(&options.target.topic, &produce.readers(), At::End)?;
    fill(options, &produce)?;
    let cold_to = fetcher::offsets(&options.target.topic, &produce.readers(), At::End)?;
    if let Some(dir) = &options.data_dir {
        let bytes = drop_cached(dir).map_err(|e| format!("--data-dir {}: {e}", dir.display()))?;
        eprintln!("{} MB of files are out of the page cache", bytes / 1_000_000);
    }
    let ceiling = Ceiling::measure(&options.run);
    let alone = tail_alone(options, &produce, fetch_version)?;
    let drained = drain_beside_tail(options, &produce, fetch_version, begin, cold_to)?;
    let Drained { mut outcome, tail_ns, drain } = drained;
    let before_p99_ms = quantile_ms(&alone.latency_ns, 0.99);
    // The throughput is the drain's, the latency the tail's.
    let records_behind = outcome.tally.records;
    outcome.tally.records = drain.records;
    outcome.tally.bytes = drain.bytes;
    outcome.tally.requests = drain.requests;
    outcome.tally.span_ns = drain.span_ns;
    outcome.tally.latency_ns = tail_ns;
    outcome.tally.errors += alone.errors;
    let report = Report::new("backlog", Unit::Records, outcome, ceiling);
    let times = if before_p99_ms > 0.0 { report.p99_ms / before_p99_ms } else { 0.0 };
    Ok(report
        .against(&[Share::DiskRead, Share::LoopbackBytes])
        .with_extra("tail_alone_p50_ms", quantile_ms(&alone.latency_ns, 0.5))
        .with_extra("tail_alone_p99_ms", before_p99_ms)
        .with_extra("tail_p99_times_alone", times)
        .with_extra("tail_records", records_behind)
        .with_extra("drained_mb", drain.bytes as f64 / 1e6))
}

/// Produces as fast as possible until `--backlog` bytes have been written.
fn fill(options: &BacklogOptions, target: &Target) -> Result<(), AnyError> {
    let records = RecordOptions { rate: Some(0), ..options.records.clone() };
    let mut bytes = 0;
    while bytes < options.backlog {
        let window = Window::new(Duration::ZERO, FILL);
        let plan = produce::Plan::new(&options.target.topic, target, &records, 0, window).stamped();
        let work =
            move |index: usize, lane: Lane, live: Arc<Live>| produce_lane::lane_work(plan.clone(), index, lane, live);
        let tally = run::drive(&options.target.threads, target.lanes.clone(), window, work)?.tally;
        if let Some(error) = tally.first_error {
            return Err(format!("while the topic was filled: {error}").into());
        }
        bytes += tally.bytes;
        eprintln!("filled with {} of {} MB", bytes / 1_000_000, options.backlog / 1_000_000);
    }
    Ok(())
}

fn tail_plan(
    options: &BacklogOptions,
    target: &Target,
    fetch_version: i16,
    window: Window,
) -> Result<tail::Plan, AnyError> {
    let topic = &options.target.topic;
    let rate = options.records.rate.unwrap_or(end_to_end::RATE);
    Ok(tail::Plan {
        produce: produce::Plan::new(topic, target, &options.records, rate, window).stamped(),
        topic: StrBytes::from_string(topic.clone()),
        fetch_version,
        fetch_bytes: options.fetch_size,
        starts: Arc::new(fetcher::offsets(topic, &target.readers(), At::End)?),
        flow: Arc::new(Flow::new(target.lanes.len())),
        apart: None,
    })
}

fn tail_alone(options: &BacklogOptions, target: &Target, fetch_version: i16) -> Result<Tally, AnyError> {
    let window = Window::new(options.run.warm_up, options.run.duration / 2);
    let plan = tail_plan(options, target, fetch_version, window)?;
    let producers = target.lanes.len();
    let lanes: Vec<Lane> = target.lanes.iter().cloned().chain(target.readers()).collect();
    let work = move |index: usize, lane: Lane, live: Arc<Live>| {
        let plan = plan.clone();
        async move {
            match index < producers {
                true => tail::produce_work(plan, index, lane, live).await,
                false => tail::consume_work(plan, lane, live).await,
            }
        }
    };
    Ok(run::drive(&options.target.threads, lanes, window, work)?.tally)
}

/// Results of the second part.
struct Drained {
    /// Results of the producers and the tailing consumers.
    outcome: Outcome,
    /// Latencies of records whose intended time lies within the drain.
    tail_ns: hdrhistogram::Histogram<u64>,
    drain: Tally,
}

fn drain_beside_tail(
    options: &BacklogOptions,
    target: &Target,
    fetch_version: i16,
    begin: Offsets,
    cold_to: Offsets,
) -> Result<Drained, AnyError> {
    let window = Window::new(options.run.warm_up, options.run.duration);
    let apart = tail::Apart {
        from_ns: window.measured_from_ns,
        until_ns: Arc::new(AtomicU64::new(u64::MAX)),
        latency_ns: Arc::new(Mutex::new(histogram())),
    };
    let plan = tail::Plan { apart: Some(apart.clone()), ..tail_plan(options, target, fetch_version, window)? };
    // The drain starts with the measurement and ends no later than it.
    let drain_plan = consume::Plan {
        topic: plan.topic.clone(),
        version: fetch_version,
        fetch_bytes: options.fetch_size,
        starts: Arc::new(begin),
        ends: Some(Arc::new(cold_to)),
        window: Window { start_ns: window.measured_from_ns, ..window },
    };
    let readers = target.readers();
    let (producers, tails) = (target.lanes.len(), readers.len());
    let drain: Arc<Mutex<(usize, Tally)>> = Arc::new(Mutex::new((tails, Tally::default())));
    let lanes: Vec<Lane> = target.lanes.iter().cloned().chain(readers.clone()).chain(readers).collect();
    let (drained, until_ns) = (drain.clone(), apart.until_ns.clone());
    let work = move |index: usize, lane: Lane, live: Arc<Live>| {
        let (plan, drain_plan) = (plan.clone(), drain_plan.clone());
        let (drained, until_ns) = (drained.clone(), until_ns.clone());
        async move {
            if index < producers {
                return tail::produce_work(plan, index, lane, live).await;
            }
            if index < producers + tails {
                return tail::consume_work(plan, lane, live).await;
            }
            let tally = consume::lane_work(drain_plan, lane, Arc::default()).await;
            let errors = Tally { errors: tally.errors, first_error: tally.first_error.clone(), ..Tally::default() };
            let mut drained = drained.lock().expect("nothing panics while it holds this");
            drained.0 -= 1;
            drained.1.add(tally);
            if drained.0 == 0 {
                until_ns.store(clock::now_ns(), Ordering::Relaxed);
            }
            errors
        }
    };
    let outcome = run::drive(&options.target.threads, lanes, window, work)?;
    let drain = drain.lock().expect("its threads have ended").1.clone();
    let tail_ns = apart.latency_ns.lock().expect("its threads have ended").clone();
    Ok(Drained { outcome, tail_ns, drain })
}

/// Asks the kernel to drop all files below a directory from its page cache. Returns their size in bytes. The broker may
/// remove files meanwhile.
fn drop_cached(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let dropped = match (kind.is_dir(), kind.is_file()) {
            (true, _) => drop_cached(&entry.path()),
            (_, true) => drop_file(&entry.path()),
            _ => Ok(0),
        };
        bytes += match dropped {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            dropped => dropped?,
        };
    }
    Ok(bytes)
}

fn drop_file(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // The kernel drops only clean pages.
    file.sync_data()?;
    // SAFETY: the descriptor is open, and the call takes four numbers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(file.metadata()?.len()),
        status => Err(io::Error::from_raw_os_error(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::local::Scratch;

    #[test]
    fn all_files_below_a_directory_are_dropped() {
        let dir = Scratch::new(&std::env::current_dir().unwrap(), "bench-drop").unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        for (name, bytes) in [("one", 100), ("below/two", 5000)] {
            fs::write(dir.path().join(name), vec![1; bytes]).unwrap();
        }
        assert_eq!(drop_cached(dir.path()).unwrap(), 5100);
        assert!(drop_cached(&dir.path().join("missing")).is_err());
    }
}
