//! A topic that is deleted and created again is another topic: its groups, producers and readers find nothing of the
//! first one.

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use net::{
    client::blocking::Client,
    errors::{self, ErrorCode},
    messages::{
        DeleteTopicsRequest, FindCoordinatorRequest, GroupId, OffsetFetchRequest,
        delete_topics_request::DeleteTopicState, offset_fetch_request::OffsetFetchRequestGroup,
    },
};
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
};
use support::{
    PATIENCE,
    broker::Broker,
    clients::{self, Record},
    cluster::wait_until,
    wire::{self, commit, connect, create_topic, fetch_request, only_partition, text, topic_name},
};

fn make(client: &mut Client, topic: &str, replicas: i16) {
    let created = create_topic(client, topic, 1, replicas, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
}

fn delete(client: &mut Client, topic: &str) {
    let topic = DeleteTopicState::default().with_name(Some(topic_name(topic)));
    let request = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(PATIENCE.as_millis() as i32);
    assert_eq!(errors::check(client.call(request).unwrap().responses[0].error_code), Ok(()));
}

/// The broker that coordinates a group, once there is one.
fn coordinator<'a>(brokers: &'a [Broker], group: &str) -> &'a Broker {
    let mut client = connect(&brokers[0]);
    let mut found = None;
    wait_until("a coordinator", || {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
        let answer = client.call(request).unwrap().coordinators.remove(0);
        let address = format!("{}:{}", answer.host, answer.port);
        found = brokers.iter().find(|broker| answer.error_code == 0 && broker.bootstrap() == address);
        found.is_some()
    });
    found.expect("just found")
}

/// All offsets that a group has committed, once its coordinator is loaded.
fn all_committed(client: &mut Client, group: &str) -> Vec<(String, i64)> {
    let mut all = Vec::new();
    wait_until("a coordinator that answers", || {
        let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(group))).with_topics(None);
        let answer = client.call(OffsetFetchRequest::default().with_groups(vec![group])).unwrap().groups.remove(0);
        match errors::check(answer.error_code) {
            Ok(()) => {}
            Err(
                ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoadInProgress | ErrorCode::CoordinatorNotAvailable,
            ) => return false,
            Err(error) => panic!("{error}"),
        }
        let offsets = answer.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|partition| {
                assert_eq!(errors::check(partition.error_code), Ok(()), "{}", topic.name.as_str());
                (topic.name.to_string(), partition.committed_offset)
            })
        });
        all = offsets.collect();
        true
    });
    all
}

fn fill(config: &ClientConfig, topic: &str, values: std::ops::Range<i32>) {
    let records: Vec<Record> = values.map(|value| Record::of(value.to_string())).collect();
    clients::offsets(clients::produce(config, topic, 0, &records));
}

/// Polls until the consumer has received each of these values, some of them perhaps more than once.
fn read(consumer: &BaseConsumer, values: std::ops::Range<i32>) {
    let mut missing: BTreeSet<i32> = values.collect();
    let give_up = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        assert!(Instant::now() < give_up, "{missing:?} do not come in {PATIENCE:?}");
        // Errors come from the topic that does not exist for the moment.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            missing.remove(&std::str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap());
        }
    }
}

#[test]
fn committed_offsets_go_with_their_topic_also_over_a_restart() {
    let mut broker = Broker::start();
    let mut client = connect(&broker);
    make(&mut client, "gone", 1);
    make(&mut client, "kept", 1);
    coordinator(std::slice::from_ref(&broker), "g");
    assert_eq!(commit(&mut client, "g", "gone", 10), Ok(()));
    assert_eq!(commit(&mut client, "g", "kept", 20), Ok(()));
    delete(&mut client, "gone");
    assert_eq!(all_committed(&mut client, "g"), [("kept".to_owned(), 20)]);
    assert_eq!(commit(&mut client, "g", "gone", 11), Err(ErrorCode::UnknownTopicOrPartition));
    make(&mut client, "gone", 1);
    assert_eq!(all_committed(&mut client, "g"), [("kept".to_owned(), 20)]);
    broker.kill_and_begin();
    let mut client = connect(&broker);
    assert_eq!(all_committed(&mut client, "g"), [("kept".to_owned(), 20)]);
    assert_eq!(commit(&mut client, "g", "gone", 3), Ok(()));
    broker.restart();
    let mut client = connect(&broker);
    assert_eq!(all_committed(&mut client, "g"), [("gone".to_owned(), 3), ("kept".to_owned(), 20)]);
}

#[test]
fn a_waiting_fetch_ends_with_its_topic() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    make(&mut client, "gone", 1);
    let mut reader = connect(&broker);
    let waits = broker.metric("millrace_fetch_waits_total");
    let wait = PATIENCE.as_millis() as i32;
    let begun = Instant::now();
    let fetch = std::thread::spawn(move || reader.fetch(fetch_request("gone", 0, 0, 2 * wait, 1)));
    wait_until("a fetch that waits", || broker.metric("millrace_fetch_waits_total") > waits);
    delete(&mut client, "gone");
    let answer = fetch.join().unwrap().expect("the fetch is answered");
    assert!(begun.elapsed() < PATIENCE, "it waited for its own time");
    let error = errors::check(only_partition(&answer).error_code).unwrap_err();
    assert!(
        matches!(error, ErrorCode::UnknownTopicOrPartition | ErrorCode::NotLeaderOrFollower),
        "clients look at the metadata again: {error:?}"
    );
}

#[test]
fn an_idempotent_producer_begins_anew() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let batch_at = |sequence: i32| {
        let mut builder = net::records::build::BatchBuilder::default().producer(4711, 0, sequence);
        builder.push(1_700_000_000_000, None, Some(b"x"));
        builder.finish()
    };
    for round in 0..2 {
        make(&mut client, "phoenix", 1);
        for sequence in 0..3 {
            let answer = wire::produce(&mut client, "phoenix", 0, batch_at(sequence));
            let told = (errors::check(answer.error_code), answer.base_offset);
            assert_eq!(told, (Ok(()), i64::from(sequence)), "round {round}: neither a duplicate nor out of order");
        }
        delete(&mut client, "phoenix");
    }
}

/// A group member keeps reading while its topic is deleted and created again. It notices nothing, and at first it
/// continues at its old offset. The coordinator rejects its next commit, so the member joins again and reads what it
/// has skipped.
fn live_consumer(brokers: &[Broker]) {
    let mut client = connect(&brokers[0]);
    let replicas = brokers.len().min(3) as i16;
    make(&mut client, "live", replicas);
    let mut config = clients::config(&brokers[0]);
    fill(&config, "live", 0..10);
    // Only through the coordinator does the consumer learn of other topics.
    config.set("topic.metadata.refresh.interval.ms", "600000").set("heartbeat.interval.ms", "200");
    config.set("group.id", "readers").set("auto.offset.reset", "earliest").set("auto.commit.interval.ms", "100");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    consumer.subscribe(&["live"]).expect("a subscription");
    read(&consumer, 0..10);
    let mut at_coordinator = connect(coordinator(brokers, "readers"));
    let is_committed = |client: &mut Client, offset| all_committed(client, "readers") == [("live".to_owned(), offset)];
    wait_until("a commit", || is_committed(&mut at_coordinator, 10));

    delete(&mut client, "live");
    make(&mut client, "live", replicas);
    assert_eq!(all_committed(&mut at_coordinator, "readers"), []);
    fill(&config, "live", 100..120);
    read(&consumer, 100..120);
    wait_until("a commit to the new topic", || {
        // The consumer joins again while it is polled.
        let _ = consumer.poll(Duration::ZERO);
        is_committed(&mut at_coordinator, 20)
    });
}

#[test]
fn a_live_consumer_reads_all_of_the_new_topic() {
    live_consumer(&[Broker::start()]);
}

#[test]
fn a_live_consumer_of_three_brokers_reads_all_of_the_new_topic() {
    live_consumer(&Broker::cluster(3));
}

#[test]
fn another_coordinator_takes_no_offset_of_the_earlier_topic_for_the_new_ones() {
    let mut brokers = Broker::cluster(3);
    make(&mut connect(&brokers[0]), "phoenix", 3);
    let mut client = connect(coordinator(&brokers, "g"));
    wait_until("a commit", || commit(&mut client, "g", "phoenix", 10) == Ok(()));
    let first = coordinator(&brokers, "g").bootstrap();
    let lost = brokers.iter().position(|broker| broker.bootstrap() == first).expect("it is one of them");
    let mut admin = connect(&brokers[(lost + 1) % 3]);
    delete(&mut admin, "phoenix");
    make(&mut admin, "phoenix", 3);
    let mut lost = brokers.remove(lost);
    lost.kill();

    let mut client = connect(coordinator(&brokers, "g"));
    assert_eq!(all_committed(&mut client, "g"), []);
    wait_until("a commit", || commit(&mut client, "g", "phoenix", 3) == Ok(()));
    assert_eq!(all_committed(&mut client, "g"), [("phoenix".to_owned(), 3)]);
}
