//! Answers of the control APIs, field by field: those that clients other than librdkafka read, compared with Kafka's
//! answers.

mod support;

use net::{
    Uuid,
    client::blocking::Client,
    codec::{api::ApiKey, request::Request},
    errors::{self, ErrorCode},
    messages::{
        self, BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteGroupsRequest, DeleteTopicsRequest,
        DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest, DescribeTopicPartitionsRequest,
        FindCoordinatorRequest, GroupId, HeartbeatRequest, IncrementalAlterConfigsRequest, ListGroupsRequest,
        ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, SaslAuthenticateRequest,
        SaslHandshakeRequest, TopicName,
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        create_topics_response::CreatableTopicResult,
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
    },
};
use std::collections::BTreeSet;
use support::{
    PATIENCE,
    broker::Broker,
    wire::{await_coordinator, commit, connect, create_topic, text, topic_name, topics},
};

/// Authorized operations as bit fields, as a Kafka 4 broker without an authorizer returns them.
const TOPIC_OPERATIONS: i32 = 0xdf8;
const GROUP_OPERATIONS: i32 = 0xd48;
const CLUSTER_OPERATIONS: i32 = 0x1fa0;

/// Sends a request in a version of the test's choice.
fn ask<R>(client: &mut Client, version: i16, request: R) -> R::Response
where
    R: kafka_protocol::protocol::Request + Into<Request>,
{
    client.ask(version, &request.into()).expect("an answer").decode::<R>().expect("it decodes")
}

fn timeout_ms() -> i32 {
    PATIENCE.as_millis() as i32
}

fn code(code: i16) -> Option<ErrorCode> {
    errors::check(code).err()
}

fn named(name: &str) -> MetadataRequestTopic {
    MetadataRequestTopic::default().with_name(Some(topic_name(name)))
}

#[test]
fn metadata_is_asked_for_by_id_with_or_without_an_empty_name() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let id = create_topic(&mut client, "orders", 2, 1, &[]).topic_id;
    let by_id = |name: Option<&str>, id| named("").with_name(name.map(topic_name)).with_topic_id(id);
    for name in [None, Some(""), Some("another")] {
        let asked = MetadataRequest::default().with_topics(Some(vec![by_id(name, id), by_id(name, id)]));
        for version in 12..=13 {
            let topics = ask(&mut client, version, asked.clone()).topics;
            let [topic] = &topics[..] else { panic!("each topic is told once: {topics:?}") };
            assert_eq!((topic.error_code, topic.partitions.len(), topic.topic_id), (0, 2, id), "{name:?}");
            assert!(topic.partitions.iter().all(|partition| partition.error_code == 0), "{topic:?}");
            assert_eq!(topic.name.as_ref().map(|name| name.0.as_str()), Some("orders"), "{name:?}");
        }
        let unknown = by_id(name, Uuid::from_u128(7));
        let topics = client.call(MetadataRequest::default().with_topics(Some(vec![unknown]))).unwrap().topics;
        assert_eq!(code(topics[0].error_code), Some(ErrorCode::UnknownTopicId), "{name:?}");
        assert_eq!(topics[0].name, None, "{name:?}");
    }
    for version in 10..=11 {
        let asked = MetadataRequest::default().with_topics(Some(vec![by_id(Some("orders"), id)]));
        let topics = ask(&mut client, version, asked).topics;
        assert_eq!(code(topics[0].error_code), Some(ErrorCode::InvalidRequest), "KIP-516: not before version 12");
    }
    let unnamed = client.call(MetadataRequest::default().with_topics(Some(vec![named("")]))).unwrap().topics;
    assert_eq!(code(unnamed[0].error_code), Some(ErrorCode::InvalidTopicException));
}

#[test]
fn authorised_operations_are_all_that_a_resource_has_where_they_are_asked_for() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let found = client.call(FindCoordinatorRequest::default().with_coordinator_keys(vec![text("nobody")])).unwrap();
    assert_eq!(found.coordinators[0].error_code, errors::NONE);
    assert_eq!(create_topic(&mut client, "orders", 1, 1, &[]).error_code, 0);
    for asked in [true, false] {
        let told = |operations| if asked { operations } else { i32::MIN };
        for version in 8..=13 {
            let request = MetadataRequest::default()
                .with_topics(Some(vec![named("orders")]))
                .with_include_topic_authorized_operations(asked)
                .with_include_cluster_authorized_operations(asked && version <= 10);
            let metadata = ask(&mut client, version, request);
            assert_eq!(metadata.topics[0].error_code, 0);
            assert_eq!(metadata.topics[0].topic_authorized_operations, told(TOPIC_OPERATIONS), "Metadata {version}");
            let cluster = if version <= 10 { told(CLUSTER_OPERATIONS) } else { i32::MIN };
            assert_eq!(metadata.cluster_authorized_operations, cluster, "Metadata {version}");
        }
        let request = DescribeClusterRequest::default().with_include_cluster_authorized_operations(asked);
        let cluster = client.call(request).unwrap();
        assert_eq!((cluster.error_code, cluster.cluster_authorized_operations), (0, told(CLUSTER_OPERATIONS)));
        for version in 3..=6 {
            let request = DescribeGroupsRequest::default()
                .with_groups(vec![GroupId(text("nobody"))])
                .with_include_authorized_operations(asked);
            let groups = ask(&mut client, version, request).groups;
            // From version 6 on, an unknown group is an error (KIP-1043), and then Kafka tells no operations.
            let (code, operations) = match version {
                6 => (ErrorCode::GroupIdNotFound.code(), i32::MIN),
                _ => (errors::NONE, told(GROUP_OPERATIONS)),
            };
            assert_eq!((groups[0].error_code, groups[0].authorized_operations), (code, operations), "{version}");
        }
    }
    let request = DescribeTopicPartitionsRequest::default().with_response_partition_limit(10);
    let topics = client.call(request).unwrap().topics;
    assert_eq!((topics[0].error_code, topics[0].topic_authorized_operations), (0, TOPIC_OPERATIONS), "no flag asks");
}

/// Without an offsets topic there is no group. Kafka refuses DescribeGroups as well; this broker knows the answer.
#[test]
fn a_broker_without_groups_describes_them_as_dead_and_coordinates_none() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let ids = || ["nobody", "", "none"].map(|id| GroupId(text(id))).to_vec();
    for (version, asked) in (0..=6).flat_map(|version| [(version, false), (version, version >= 3)]) {
        let request = DescribeGroupsRequest::default().with_groups(ids()).with_include_authorized_operations(asked);
        let groups = ask(&mut client, version, request).groups;
        assert_eq!(groups.iter().map(|group| group.group_id.clone()).collect::<Vec<_>>(), ids(), "{version}");
        let (error, operations) = match version {
            6 => (Some(ErrorCode::GroupIdNotFound), i32::MIN),
            _ => (None, if asked { GROUP_OPERATIONS } else { i32::MIN }),
        };
        for group in groups {
            assert_eq!((code(group.error_code), group.group_state.as_str()), (error, "Dead"), "{version}");
            assert_eq!((group.authorized_operations, group.members.len()), (operations, 0), "{version}");
            assert_eq!(group.error_message.is_some(), version == 6, "{version}");
        }
    }
    let refused = Some(ErrorCode::NotCoordinator);
    for version in 1..=9 {
        let request = if version < 8 {
            let topic = OffsetFetchRequestTopic::default().with_name(topic_name("t")).with_partition_indexes(vec![0]);
            OffsetFetchRequest::default().with_group_id(GroupId(text("nobody"))).with_topics(Some(vec![topic]))
        } else {
            let groups = ids().into_iter().map(|id| OffsetFetchRequestGroup::default().with_group_id(id));
            OffsetFetchRequest::default().with_groups(groups.collect())
        };
        let answer = ask(&mut client, version, request);
        let told: Vec<_> = match version {
            1 => answer.topics[0].partitions.iter().map(|partition| code(partition.error_code)).collect(),
            2..=7 => vec![code(answer.error_code)],
            _ => answer.groups.iter().map(|group| code(group.error_code)).collect(),
        };
        assert_eq!(told, vec![refused; if version < 8 { 1 } else { 3 }], "OffsetFetch {version}");
    }
    for version in 0..=2 {
        let results = ask(&mut client, version, DeleteGroupsRequest::default().with_groups_names(ids())).results;
        assert_eq!(results.iter().map(|group| code(group.error_code)).collect::<Vec<_>>(), [refused; 3], "{version}");
    }
    for version in 0..=5 {
        let listed = ask(&mut client, version, ListGroupsRequest::default());
        assert_eq!((code(listed.error_code), listed.groups.len()), (None, 0), "ListGroups {version}");
    }
    let heartbeat = HeartbeatRequest::default().with_group_id(GroupId(text("nobody")));
    assert_eq!(code(client.call(heartbeat).unwrap().error_code), refused);
    assert_eq!(topics(&mut client), [""; 0], "questions make no offsets topic");
}

fn topic(name: &str, partitions: i32, replication: i16) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(replication)
}

fn create(client: &mut Client, topics: Vec<CreatableTopic>, validate_only: bool) -> Vec<CreatableTopicResult> {
    let request = CreateTopicsRequest::default().with_topics(topics).with_timeout_ms(timeout_ms());
    client.call(request.with_validate_only(validate_only)).expect("an answer").topics
}

#[test]
fn validate_only_answers_as_the_creation_would() {
    let broker = Broker::start_with(&["--set", "num.partitions=6"]);
    let mut client = connect(&broker);
    let config = |name: &str, value| CreatableTopicConfig::default().with_name(text(name)).with_value(value);
    let defaults = || topic("defaults", -1, -1).with_configs(vec![config("retention.ms", Some(text("5000")))]);
    let would_be = create(&mut client, vec![defaults()], true).remove(0);
    let made = create(&mut client, vec![defaults()], false).remove(0);
    for told in [&would_be, &made] {
        assert_eq!((told.error_code, told.num_partitions, told.replication_factor), (0, 6, 1), "{told:?}");
    }
    assert_eq!(would_be.configs, made.configs);
    assert!(would_be.topic_id.is_nil() && !made.topic_id.is_nil());
    let taken = create(&mut client, vec![defaults()], true).remove(0);
    assert_eq!(code(taken.error_code), Some(ErrorCode::TopicAlreadyExists));
    for (partitions, replication) in [(0, 1), (-2, 1), (1, 0), (1, 9), (1, -2), (100_001, 1)] {
        let refused = [true, false].map(|validate_only| {
            create(&mut client, vec![topic("impossible", partitions, replication)], validate_only)[0].error_code
        });
        assert!(refused[0] != 0 && refused[0] == refused[1], "{partitions} {replication}: {refused:?}");
    }
    let unset = create(&mut client, vec![topic("unset", 1, 1).with_configs(vec![config("retention.ms", None)])], false);
    assert_eq!(code(unset[0].error_code), Some(ErrorCode::InvalidConfig), "a setting without a value");
}

#[test]
fn a_topic_that_a_request_names_twice_is_answered_once_and_not_changed() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let once = |names: &[&str]| names.iter().map(|name| topic(name, 1, 1)).collect::<Vec<_>>();
    let told = |results: Vec<CreatableTopicResult>| {
        results.into_iter().map(|one| (one.name.to_string(), code(one.error_code))).collect::<Vec<_>>()
    };
    let expected = |rows: &[(&str, Option<ErrorCode>)]| {
        rows.iter().map(|(name, code)| ((*name).to_owned(), *code)).collect::<Vec<_>>()
    };
    let twice = Some(ErrorCode::InvalidRequest);
    for validate_only in [true, false] {
        let results = create(&mut client, once(&["twice", "single", "twice", "twice"]), validate_only);
        assert_eq!(told(results), expected(&[("twice", twice), ("single", None)]));
    }
    assert_eq!(create_topic(&mut client, "twice", 1, 1, &[]).error_code, 0, "it was not made");

    let grow = |name: &str, count| {
        CreatePartitionsTopic::default().with_name(topic_name(name)).with_count(count).with_assignments(None)
    };
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![grow("twice", 2), grow("single", 2), grow("twice", 3)])
        .with_timeout_ms(timeout_ms());
    let results = client.call(request).unwrap().results;
    let results: Vec<_> = results.into_iter().map(|one| (one.name.to_string(), code(one.error_code))).collect();
    assert_eq!(results, expected(&[("twice", twice), ("single", None)]));
    let counts = ["twice", "single"].map(|name| support::wire::partitions(&mut client, name).len());
    assert_eq!(counts, [1, 2]);

    for version in [5, 6] {
        let names: Vec<TopicName> = ["twice", "twice", "gone", "gone"].map(topic_name).to_vec();
        let request = match version {
            5 => DeleteTopicsRequest::default().with_topic_names(names),
            _ => DeleteTopicsRequest::default()
                .with_topics(names.into_iter().map(|name| DeleteTopicState::default().with_name(Some(name))).collect()),
        };
        let responses = ask(&mut client, version, request.with_timeout_ms(timeout_ms())).responses;
        let told: Vec<_> =
            responses.into_iter().map(|one| (one.name.unwrap().to_string(), code(one.error_code))).collect();
        assert_eq!(told, expected(&[("twice", twice), ("gone", twice)]), "DeleteTopics {version}");
    }
}

#[test]
fn a_topic_is_deleted_by_its_name_or_by_its_id() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let ids = ["a", "b", "c"].map(|name| create_topic(&mut client, name, 1, 1, &[]).topic_id);
    let state = |name: Option<&str>, id| DeleteTopicState::default().with_name(name.map(topic_name)).with_topic_id(id);
    let asked = vec![
        state(Some("a"), ids[0]),
        state(None, Uuid::nil()),
        // The same topic, named in both ways.
        state(Some("b"), Uuid::nil()),
        state(None, ids[1]),
        state(None, ids[2]),
        state(None, Uuid::from_u128(7)),
    ];
    let request = DeleteTopicsRequest::default().with_topics(asked).with_timeout_ms(timeout_ms());
    let responses = client.call(request).unwrap().responses;
    let told: Vec<_> = responses.iter().map(|one| code(one.error_code)).collect();
    let twice = Some(ErrorCode::InvalidRequest);
    assert_eq!(told, [twice, twice, twice, twice, None, Some(ErrorCode::UnknownTopicId)]);
    assert_eq!(responses[4].name.as_ref().map(|name| name.0.as_str()), Some("c"));
    assert_eq!(topics(&mut client), ["a", "b"]);
}

#[test]
fn names_that_differ_only_in_dots_and_underscores_collide() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let mut create = |names: &[&str], validate_only| {
        let topics = names.iter().map(|name| topic(name, 1, 1)).collect();
        let results = create(&mut client, topics, validate_only);
        results.into_iter().map(|one| (code(one.error_code), one.error_message)).collect::<Vec<_>>()
    };
    let collides = Some(ErrorCode::InvalidTopicException);
    assert_eq!(create(&["a.b"], false), [(None, None)]);
    for validate_only in [true, false] {
        let refused = create(&["a_b"], validate_only).remove(0);
        assert_eq!(refused.0, collides);
        assert!(refused.1.is_some_and(|why| why.contains("'a_b' collides with topic 'a.b'")));
    }
    assert_eq!(create(&["a.b"], false)[0].0, Some(ErrorCode::TopicAlreadyExists));
    let pair: Vec<_> = create(&["m.c", "m_c", "m-c"], false).into_iter().map(|one| one.0).collect();
    assert_eq!(pair, [None, collides, None]);
    // Asking does not create one either.
    let asked = ["a_b", "x.y", "x_y", "a.b"].map(named).to_vec();
    let request = MetadataRequest::default().with_topics(Some(asked)).with_allow_auto_topic_creation(true);
    let told: Vec<_> = client.call(request).unwrap().topics.iter().map(|topic| code(topic.error_code)).collect();
    assert_eq!(told, [collides, None, collides, None]);
}

#[test]
fn success_has_no_words() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    for version in 2..=7 {
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic(&format!("topic-{version}"), 1, 1)])
            .with_timeout_ms(timeout_ms());
        let made = ask(&mut client, version, request).topics.remove(0);
        assert_eq!((made.error_code, made.error_message), (0, None), "CreateTopics {version}");
    }
    let grow = CreatePartitionsTopic::default().with_name(topic_name("topic-2")).with_count(2).with_assignments(None);
    let request = CreatePartitionsRequest::default().with_topics(vec![grow]).with_timeout_ms(timeout_ms());
    let grown = client.call(request).unwrap().results.remove(0);
    assert_eq!((grown.error_code, grown.error_message), (0, None));
    let (altered, words) = alter(&mut client, "topic-2", "retention.ms", 0, Some("60000"));
    assert_eq!((altered, words), (None, None));
    let described = describe(&mut client, "topic-2");
    assert_eq!((described.error_code, described.error_message), (0, None));
    let cluster = client.call(DescribeClusterRequest::default()).unwrap();
    assert_eq!((cluster.error_code, cluster.error_message), (0, None));
    let keys = vec![text("g")];
    let found = client.call(FindCoordinatorRequest::default().with_coordinator_keys(keys)).unwrap();
    assert_eq!((found.coordinators[0].error_code, &found.coordinators[0].error_message), (0, &None));
}

/// Changes a topic's setting by one operation. Returns the answer.
fn alter(
    client: &mut Client,
    topic: &str,
    name: &str,
    operation: i8,
    value: Option<&str>,
) -> (Option<ErrorCode>, Option<net::StrBytes>) {
    let config =
        AlterableConfig::default().with_name(text(name)).with_config_operation(operation).with_value(value.map(text));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let result = client.call(request).expect("an answer").responses.remove(0);
    (code(result.error_code), result.error_message)
}

fn describe(client: &mut Client, topic: &str) -> messages::describe_configs_response::DescribeConfigsResult {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
    client.call(request).expect("an answer").results.remove(0)
}

#[test]
fn settings_are_taken_at_kafkas_defaults_and_described_with_types_and_units() {
    let broker = Broker::start_with(&["--set", "log.retention.ms=-1"]);
    let mut client = connect(&broker);
    // Kafka's defaults. `message.timestamp.*` and `compression.type` have tests of their own.
    #[rustfmt::skip]
    let defaults = [
        ("cleanup.policy", "delete"), ("compression.gzip.level", "-1"), ("compression.lz4.level", "9"),
        ("compression.zstd.level", "3"), ("delete.retention.ms", "86400000"), ("file.delete.delay.ms", "60000"),
        ("flush.messages", "9223372036854775807"), ("flush.ms", "9223372036854775807"),
        ("follower.replication.throttled.replicas", ""), ("index.interval.bytes", "4096"),
        ("leader.replication.throttled.replicas", ""), ("local.retention.bytes", "-2"), ("local.retention.ms", "-2"),
        ("max.compaction.lag.ms", "9223372036854775807"), ("max.message.bytes", "1048588"),
        ("message.downconversion.enable", "true"), ("message.format.version", "3.0-IV1"),
        ("message.timestamp.difference.max.ms", "9223372036854775807"), ("message.timestamp.type", "CreateTime"),
        ("min.cleanable.dirty.ratio", "0.5"), ("min.compaction.lag.ms", "0"), ("min.insync.replicas", "1"),
        ("preallocate", "false"), ("remote.log.copy.disable", "false"), ("remote.log.delete.on.disable", "false"),
        ("remote.storage.enable", "false"), ("retention.bytes", "-1"), ("retention.ms", "604800000"),
        ("segment.bytes", "1073741824"), ("segment.index.bytes", "10485760"), ("segment.jitter.ms", "0"),
        ("segment.ms", "604800000"), ("unclean.leader.election.enable", "false"),
    ];
    let made = create_topic(&mut client, "kafkas", 1, 1, &defaults);
    assert_eq!((made.error_code, made.error_message), (0, None));
    let described = describe(&mut client, "kafkas");
    assert_eq!(described.error_code, 0);
    for (name, value) in defaults {
        let row = described.configs.iter().find(|row| row.name.as_str() == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((row.value.as_deref(), row.config_source), (Some(value), 1), "{name}");
        assert_eq!((row.synonyms[0].value.as_deref(), row.synonyms[0].source), (Some(value), 1), "{name}");
        assert_ne!(row.config_type, 0, "{name}");
    }
    let refused = create_topic(&mut client, "compacts", 1, 1, &[("min.compaction.lag.ms", "5")]);
    assert_eq!(code(refused.error_code), Some(ErrorCode::InvalidConfig));
    assert!(refused.error_message.is_some_and(|why| why.contains("compaction, which is not supported yet")));

    assert_eq!(create_topic(&mut client, "plain", 1, 1, &[]).error_code, 0);
    let described = describe(&mut client, "plain");
    assert_eq!(described.error_code, 0);
    let row = |name: &str| described.configs.iter().find(|row| row.name.as_str() == name).expect("it is listed");
    let synonyms = |name| {
        let all = row(name).synonyms.iter();
        all.map(|one| (one.name.as_str(), one.value.as_deref().unwrap_or("none"), one.source)).collect::<Vec<_>>()
    };
    let (retention, cleanup) = (row("retention.ms"), row("cleanup.policy"));
    assert_eq!((retention.value.as_deref(), retention.config_source, retention.config_type), (Some("-1"), 4, 5));
    assert_eq!(synonyms("retention.ms"), [("log.retention.ms", "-1", 4), ("log.retention.hours", "168", 5)]);
    assert_eq!(synonyms("segment.ms"), [("log.roll.hours", "168", 5)]);
    assert_eq!((cleanup.config_type, row("preallocate").config_type), (7, 1), "a list, and a truth");
}

#[test]
fn lists_are_appended_to_and_subtracted_from_and_nothing_else_is() {
    const APPEND: i8 = 2;
    const SUBTRACT: i8 = 3;
    let broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(create_topic(&mut client, "listed", 1, 1, &[]).error_code, 0);
    assert_eq!(alter(&mut client, "listed", "cleanup.policy", APPEND, Some("delete")), (None, None));
    assert_eq!(alter(&mut client, "listed", "cleanup.policy", SUBTRACT, Some("compact")), (None, None));
    let described = describe(&mut client, "listed");
    let policy = described.configs.iter().find(|row| row.name.as_str() == "cleanup.policy").expect("it is listed");
    assert_eq!((policy.value.as_deref(), policy.config_source), (Some("delete"), 1));
    for (name, operation, value, expected) in [
        ("cleanup.policy", APPEND, Some("compact"), ErrorCode::InvalidConfig),
        ("retention.ms", APPEND, Some("5"), ErrorCode::InvalidConfig),
        ("retention.ms", SUBTRACT, Some("5"), ErrorCode::InvalidConfig),
        ("cleanup.policy", APPEND, None, ErrorCode::InvalidRequest),
    ] {
        let (refused, words) = alter(&mut client, "listed", name, operation, value);
        assert_eq!(refused, Some(expected), "{name} {operation} {value:?}");
        assert!(words.is_some_and(|words| words.contains(name)), "{name} {operation} {value:?}");
    }
}

fn list_offsets(partitions: &[(i32, i64)]) -> ListOffsetsRequest {
    let partition = |(index, timestamp): &(i32, i64)| {
        ListOffsetsPartition::default().with_partition_index(*index).with_timestamp(*timestamp)
    };
    let topic = ListOffsetsTopic::default()
        .with_name(topic_name("listed"))
        .with_partitions(partitions.iter().map(partition).collect());
    ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic])
}

#[test]
fn offsets_are_listed_once_per_partition_and_by_positions_of_the_version() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(create_topic(&mut client, "listed", 3, 1, &[]).error_code, 0);
    let mut told = |version, partitions: &[(i32, i64)]| {
        let topics = ask(&mut client, version, list_offsets(partitions)).topics;
        let rows = topics.iter().flat_map(|topic| &topic.partitions);
        rows.map(|row| (row.partition_index, code(row.error_code), row.offset)).collect::<Vec<_>>()
    };
    let twice = Some(ErrorCode::InvalidRequest);
    for version in 1..=10 {
        let rows = told(version, &[(2, -1), (0, -1), (2, -2), (1, -2)]);
        assert_eq!(rows, [(2, twice, -1), (0, None, 0), (2, twice, -1), (1, None, 0)], "{version}");
        for (position, from) in [(-1, 1), (-2, 1), (-4, 8), (-5, 9), (-6, i16::MAX)] {
            let expected = (version < from).then_some(ErrorCode::UnsupportedVersion);
            assert_eq!(told(version, &[(0, position)])[0].1, expected, "{position} in {version}");
        }
    }
}

#[test]
fn transactions_have_no_coordinator_for_good() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    let refused = Some(ErrorCode::TransactionalIdAuthorizationFailed);
    for version in 1..=3 {
        let request = FindCoordinatorRequest::default().with_key(text("payments")).with_key_type(1);
        assert_eq!(code(ask(&mut client, version, request).error_code), refused, "{version}");
    }
    for version in 4..=6 {
        let keys = vec![text("payments"), text("refunds")];
        let request = FindCoordinatorRequest::default().with_coordinator_keys(keys).with_key_type(1);
        let found = ask(&mut client, version, request).coordinators;
        assert_eq!(found.iter().map(|one| code(one.error_code)).collect::<Vec<_>>(), [refused; 2], "{version}");
    }
    let share = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("s")]).with_key_type(2);
    assert_eq!(code(client.call(share).unwrap().coordinators[0].error_code), Some(ErrorCode::InvalidRequest));
}

#[test]
fn sasl_is_listed_and_refused_on_a_listener_without_it() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(
        (client.version(ApiKey::SaslHandshake).ok(), client.version(ApiKey::SaslAuthenticate).ok()),
        (Some(1), Some(2))
    );
    for version in 0..=1 {
        let request = SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
        assert_eq!(code(ask(&mut client, version, request).error_code), Some(ErrorCode::IllegalSaslState), "{version}");
    }
    for version in 0..=2 {
        let request = SaslAuthenticateRequest::default().with_auth_bytes("\0user\0secret".into());
        let answer = ask(&mut client, version, request);
        assert_eq!(code(answer.error_code), Some(ErrorCode::IllegalSaslState), "{version}");
        assert!(answer.error_message.is_some_and(|why| why.contains("security.protocol")), "{version}");
    }
    // The connection stays usable.
    let groups = client.call(ListGroupsRequest::default()).unwrap();
    assert_eq!((groups.error_code, groups.groups.len()), (0, 0));
}

#[test]
fn answers_for_many_groups_and_partitions_come_in_the_order_of_the_request() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(create_topic(&mut client, "orders", 2, 1, &[]).error_code, 0);
    await_coordinator(&mut client, "g");
    let topics: [(&str, &[i32]); 3] = [("gone", &[0]), ("orders", &[5, 1, 7, 0]), ("gone", &[3])];
    let expected = [("gone", vec![(0, 3)]), ("orders", vec![(5, 3), (1, 0), (7, 3), (0, 0)]), ("gone", vec![(3, 3)])];
    for version in 2..=9 {
        let partition = |index: &i32| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(*index)
                .with_committed_offset(1)
                .with_committed_metadata(Some(text("")))
        };
        let rows = topics.iter().map(|(name, partitions)| {
            let partitions = partitions.iter().map(partition).collect();
            OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text("g")))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(rows.collect());
        let answer = ask(&mut client, version, request);
        let told: Vec<_> = answer
            .topics
            .iter()
            .map(|topic| {
                let rows = topic.partitions.iter().map(|partition| (partition.partition_index, partition.error_code));
                (topic.name.0.as_str(), rows.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(told, expected, "OffsetCommit {version}");
    }

    let twice = vec![GroupId(text("g")), GroupId(text("nobody")), GroupId(text("g"))];
    let deleted = client.call(DeleteGroupsRequest::default().with_groups_names(twice)).unwrap().results;
    let told: Vec<_> = deleted.iter().map(|group| (group.group_id.0.as_str(), code(group.error_code))).collect();
    assert_eq!(told, [("g", None), ("nobody", Some(ErrorCode::GroupIdNotFound))], "once each, as in Kafka");

    let groups: Vec<String> = (0..20).map(|n| format!("group-{}", n * 7 % 20)).collect();
    let ids = || groups.iter().map(|group| GroupId(text(group))).collect::<Vec<_>>();
    let described = client.call(DescribeGroupsRequest::default().with_groups(ids())).unwrap().groups;
    assert_eq!(described.iter().map(|group| group.group_id.to_string()).collect::<Vec<_>>(), groups);
    assert!(described.iter().all(|group| code(group.error_code) == Some(ErrorCode::GroupIdNotFound)), "{described:?}");
    let group = |id| {
        let topic = OffsetFetchRequestTopics::default().with_name(topic_name("orders")).with_partition_indexes(vec![0]);
        OffsetFetchRequestGroup::default().with_group_id(id).with_topics(Some(vec![topic]))
    };
    let request = OffsetFetchRequest::default().with_groups(ids().into_iter().map(group).collect());
    let fetched = client.call(request).unwrap().groups;
    assert_eq!(fetched.iter().map(|group| group.group_id.to_string()).collect::<Vec<_>>(), groups);
    let without_commit = |group: &messages::offset_fetch_response::OffsetFetchResponseGroup| {
        let partition = &group.topics[0].partitions[0];
        (group.error_code, partition.error_code, partition.committed_offset) == (0, 0, -1)
    };
    assert!(fetched.iter().all(without_commit), "{fetched:?}");
}

#[test]
fn groups_with_the_longest_ids_are_listed() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(create_topic(&mut client, "work", 1, 1, &[]).error_code, errors::NONE);
    let ids: BTreeSet<String> = ["a", "b", "c"].map(|id| id.repeat(32_000)).into();
    for id in &ids {
        await_coordinator(&mut client, id);
        assert_eq!(commit(&mut client, id, "work", 1), Ok(()));
    }
    let listed = client.call(ListGroupsRequest::default()).unwrap();
    assert_eq!(listed.error_code, errors::NONE);
    assert_eq!(listed.groups.iter().map(|group| group.group_id.to_string()).collect::<BTreeSet<_>>(), ids);
}
