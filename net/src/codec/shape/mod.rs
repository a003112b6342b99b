//! Handlers see one shape per API, whatever the request's version.
//!
//! Some APIs changed from one item to a list. Their messages have fields for both, and one of them stays empty.
//! [`newest`] converts a request into the newest shape, and handlers answer in the newest shape. Encoding converts
//! the response back into the version's own shape and drops what the version can't express. Otherwise the codec would
//! refuse to encode such a response.

#[cfg(test)]
mod tests;

use kafka_protocol::messages as kafka;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::protocol::StrBytes;

use uuid::Uuid;

use crate::codec::request::Request;
use crate::codec::response::Response;
use crate::errors::NONE;

/// The client did not ask for operations, or the version has no field for them.
const NO_OPERATIONS: i32 = i32::MIN;

/// Converts a request into the shape of its API's newest version:
/// - FindCoordinator: `key` becomes the only entry of `coordinator_keys`;
/// - OffsetFetch: `group_id` and `topics` become the only entry of `groups` (null topics: all);
/// - LeaveGroup: `member_id` becomes the only entry of `members`;
/// - DeleteTopics: `topic_names` become `topics`;
/// - Metadata: in version 0 an empty list means all topics; it becomes null, which later versions use.
pub fn newest(request: &mut Request, version: i16) {
    match request {
        Request::FindCoordinator(r) if version <= 3 => r.coordinator_keys = vec![std::mem::take(&mut r.key)],
        Request::OffsetFetch(r) if version <= 7 => {
            let topics = r.topics.take().map(|topics| {
                let renamed = topics.into_iter().map(|topic| {
                    OffsetFetchRequestTopics::default()
                        .with_name(topic.name)
                        .with_partition_indexes(topic.partition_indexes)
                });
                renamed.collect()
            });
            let group_id = std::mem::take(&mut r.group_id);
            r.groups = vec![OffsetFetchRequestGroup::default().with_group_id(group_id).with_topics(topics)];
            r.topics = Some(Vec::new());
        }
        Request::LeaveGroup(r) if version <= 2 => {
            r.members = vec![MemberIdentity::default().with_member_id(std::mem::take(&mut r.member_id))];
        }
        Request::DeleteTopics(r) if version <= 5 => {
            let names = std::mem::take(&mut r.topic_names);
            r.topics = names.into_iter().map(|name| DeleteTopicState::default().with_name(Some(name))).collect();
        }
        Request::Metadata(r) if version == 0 && r.topics.as_ref().is_some_and(Vec::is_empty) => r.topics = None,
        _ => {}
    }
}

/// Converts a response from the newest shape into the shape of its version. Leaves a response that already has that
/// shape unchanged.
pub(crate) fn fit(response: &mut Response, version: i16) {
    for_each_message(response, |message| {
        // The codec's default is an empty message. Kafka sends null, and some clients print an empty message.
        if message.as_ref().is_some_and(|message| message.is_empty()) {
            *message = None;
        }
    });
    match response {
        Response::ListOffsets(r) if version < 4 => {
            let partitions = r.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
            partitions.for_each(|partition| partition.leader_epoch = -1);
        }
        Response::Metadata(r) => {
            if !(8..=10).contains(&version) {
                r.cluster_authorized_operations = NO_OPERATIONS;
            }
            if version < 8 {
                r.topics.iter_mut().for_each(|topic| topic.topic_authorized_operations = NO_OPERATIONS);
            }
        }
        Response::FindCoordinator(r) if version <= 3 => {
            if let Some(only) = std::mem::take(&mut r.coordinators).into_iter().next() {
                (r.error_code, r.error_message) = (only.error_code, only.error_message);
                (r.node_id, r.host, r.port) = (only.node_id, only.host, only.port);
            }
        }
        Response::OffsetFetch(r) if version <= 7 => fit_offset_fetch(r),
        Response::JoinGroup(r) => {
            if version < 9 {
                r.skip_assignment = false;
            }
            // Null is allowed from version 7 on. Before that, an empty string means "no protocol".
            if version < 7 && r.protocol_name.is_none() {
                r.protocol_name = Some(Default::default());
            }
        }
        Response::LeaveGroup(r) if version <= 2 => {
            if let Some(only) = std::mem::take(&mut r.members).into_iter().next()
                && r.error_code == NONE
            {
                r.error_code = only.error_code;
            }
        }
        Response::DescribeGroups(r) => {
            if version < 6 {
                r.groups.iter_mut().for_each(|group| group.error_message = None);
            }
            if version < 3 {
                r.groups.iter_mut().for_each(|group| group.authorized_operations = NO_OPERATIONS);
            }
        }
        Response::InitProducerId(r) => (r.ongoing_txn_producer_id, r.ongoing_txn_producer_epoch) = ((-1).into(), -1),
        Response::DescribeQuorum(r) if version < 2 => {
            r.nodes.clear();
            let partitions = r.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
            for replica in
                partitions.flat_map(|partition| partition.current_voters.iter_mut().chain(&mut partition.observers))
            {
                replica.replica_directory_id = Uuid::nil();
            }
        }
        Response::DescribeCluster(r) => {
            if version < 2 {
                r.brokers.iter_mut().for_each(|broker| broker.is_fenced = false);
            }
            if version < 1 {
                r.endpoint_type = 1;
            }
        }
        // The schema allows null, but Kafka 4.1's TopicCommand fails on it.
        Response::DescribeTopicPartitions(r) => {
            for partition in r.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
                partition.eligible_leader_replicas.get_or_insert_default();
                partition.last_known_elr.get_or_insert_default();
            }
        }
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
        // These have no nullable error messages, except Produce, which writes its own.
        Response::Produce(_)
        | Response::Fetch(_)
        | Response::ListOffsets(_)
        | Response::Metadata(_)
        | Response::OffsetCommit(_)
        | Response::OffsetFetch(_)
        | Response::JoinGroup(_)
        | Response::Heartbeat(_)
        | Response::LeaveGroup(_)
        | Response::SyncGroup(_)
        | Response::ListGroups(_)
        | Response::SaslHandshake(_)
        | Response::ApiVersions(_)
        | Response::InitProducerId(_)
        | Response::OffsetForLeaderEpoch(_)
        | Response::DeleteGroups(_)
        | Response::DescribeTopicPartitions(_) => {}
    }
}

fn fit_offset_fetch(r: &mut kafka::OffsetFetchResponse) {
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
