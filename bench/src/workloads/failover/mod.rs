//! Workload `failover`: one producer at a fixed rate, while the broker that leads its partition is killed repeatedly.
//!
//! The gap of a kill runs from the signal to the first acknowledgement of a record that was sent after the signal. At
//! the end the partition is read back. An acknowledged record that is missing counts as an error.

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod kills;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use hdrhistogram::Histogram;

use crate::brokers::binary;
use crate::brokers::local::Local;
use crate::clock;
use crate::error::AnyError;
use crate::figures::outcome::Outcome;
use crate::figures::stats::{Live, Tally, histogram};
use crate::load::setup;
use crate::load::window::Window;
use crate::machine::ceiling::Ceiling;
use crate::machine::environment;
use crate::options::workloads::FailoverOptions;
use crate::options::{TargetOptions, ThreadOptions};
use crate::report::shares::Share;
use crate::report::{Report, Unit};
use crate::run;
use crate::workloads::failover::client::{Acked, NUMBER_BYTES, Producer, read_back};
use crate::workloads::failover::cluster::Cluster;
use crate::workloads::failover::kills::Kills;

const PUBLISH_NS: u64 = 250_000_000;

pub fn run(options: &FailoverOptions) -> Result<Report, AnyError> {
    if options.rate == 0 {
        return Err("--rate 0: only records that are due in a gap show it; give at least 1".into());
    }
    if options.record_size < NUMBER_BYTES {
        let size = options.record_size;
        return Err(
            format!("--record-size {size}: each record holds its number, so give at least {NUMBER_BYTES}").into()
        );
    }
    let cluster = match &options.pid_dir {
        Some(dir) => Cluster::given(dir)?,
        None => {
            let binary = binary::millrace(options.binary.as_deref())?;
            let cpus = environment::allowed_cpu_numbers();
            Cluster::Own(Local::start(&binary, &options.run.disk_dir, options.brokers.into(), &cpus)?)
        }
    };
    run_on(options, cluster)
}

fn run_on(options: &FailoverOptions, cluster: Cluster) -> Result<Report, AnyError> {
    let bootstrap = cluster.bootstrap().unwrap_or_else(|| options.bootstrap.clone());
    let threads = ThreadOptions { connections: None, threads: 1, cpus: Vec::new() };
    let target = TargetOptions {
        bootstrap: bootstrap.first().cloned().ok_or("--bootstrap names no broker")?,
        topic: options.topic.clone(),
        partitions: Some(1),
        replication_factor: options.replication_factor,
        threads,
    };
    setup::prepare(&target, net::codec::api::ApiKey::Produce)?;
    let ceiling = Ceiling::measure(&options.run);
    let window = Window::new(options.run.warm_up, options.run.duration);
    let live: Arc<Live> = Arc::default();
    let (ended, all_ended) = mpsc::channel::<()>();
    let shown = live.clone();
    // The live line continues for as long as the kills take.
    let shown_window = Window { end_ns: u64::MAX, ..window };
    let watcher = thread::spawn(move || run::watch(&all_ended, &[shown], shown_window));
    let found = produce_through(options, cluster, &bootstrap, window, &live);
    drop(ended);
    let series = watcher.join().map_err(|_| "the thread that shows progress panicked")?;
    let (Found { mut tally, acked }, kills) = found?;
    let present = read_back(&bootstrap, &options.topic)?;
    let lost = acked.difference(&present).count() as u64;
    tally.fail(lost, || format!("{lost} acknowledged records are lost"));
    let in_order = kills.gaps_ms.clone();
    let mut gaps_ms = kills.gaps_ms;
    gaps_ms.sort_by(f64::total_cmp);
    let thread_cpu_share_max = tally.cpu_ns as f64 / tally.span_ns.max(1) as f64;
    let report = Report::new("failover", Unit::Records, Outcome { tally, thread_cpu_share_max, series }, ceiling);
    Ok(report
        .against(&[Share::WriteSync])
        .with_extra("gap_p50_ms", gaps_ms.get(gaps_ms.len() / 2).copied())
        .with_extra("gap_max_ms", gaps_ms.last().copied())
        .with_extra("gaps_ms", in_order)
        .with_extra("kills", options.kills)
        .with_extra("acknowledged_and_lost", lost))
}

struct Found {
    tally: Tally,
    /// The numbers of all records that were acknowledged.
    acked: HashSet<u64>,
}

impl Found {
    fn count(&mut self, batch: &Acked, now_ns: u64, size: usize, window: Window, recent_ns: &mut Histogram<u64>) {
        self.tally.requests += 1;
        for (number, intended_ns) in &batch.records {
            self.acked.insert(*number);
            let latency_ns = now_ns.saturating_sub(*intended_ns).max(1);
            recent_ns.saturating_record(latency_ns);
            if *intended_ns >= window.measured_from_ns {
                self.tally.records += 1;
                self.tally.bytes += size as u64;
                self.tally.latency_ns.saturating_record(latency_ns);
                self.tally.span_ns = now_ns - window.measured_from_ns;
            }
        }
    }
}

/// Produces at the rate until the duration and all kills are over. The kills still hold the brokers afterwards, which
/// serve until they are dropped.
fn produce_through<'a>(
    options: &'a FailoverOptions,
    cluster: Cluster,
    bootstrap: &'a [String],
    window: Window,
    live: &Live,
) -> Result<(Found, Kills<'a>), AnyError> {
    let mut producer = Producer::new(bootstrap, &options.topic, options.rate, options.record_size, window);
    let mut kills = Kills::new(options, cluster, bootstrap, window);
    let mut found = Found { tally: Tally::default(), acked: HashSet::new() };
    let (mut recent_ns, mut published_ns) = (histogram(), 0);
    let cpu_ns = clock::thread_cpu_ns();
    loop {
        let now_ns = clock::now_ns();
        if kills.are_over() && now_ns >= window.end_ns {
            break;
        }
        kills.kill_if_due(producer.leader(), now_ns)?;
        let acked = producer.send_due()?;
        let now_ns = clock::now_ns();
        kills.follow(acked.as_ref(), now_ns)?;
        if let Some(batch) = acked {
            live.count(batch.records.len() as u64, (batch.records.len() * options.record_size) as u64);
            found.count(&batch, now_ns, options.record_size, window, &mut recent_ns);
        }
        if now_ns - published_ns > PUBLISH_NS {
            published_ns = now_ns;
            live.publish(&mut recent_ns);
        }
    }
    found.tally.cpu_ns = clock::thread_cpu_ns() - cpu_ns;
    Ok((found, kills))
}
