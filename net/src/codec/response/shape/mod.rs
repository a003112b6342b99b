//! Handlers answer in one shape per API, whatever the request's version.
//!
//! Some APIs changed from one item to a list. Their messages have fields for both. Handlers answer in the newest shape,
//! and encoding converts the response into the version's own shape. It drops what the version can't express: the codec
//! would refuse to encode such a response.

#[cfg(test)]
mod tests;

use kafka_protocol::messages as kafka;
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::codec::response::Response;
use crate::errors::NONE;

/// The client did not ask for operations, or the version has no field for them.
const NO_OPERATIONS: i32 = i32::MIN;

/// Converts a response from the newest shape into the shape of its version. Leaves a response that already has that
/// shape unchanged.
pub(super) fn fit(response: &mut Response, version: i16) {
    for_each_message(response, |message| {
        // The codec's default is an empty message. Kafka sends null, and some clients print an empty message.
        if message.as_ref().is_some_and(|message| message.is_empty()) {
            *message = None;
        }
    });
    match response {
        Response::ListOffsets(r) => list_offsets(r, version),
        Response::Metadata(r) => metadata(r, version),
        Response::FindCoordinator(r) => find_coordinator(r, version),
        Response::OffsetFetch(r) => offset_fetch(r, version),
        Response::JoinGroup(r) => join_group(r, version),
        Response::LeaveGroup(r) => leave_group(r, version),
        Response::DescribeGroups(r) => describe_groups(r, version),
        Response::InitProducerId(r) => (r.ongoing_txn_producer_id, r.ongoing_txn_producer_epoch) = ((-1).into(), -1),
        Response::DescribeQuorum(r) => describe_quorum(r, version),
        Response::DescribeCluster(r) => describe_cluster(r, version),
        Response::DescribeTopicPartitions(r) => describe_topic_partitions(r),
        _ => {}
    }
}

/// Visits the error message beside each error code of a control API's response. All of them may be null.
fn for_each_message(response: &mut Response, mut visit: impl FnMut(&mut Option<StrBytes>)) {
    match response {
        Response::FindCoordinator(r) => {
            visit(&mut r.error_message);
            r.coordinators.iter_mut().for_each(|one| visit(&mut one.error_message));
        }
        Response::DescribeGroups(r) => r.groups.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::SaslAuthenticate(r) => visit(&mut r.error_message),
        Response::CreateTopics(r) => r.topics.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::DeleteTopics(r) => r.responses.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::DescribeConfigs(r) => r.results.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::CreatePartitions(r) => r.results.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::ElectLeaders(r) => {
            let partitions = r.replica_election_results.iter_mut().flat_map(|topic| &mut topic.partition_result);
            partitions.for_each(|one| visit(&mut one.error_message));
        }
        Response::IncrementalAlterConfigs(r) => r.responses.iter_mut().for_each(|one| visit(&mut one.error_message)),
        Response::DescribeQuorum(r) => {
            visit(&mut r.error_message);
            let partitions = r.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
            partitions.for_each(|one| visit(&mut one.error_message));
        }
        Response::DescribeCluster(r) => visit(&mut r.error_message),
        Response::UnregisterBroker(r) => visit(&mut r.error_message),
        // Produce writes its own messages. The other answers have none, as a test makes sure.
        _ => {}
    }
}

fn list_offsets(r: &mut kafka::ListOffsetsResponse, version: i16) {
    if version < 4 {
        let partitions = r.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
        partitions.for_each(|partition| partition.leader_epoch = -1);
    }
}

fn metadata(r: &mut kafka::MetadataResponse, version: i16) {
    if !(8..=10).contains(&version) {
        r.cluster_authorized_operations = NO_OPERATIONS;
    }
    if version < 8 {
        r.topics.iter_mut().for_each(|topic| topic.topic_authorized_operations = NO_OPERATIONS);
    }
}

/// Up to version 3, the answer has one coordinator and no list.
fn find_coordinator(r: &mut kafka::FindCoordinatorResponse, version: i16) {
    if version <= 3
        && let Some(only) = std::mem::take(&mut r.coordinators).into_iter().next()
    {
        (r.error_code, r.error_message) = (only.error_code, only.error_message);
        (r.node_id, r.host, r.port) = (only.node_id, only.host, only.port);
    }
}

/// Up to version 7, the answer has one group and no list.
fn offset_fetch(r: &mut kafka::OffsetFetchResponse, version: i16) {
    if version >= 8 {
        return;
    }
    let Some(only) = std::mem::take(&mut r.groups).into_iter().next() else {
        return;
    };
    r.error_code = only.error_code;
    let topics = only.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_committed_offset(partition.committed_offset)
                .with_committed_leader_epoch(partition.committed_leader_epoch)
                .with_metadata(partition.metadata)
                .with_error_code(partition.error_code)
        });
        OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    });
    r.topics = topics.collect();
}

fn join_group(r: &mut kafka::JoinGroupResponse, version: i16) {
    if version < 9 {
        r.skip_assignment = false;
    }
    // Null is allowed from version 7 on. Before that, an empty string means "no protocol".
    if version < 7 && r.protocol_name.is_none() {
        r.protocol_name = Some(Default::default());
    }
}

/// Up to version 2, the answer covers one member and has no list.
fn leave_group(r: &mut kafka::LeaveGroupResponse, version: i16) {
    if version <= 2
        && let Some(only) = std::mem::take(&mut r.members).into_iter().next()
        && r.error_code == NONE
    {
        r.error_code = only.error_code;
    }
}

fn describe_groups(r: &mut kafka::DescribeGroupsResponse, version: i16) {
    if version < 6 {
        r.groups.iter_mut().for_each(|group| group.error_message = None);
    }
    if version < 3 {
        r.groups.iter_mut().for_each(|group| group.authorized_operations = NO_OPERATIONS);
    }
}

fn describe_quorum(r: &mut kafka::DescribeQuorumResponse, version: i16) {
    if version < 2 {
        r.nodes.clear();
        let partitions = r.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
        let replicas =
            partitions.flat_map(|partition| partition.current_voters.iter_mut().chain(&mut partition.observers));
        replicas.for_each(|replica| replica.replica_directory_id = Uuid::nil());
    }
}

fn describe_cluster(r: &mut kafka::DescribeClusterResponse, version: i16) {
    if version < 2 {
        r.brokers.iter_mut().for_each(|broker| broker.is_fenced = false);
    }
    if version < 1 {
        r.endpoint_type = 1;
    }
}

/// The schema allows null, but Kafka 4.1's TopicCommand fails on it.
fn describe_topic_partitions(r: &mut kafka::DescribeTopicPartitionsResponse) {
    for partition in r.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        partition.eligible_leader_replicas.get_or_insert_default();
        partition.last_known_elr.get_or_insert_default();
    }
}
