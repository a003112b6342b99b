//! Placement of new partitions while a broker is down.

mod support;

use net::errors::{self, ErrorCode};
use support::{
    broker::Broker,
    cluster::wait_until,
    wire::{self, alive, batch, connect, create_topic},
};

#[test]
fn a_fenced_broker_gets_replicas_while_a_majority_of_each_partitions_is_live() {
    let mut brokers = Broker::cluster(3);
    let mut client = connect(&brokers[0]);
    wait_until("three brokers", || alive(&mut client) == 3);
    brokers[2].kill();
    wait_until("a fenced broker", || alive(&mut client) == 2);

    let created = create_topic(&mut client, "three", 6, 3, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
    for partition in wire::partitions(&mut client, "three") {
        let mut replicas: Vec<i32> = partition.replica_nodes.iter().map(|node| node.0).collect();
        assert_eq!(replicas[2], 3, "live brokers lead: {replicas:?}");
        replicas.sort_unstable();
        assert_eq!(replicas, [1, 2, 3]);
        assert!([1, 2].contains(&partition.leader_id.0), "{partition:?}");
        let leader = &brokers[partition.leader_id.0 as usize - 1];
        let answer = wire::produce(&mut connect(leader), "three", partition.partition_index, batch(&[b"x"]));
        assert_eq!(errors::check(answer.error_code), Ok(()), "acks=all, by a majority");
    }
    let two = create_topic(&mut client, "two", 4, 2, &[]);
    assert_eq!(errors::check(two.error_code), Ok(()), "{:?}", two.error_message);
    let on_live = |node: i32| [1, 2].contains(&node);
    assert!(
        wire::partitions(&mut client, "two").iter().all(|p| p.replica_nodes.iter().all(|node| on_live(node.0))),
        "live brokers are enough"
    );
    let four = create_topic(&mut client, "four", 1, 4, &[]);
    assert_eq!(errors::check(four.error_code), Err(ErrorCode::InvalidReplicationFactor));

    brokers[2].begin();
    wait_until("replicas in sync", || {
        wire::partitions(&mut client, "three").iter().all(|partition| partition.isr_nodes.len() == 3)
    });
}
