//! The metadata log as the topic `__millrace_metadata`: ordinary consumers can read it from any leading broker, but
//! nobody can change it.

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use net::errors::{self, ErrorCode};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use support::PATIENCE;
use support::broker::Broker;
use support::clients;
use support::cluster::{Cluster, wait_until};
use support::metadata_clients::try_change;
use support::metadata_history::Change;
use support::wire;

const BROKERS: usize = 3;
const TOPIC: &str = "__millrace_metadata";

fn assign(cluster: &Cluster, i: usize, from: Offset) -> BaseConsumer {
    let consumer = clients::consumer(&clients::config(cluster.broker(i)), "log");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, from).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    consumer
}

/// Reads on, into `log`, until it has a record that `wanted` accepts.
fn read_until(consumer: &BaseConsumer, log: &mut BTreeMap<i64, Value>, wanted: impl Fn(&Value) -> bool) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let message = clients::next(consumer).expect("the end is not told");
        let record: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
        assert_eq!(record["index"], message.offset() + 1);
        if let Some((last, _)) = log.last_key_value() {
            assert_eq!(message.offset(), last + 1, "a hole, or a step back");
        }
        let found = wanted(&record);
        log.insert(message.offset(), record);
        if found {
            return;
        }
        assert!(Instant::now() < give_up, "it does not come");
    }
}

fn creates<'a>(name: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |record| {
        let commands = record["commands"].as_array().into_iter().flatten();
        commands.into_iter().any(|command| command["command"] == "CreateTopic" && command["topic"] == name)
    }
}

fn create(cluster: &Cluster, i: usize, name: &str) {
    let created = wire::create_topic(&mut wire::connect(cluster.broker(i)), name, 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
}

#[test]
fn consumers_read_the_log_and_go_on_with_the_next_leader() {
    let mut cluster = Cluster::start(BROKERS, &[]);
    let leader = cluster.leader();
    let (one, other) = ((leader + 1) % BROKERS, (leader + 2) % BROKERS);
    create(&cluster, one, "before");
    let consumer = assign(&cluster, one, Offset::Beginning);
    let mut log = BTreeMap::new();
    read_until(&consumer, &mut log, creates("before"));
    assert_eq!(log.first_key_value().map(|(offset, _)| *offset), Some(0), "nothing is in a snapshot yet");
    let registered = |node: usize| {
        let commands = log.values().flat_map(|record| record["commands"].as_array()).flatten();
        commands.filter(|command| command["command"] == "RegisterBroker" && command["node"] == node + 1).count()
    };
    assert!((0..BROKERS).all(|node| registered(node) > 0), "{log:#?}");

    // The consumer waits at the end for new records.
    create(&cluster, other, "meanwhile");
    read_until(&consumer, &mut log, creates("meanwhile"));

    cluster.kill9(leader);
    wait_until("other leader", || {
        let mut client = wire::connect(cluster.broker(one));
        let asked = try_change(&mut client, "afterwards", &Change::Create { partitions: 1 }).expect("an answer");
        matches!(asked.0, Ok(()) | Err(ErrorCode::TopicAlreadyExists))
    });
    read_until(&consumer, &mut log, creates("afterwards"));
    let terms: Vec<i64> = log.values().map(|record| record["term"].as_i64().expect("a term")).collect();
    assert!(terms.is_sorted() && terms.first() < terms.last(), "{terms:?}");

    // Every leader returns the same committed records.
    cluster.begin(leader);
    let again = assign(&cluster, leader, Offset::Beginning);
    let mut told = BTreeMap::new();
    read_until(&again, &mut told, creates("afterwards"));
    assert_eq!(told, log);
}

#[test]
fn groups_of_consumers_commit_how_far_they_have_read() {
    let cluster = Cluster::start(BROKERS, &[]);
    create(&cluster, 0, "read");
    let config = clients::config(cluster.broker(0));
    let mut log = BTreeMap::new();
    let consumer = clients::consumer(&config, "readers");
    consumer.subscribe(&[TOPIC]).expect("a subscription");
    read_until(&consumer, &mut log, creates("read"));
    consumer.commit_consumer_state(CommitMode::Sync).expect("a commit");
    drop(consumer);
    create(&cluster, 0, "read-later");
    let consumer = clients::consumer(&config, "readers");
    consumer.subscribe(&[TOPIC]).expect("a subscription");
    read_until(&consumer, &mut log, creates("read-later"));
}

#[test]
fn it_is_shown_to_who_names_it_and_can_not_be_changed() {
    let cluster = Cluster::start(BROKERS, &[]);
    let mut client = wire::connect(cluster.broker(0));
    assert_eq!(wire::topics(&mut client), [""; 0], "it is not listed");
    let leader = cluster.leader();
    let mut shown = Vec::new();
    wait_until("all brokers", || {
        shown = wire::partitions(&mut client, TOPIC);
        shown[0].isr_nodes.len() == BROKERS
    });
    assert_eq!((shown.len(), shown[0].partition_index, shown[0].leader_id.0), (1, 0, leader as i32 + 1));

    let refused = ErrorCode::InvalidTopicException;
    let created = wire::create_topic(&mut client, TOPIC, 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Err(refused));
    assert!(created.error_message.is_some_and(|message| message.contains(TOPIC)));
    for change in [Change::Delete, Change::Grow { to: 2 }, Change::Set { value: "1000".to_owned() }] {
        let (answer, _) = try_change(&mut client, TOPIC, &change).expect("an answer");
        assert_eq!(answer, Err(refused), "{change:?}");
    }
    for i in 0..BROKERS {
        let mut client = wire::connect(cluster.broker(i));
        let produced = wire::produce(&mut client, TOPIC, 0, wire::batch(&[b"x"]));
        assert_eq!(errors::check(produced.error_code), Err(refused));
        let fetched = client.fetch(wire::fetch_request(TOPIC, 0, 0, 0, 0)).expect("an answer");
        let expected = if i == leader { Ok(()) } else { Err(ErrorCode::NotLeaderOrFollower) };
        assert_eq!(errors::check(wire::only_partition(&fetched).error_code), expected);
        let beyond = client.fetch(wire::fetch_request(TOPIC, 0, 1 << 40, 0, 0)).expect("an answer");
        let expected = if i == leader { ErrorCode::OffsetOutOfRange } else { ErrorCode::NotLeaderOrFollower };
        assert_eq!(errors::check(wire::only_partition(&beyond).error_code), Err(expected));
    }
}

#[test]
fn the_log_begins_behind_the_newest_snapshot() {
    let mut broker = Broker::start();
    let create = |broker: &Broker, name: &str| {
        let created = wire::create_topic(&mut wire::connect(broker), name, 1, 1, &[]);
        assert_eq!(errors::check(created.error_code), Ok(()));
    };
    create(&broker, "in-the-snapshot");
    broker.restart();
    create(&broker, "behind-it");
    let consumer = clients::consumer(&clients::config(&broker), "log");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("an assignment");
    let mut log = BTreeMap::new();
    read_until(&consumer, &mut log, creates("behind-it"));
    let first = *log.first_key_value().expect("a record").0;
    assert!(first > 0 && !log.values().any(creates("in-the-snapshot")), "{log:#?}");
    let fetched = wire::connect(&broker).fetch(wire::fetch_request(TOPIC, 0, first - 1, 0, 0)).expect("an answer");
    assert_eq!(errors::check(wire::only_partition(&fetched).error_code), Err(ErrorCode::OffsetOutOfRange));
}
