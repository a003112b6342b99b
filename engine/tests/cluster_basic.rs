//! Three brokers as one cluster: all brokers show every change, no matter which one took it. Each broker may die and
//! come back.

mod support;

use std::thread;
use std::time::Duration;

use fastrand::Rng;
use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use net::messages::{DescribeClusterRequest, MetadataRequest};

use support::broker::Broker;
use support::cluster::{Cluster, wait_until};
use support::metadata_clients::{Clients, converged, see, try_change};
use support::metadata_history::Change;
use support::proxy::Mode;
use support::wire;

const BROKERS: usize = 3;
/// Long enough to send a request to a broker that is cut off, short enough that the broker does not give up on it.
const CUT: Duration = Duration::from_millis(300);

fn connect(cluster: &Cluster, i: usize) -> Client {
    wire::connect(cluster.broker(i))
}

/// The node ids and addresses that a broker returns, its cluster id and its controller: by Metadata, then by
/// DescribeCluster.
type Told = (Vec<(i32, String)>, String, i32);

fn told(cluster: &Cluster, i: usize) -> [Told; 2] {
    let mut client = connect(cluster, i);
    let of = |node: i32, host: &str, port: i32| (node, format!("{host}:{port}"));
    let metadata = wire::metadata(&mut client, MetadataRequest::default().with_topics(Some(Vec::new())));
    let mut brokers: Vec<_> =
        metadata.brokers.iter().map(|broker| of(broker.node_id.0, &broker.host, broker.port)).collect();
    brokers.sort();
    let id = metadata.cluster_id.expect("a cluster's id").as_str().to_owned();
    let by_metadata = (brokers, id, metadata.controller_id.0);
    let described = client.call(DescribeClusterRequest::default()).expect("an answer");
    // Right after its start, a broker may not be able to answer reads yet. Then it returns no brokers, and the test
    // asks again.
    assert!(
        matches!(
            errors::check(described.error_code),
            Ok(()) | Err(ErrorCode::NotController | ErrorCode::RequestTimedOut)
        ),
        "{described:?}"
    );
    let mut brokers: Vec<_> =
        described.brokers.iter().map(|broker| of(broker.broker_id.0, &broker.host, broker.port)).collect();
    brokers.sort();
    [by_metadata, (brokers, described.cluster_id.as_str().to_owned(), described.controller_id.0)]
}

fn all_agree(cluster: &Cluster) {
    let expected: Vec<(i32, String)> = (0..BROKERS).map(|i| (i as i32 + 1, cluster.broker(i).bootstrap())).collect();
    let mut seen = Vec::new();
    wait_until("agreement on brokers, cluster and controller", || {
        seen = (0..BROKERS).flat_map(|i| told(cluster, i)).collect();
        seen.iter().all(|told| *told == seen[0] && told.0 == expected && told.2 > 0)
    });
}

#[test]
fn a_topic_created_through_one_broker_is_shown_by_all_and_each_may_die_and_return() {
    let mut cluster = Cluster::start(BROKERS, &[]);
    all_agree(&cluster);
    for i in 0..BROKERS {
        let (name, mut client) = (format!("through-{i}"), connect(&cluster, i));
        assert_eq!(wire::create_topic(&mut client, &name, 3, 1, &[]).error_code, errors::NONE);
        // The client's own broker shows it at once.
        let own = see(&mut client, Some(&name)).expect("an answer").expect("a broker that may answer");
        assert_eq!(own[&name].partitions, 3);
    }
    let before = converged(&cluster);
    assert_eq!(before[0].keys().collect::<Vec<_>>(), ["through-0", "through-1", "through-2"]);
    let mut rng = Rng::with_seed(1);
    let clients = Clients::start(&cluster.bootstraps(), 2, &mut rng);
    for i in 0..BROKERS {
        clients.wait_for_acks(5);
        cluster.kill9(i);
        clients.wait_for_acks(5);
        cluster.begin(i);
    }
    let history = clients.stop();
    let mut shown = converged(&cluster);
    for (broker, after) in shown.iter_mut().enumerate() {
        for (name, topic) in &before[0] {
            assert_eq!(after.remove(name).as_ref(), Some(topic), "broker {broker}");
        }
    }
    let wrong = history.check(&shown);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    all_agree(&cluster);
}

#[test]
fn a_topic_just_changed_through_one_broker_can_be_changed_through_another() {
    let cluster = Cluster::start(BROKERS, &[]);
    let mut clients: Vec<Client> = (0..BROKERS).map(|i| connect(&cluster, i)).collect();
    let leader = cluster.leader();
    let (behind, other) = ((leader + 1) % BROKERS, (leader + 2) % BROKERS);
    let mut change = |i: usize, change: Change| {
        let (answer, _) = try_change(&mut clients[i], "topic", &change).expect("an answer");
        assert_eq!(answer, Ok(()), "{change:?} through broker {i}");
    };
    // One broker's view of the topic is stale when the request arrives. The broker cannot know that until it reaches
    // the others.
    for grown in [false, true] {
        change(other, Change::Create { partitions: 1 });
        change(behind, Change::Grow { to: 2 });
        cluster.set_all_ways(behind, Mode::Silent);
        if grown {
            change(other, Change::Grow { to: 3 });
        } else {
            change(other, Change::Delete);
            change(other, Change::Create { partitions: 1 });
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(CUT);
                cluster.set_all_ways(behind, Mode::Open);
            });
            let step = if grown { Change::Grow { to: 4 } } else { Change::Set { value: "1000".to_owned() } };
            change(behind, step);
        });
        change(behind, Change::Delete);
    }
}

#[test]
fn a_broker_without_a_quorum_stops_when_told_and_loses_nothing() {
    let mut brokers = Broker::cluster(BROKERS);
    let created = wire::create_topic(&mut wire::connect(&brokers[0]), "kept", 3, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    brokers.iter_mut().for_each(Broker::stop);

    let alone = &mut brokers[0];
    alone.spawn();
    alone.wait_for_log("joining", |line| line.contains("cannot join the cluster yet"));
    alone.stop();
    // Also in the middle of its start.
    alone.spawn();
    alone.wait_for_log("recovery", |line| line.contains("store recovered"));
    alone.stop();

    brokers.iter_mut().for_each(Broker::spawn);
    brokers.iter_mut().for_each(Broker::wait_until_serving);
    for broker in &brokers {
        wait_until("topic", || wire::partitions(&mut wire::connect(broker), "kept").len() == 3);
    }
}

#[test]
fn two_signals_end_a_start_without_a_quorum() {
    let mut brokers = Broker::cluster(BROKERS);
    brokers.iter_mut().for_each(Broker::stop);
    let alone = &mut brokers[0];
    alone.spawn();
    alone.wait_for_log("joining", |line| line.contains("cannot join the cluster yet"));
    alone.signal(libc::SIGTERM);
    alone.wait_for_log("the first signal", |line| line.contains("a second signal ends the drain at once"));
    let (status, output) = alone.signal_and_wait(libc::SIGTERM);
    // The clean stop that the first one asked for may have ended before.
    assert!(matches!(status.code(), Some(0 | 1)), "{status}:\n{output}");
}

#[test]
fn heartbeats_run() {
    let cluster = Cluster::start(BROKERS, &[]);
    all_agree(&cluster);
    let leader = cluster.leader();
    let metric = |i: usize, name: &str| cluster.broker(i).metric(&format!("millrace_{name}")) as u64;

    let (sent, ticks) = (metric(leader, "heartbeat_send_total"), metric(leader, "metadata_ticks_total"));
    let followers: Vec<usize> = (0..BROKERS).filter(|i| *i != leader).collect();
    let received: Vec<u64> = followers.iter().map(|i| metric(*i, "heartbeat_receive_total")).collect();
    // Ten ticks of 100 ms each are one second.
    wait_until("30 ticks", || metric(leader, "metadata_ticks_total") >= ticks + 30);
    let beats = metric(leader, "heartbeat_send_total") - sent;
    let seconds = (metric(leader, "metadata_ticks_total") - ticks) / 10;
    let of_all = seconds * followers.len() as u64;
    assert!((of_all - 2..=of_all + 4).contains(&beats), "{beats} heartbeats in {seconds} s of the leader's time");
    for (i, before) in followers.iter().zip(received) {
        wait_until("heartbeats at the followers", || metric(*i, "heartbeat_receive_total") >= before + 2);
    }
}
