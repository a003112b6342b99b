//! Consumer groups of one member, most through librdkafka: commits survive every kind of restart.

mod support;

use std::time::Instant;

use bytes::Bytes;
use net::errors;
use net::messages::leave_group_request::MemberIdentity;
use net::messages::{GroupId, LeaveGroupRequest};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use support::PATIENCE;
use support::broker::Broker;
use support::clients::{self, Record};
use support::wire;

fn fill(broker: &Broker, topic: &str, count: usize) {
    clients::create_topic(broker, topic, 1);
    let records: Vec<Record> = (0..count).map(|i| Record::of(format!("{i}"))).collect();
    clients::offsets(clients::produce(&clients::config(broker), topic, 0, &records));
}

/// One member joins, reads `count` records, commits behind the last one and leaves. Returns the first offset that it
/// read.
fn take(broker: &Broker, group: &str, topic: &str, count: usize) -> i64 {
    let consumer = clients::consumer(&clients::config(broker), group);
    consumer.subscribe(&[topic]).expect("a subscription");
    let mut offsets = Vec::new();
    while offsets.len() < count {
        let message = clients::next(&consumer).expect("no end was asked for");
        offsets.push(message.offset());
        assert_eq!(message.payload(), Some(message.offset().to_string().as_bytes()));
        if offsets.len() == count {
            consumer.commit_message(&message, CommitMode::Sync).expect("the commit is taken");
        }
    }
    let first = offsets[0];
    assert_eq!(offsets, (first..first + count as i64).collect::<Vec<i64>>());
    assert_eq!(committed(&consumer, topic), Offset::Offset(first + count as i64));
    consumer.unsubscribe();
    first
}

fn committed(consumer: &BaseConsumer, topic: &str) -> Offset {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let list = consumer.committed_offsets(list, PATIENCE).expect("OffsetFetch is answered");
    let partition = &list.elements()[0];
    partition.error().expect("the partition's offset is told");
    partition.offset()
}

#[test]
fn a_group_goes_on_where_it_stood_over_every_kind_of_restart() {
    let mut broker = Broker::start();
    fill(&broker, "work", 200);
    assert_eq!(take(&broker, "workers", "work", 30), 0);
    assert_eq!(take(&broker, "workers", "work", 10), 30);
    broker.restart();
    assert_eq!(take(&broker, "workers", "work", 20), 40);
    broker.kill_and_begin();
    assert_eq!(take(&broker, "workers", "work", 20), 60);
    broker.kill_and_begin();
    broker.restart();
    assert_eq!(take(&broker, "workers", "work", 120), 80);
}

#[test]
fn groups_do_not_see_each_other() {
    let mut broker = Broker::start();
    fill(&broker, "shared", 100);
    assert_eq!(take(&broker, "one", "shared", 70), 0);
    assert_eq!(take(&broker, "two", "shared", 20), 0);
    broker.kill_and_begin();
    assert_eq!(take(&broker, "one", "shared", 5), 70);
    assert_eq!(take(&broker, "two", "shared", 5), 20);
    let third = clients::consumer(&clients::config(&broker), "three");
    assert_eq!(committed(&third, "shared"), Offset::Invalid);
}

#[test]
fn a_commit_can_go_back_and_another_topic_keeps_its_own() {
    let mut broker = Broker::start();
    fill(&broker, "a", 50);
    fill(&broker, "b", 50);
    assert_eq!(take(&broker, "both", "a", 40), 0);
    assert_eq!(take(&broker, "both", "b", 25), 0);
    {
        let consumer = clients::consumer(&clients::config(&broker), "both");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("a", 0, Offset::Offset(10)).expect("an offset");
        consumer.commit(&list, CommitMode::Sync).expect("the commit is taken");
    }
    broker.restart();
    assert_eq!(take(&broker, "both", "a", 5), 10);
    assert_eq!(take(&broker, "both", "b", 5), 25);
}

/// Members cause lines as fast as they join and leave. The broker writes few of them, and counts the others.
#[test]
fn members_that_come_and_go_are_no_flood_of_lines() {
    const ROUNDS: usize = 40;
    let mut broker = Broker::start();
    let mut client = wire::connect(&broker);
    wire::await_coordinator(&mut client, "restless");
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let join = wire::joining(&mut client, "restless", Bytes::new());
        let joined = client.call(join).expect("JoinGroup is answered");
        assert_eq!(errors::check(joined.error_code), Ok(()));
        let member = MemberIdentity::default().with_member_id(joined.member_id);
        let leave = LeaveGroupRequest::default().with_group_id(GroupId(wire::text("restless")));
        let left = client.call(leave.with_members(vec![member])).expect("LeaveGroup is answered");
        assert_eq!(errors::check(left.error_code), Ok(()));
        assert!(left.members.iter().all(|member| member.error_code == errors::NONE), "{left:?}");
    }
    let allowed = 16 + 1 + begun.elapsed().as_secs() as usize;
    let (_, output) = broker.signal_and_wait(libc::SIGTERM);
    let lines = output.lines().filter(|line| line.contains("group=restless")).count();
    assert!((1..=allowed).contains(&lines), "{lines} lines, {allowed} are allowed");
}
