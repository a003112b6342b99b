//! The project's own minimal client, for things that librdkafka hides: single requests, raw answers, no retries.

use bytes::Bytes;
use net::StrBytes;
use net::client::blocking::Client;
use net::codec::fetch::{FetchPartition, FetchRequest, FetchTopic};
use net::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use net::errors::{self, ErrorCode};
use net::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use net::messages::create_topics_response::CreatableTopicResult;
use net::messages::fetch_response::PartitionData;
use net::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use net::messages::join_group_request::JoinGroupRequestProtocol;
use net::messages::metadata_request::MetadataRequestTopic;
use net::messages::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};
use net::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use net::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use net::messages::produce_response::PartitionProduceResponse;
use net::messages::sync_group_request::SyncGroupRequestAssignment;
use net::messages::{
    CreateTopicsRequest, FetchResponse, FindCoordinatorRequest, GroupId, IncrementalAlterConfigsRequest,
    JoinGroupRequest, JoinGroupResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest, OffsetFetchRequest,
    SyncGroupRequest, TopicName,
};
use net::records::build::BatchBuilder;

use super::PATIENCE;
use super::broker::Broker;
use super::cluster::wait_until;

pub fn connect(broker: &Broker) -> Client {
    Client::connect(&broker.bootstrap(), "wire", PATIENCE).expect("the broker accepts")
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A batch of records with these values.
pub fn batch(values: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::default();
    for value in values {
        builder.push(1_700_000_000_000, None, Some(value));
    }
    builder.finish()
}

pub fn produce_request(topic: &str, partition: i32, acks: i16, records: Bytes) -> ProduceRequest {
    let partition = ProducePartition { index: partition, records: Some(records) };
    let topic = ProduceTopic { topic: TopicRef::Name(text(topic)), partitions: vec![partition] };
    ProduceRequest { transactional_id: None, acks, timeout_ms: PATIENCE.as_millis() as i32, topics: vec![topic] }
}

/// Produces one batch with acks=all. Returns the partition's answer, which may be an error.
pub fn produce(client: &mut Client, topic: &str, partition: i32, records: Bytes) -> PartitionProduceResponse {
    let response = client.produce(produce_request(topic, partition, -1, records)).expect("Produce is answered");
    response.responses[0].partition_responses[0].clone()
}

pub fn fetch_request(topic: &str, partition: i32, offset: i64, max_wait_ms: i32, min_bytes: i32) -> FetchRequest {
    let partition = FetchPartition::of_consumer(partition, offset, 1 << 20);
    let topic = FetchTopic { topic: TopicRef::Name(text(topic)), partitions: vec![partition] };
    FetchRequest::of_consumer(max_wait_ms, min_bytes, 1 << 24, vec![topic])
}

/// The only partition in the answer to a fetch. The answer as a whole must bear no error.
pub fn only_partition(fetched: &FetchResponse) -> &PartitionData {
    assert_eq!(errors::check(fetched.error_code), Ok(()));
    let partitions: Vec<&PartitionData> = fetched.responses.iter().flat_map(|topic| &topic.partitions).collect();
    let [partition] = partitions[..] else { panic!("{} partitions", partitions.len()) };
    partition
}

/// A broker's answer to a request for metadata. As a whole, it must bear no error.
pub fn metadata(client: &mut Client, request: MetadataRequest) -> MetadataResponse {
    let told = client.call(request).expect("Metadata is answered");
    assert_eq!(errors::check(told.error_code), Ok(()));
    told
}

/// The number of brokers that are alive according to one of them.
pub fn alive(client: &mut Client) -> usize {
    metadata(client, MetadataRequest::default().with_topics(Some(Vec::new()))).brokers.len()
}

/// The names of all topics, each told without an error.
pub fn topics(client: &mut Client) -> Vec<String> {
    let all = metadata(client, MetadataRequest::default().with_topics(None)).topics;
    let name = |topic: MetadataResponseTopic| {
        assert_eq!(errors::check(topic.error_code), Ok(()), "{topic:?}");
        topic.name.expect("a topic has a name").to_string()
    };
    all.into_iter().map(name).collect()
}

/// The partitions of a topic as a broker returns them, in their order.
pub fn partitions(client: &mut Client, topic: &str) -> Vec<MetadataResponsePartition> {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false);
    let topic = metadata(client, request).topics.remove(0);
    let known = errors::check(topic.error_code);
    // Empty while the broker does not know the topic yet, or may not answer. Any other error is a fault of the test.
    assert!(
        matches!(known, Ok(()) | Err(ErrorCode::UnknownTopicOrPartition | ErrorCode::LeaderNotAvailable)),
        "{known:?}"
    );
    let mut partitions = topic.partitions;
    partitions.sort_by_key(|partition| partition.partition_index);
    // A partition without a leader is told as such, and has no other error.
    let expected = |leads: bool| if leads { Ok(()) } else { Err(ErrorCode::LeaderNotAvailable) };
    for partition in &partitions {
        assert_eq!(errors::check(partition.error_code), expected(partition.leader_id.0 >= 0), "{partition:?}");
    }
    partitions
}

pub fn create_topic(
    client: &mut Client,
    name: &str,
    partitions: i32,
    replication: i16,
    settings: &[(&str, &str)],
) -> CreatableTopicResult {
    let setting = |(name, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
    };
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(replication)
        .with_configs(settings.iter().map(setting).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(PATIENCE.as_millis() as i32);
    client.call(request).expect("CreateTopics is answered").topics[0].clone()
}

/// Waits until the group's coordinator answers. The first such wait in a cluster creates the offsets topic.
pub fn await_coordinator(client: &mut Client, group: &str) {
    wait_until("a coordinator", || {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
        client.call(request).expect("FindCoordinator is answered").coordinators[0].error_code == 0
    });
}

/// A commit of an offset of partition 0 for a group without members.
pub fn committing(group: &str, topic: &str, offset: i64) -> OffsetCommitRequest {
    let partition =
        OffsetCommitRequestPartition::default().with_committed_offset(offset).with_committed_metadata(Some(text("")));
    let topic = OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

/// Commits an offset of partition 0 for a group without members.
pub fn commit(client: &mut Client, group: &str, topic: &str, offset: i64) -> Result<(), ErrorCode> {
    let answer = client.call(committing(group, topic, offset)).expect("OffsetCommit is answered");
    errors::check(answer.topics[0].partitions[0].error_code)
}

/// The group's offset of partition 0; -1 if there is none.
pub fn committed(client: &mut Client, group: &str, topic: &str) -> i64 {
    let topics = OffsetFetchRequestTopics::default().with_name(topic_name(topic)).with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topics]));
    let answer = client.call(OffsetFetchRequest::default().with_groups(vec![group])).expect("OffsetFetch is answered");
    let group = &answer.groups[0];
    assert_eq!(errors::check(group.error_code), Ok(()));
    group.topics[0].partitions[0].committed_offset
}

/// Longer than a test waits for anything.
const FOR_GOOD_MS: i32 = 600_000;

/// A request to join a group, with a member id that the coordinator has given.
pub fn joining(client: &mut Client, group: &str, metadata: Bytes) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(metadata);
    let mut join = JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
        .with_session_timeout_ms(FOR_GOOD_MS)
        .with_rebalance_timeout_ms(FOR_GOOD_MS);
    let refused = client.call(join.clone()).expect("answered");
    assert_eq!(errors::check(refused.error_code), Err(ErrorCode::MemberIdRequired));
    join.member_id = refused.member_id;
    join
}

/// A request of a member for its assignment.
pub fn syncing(joined: &JoinGroupResponse, group: &str) -> SyncGroupRequest {
    SyncGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
}

/// The only member of a group of consumers.
pub struct OnlyMember {
    group: String,
    id: StrBytes,
}

impl OnlyMember {
    pub fn new(group: &str) -> Self {
        Self { group: group.to_owned(), id: StrBytes::new() }
    }

    /// Joins the group, which begins a generation, and stores an assignment of this size for itself.
    pub fn assign(&mut self, client: &mut Client, bytes: usize) -> Result<(), ErrorCode> {
        let group = || GroupId(text(&self.group));
        let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
        let mut join = JoinGroupRequest::default()
            .with_group_id(group())
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol])
            .with_session_timeout_ms(60_000)
            .with_rebalance_timeout_ms(60_000)
            .with_member_id(self.id.clone());
        let mut joined = client.call(join.clone()).expect("JoinGroup is answered");
        if errors::check(joined.error_code) == Err(ErrorCode::MemberIdRequired) {
            join.member_id = joined.member_id;
            joined = client.call(join).expect("JoinGroup is answered");
        }
        assert_eq!(errors::check(joined.error_code), Ok(()), "the group has one member");
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(joined.member_id.clone())
            .with_assignment(vec![b'x'; bytes].into());
        let sync = SyncGroupRequest::default()
            .with_group_id(group())
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text("range")))
            .with_assignments(vec![assignment]);
        self.id = joined.member_id;
        errors::check(client.call(sync).expect("SyncGroup is answered").error_code)
    }
}

/// Sets or resets a setting of a topic. Returns the error code and message.
pub fn alter_topic(broker: &Broker, topic: &str, name: &str, value: Option<&str>) -> (i16, String) {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    const TOPIC: i8 = 2;
    let config = AlterableConfig::default()
        .with_name(text(name))
        .with_config_operation(if value.is_some() { SET } else { DELETE })
        .with_value(value.map(text));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response = connect(broker).call(request).expect("IncrementalAlterConfigs is answered");
    let result = &response.responses[0];
    (result.error_code, result.error_message.as_ref().map(|m| m.to_string()).unwrap_or_default())
}
