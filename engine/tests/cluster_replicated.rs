//! Idempotent producers with acks=all write to partitions with three replicas. Meanwhile brokers are killed, paused,
//! cut off, emptied, out of disk space and restarted. No acknowledged record is lost, duplicated or reordered, records
//! that a consumer saw stay, and all replicas are equal.
//!
//! `REPLICATED_ROUNDS` sets the number of faults (4 by default). `REPLICATED_SEED` repeats the choices of a run.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use net::messages::metadata_response::MetadataResponsePartition;
use rdkafka::config::ClientConfig;

use support::PATIENCE;
use support::cluster::{Cluster, wait_until};
use support::faults::{FAULTS, Fault, env, happen};
use support::ledger::{Ledger, TOPIC, judge};
use support::wire;

const BROKERS: usize = 3;
const PARTITIONS: i32 = 6;
const PRODUCERS: u32 = 2;
/// Acknowledgements between two faults.
const ACKS: u64 = 500;
/// Far more than a broker writes here. One of the brokers has a file system of its own, which a fault fills up.
const DISK_BYTES: u64 = 4 << 30;

/// Clients give up soon on a broker that does not answer, because some broker is often paused or cut off here.
fn config(cluster: &Cluster) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.bootstraps().join(","))
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .set("socket.timeout.ms", "1500")
        .set("topic.metadata.refresh.fast.interval.ms", "50");
    config
}

fn producing(cluster: &Cluster) -> ClientConfig {
    let mut config = config(cluster);
    config.set("request.timeout.ms", "1000");
    config
}

/// A leader notices a fault of another broker within 8 ticks of its own running time.
const NOTICED_IN_TICKS: f64 = 10.0;

/// Waits until every broker has had the time to notice what has happened before.
fn wait_until_noticed(cluster: &Cluster) {
    let ticks = |i: usize| cluster.broker(i).metric("millrace_metadata_ticks_total");
    let before: Vec<f64> = (0..BROKERS).map(ticks).collect();
    wait_until("broker that goes on", || (0..BROKERS).all(|i| ticks(i) >= before[i] + NOTICED_IN_TICKS));
}

/// Waits until all replicas of all partitions are in sync again.
fn wait_until_whole(cluster: &Cluster) {
    wait_until_noticed(cluster);
    let give_up = Instant::now() + PATIENCE;
    loop {
        let looks: Vec<_> =
            (0..BROKERS).map(|i| wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC)).collect();
        let is_whole = |shown: &Vec<MetadataResponsePartition>| {
            shown.len() == PARTITIONS as usize && shown.iter().all(|partition| partition.isr_nodes.len() == BROKERS)
        };
        if looks.iter().all(is_whole) {
            return;
        }
        if Instant::now() >= give_up {
            for (i, look) in looks.iter().enumerate() {
                let (_, metrics) = cluster.broker(i).admin_get("/metrics");
                let replication = metrics.lines().filter(|line| line.starts_with("millrace_replication"));
                let shown =
                    look.iter().map(|one| (one.partition_index, one.leader_id.0, one.leader_epoch, &one.isr_nodes));
                println!("broker {}: {:?}\n{:#?}", i + 1, shown.collect::<Vec<_>>(), replication.collect::<Vec<_>>());
            }
            panic!("not all replicas are in sync again in {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn acknowledged_records_survive_any_broker() {
    let rounds = env("REPLICATED_ROUNDS").unwrap_or(4);
    let seed = env("REPLICATED_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat the choices of this run: REPLICATED_ROUNDS={rounds} REPLICATED_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    // Small rings are recycled many times. Replicas that lag read from segments, so these are small.
    let (flags, small) = (["--set", "wal.ring.bytes=16777216"], [rng.usize(..BROKERS)]);
    let mut cluster = Cluster::start_on_small_disks(BROKERS, &flags, &small, DISK_BYTES);
    let mut client = wire::connect(cluster.broker(0));
    let created = wire::create_topic(&mut client, TOPIC, PARTITIONS, BROKERS as i16, &[("segment.bytes", "1048576")]);
    assert_eq!(created.error_code, 0, "{created:?}");
    let ledger = Ledger::new(PARTITIONS);
    let clients = ledger.begin(&producing(&cluster), PRODUCERS);
    let mut faults = FAULTS.to_vec();
    faults.extend([Fault::KillTwo, Fault::KillAll]);
    for round in 0..rounds as usize {
        if round % faults.len() == 0 {
            rng.shuffle(&mut faults);
        }
        let fault = faults[round % faults.len()];
        println!("round {round}: {fault:?}, {} records acked", ledger.counts().acks);
        ledger.wait_for_more(ACKS);
        // Until an emptied disk is rebuilt, there is one replica less. Another fault would then break the promised
        // majority.
        wait_until_whole(&cluster);
        let leader = wire::partitions(&mut wire::connect(cluster.broker(rng.usize(..BROKERS))), TOPIC)[0].leader_id.0;
        let leader = usize::try_from(leader - 1).unwrap_or(0);
        happen(fault, &mut cluster, leader, &mut rng, &|| ledger.wait_for_more(ACKS));
    }
    ledger.wait_for_more(ACKS);
    clients.stop();
    wait_until_whole(&cluster);
    judge(&config(&cluster), &ledger);
    // While one broker is down, other replicas lead.
    for i in 0..BROKERS {
        cluster.stop(i);
        judge(&config(&cluster), &ledger);
        cluster.begin(i);
        wait_until_whole(&cluster);
    }
}
