//! Large requests: how much work one turn does at most, and that batches keep their order however long their checks
//! take.
//!
//! The requests go through the handlers of Kafka's APIs, on a broker of one core, without faults.

use super::{
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
        DescribeConfigsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId, ListOffsetsRequest,
        MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest, TopicName,
        describe_configs_request::DescribeConfigsResource,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
    },
    records::{build::BatchBuilder, compression::Codec},
    turn::{BYTES_A_TURN, ENTRIES_A_TURN},
};

/// Number of entries in a large request.
const ENTRIES: usize = 20_000;
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
    let core = calm.nodes[0].core().expect("it runs");
    let before = core.metrics.request_pauses_total.get();
    let answers = calm.ask(&calm.nodes[0], requests);
    (answers, (core.metrics.request_pauses_total.get() - before) as usize)
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

#[test]
fn a_request_of_many_entries_gives_way_behind_each_turns_share() {
    let calm = Calm::new(1, 1);
    let entries = 0..ENTRIES as i32;
    let unknown = |number: i32| StrBytes::from_string(format!("unknown-{number}"));
    let epoch = |number| OffsetForLeaderPartition::default().with_partition(number % PARTITIONS);
    let resource =
        |number| DescribeConfigsResource::default().with_resource_type(2).with_resource_name(unknown(number));
    let named = |number| MetadataRequestTopic::default().with_name(Some(TopicName(unknown(number))));
    let fetched = entries.clone().map(|number| FetchPartition::of_consumer(number % PARTITIONS, 0, 1)).collect();
    let fetched = vec![FetchTopic { topic: TopicRef::Name(topic()), partitions: fetched }];
    let produced = entries.clone().map(|index| ProducePartition { index, records: None }).collect();
    let produced = vec![ProduceTopic { topic: TopicRef::Name(topic()), partitions: produced }];
    let epochs = OffsetForLeaderTopic::default()
        .with_topic(TopicName(topic()))
        .with_partitions(entries.clone().map(epoch).collect());
    let group = |number| GroupId(unknown(number));
    let committed = |number: i32| OffsetCommitRequestPartition::default().with_partition_index(number % PARTITIONS);
    let committed = OffsetCommitRequestTopic::default()
        .with_name(TopicName(topic()))
        .with_partitions(entries.clone().map(committed).collect());
    let asked = OffsetFetchRequestTopic::default()
        .with_name(TopicName(topic()))
        .with_partition_indexes(entries.clone().map(|number| number % PARTITIONS).collect());
    let requests = [
        (
            Request::FindCoordinator(
                FindCoordinatorRequest::default().with_coordinator_keys(entries.clone().map(unknown).collect()),
            ),
            4,
        ),
        (
            Request::OffsetCommit(
                OffsetCommitRequest::default()
                    .with_group_id(group(0))
                    .with_generation_id_or_member_epoch(-1)
                    .with_topics(vec![committed]),
            ),
            8,
        ),
        (Request::OffsetFetch(OffsetFetchRequest::default().with_group_id(group(0)).with_topics(Some(vec![asked]))), 7),
        (
            Request::DescribeGroups(DescribeGroupsRequest::default().with_groups(entries.clone().map(group).collect())),
            5,
        ),
        list_offsets(entries.clone().map(|number| (number, -1))),
        (Request::OffsetForLeaderEpoch(OffsetForLeaderEpochRequest::default().with_topics(vec![epochs])), 4),
        (
            Request::Metadata(
                MetadataRequest::default()
                    .with_topics(Some(entries.clone().map(named).collect()))
                    .with_allow_auto_topic_creation(false),
            ),
            9,
        ),
        (
            Request::DescribeConfigs(
                DescribeConfigsRequest::default().with_resources(entries.clone().map(resource).collect()),
            ),
            4,
        ),
        (Request::Fetch(FetchRequest::of_consumer(0, 0, 1 << 20, fetched)), 11),
        (Request::Produce(ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics: produced }), 9),
    ];
    for (request, version) in requests {
        let name = format!("{:?}", request.api());
        let (answers, pauses) = ask(&calm, vec![(request, version)]);
        assert_eq!(answers.len(), 1, "{name}");
        let least = ENTRIES / ENTRIES_A_TURN;
        assert!((least..4 * least).contains(&pauses), "{name}: {pauses} pauses for {ENTRIES} entries, not {least}");
    }
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
