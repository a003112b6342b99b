//! `millrace cluster describe` on a cluster of three brokers.

mod support;

use std::process::Command;

use serde_json::Value;

use net::errors;

use support::cluster::{Cluster, wait_until};
use support::program::{millrace, output};
use support::wire;

const BROKERS: usize = 3;
const PARTITIONS: i32 = 6;

/// The command's output about the cluster, asked through one broker.
fn describe(cluster: &Cluster, i: usize) -> Value {
    let (status, out, err) = output(command(cluster, i).arg("--json"));
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    serde_json::from_str(&out).expect("one JSON object")
}

fn command(cluster: &Cluster, i: usize) -> Command {
    millrace(&["cluster", "describe", "--bootstrap", &cluster.broker(i).bootstrap()])
}

/// One figure of every broker, in the order of node ids.
fn figures(told: &Value, name: &str) -> Vec<i64> {
    let brokers = told["brokers"].as_array().expect("brokers");
    brokers.iter().map(|broker| broker[name].as_i64().unwrap_or_else(|| panic!("no {name} in {broker}"))).collect()
}

#[test]
fn a_cluster_is_described_through_any_broker_whole_and_with_one_broker_gone() {
    let mut cluster = Cluster::start(BROKERS, &[]);
    let mut client = wire::connect(cluster.broker(0));
    let created = wire::create_topic(&mut client, "described", PARTITIONS, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    let leader = cluster.leader();
    for i in 0..BROKERS {
        let mut told = Value::Null;
        wait_until("whole cluster", || {
            told = describe(&cluster, i);
            told["under_replicated"] == 0 && told["leaderless"] == 0 && figures(&told, "lag") == [0, 0, 0]
        });
        assert_eq!(told["metadata"]["leader"], leader as i64 + 1);
        assert_eq!((&told["partitions"], figures(&told, "id")), (&Value::from(PARTITIONS), vec![1, 2, 3]));
        assert_eq!(figures(&told, "leads").iter().sum::<i64>(), i64::from(PARTITIONS));
        assert_eq!(figures(&told, "replicas"), [i64::from(PARTITIONS); BROKERS]);
        assert_eq!(figures(&told, "not_in_sync"), [0; BROKERS]);
        for (at, broker) in told["brokers"].as_array().expect("brokers").iter().enumerate() {
            assert_eq!(broker["role"], if at == leader { "leader" } else { "voter" });
            assert_eq!(format!("127.0.0.1:{}", broker["port"]), cluster.broker(at).bootstrap());
        }
    }

    let gone = (leader + 1) % BROKERS;
    cluster.kill9(gone);
    let mut told = Value::Null;
    wait_until("broker that is fenced, and led by others", || {
        told = describe(&cluster, leader);
        told["brokers"][gone]["state"] == "fenced" && told["leaderless"] == 0
    });
    assert_eq!(told["under_replicated"], PARTITIONS);
    assert_eq!((figures(&told, "leads")[gone], figures(&told, "not_in_sync")[gone]), (0, i64::from(PARTITIONS)));
    let (status, text, _) = output(&mut command(&cluster, leader));
    assert_eq!(status, Some(0));
    let row = text.lines().find(|line| line.starts_with(&format!("{} ", gone + 1))).expect("a row of its own");
    assert!(row.contains("fenced") && row.contains("voter") && text.contains("under-replicated 6"), "{text}");
}

/// The partitions that are under-replicated, and those that have no leader, by these brokers' metrics.
fn health(cluster: &Cluster, brokers: &[usize]) -> (i32, i32) {
    let sum = |name: &str| brokers.iter().map(|i| cluster.broker(*i).metric(name) as i32).sum();
    (sum("millrace_partitions_under_replicated"), sum("millrace_partitions_leaderless"))
}

#[test]
fn metrics_count_partitions_that_lack_replicas_or_a_leader() {
    let mut cluster = Cluster::start(BROKERS, &[]);
    let mut client = wire::connect(cluster.broker(0));
    let created = wire::create_topic(&mut client, "counted", PARTITIONS, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    wait_until("whole partitions", || health(&cluster, &[0, 1, 2]) == (0, 0));
    cluster.kill9(2);
    wait_until("partitions that lack a replica", || health(&cluster, &[0, 1]) == (PARTITIONS, 0));
    cluster.kill9(1);
    wait_until("partitions without a leader", || health(&cluster, &[0]) == (0, PARTITIONS));
    cluster.begin(1);
    wait_until("partitions with a leader again", || health(&cluster, &[0, 1]) == (PARTITIONS, 0));
    cluster.begin(2);
    wait_until("whole partitions again", || health(&cluster, &[0, 1, 2]) == (0, 0));
    cluster.kill9(2);
    wait_until("partitions that lack a replica again", || health(&cluster, &[0, 1]) == (PARTITIONS, 0));
    let bootstrap = cluster.broker(0).bootstrap();
    let (status, _, err) = output(&mut millrace(&["topic", "delete", "counted", "--bootstrap", &bootstrap]));
    assert_eq!(status, Some(0), "{err}");
    wait_until("nothing to count", || health(&cluster, &[0, 1]) == (0, 0));
}
