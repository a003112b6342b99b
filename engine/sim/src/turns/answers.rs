//! Small requests for much: the memory of an answer is held before it is built, it is built in turns, and what is
//! larger than any answer may be is rejected at once.
//!
//! The requests go through the handlers of Kafka's APIs, on a broker of one core, without faults.

use crate::counts::{Calm, PARTITIONS, TOPIC};
use bytes::Bytes;
use engine::{
    connection::{client::Client, reply::Reply},
    handlers::{self, OFFSETS_TOPIC},
};
use net::{
    StrBytes,
    codec::{
        header::RequestHeader,
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    errors::{ErrorCode, NONE},
    messages::{
        CreateTopicsRequest, DescribeConfigsRequest, DescribeGroupsRequest, DescribeTopicPartitionsRequest,
        FindCoordinatorRequest, GroupId, JoinGroupRequest, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
        TopicName,
        create_topics_request::CreatableTopic,
        describe_configs_request::DescribeConfigsResource,
        describe_topic_partitions_request::{Cursor as RequestCursor, TopicRequest},
        join_group_request::JoinGroupRequestProtocol,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        offset_fetch_response::OffsetFetchResponseGroup,
        sync_group_request::SyncGroupRequestAssignment,
    },
    turn::ENTRIES_A_TURN,
};
use std::{cell::Cell, collections::BTreeMap, rc::Rc};

const GROUP: &str = "g";
/// The length of an offset's metadata, and of a large assignment.
const METADATA: usize = 3 << 10;
const ASSIGNMENT: usize = 200 << 10;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group() -> GroupId {
    GroupId(StrBytes::from_static_str(GROUP))
}

/// The answer to one request. `None`: the connection is closed instead.
fn ask(calm: &Calm, request: impl Into<Request>, version: i16) -> Option<Response> {
    let mut answers = calm.ask(&calm.nodes[0], vec![(request.into(), version)]);
    let core = calm.nodes[0].core().expect("it runs");
    assert_eq!(core.memory.answers.held(), 0, "nothing is held for an answer that is gone");
    answers.pop()
}

/// A broker with a group's coordinator.
fn calm(seed: u64) -> Calm {
    let calm = Calm::new(seed, 1);
    let find = || FindCoordinatorRequest::default().with_coordinator_keys(vec![group().0]);
    let found = ask(&calm, find(), 4);
    assert!(matches!(found, Some(Response::FindCoordinator(found)) if found.coordinators[0].error_code == NONE));
    calm
}

/// A broker with a group that has an offset with long metadata for each partition.
fn with_offsets() -> Calm {
    let calm = calm(1);
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(index.into())
            .with_committed_metadata(Some(text(&"m".repeat(METADATA))))
    };
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text(TOPIC)))
        .with_partitions((0..PARTITIONS).map(partition).collect());
    let commit = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let Some(Response::OffsetCommit(answer)) = ask(&calm, commit, 8) else { panic!("it is answered") };
    assert!(answer.topics[0].partitions.iter().all(|partition| partition.error_code == NONE));
    calm
}

fn fetch(groups: Vec<OffsetFetchRequestGroup>) -> OffsetFetchRequest {
    OffsetFetchRequest::default().with_groups(groups)
}

fn check_all_offsets(group: &OffsetFetchResponseGroup) {
    assert_eq!((group.error_code, group.topics.len()), (NONE, 1));
    let offsets = group.topics[0].partitions.iter().map(|partition| partition.committed_offset);
    assert!(offsets.eq(0..i64::from(PARTITIONS)));
}

#[test]
fn all_offsets_of_a_group_are_answered_as_often_as_it_is_named_in_turns() {
    const TIMES: usize = 150;
    let calm = with_offsets();
    let pauses = || calm.nodes[0].core().expect("it runs").metrics.request_pauses_total.get() as usize;
    let all = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    let unknown = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("unknown"))).with_topics(None);
    let mut groups = vec![all; TIMES];
    groups[TIMES / 2] = unknown;
    let before = pauses();
    let Some(Response::OffsetFetch(answer)) = ask(&calm, fetch(groups), 8) else { panic!("it is answered") };
    assert_eq!(answer.groups.len(), TIMES);
    for (at, group) in answer.groups.iter().enumerate() {
        if at == TIMES / 2 {
            assert_eq!((group.group_id.as_str(), group.topics.len()), ("unknown", 0));
        } else {
            check_all_offsets(group);
        }
    }
    let least = TIMES * PARTITIONS as usize / ENTRIES_A_TURN;
    assert!(pauses() - before >= least, "{} pauses", pauses() - before);
}

#[test]
fn offsets_beyond_what_an_answer_may_take_are_not_fetched() {
    let calm = with_offsets();
    let all = || OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    assert_eq!(ask(&calm, fetch(vec![all(); 10_000]), 8), None);
    let Some(Response::OffsetFetch(answer)) = ask(&calm, fetch(vec![all()]), 8) else { panic!("it is answered") };
    check_all_offsets(&answer.groups[0]);
    // The same for a partition with long metadata that is named again and again.
    let topic =
        OffsetFetchRequestTopics::default().with_name(TopicName(text(TOPIC))).with_partition_indexes(vec![0; 100_000]);
    assert_eq!(ask(&calm, fetch(vec![all().with_topics(Some(vec![topic]))]), 8), None);
}

#[test]
fn groups_are_weighed_with_their_members_before_they_are_described() {
    let calm = calm(2);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let join = JoinGroupRequest::default()
        .with_group_id(group())
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(60_000);
    let Some(Response::JoinGroup(joined)) = ask(&calm, join, 3) else { panic!("it is answered") };
    assert_eq!(joined.error_code, NONE);
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(Bytes::from(vec![0; ASSIGNMENT]));
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id)
        .with_assignments(vec![assignment]);
    let synced = ask(&calm, sync, 3);
    assert!(matches!(synced, Some(Response::SyncGroup(synced)) if synced.error_code == NONE));
    let describe = |times| DescribeGroupsRequest::default().with_groups(vec![group(); times]);
    let Some(Response::DescribeGroups(answer)) = ask(&calm, describe(20), 5) else { panic!("it is answered") };
    assert_eq!(answer.groups.len(), 20);
    assert!(answer.groups.iter().all(|group| group.members[0].member_assignment.len() == ASSIGNMENT));
    assert_eq!(ask(&calm, describe(5_000), 5), None);
}

/// The memory that is held for the answer to one request, until it is sent.
fn held_for(calm: &Calm, request: impl Into<Request>, version: i16) -> usize {
    let (core, held) = (calm.nodes[0].core().expect("it runs"), Rc::new(Cell::new(None)));
    let request: Request = request.into();
    let told = held.clone();
    calm.world.spawn(calm.nodes[0].process, async move {
        let client = Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None));
        let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
        let reply = handlers::start(&core, &client, &header, request).await;
        assert!(matches!(reply, Reply::Send(_) | Reply::SendHeld(..)), "it is answered");
        told.set(Some(core.memory.answers.held()));
    });
    calm.until(|| held.get().is_some());
    held.get().expect("it was just looked at")
}

#[test]
fn the_answers_to_a_groups_leader_and_to_producers_are_held() {
    const METADATA: usize = 100 << 10;
    let calm = calm(7);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let join = |bytes| {
        JoinGroupRequest::default()
            .with_group_id(group())
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol.clone().with_metadata(Bytes::from(vec![0; bytes]))])
            .with_session_timeout_ms(60_000)
            .with_rebalance_timeout_ms(60_000)
    };
    let held = held_for(&calm, join(METADATA), 3);
    assert!((METADATA..METADATA + 1000).contains(&held), "{held} bytes");
    let other = GroupId(text("another group"));
    assert_eq!(held_for(&calm, join(1000).with_group_id(other), 3), 0, "a small answer counts once it is queued");
    let produced = |partitions: i32| {
        let partitions = (0..partitions).map(|index| ProducePartition { index, records: None }).collect();
        let topics = vec![ProduceTopic { topic: TopicRef::Name(text(TOPIC)), partitions }];
        ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics }
    };
    let held = held_for(&calm, produced(40_000), 9);
    assert!((40_000 * 100..40_000 * 300).contains(&held), "{held} bytes");
    assert_eq!(held_for(&calm, produced(100), 9), 0);
}

#[test]
fn settings_beyond_what_an_answer_may_take_are_not_described() {
    const BROKER: i8 = 4;
    let calm = Calm::new(3, 1);
    let describe = |times, keys: Option<Vec<StrBytes>>| {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(BROKER)
            .with_resource_name(text("1"))
            .with_configuration_keys(keys);
        DescribeConfigsRequest::default().with_resources(vec![resource; times])
    };
    let Some(Response::DescribeConfigs(answer)) = ask(&calm, describe(3, None), 4) else { panic!("it is answered") };
    let counts: Vec<usize> = answer.results.iter().map(|result| result.configs.len()).collect();
    assert!(counts.len() == 3 && counts.iter().all(|count| *count == counts[0] && *count > 50), "{counts:?}");
    assert_eq!(ask(&calm, describe(100_000, None), 4), None);
    // However many keys are named, each setting is told once.
    let keys = (0..50_000).map(|number| if number % 2 == 0 { text("node.id") } else { text(&number.to_string()) });
    let answer = ask(&calm, describe(1, Some(keys.collect())), 4);
    assert!(matches!(answer, Some(Response::DescribeConfigs(answer)) if answer.results[0].configs.len() == 1));
}

#[test]
fn partitions_are_described_in_pages_each_once() {
    let calm = calm(5);
    let mut described: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let mut cursor = None;
    loop {
        let request =
            DescribeTopicPartitionsRequest::default().with_response_partition_limit(7).with_cursor(cursor.take());
        let Some(Response::DescribeTopicPartitions(page)) = ask(&calm, request, 0) else { panic!("it is answered") };
        assert!((1..=7).contains(&page.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>()));
        for topic in page.topics {
            let name = topic.name.expect("it is known").to_string();
            let partitions = topic.partitions.iter().map(|partition| partition.partition_index);
            described.entry(name).or_default().extend(partitions);
        }
        let Some(next) = page.next_cursor else { break };
        cursor =
            Some(RequestCursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index));
    }
    let count = |topic: &str| described[topic].len() as i32;
    assert_eq!(described.keys().collect::<Vec<_>>(), [OFFSETS_TOPIC, TOPIC]);
    assert!(described.values().all(|partitions| partitions.iter().copied().eq(0..partitions.len() as i32)));
    assert_eq!(count(TOPIC), PARTITIONS);
    // Unknown topics, repeats and a page that ends with its topic.
    let topics = ["b", TOPIC, "b", "z"].map(|name| TopicRequest::default().with_name(TopicName(text(name)))).to_vec();
    let request = DescribeTopicPartitionsRequest::default().with_topics(topics);
    let request = request.with_response_partition_limit(PARTITIONS);
    let Some(Response::DescribeTopicPartitions(page)) = ask(&calm, request, 0) else { panic!("it is answered") };
    let rows = page.topics.iter().map(|topic| (topic.error_code, topic.partitions.len() as i32));
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!(rows.collect::<Vec<_>>(), [(unknown, 0), (NONE, PARTITIONS)]);
    let next = page.next_cursor.expect("a topic is left");
    assert_eq!((next.topic_name.as_str(), next.partition_index), ("z", 0));
}

#[test]
fn topics_whose_settings_no_answer_may_take_are_not_created() {
    let calm = Calm::new(4, 1);
    let topic = |number| {
        CreatableTopic::default()
            .with_name(TopicName(text(&format!("t{number}"))))
            .with_num_partitions(1)
            .with_replication_factor(1)
    };
    let create = |count| {
        CreateTopicsRequest::default()
            .with_topics((0..count).map(topic).collect())
            .with_timeout_ms(5_000)
            .with_validate_only(true)
    };
    let Some(Response::CreateTopics(answer)) = ask(&calm, create(100), 7) else { panic!("it is answered") };
    assert!(answer.topics.iter().all(|topic| topic.error_code == NONE && topic.configs.is_some()));
    assert_eq!(ask(&calm, create(20_000), 7), None);
    // Before version 5 there are no settings in the answer.
    let Some(Response::CreateTopics(answer)) = ask(&calm, create(20_000), 4) else { panic!("it is answered") };
    assert_eq!(answer.topics.len(), 20_000);
    // The brokers have no memory for so many.
    let codes = [NONE, ErrorCode::PolicyViolation.code()];
    assert!(answer.topics.iter().all(|topic| codes.contains(&topic.error_code)));
}
