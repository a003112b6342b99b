//! Idempotent producers with acks=all on partitions with three replicas, while brokers are killed, paused, cut off, emptied, out of disk
//! space and restarted: nothing that was acked is lost, duplicated or reordered, what a consumer saw stays, and all replicas hold the same.
//!
//! `REPLICATED_ROUNDS` sets the number of faults (4 by default), `REPLICATED_SEED` repeats the choices of a run.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use net::messages::metadata_response::MetadataResponsePartition;
use rdkafka::config::ClientConfig;

use support::PATIENCE;
use support::cluster::Cluster;
use support::faults::{FAULTS, Fault, env, happen};
use support::ledger::{Ledger, TOPIC, judge};
use support::wire;

const BROKERS: usize = 3;
const PARTITIONS: i32 = 6;
const PRODUCERS: u32 = 2;
/// Acks between two faults.
const ACKS: u64 = 500;
/// Far more than a broker writes here; one of them has a file system of its own, to be filled up.
const DISK_BYTES: u64 = 4 << 30;

/// Clients give a broker up that does not answer for a moment: one is paused, or cut off, all the time here.
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

/// Waits until every replica of every partition is in sync again.
fn wait_until_whole(cluster: &Cluster) {
    // Until leaders have seen what has just happened.
    thread::sleep(Duration::from_secs(1));
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
fn what_was_acked_survives_any_broker() {
    let rounds = env("REPLICATED_ROUNDS").unwrap_or(4);
    let seed = env("REPLICATED_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat the choices of this run: REPLICATED_ROUNDS={rounds} REPLICATED_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    // Small rings are recycled many times; small segments are read by who lags.
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
        // An emptied disk is one replica less until it is rebuilt: another fault then takes the majority that was promised.
        wait_until_whole(&cluster);
        let leader = wire::partitions(&mut wire::connect(cluster.broker(rng.usize(..BROKERS))), TOPIC)[0].leader_id.0;
        let leader = usize::try_from(leader - 1).unwrap_or(0);
        happen(fault, &mut cluster, leader, &mut rng, &|| ledger.wait_for_more(ACKS));
    }
    ledger.wait_for_more(ACKS);
    clients.stop();
    wait_until_whole(&cluster);
    judge(&config(&cluster), &ledger);
    // Other replicas lead while one is away.
    for i in 0..BROKERS {
        cluster.stop(i);
        judge(&config(&cluster), &ledger);
        cluster.begin(i);
        wait_until_whole(&cluster);
    }
}
