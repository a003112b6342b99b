//! Large requests: how much work one turn does at most, and that batches keep their order however long their checks
//! take.
//!
//! The requests go through the handlers of Kafka's APIs, on a broker of one core, without faults.

mod answers;
mod opening;
mod stopping;

use super::{
    allocations,
    counts::{Calm, PARTITIONS, TOPIC},
    exec,
};
use bytes::Bytes;
use net::{
    StrBytes,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    messages::{
        CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
        DescribeGroupsRequest, DescribeQuorumRequest, DescribeTopicPartitionsRequest, ElectLeadersRequest,
        FindCoordinatorRequest, GroupId, IncrementalAlterConfigsRequest, LeaveGroupRequest, ListGroupsRequest,
        ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
        TopicName,
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        describe_quorum_request::{PartitionData as QuorumPartition, TopicData as QuorumTopic},
        describe_topic_partitions_request::TopicRequest,
        elect_leaders_request::TopicPartitions,
        incremental_alter_configs_request::AlterConfigsResource,
        leave_group_request::MemberIdentity,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic},
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
    },
    records::{build::BatchBuilder, compression::Codec},
    turn::{BYTES_A_TURN, ENTRIES_A_TURN},
};
use std::ops::Range;

/// Number of entries in a large request.
const ENTRIES: usize = 40_000;
/// Most allocations of one step of a task. A step handles at most [`ENTRIES_A_TURN`] entries, most of them with less
/// than one allocation. Work on all entries in one step needs more, even if it only puts them into a set.
const STEP_ALLOCATIONS_MAX: u64 = 4 * ENTRIES_A_TURN as u64;
/// The same while topics are created, many at once, each with several allocations.
const CREATION_ALLOCATIONS_MAX: u64 = 10 * ENTRIES_A_TURN as u64;
/// The decompressed size of a large batch, in bytes.
const MUCH: usize = 20 << 20;

fn topic() -> StrBytes {
    StrBytes::from_static_str(TOPIC)
}

/// A batch of three records, each a millisecond later than the one before: a large one of zeros between two small ones.
fn batch(codec: Codec, zeros: usize) -> Bytes {
    let now = exec::world().time().as_millis() as i64;
    let mut batch = BatchBuilder::new(codec);
    for (at, size) in [1, zeros, 1].into_iter().enumerate() {
        batch.push(now + at as i64, None, Some(&vec![0; size]));
    }
    batch.finish()
}

fn produce(partition: i32, records: Bytes) -> (Request, i16) {
    let partitions = vec![ProducePartition { index: partition, records: Some(records) }];
    let topics = vec![ProduceTopic { topic: TopicRef::Name(topic()), partitions }];
    (Request::Produce(ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics }), 9)
}

/// Sends requests to the only broker. Returns the answers, and how often requests yielded meanwhile.
fn ask(calm: &Calm, requests: Vec<(Request, i16)>) -> (Vec<Response>, usize) {
    let (answers, pauses, _) = ask_counted(calm, requests);
    (answers, pauses)
}

/// Returns in addition the most allocations of one step.
fn ask_counted(calm: &Calm, requests: Vec<(Request, i16)>) -> (Vec<Response>, usize, u64) {
    let core = calm.nodes[0].core().expect("it runs");
    let before = core.metrics.request_pauses_total.get();
    let answers = calm.start(&calm.nodes[0], requests);
    let (mut so_far, mut most) = (allocations::so_far(), 0);
    calm.until(|| {
        most = most.max(allocations::so_far() - so_far);
        so_far = allocations::so_far();
        answers.borrow().is_some()
    });
    let answers = answers.take().expect("they have come");
    (answers, (core.metrics.request_pauses_total.get() - before) as usize, most)
}

fn stored_at(answer: &Response) -> i64 {
    let Response::Produce(response) = answer else { panic!("{answer:?}") };
    let partition = &response.topics[0].partitions[0];
    assert_eq!(partition.error_code, 0, "{partition:?}");
    partition.base_offset
}

fn found(answer: &Response) -> Vec<(i16, i64)> {
    let Response::ListOffsets(response) = answer else { panic!("{answer:?}") };
    let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.map(|partition| (partition.error_code, partition.offset)).collect()
}

fn list_offsets(asked: impl Iterator<Item = (i32, i64)>) -> (Request, i16) {
    let partition = |(partition, timestamp)| {
        ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp)
    };
    let topic =
        ListOffsetsTopic::default().with_name(TopicName(topic())).with_partitions(asked.map(partition).collect());
    (Request::ListOffsets(ListOffsetsRequest::default().with_topics(vec![topic])), 7)
}

/// On one connection and to one partition, a small batch does not overtake a large one.
#[test]
fn batches_are_appended_in_the_order_they_came_whoever_takes_longer_to_check() {
    for seed in 0..5 {
        let calm = Calm::new(seed, 1);
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let sizes = [1, MUCH, 1, 1, MUCH / 2, 1];
            let requests = sizes.map(|zeros| produce(0, batch(if zeros > 1 { codec } else { Codec::None }, zeros)));
            let (answers, pauses) = ask(&calm, requests.into());
            let places: Vec<i64> = answers.iter().map(stored_at).collect();
            assert!(places.windows(2).all(|pair| pair[0] + 3 == pair[1]), "seed {seed}, {codec:?}: {places:?}");
            assert!(pauses >= MUCH / BYTES_A_TURN, "seed {seed}, {codec:?}: {pauses} pauses");
        }
    }
}

fn numbers() -> Range<i32> {
    0..ENTRIES as i32
}

fn unknown(number: i32) -> StrBytes {
    StrBytes::from_string(format!("unknown-{number}"))
}

fn unknown_topic(number: i32) -> TopicName {
    TopicName(unknown(number))
}

fn group(number: i32) -> GroupId {
    GroupId(unknown(number))
}

/// Asserts that the broker answers the request in pieces, and in no more of them than needed. `rounds`: how often it
/// goes through the entries.
fn check_turns(calm: &Calm, rounds: usize, version: i16, request: impl Into<Request>) {
    check_steps(calm, rounds, version, request.into(), STEP_ALLOCATIONS_MAX);
}

fn check_steps(calm: &Calm, rounds: usize, version: i16, request: Request, allocations_max: u64) {
    let name = format!("{:?} version {version}", request.api());
    let (answers, pauses, most) = ask_counted(calm, vec![(request, version)]);
    assert_eq!(answers.len(), 1, "{name}");
    let least = ENTRIES / ENTRIES_A_TURN;
    assert!(
        (least..=rounds * least + rounds).contains(&pauses),
        "{name}: {pauses} pauses for {ENTRIES} entries, not {rounds} times {least}"
    );
    assert!(most <= allocations_max, "{name}: {most} allocations in one step");
}

#[test]
fn requests_about_many_partitions_give_way_behind_each_turns_share() {
    let calm = Calm::new(1, 1);
    let fetched = numbers().map(|number| FetchPartition::of_consumer(number % PARTITIONS, 0, 1)).collect();
    let fetched = vec![FetchTopic { topic: TopicRef::Name(topic()), partitions: fetched }];
    check_turns(&calm, 4, 11, FetchRequest::of_consumer(0, 0, 1 << 20, fetched));
    let produced = numbers().map(|index| ProducePartition { index, records: None }).collect();
    let topics = vec![ProduceTopic { topic: TopicRef::Name(topic()), partitions: produced }];
    check_turns(&calm, 4, 9, ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics });
    let (listed, version) = list_offsets(numbers().map(|number| (number, -1)));
    check_turns(&calm, 5, version, listed);
    let epoch = |number| OffsetForLeaderPartition::default().with_partition(number % PARTITIONS);
    let epochs =
        OffsetForLeaderTopic::default().with_topic(TopicName(topic())).with_partitions(numbers().map(epoch).collect());
    check_turns(&calm, 4, 4, OffsetForLeaderEpochRequest::default().with_topics(vec![epochs]));
    let asked = |number| QuorumPartition::default().with_partition_index(number);
    let quorum =
        QuorumTopic::default().with_topic_name(unknown_topic(0)).with_partitions(numbers().map(asked).collect());
    check_turns(&calm, 4, 2, DescribeQuorumRequest::default().with_topics(vec![quorum]));
    let elected = TopicPartitions::default()
        .with_topic(TopicName(topic()))
        .with_partitions(numbers().map(|number| number % PARTITIONS).collect());
    let elect = ElectLeadersRequest::default().with_timeout_ms(5_000);
    check_turns(&calm, 20, 2, elect.with_topic_partitions(Some(vec![elected])));
}

#[test]
fn requests_about_many_topics_give_way_behind_each_turns_share() {
    let calm = Calm::new(2, 1);
    let named = |number| MetadataRequestTopic::default().with_name(Some(unknown_topic(number)));
    let metadata = MetadataRequest::default().with_topics(Some(numbers().map(named).collect()));
    check_turns(&calm, 4, 9, metadata.clone().with_allow_auto_topic_creation(false));
    let described = numbers().map(|number| TopicRequest::default().with_name(unknown_topic(number))).collect();
    check_turns(&calm, 4, 0, DescribeTopicPartitionsRequest::default().with_topics(described));
    let resource =
        |number| DescribeConfigsResource::default().with_resource_type(2).with_resource_name(unknown(number));
    check_turns(&calm, 4, 4, DescribeConfigsRequest::default().with_resources(numbers().map(resource).collect()));
    let keys = DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(StrBytes::from_static_str("1"))
        .with_configuration_keys(Some(numbers().map(unknown).collect()));
    check_turns(&calm, 4, 4, DescribeConfigsRequest::default().with_resources(vec![keys]));
    let altered = |number| AlterConfigsResource::default().with_resource_type(2).with_resource_name(unknown(number));
    let altered = numbers().map(altered).collect();
    check_turns(&calm, 40, 1, IncrementalAlterConfigsRequest::default().with_resources(altered));
    let grown = |number| CreatePartitionsTopic::default().with_name(unknown_topic(number)).with_count(2);
    let grow = CreatePartitionsRequest::default().with_timeout_ms(5_000);
    check_turns(&calm, 40, 3, grow.with_topics(numbers().map(grown).collect()));
    let deleted = |number| DeleteTopicState::default().with_name(Some(unknown_topic(number)));
    let delete = DeleteTopicsRequest::default().with_timeout_ms(5_000);
    check_turns(&calm, 40, 6, delete.with_topics(numbers().map(deleted).collect()));
    let made = |number| {
        CreatableTopic::default().with_name(unknown_topic(number)).with_num_partitions(1).with_replication_factor(1)
    };
    let create = CreateTopicsRequest::default().with_topics(numbers().map(made).collect()).with_timeout_ms(30_000);
    check_turns(&calm, 40, 4, create.clone().with_validate_only(true));
    // Those that the broker has memory for are made.
    check_steps(&calm, 40, 4, create.into(), CREATION_ALLOCATIONS_MAX);
    check_steps(&calm, 40, 9, metadata.into(), CREATION_ALLOCATIONS_MAX);
}

#[test]
fn requests_about_many_groups_give_way_behind_each_turns_share() {
    let calm = Calm::new(3, 1);
    let find = FindCoordinatorRequest::default().with_coordinator_keys(numbers().map(unknown).collect());
    check_turns(&calm, 4, 4, find);
    let committed = |number: i32| OffsetCommitRequestPartition::default().with_partition_index(number % PARTITIONS);
    let committed = OffsetCommitRequestTopic::default()
        .with_name(TopicName(topic()))
        .with_partitions(numbers().map(committed).collect());
    let commit = OffsetCommitRequest::default().with_group_id(group(0)).with_generation_id_or_member_epoch(-1);
    check_turns(&calm, 4, 8, commit.with_topics(vec![committed]));
    let asked = OffsetFetchRequestTopic::default()
        .with_name(TopicName(topic()))
        .with_partition_indexes(numbers().map(|number| number % PARTITIONS).collect());
    let fetch = OffsetFetchRequest::default();
    check_turns(&calm, 4, 7, fetch.clone().with_group_id(group(0)).with_topics(Some(vec![asked])));
    let all = |number| OffsetFetchRequestGroup::default().with_group_id(group(number)).with_topics(None);
    check_turns(&calm, 4, 8, fetch.with_groups(numbers().map(all).collect()));
    check_turns(&calm, 4, 5, DescribeGroupsRequest::default().with_groups(numbers().map(group).collect()));
    let left = |number| MemberIdentity::default().with_member_id(unknown(number));
    let leave = LeaveGroupRequest::default().with_group_id(group(0)).with_members(numbers().map(left).collect());
    check_turns(&calm, 4, 5, leave);
    let list = ListGroupsRequest::default().with_states_filter(numbers().map(unknown).collect());
    check_turns(&calm, 4, 4, list);
}

/// One request with many batches for each partition. They are appended in order, and there is one answer for all.
#[test]
fn a_request_of_many_batches_is_appended_in_parts_and_answered_whole() {
    const BATCHES: usize = 1_000;
    let calm = Calm::new(3, 1);
    let small = batch(Codec::None, 1);
    let index = |at: usize| (at as i32 * 7) % PARTITIONS;
    let partitions =
        (0..BATCHES).map(|at| ProducePartition { index: index(at), records: Some(small.clone()) }).collect();
    let topics = vec![ProduceTopic { topic: TopicRef::Name(topic()), partitions }];
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics };
    let (answers, pauses) = ask(&calm, vec![(Request::Produce(request), 9)]);
    assert!(pauses >= BATCHES / 256, "{pauses} pauses");
    let Response::Produce(response) = &answers[0] else { panic!("{answers:?}") };
    let mut next = [0; PARTITIONS as usize];
    assert_eq!(response.topics[0].partitions.len(), BATCHES);
    for (at, partition) in response.topics[0].partitions.iter().enumerate() {
        let end = &mut next[partition.index as usize];
        assert_eq!((partition.index, partition.error_code, partition.base_offset), (index(at), 0, *end));
        *end += 3;
    }
}

#[test]
fn a_lookup_by_timestamp_unfolds_no_more_than_it_takes_and_that_in_turns() {
    let calm = Calm::new(2, 1);
    let begun = exec::world().time().as_millis() as i64;
    let partitions = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd].into_iter().zip(0..);
    for (codec, partition) in partitions.clone() {
        stored_at(&ask(&calm, vec![produce(partition, batch(codec, MUCH))]).0[0]);
    }
    // The first record comes before the large one.
    let (answers, pauses) = ask(&calm, vec![list_offsets(partitions.clone().map(|(_, at)| (at, begun)))]);
    assert_eq!((found(&answers[0]), pauses), (vec![(0, 0); 4], 0));
    // The third record comes after the large one. Each partition is searched once, in several turns.
    for (codec, partition) in partitions {
        let stored = begun_of(&calm, partition);
        let (answers, pauses) = ask(&calm, vec![list_offsets([(partition, stored + 2)].into_iter())]);
        assert_eq!(found(&answers[0]), [(0, 2)], "{codec:?}");
        let least = MUCH / (BYTES_A_TURN + (16 << 10));
        assert!((least..2 * least).contains(&pauses), "{codec:?}: {pauses} pauses, not {least}");
    }
}

/// The timestamp of a partition's first record.
fn begun_of(calm: &Calm, partition: i32) -> i64 {
    let (answers, _) = ask(calm, vec![list_offsets([(partition, 0)].into_iter())]);
    let Response::ListOffsets(response) = &answers[0] else { panic!("{answers:?}") };
    response.topics[0].partitions[0].timestamp
}
