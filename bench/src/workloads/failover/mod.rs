//! Workload `failover`: one producer at a fixed rate, while the broker that leads its partition is killed repeatedly.
//!
//! The gap of a kill runs from the signal to the first acknowledgement of a record that was sent after the signal. At
//! the end the partition is read back. An acknowledged record that is missing counts as an error.

pub(crate) mod client;
pub(crate) mod cluster;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

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
use crate::workloads::failover::client::{Acked, NUMBER_BYTES, Producer, describe, read_back};
use crate::workloads::failover::cluster::Cluster;

/// How long the brokers may take to acknowledge records after a kill, and replicas to be in sync after a restart.
const CATCH_UP: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A killed broker stays away for this time after the others have taken over.
const AWAY: Duration = Duration::from_millis(500);
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

fn run_on(options: &FailoverOptions, mut cluster: Cluster) -> Result<Report, AnyError> {
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
    let found = produce_through(options, &mut cluster, &bootstrap, window, &live);
    drop(ended);
    let series = watcher.join().map_err(|_| "the thread that shows progress panicked")?;
    let Found { mut tally, mut gaps_ms, acked } = found?;
    let present = read_back(&bootstrap, &options.topic)?;
    let lost = acked.difference(&present).count() as u64;
    tally.fail(lost, || format!("{lost} acknowledged records are lost"));
    let in_order = gaps_ms.clone();
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
    gaps_ms: Vec<f64>,
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

/// State of the broker that was killed last.
enum Victim {
    /// No broker was killed yet, or the last one is back.
    None,
    /// No record that was sent after `at_ns` is acknowledged yet.
    Killed { node: i32, at_ns: u64 },
    /// The other brokers have taken over. Another thread restarts the broker and sets `back` when all replicas are in
    /// sync, or when it fails.
    Returning { back: Arc<AtomicBool>, thread: thread::JoinHandle<Result<Cluster, AnyError>> },
}

fn produce_through(
    options: &FailoverOptions,
    cluster: &mut Cluster,
    bootstrap: &[String],
    window: Window,
    live: &Live,
) -> Result<Found, AnyError> {
    let mut producer = Producer::new(bootstrap, &options.topic, options.rate, options.record_size, window);
    let mut found = Found { tally: Tally::default(), gaps_ms: Vec::new(), acked: HashSet::new() };
    let (mut recent_ns, mut published_ns) = (histogram(), 0);
    let (mut victim, mut kills) = (Victim::None, 0);
    let mut owned = Some(std::mem::replace(cluster, Cluster::Away));
    let cpu_ns = clock::thread_cpu_ns();
    loop {
        let now_ns = clock::now_ns();
        let finished = kills == options.kills && matches!(victim, Victim::None);
        if finished && now_ns >= window.end_ns {
            break;
        }
        if let (Victim::None, Some(cluster)) = (&victim, owned.as_mut())
            && kills < options.kills
            && now_ns
                >= window.measured_from_ns
                    + options.run.duration.as_nanos() as u64 / options.kills as u64 * kills as u64
            && let Some(node) = producer.leader()
        {
            let at_ns = clock::now_ns();
            cluster.kill(node).map_err(|e| format!("cannot kill broker {node}: {e}"))?;
            kills += 1;
            victim = Victim::Killed { node, at_ns };
        }
        let acked = producer.send_due()?;
        let now_ns = clock::now_ns();
        if let Victim::Killed { node, at_ns } = &victim
            && now_ns - at_ns > CATCH_UP.as_nanos() as u64
        {
            let seconds = CATCH_UP.as_secs();
            return Err(format!("no record was acknowledged within {seconds} s after broker {node} was killed").into());
        }
        if let (Victim::Killed { node, at_ns }, Some(batch)) = (&victim, &acked)
            && batch.sent_ns > *at_ns
        {
            let gap_ms = (now_ns - at_ns) as f64 / 1e6;
            eprintln!("broker {node} killed, the next acknowledgement after {gap_ms:.1} ms");
            found.gaps_ms.push(gap_ms);
            let cluster = owned.take().expect("no broker is returning");
            victim = bring_back(cluster, *node, bootstrap, &options.topic);
        }
        if let Victim::Returning { back, .. } = &victim
            && back.load(Ordering::Acquire)
            && let Victim::Returning { thread, .. } = std::mem::replace(&mut victim, Victim::None)
        {
            owned = Some(thread.join().map_err(|_| "the thread that restarts a broker panicked")??);
        }
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
    *cluster = owned.expect("no broker is returning");
    Ok(found)
}

/// Restarts a broker on another thread and waits there until all replicas are in sync. The producer continues
/// meanwhile.
fn bring_back(mut cluster: Cluster, node: i32, bootstrap: &[String], topic: &str) -> Victim {
    let back = Arc::new(AtomicBool::new(false));
    let (done, bootstrap, topic) = (back.clone(), bootstrap.to_vec(), topic.to_owned());
    let thread = thread::spawn(move || {
        thread::sleep(AWAY);
        let result = cluster.restart(node).and_then(|()| await_in_sync(&bootstrap, &topic));
        done.store(true, Ordering::Release);
        result.map(|()| cluster)
    });
    Victim::Returning { back, thread }
}

fn await_in_sync(bootstrap: &[String], topic: &str) -> Result<(), AnyError> {
    let give_up_ns = clock::now_ns() + CATCH_UP.as_nanos() as u64;
    while clock::now_ns() < give_up_ns {
        if describe(bootstrap, topic).is_some_and(|partition| partition.in_sync == partition.replicas) {
            return Ok(());
        }
        thread::sleep(ASK_AGAIN);
    }
    let seconds = CATCH_UP.as_secs();
    Err(format!("not all replicas of {topic} are in sync {seconds} s after a broker came back").into())
}
