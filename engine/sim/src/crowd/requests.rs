//! The requests of the crowd.

use super::{GROUP, TOPIC};
use crate::{clients::text, cluster::Target, exec::World, node::SESSION};
use net::{
    StrBytes,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
    },
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, GroupId, JoinGroupRequest, ListOffsetsRequest, OffsetCommitRequest,
        OffsetFetchRequest, TopicName,
        create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState,
        join_group_request::JoinGroupRequestProtocol,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestGroup,
    },
    records::{build::BatchBuilder, compression::Codec},
};

/// Requests of one connection, and their version.
pub(super) struct Sent {
    pub(super) requests: Vec<Request>,
    pub(super) version: i16,
    /// The length of their frames together.
    pub(super) bytes: usize,
}

impl Sent {
    pub(super) fn one(request: impl Into<Request>, version: i16) -> Self {
        Self { requests: vec![request.into()], version, bytes: 100 }
    }
}

/// Requests to the leader of the crowd's partition.
pub(super) fn to_leader(world: &World, target: &Target) -> Sent {
    let soon = world.number(1..=40) as i32;
    match world.number(..15) {
        0 => fetch(target, 2_000, 1 << 20, 8 << 10),
        1 => fetch(target, 0, 1, 1 << 20),
        2 => list_offsets(world, target, world.number(1..3_000) as i32),
        3 => {
            // The first batch takes several turns to check, so the others wait for it.
            let requests = [1 << 20, 1_000, 1_000].map(|zeros| produce(world, target, Codec::Gzip, zeros, soon));
            Sent { requests: requests.into(), version: 9, bytes: 3_000 }
        }
        _ => {
            let bytes = world.number(1_000..40_000) as usize;
            Sent { requests: vec![produce(world, target, Codec::None, bytes, soon)], version: 9, bytes }
        }
    }
}

/// A request to the coordinator of the crowd's group.
pub(super) fn to_coordinator(world: &World, target: &Target) -> Sent {
    let group = || GroupId(text(GROUP));
    match world.number(..3) {
        0 => join(),
        1 => {
            let group = OffsetFetchRequestGroup::default().with_group_id(group());
            Sent::one(OffsetFetchRequest::default().with_groups(vec![group]), 8)
        }
        _ => {
            let partition = OffsetCommitRequestPartition::default().with_partition_index(target.partition);
            let topic = OffsetCommitRequestTopic::default()
                .with_name(TopicName(text(&target.topic)))
                .with_partitions(vec![partition.with_committed_metadata(Some(text("")))]);
            let request = OffsetCommitRequest::default()
                .with_group_id(group())
                .with_generation_id_or_member_epoch(-1)
                .with_topics(vec![topic]);
            Sent::one(request, 8)
        }
    }
}

/// A request that changes the metadata, to any broker.
pub(super) fn to_any(world: &World) -> Sent {
    let name = TopicName(text(&format!("{TOPIC}-{}", world.place(3))));
    if world.chance(0.5) {
        let replicas = [1, 3][world.place(2)];
        let topic = CreatableTopic::default().with_name(name).with_num_partitions(1).with_replication_factor(replicas);
        Sent::one(CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000), 7)
    } else {
        let topic = DeleteTopicState::default().with_name(Some(name));
        Sent::one(DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000), 6)
    }
}

/// Joins the crowd's group as a new member.
pub(super) fn join() -> Sent {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(text(GROUP)))
        .with_session_timeout_ms(SESSION.as_millis() as i32)
        .with_rebalance_timeout_ms(2_000)
        .with_member_id(StrBytes::new())
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    Sent::one(request, 2)
}

pub(super) fn fetch(target: &Target, wait_ms: i32, bytes_min: i32, bytes_max: i32) -> Sent {
    let partitions = vec![FetchPartition::of_consumer(target.partition, 0, bytes_max)];
    let topics = vec![FetchTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
    Sent::one(FetchRequest::of_consumer(wait_ms, bytes_min, bytes_max, topics), 11)
}

/// Looks up a time in a partition, and the ends of others, most of which do not exist.
pub(super) fn list_offsets(world: &World, target: &Target, count: i32) -> Sent {
    let now = world.time().as_millis() as i64;
    let partition = |index| {
        let timestamp = if index == target.partition { now - 100 } else { -1 };
        ListOffsetsPartition::default().with_partition_index(index).with_timestamp(timestamp)
    };
    let partitions = (0..count).map(partition).collect();
    let topic = ListOffsetsTopic::default().with_name(TopicName(text(&target.topic))).with_partitions(partitions);
    Sent::one(ListOffsetsRequest::default().with_topics(vec![topic]), 7)
}

pub(super) fn produce(world: &World, target: &Target, codec: Codec, zeros: usize, timeout_ms: i32) -> Request {
    let mut batch = BatchBuilder::new(codec);
    batch.push(world.time().as_millis() as i64, None, Some(&vec![0; zeros]));
    let partitions = vec![ProducePartition { index: target.partition, records: Some(batch.finish()) }];
    let topics = vec![ProduceTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
    let acks = [-1, 1][world.place(2)];
    Request::Produce(ProduceRequest { transactional_id: None, acks, timeout_ms, topics })
}
