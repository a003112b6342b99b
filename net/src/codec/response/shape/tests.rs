//! Answers in the shapes of old and new versions.

use std::collections::BTreeSet;

use bytes::Bytes;
use fastrand::Rng;
use kafka_protocol::messages as kafka;
use kafka_protocol::messages::{GroupId, TopicName};
use kafka_protocol::protocol::{Decodable, StrBytes};
use uuid::Uuid;

use crate::codec::api::ApiKey;
use crate::codec::header::RequestHeader;
use crate::codec::response::{self, Response};
use crate::codec::table::each_api;
use crate::codec::wire::Reader;
use crate::testing::generate;

fn header(api: ApiKey, version: i16) -> RequestHeader {
    RequestHeader { api, version, correlation_id: 1, client_id: None }
}

/// Encodes a response in the newest shape and returns its body in this version.
fn encoded(response: Response, version: i16) -> Bytes {
    let api = response.api();
    let frame = response::encode(&header(api, version), response).unwrap().into_bytes();
    let message: Bytes = frame.slice(4..);
    let mut reader = Reader::new(&message);
    RequestHeader::read_response_header(api, version, &mut reader).unwrap();
    reader.rest()
}

/// Encodes a response in the newest shape and returns what a client of this version reads.
fn answered<T: Decodable>(response: impl Into<Response>, version: i16) -> T {
    let mut body = encoded(response.into(), version);
    let decoded = T::decode(&mut body, version).unwrap();
    assert!(body.is_empty());
    decoded
}

fn text(s: &'static str) -> StrBytes {
    StrBytes::from_static_str(s)
}

#[test]
fn find_coordinator() {
    use kafka::find_coordinator_response::Coordinator;
    for version in 0..=6 {
        let found = Coordinator::default()
            .with_key(text("g"))
            .with_node_id(4.into())
            .with_host(text("h"))
            .with_port(9)
            .with_error_code(15)
            .with_error_message(Some(text("wait")));
        let response = kafka::FindCoordinatorResponse::default().with_coordinators(vec![found.clone()]);
        let back: kafka::FindCoordinatorResponse = answered(response, version);
        if version <= 3 {
            assert_eq!((back.node_id.0, back.host.as_str(), back.port, back.error_code), (4, "h", 9, 15));
            assert_eq!(back.error_message.as_deref() == Some("wait"), version >= 1);
        } else {
            assert_eq!(back.coordinators, [found]);
        }
    }
}

#[test]
fn offset_fetch() {
    use kafka::offset_fetch_response as resp;
    for version in 1..=9 {
        let (group, topic) = (GroupId(text("g")), TopicName(text("t")));
        let partition = resp::OffsetFetchResponsePartitions::default()
            .with_partition_index(3)
            .with_committed_offset(77)
            .with_committed_leader_epoch(2)
            .with_metadata(Some(text("m")))
            .with_error_code(0);
        let topics = resp::OffsetFetchResponseTopics::default().with_name(topic).with_partitions(vec![partition]);
        let answer = resp::OffsetFetchResponseGroup::default().with_group_id(group).with_topics(vec![topics]);
        let response = kafka::OffsetFetchResponse::default().with_groups(vec![answer.with_error_code(16)]);
        let back: kafka::OffsetFetchResponse = answered(response, version);
        if version <= 7 {
            assert_eq!(back.error_code, if version >= 2 { 16 } else { 0 });
            let partition = &back.topics[0].partitions[0];
            assert_eq!((partition.partition_index, partition.committed_offset), (3, 77));
            assert_eq!(partition.committed_leader_epoch, if version >= 5 { 2 } else { -1 });
            assert_eq!(partition.metadata.as_deref(), Some("m"));
        } else {
            assert_eq!(back.groups[0].error_code, 16);
            assert_eq!(back.groups[0].topics[0].partitions[0].committed_offset, 77);
        }
    }
}

#[test]
fn leave_group() {
    use kafka::leave_group_response::MemberResponse;
    for version in 0..=5 {
        let member = MemberResponse::default().with_member_id(text("m")).with_error_code(25);
        let response = kafka::LeaveGroupResponse::default().with_members(vec![member]);
        let back: kafka::LeaveGroupResponse = answered(response, version);
        match version {
            ..=2 => assert_eq!((back.error_code, back.members.len()), (25, 0)),
            _ => assert_eq!((back.error_code, back.members[0].error_code), (0, 25)),
        }
    }
}

// Fields that only newer versions have are dropped from older ones. They cause no error.

#[test]
fn fields_of_topics_that_a_version_lacks_are_left_out() {
    use kafka::{describe_topic_partitions_response as dtp, list_offsets_response as lo};
    for version in 1..=10 {
        let partition = lo::ListOffsetsPartitionResponse::default().with_leader_epoch(5);
        let topic = lo::ListOffsetsTopicResponse::default().with_partitions(vec![partition]);
        let response = kafka::ListOffsetsResponse::default().with_topics(vec![topic]);
        let back: kafka::ListOffsetsResponse = answered(response, version);
        assert_eq!(back.topics[0].partitions[0].leader_epoch, if version >= 4 { 5 } else { -1 });
    }
    for version in 0..=13 {
        let topic = kafka::metadata_response::MetadataResponseTopic::default()
            .with_name(Some(TopicName(text("t"))))
            .with_topic_id(uuid::Uuid::from_u128(1))
            .with_topic_authorized_operations(6);
        let response = kafka::MetadataResponse::default()
            .with_cluster_authorized_operations(7)
            .with_cluster_id(Some(text("c")))
            .with_topics(vec![topic]);
        let back: kafka::MetadataResponse = answered(response, version);
        assert_eq!(back.cluster_authorized_operations == 7, (8..=10).contains(&version));
        assert_eq!(back.topics[0].topic_authorized_operations == 6, version >= 8);
    }
    let partition = dtp::DescribeTopicPartitionsResponsePartition::default();
    let topic = dtp::DescribeTopicPartitionsResponseTopic::default().with_partitions(vec![partition]);
    let response = kafka::DescribeTopicPartitionsResponse::default().with_topics(vec![topic]);
    let back: kafka::DescribeTopicPartitionsResponse = answered(response, 0);
    let partition = &back.topics[0].partitions[0];
    assert_eq!((&partition.eligible_leader_replicas, &partition.last_known_elr), (&Some(vec![]), &Some(vec![])));
}

#[test]
fn fields_of_groups_and_producers_that_a_version_lacks_are_left_out() {
    use kafka::describe_groups_response as dg;
    for version in 0..=9 {
        let response = kafka::JoinGroupResponse::default().with_skip_assignment(true).with_protocol_name(None);
        let back: kafka::JoinGroupResponse = answered(response, version);
        assert_eq!(back.skip_assignment, version >= 9);
        assert_eq!(back.protocol_name, (version < 7).then(StrBytes::new));
    }
    for version in 0..=6 {
        let group = dg::DescribedGroup::default().with_error_message(Some(text("e"))).with_authorized_operations(3);
        let back: kafka::DescribeGroupsResponse =
            answered(kafka::DescribeGroupsResponse::default().with_groups(vec![group]), version);
        assert_eq!(back.groups[0].error_message.is_some(), version >= 6);
        assert_eq!(back.groups[0].authorized_operations == 3, version >= 3);
    }
    for version in 0..=5 {
        let response = kafka::InitProducerIdResponse::default().with_ongoing_txn_producer_epoch(3);
        let back: kafka::InitProducerIdResponse = answered(response, version);
        assert_eq!(back.ongoing_txn_producer_epoch, -1);
    }
}

#[test]
fn fields_of_the_cluster_that_a_version_lacks_are_left_out() {
    use kafka::{describe_cluster_response as dc, describe_quorum_response as dq};
    for version in 0..=2 {
        let broker = dc::DescribeClusterBroker::default().with_is_fenced(true);
        let response = kafka::DescribeClusterResponse::default().with_endpoint_type(2).with_brokers(vec![broker]);
        let back: kafka::DescribeClusterResponse = answered(response, version);
        assert_eq!((back.endpoint_type == 2, back.brokers[0].is_fenced), (version >= 1, version >= 2));
    }
    for version in 0..=2 {
        let replica = dq::ReplicaState::default()
            .with_replica_directory_id(Uuid::from_u128(7))
            .with_last_fetch_timestamp(5)
            .with_log_end_offset(9);
        let partition = dq::PartitionData::default()
            .with_error_message(Some(text("e")))
            .with_current_voters(vec![replica.clone()])
            .with_observers(vec![replica]);
        let listener = dq::Listener::default().with_name(text("PEER")).with_host(text("h")).with_port(60_000);
        let response = kafka::DescribeQuorumResponse::default()
            .with_topics(vec![dq::TopicData::default().with_partitions(vec![partition])])
            .with_nodes(vec![dq::Node::default().with_listeners(vec![listener])]);
        let back: kafka::DescribeQuorumResponse = answered(response, version);
        assert_eq!(back.nodes.first().map(|node| node.listeners[0].port), (version >= 2).then_some(60_000));
        let partition = &back.topics[0].partitions[0];
        let message = partition.error_message.as_deref();
        assert_eq!(message, Some(if version >= 2 { "e" } else { "" }));
        for replica in [&partition.current_voters[0], &partition.observers[0]] {
            assert_eq!(replica.log_end_offset, 9);
            assert_eq!(replica.last_fetch_timestamp, if version >= 1 { 5 } else { -1 });
            assert_eq!(replica.replica_directory_id.as_u128(), if version >= 2 { 7 } else { 0 });
        }
    }
}

/// Messages that a handler may give, and what a client reads. Kafka sends null with success, or if there is no message.
/// Some clients print an empty message.
fn messages() -> impl Iterator<Item = (impl Fn() -> Option<StrBytes>, Option<StrBytes>)> {
    let cases = [(None, None), (Some(""), None), (Some("why"), Some("why"))];
    cases.into_iter().map(|(given, expected)| (move || given.map(text), expected.map(text)))
}

#[test]
fn an_answer_of_topics_without_words_carries_null_and_no_empty_text() {
    use kafka::create_partitions_response::CreatePartitionsTopicResult;
    use kafka::create_topics_response::CreatableTopicResult;
    use kafka::delete_topics_response::DeletableTopicResult;
    use kafka::elect_leaders_response::{PartitionResult, ReplicaElectionResult};

    for (words, expected) in messages() {
        for version in 5..=7 {
            let topic = CreatableTopicResult::default().with_error_message(words());
            let response = kafka::CreateTopicsResponse::default().with_topics(vec![topic]);
            let back: kafka::CreateTopicsResponse = answered(response, version);
            assert_eq!(back.topics[0].error_message, expected, "CreateTopics {version}");
        }
        let topic = DeletableTopicResult::default().with_error_message(words());
        let response = kafka::DeleteTopicsResponse::default().with_responses(vec![topic]);
        assert_eq!(answered::<kafka::DeleteTopicsResponse>(response, 6).responses[0].error_message, expected);
        for version in 0..=3 {
            let topic = CreatePartitionsTopicResult::default().with_error_message(words());
            let response = kafka::CreatePartitionsResponse::default().with_results(vec![topic]);
            let back: kafka::CreatePartitionsResponse = answered(response, version);
            assert_eq!(back.results[0].error_message, expected, "CreatePartitions {version}");
        }
        for version in 0..=2 {
            let partition = PartitionResult::default().with_error_message(words());
            let topic = ReplicaElectionResult::default().with_partition_result(vec![partition]);
            let response = kafka::ElectLeadersResponse::default().with_replica_election_results(vec![topic]);
            let back: kafka::ElectLeadersResponse = answered(response, version);
            let told = &back.replica_election_results[0].partition_result[0].error_message;
            assert_eq!(*told, expected, "ElectLeaders {version}");
        }
    }
}

#[test]
fn an_answer_of_the_cluster_without_words_carries_null_and_no_empty_text() {
    use kafka::describe_configs_response::DescribeConfigsResult;
    use kafka::find_coordinator_response::Coordinator;
    use kafka::incremental_alter_configs_response::AlterConfigsResourceResponse;

    for (words, expected) in messages() {
        for version in 0..=1 {
            let resource = AlterConfigsResourceResponse::default().with_error_message(words());
            let response = kafka::IncrementalAlterConfigsResponse::default().with_responses(vec![resource]);
            let back: kafka::IncrementalAlterConfigsResponse = answered(response, version);
            assert_eq!(back.responses[0].error_message, expected, "IncrementalAlterConfigs {version}");
        }
        for version in 1..=4 {
            let resource = DescribeConfigsResult::default().with_error_message(words());
            let response = kafka::DescribeConfigsResponse::default().with_results(vec![resource]);
            let back: kafka::DescribeConfigsResponse = answered(response, version);
            assert_eq!(back.results[0].error_message, expected, "DescribeConfigs {version}");
        }
        for version in 1..=6 {
            let found = Coordinator::default().with_error_message(words());
            let response = kafka::FindCoordinatorResponse::default().with_coordinators(vec![found]);
            let back: kafka::FindCoordinatorResponse = answered(response, version);
            let told = back.coordinators.first().map_or(back.error_message, |one| one.error_message.clone());
            assert_eq!(told, expected, "FindCoordinator {version}");
        }
        let response = kafka::UnregisterBrokerResponse::default().with_error_message(words());
        assert_eq!(answered::<kafka::UnregisterBrokerResponse>(response, 0).error_message, expected);
        let response = kafka::DescribeClusterResponse::default().with_error_message(words());
        assert_eq!(answered::<kafka::DescribeClusterResponse>(response, 2).error_message, expected);
        let response = kafka::DescribeQuorumResponse::default().with_error_message(words());
        assert_eq!(answered::<kafka::DescribeQuorumResponse>(response, 2).error_message, expected);
        let response = kafka::SaslAuthenticateResponse::default().with_error_message(words());
        assert_eq!(answered::<kafka::SaslAuthenticateResponse>(response, 2).error_message, expected);
    }
}

/// The response with this body. `None` for Produce and Fetch, which only clients decode.
fn decoded(api: ApiKey, version: i16, mut body: Bytes) -> Option<Response> {
    macro_rules! one {
        (Produce $response:ident) => {
            None
        };
        (Fetch $response:ident) => {
            None
        };
        ($name:ident $response:ident) => {
            Some(kafka::$response::decode(&mut body, version).unwrap().into())
        };
    }
    macro_rules! all {
        ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*) => {
            match api { $(ApiKey::$name => one!($name $response),)* }
        };
    }
    each_api!(all)
}

/// An API whose answers have messages that this module does not visit fails here.
#[test]
fn every_message_in_the_fields_of_an_answer_becomes_null_if_it_is_empty() {
    let mut with_messages = BTreeSet::new();
    for (api, version) in generate::versions() {
        for seed in 0..20 {
            let body = |message| generate::response_with_messages(api, version, message, &mut Rng::with_seed(seed));
            let (empty, null, other) = (body(Some("")), body(None), body(Some("why")));
            if empty == null {
                continue;
            }
            for (given, expected) in [(&empty, &null), (&null, &null), (&other, &other)] {
                let Some(response) = decoded(api, version, given.clone()) else { continue };
                assert_eq!(encoded(response, version), expected, "{api:?} version {version}");
                with_messages.insert(api.api().name);
            }
        }
    }
    assert!(with_messages.len() >= 12, "{with_messages:?}");
}
