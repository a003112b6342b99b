//! Brokers with an empty data directory and a node id that the cluster knows. While the broker with that node id is
//! alive, they are refused and disturb nobody; once it is gone, they take its place.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use net::errors;

use support::broker::{Broker, secret_file};
use support::cluster::{Cluster, wait_until};
use support::wire;

const BROKERS: usize = 3;
const TOPIC: &str = "orders";
const ALL: i16 = -1;
/// The broker whose node id another one wants.
const HOLDER: usize = 1;
/// Leaders stay where they are.
const STAY: [&str; 2] = ["--set", "auto.leader.rebalance.enable=false"];
/// Longer than an emptied broker needs to ask for its place.
const SESSION: [&str; 2] = ["--set", "broker.session.timeout.ms=6000"];

fn create(cluster: &Cluster) {
    let created = wire::create_topic(&mut wire::connect(cluster.broker(0)), TOPIC, 6, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
    wait_until_whole(cluster);
}

/// The leader and the leader's epoch of each partition, as a broker shows them.
fn leaders(cluster: &Cluster, i: usize) -> Vec<(i32, i32)> {
    let shown = wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC);
    shown.iter().map(|partition| (partition.leader_id.0, partition.leader_epoch)).collect()
}

fn wait_until_whole(cluster: &Cluster) {
    for i in 0..BROKERS {
        wait_until("set of replicas in sync that is whole", || {
            let shown = wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC);
            shown.iter().all(|partition| partition.leader_id.0 > 0 && partition.isr_nodes.len() == BROKERS)
        });
    }
}

#[test]
fn a_broker_with_the_node_id_of_a_living_one_is_refused_and_that_one_serves_on() {
    let cluster = Cluster::start(BROKERS, &STAY);
    create(&cluster);
    let before = leaders(&cluster, HOLDER);
    let node = HOLDER as i32 + 1;
    let led = before.iter().position(|(leader, _)| *leader == node).expect("each broker leads some partitions") as i32;

    let mut other = Broker::new(&STAY);
    let seeds: Vec<String> =
        [0, 2].map(|i: usize| format!("{}@{}", i + 1, cluster.broker(i).peer())).into_iter().collect();
    other.add_flags(&["--node-id", &node.to_string(), "--seeds", &seeds.join(",")]);
    other.add_flags(&["--cluster-secret-file", &secret_file()]);
    let ended = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut client = wire::connect(cluster.broker(HOLDER));
            while !ended.load(Ordering::Acquire) {
                let request = wire::produce_request(TOPIC, led, ALL, wire::batch(&[b"a record"]));
                let response = client.produce(request).expect("an answer");
                let answer = &response.responses[0].partition_responses[0];
                assert_eq!(errors::check(answer.error_code), Ok(()));
            }
        });
        let output = other.begin_or_end();
        ended.store(true, Ordering::Release);
        producing.join().expect("every record was acknowledged");
        output.expect_err("it is refused")
    });
    let holder = cluster.broker(HOLDER).bootstrap();
    for part in [
        format!("waiting for the session of broker {node} at {holder} to end"),
        format!("node id {node} belongs to the broker at {holder}, which is alive; choose another, or stop it first"),
    ] {
        assert!(output.contains(&part), "no '{part}' in:\n{output}");
    }
    for i in 0..BROKERS {
        assert_eq!(leaders(&cluster, i), before, "broker {}", i + 1);
    }
}

#[test]
fn a_broker_whose_disk_was_emptied_takes_its_place_once_its_session_has_ended() {
    let mut cluster = Cluster::start(BROKERS, &SESSION);
    create(&cluster);
    cluster.kill9(HOLDER);
    cluster.empty_disk(HOLDER);
    cluster.begin(HOLDER);
    let output = cluster.broker(HOLDER).output();
    assert!(output.contains("waiting for the session of broker 2"), "it did not wait:\n{output}");
    wait_until_whole(&cluster);
}
