//! Topics and their settings through real clients. A created topic serves at once. The broker rejects the impossible
//! with a precise message. Everything survives every kind of restart.

mod support;

use net::codec::api::ApiKey;
use net::errors::ErrorCode;
use net::messages::MetadataRequest;
use net::messages::metadata_request::MetadataRequestTopic;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use support::PATIENCE;
use support::broker::Broker;
use support::clients::{self, Record};
use support::wire;

/// The number of a topic's partitions; `None` if there is no such topic.
fn partitions(broker: &Broker, topic: &str) -> Option<usize> {
    let client = clients::admin(broker);
    let metadata = client.inner().fetch_metadata(None, PATIENCE).expect("Metadata is answered");
    let found = metadata.topics().iter().find(|t| t.name() == topic)?;
    assert_eq!(found.error(), None, "{topic}");
    Some(found.partitions().len())
}

fn setting(broker: &Broker, topic: &str, name: &str) -> Option<String> {
    let asked = clients::admin(broker);
    let results = clients::wait(asked.describe_configs([&ResourceSpecifier::Topic(topic)], &clients::admin_options()));
    let resource = results.expect("DescribeConfigs is answered").remove(0).expect("the topic is known");
    resource.get(name).unwrap_or_else(|| panic!("no setting {name}")).value.clone()
}

fn delete(broker: &Broker, topic: &str) -> Result<(), RDKafkaErrorCode> {
    let client = clients::admin(broker);
    let results = clients::wait(client.delete_topics(&[topic], &clients::admin_options()));
    results.expect("DeleteTopics is answered").remove(0).map(|_| ()).map_err(|(_, code)| code)
}

fn grow(broker: &Broker, topic: &str, count: usize) -> Result<(), RDKafkaErrorCode> {
    let client = clients::admin(broker);
    let results =
        clients::wait(client.create_partitions(&[NewPartitions::new(topic, count)], &clients::admin_options()));
    results.expect("CreatePartitions is answered").remove(0).map(|_| ()).map_err(|(_, code)| code)
}

#[test]
fn a_topic_serves_as_soon_as_it_is_created() {
    let broker = Broker::start();
    let mut client = wire::connect(&broker);
    // One attempt each: a client that retries would hide a partition that is not ready.
    for i in 0..30 {
        let topic = format!("topic-{i}");
        assert_eq!(wire::create_topic(&mut client, &topic, 4, 1, &[]).error_code, 0, "{topic}");
        for partition in 0..4 {
            let mut other = wire::connect(&broker);
            let answer = wire::produce(&mut other, &topic, partition, wire::batch(&[b"first"]));
            assert_eq!((answer.error_code, answer.base_offset), (0, 0), "{topic}, partition {partition}");
        }
    }
}

#[test]
fn impossible_topics_are_refused() {
    let broker = Broker::start();
    let mut client = wire::connect(&broker);
    let mut create = |name: &str, partitions, replication, settings: &[(&str, &str)]| {
        let result = wire::create_topic(&mut client, name, partitions, replication, settings);
        (ErrorCode::try_from_code(result.error_code), result.error_message.map(|m| m.to_string()).unwrap_or_default())
    };
    assert_eq!(create("taken", 1, 1, &[]).0, None);
    let long = "x".repeat(250);
    for (name, partitions, replication, error) in [
        ("taken", 1, 1, ErrorCode::TopicAlreadyExists),
        ("", 1, 1, ErrorCode::InvalidTopicException),
        (".", 1, 1, ErrorCode::InvalidTopicException),
        ("..", 1, 1, ErrorCode::InvalidTopicException),
        ("a b", 1, 1, ErrorCode::InvalidTopicException),
        ("\u{e9}", 1, 1, ErrorCode::InvalidTopicException),
        (long.as_str(), 1, 1, ErrorCode::InvalidTopicException),
        ("none", 0, 1, ErrorCode::InvalidPartitions),
        ("few", -2, 1, ErrorCode::InvalidPartitions),
        ("many", 1, 3, ErrorCode::InvalidReplicationFactor),
        ("zero", 1, 0, ErrorCode::InvalidReplicationFactor),
    ] {
        assert_eq!(create(name, partitions, replication, &[]).0, Some(error), "{name:?}");
    }
    for (name, value) in [("no.such.setting", "1"), ("retention.ms", "soon"), ("max.message.bytes", "-1")] {
        let (error, message) = create("set", 1, 1, &[(name, value)]);
        assert_eq!(error, Some(ErrorCode::InvalidConfig), "{name}={value}");
        assert!(message.contains(name), "{name}={value}: {message:?}");
    }
    assert_eq!(partitions(&broker, "set"), None);
}

#[test]
fn settings_that_are_not_obeyed_are_refused_by_name() {
    let broker = Broker::start();
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, "plain", 1, 1, &[]).error_code, 0);
    for (name, value) in [("cleanup.policy", "compact"), ("compression.type", "zstd")] {
        let result = wire::create_topic(&mut client, "refused", 1, 1, &[(name, value)]);
        assert_eq!(ErrorCode::try_from_code(result.error_code), Some(ErrorCode::InvalidConfig), "{name}={value}");
        let message = result.error_message.map(|m| m.to_string()).unwrap_or_default();
        assert!(message.contains(name), "{name}={value}: {message:?}");
        let (code, message) = wire::alter_topic(&broker, "plain", name, Some(value));
        assert_eq!(ErrorCode::try_from_code(code), Some(ErrorCode::InvalidConfig), "{name}={value}");
        assert!(message.contains(name), "{name}={value}: {message:?}");
    }
}

#[test]
fn validating_creates_nothing() {
    let broker = Broker::start();
    let client = clients::admin(&broker);
    let options: AdminOptions = clients::admin_options().validate_only(true);
    let topic = NewTopic::new("imagined", 1, TopicReplication::Fixed(1));
    assert_eq!(clients::wait(client.create_topics([&topic], &options)), Ok(vec![Ok("imagined".to_owned())]));
    assert_eq!(partitions(&broker, "imagined"), None);
}

#[test]
fn topics_partitions_and_settings_outlive_the_process() {
    let mut broker = Broker::start();
    clients::try_create_topic(&broker, "kept", 2, &[("retention.ms", "3600000")]).expect("created");
    clients::create_topic(&broker, "dropped", 3);
    assert_eq!(grow(&broker, "kept", 5), Ok(()));
    assert_eq!(grow(&broker, "kept", 4), Err(RDKafkaErrorCode::InvalidPartitions));
    assert_eq!(grow(&broker, "unknown", 4), Err(RDKafkaErrorCode::UnknownTopicOrPartition));
    assert_eq!(wire::alter_topic(&broker, "kept", "retention.ms", Some("7200000")).0, 0);
    assert_eq!(wire::alter_topic(&broker, "kept", "max.message.bytes", Some("5000")).0, 0);
    assert_eq!(wire::alter_topic(&broker, "kept", "max.message.bytes", None).0, 0);
    assert_eq!(delete(&broker, "dropped"), Ok(()));
    assert_eq!(delete(&broker, "dropped"), Err(RDKafkaErrorCode::UnknownTopicOrPartition));
    let config = clients::config(&broker);
    clients::offsets(clients::produce(&config, "kept", 4, &[Record::of("in the new one")]));

    let all_is_there = |broker: &Broker| {
        assert_eq!(partitions(broker, "kept"), Some(5));
        assert_eq!(partitions(broker, "dropped"), None);
        assert_eq!(setting(broker, "kept", "retention.ms").as_deref(), Some("7200000"));
        assert_eq!(setting(broker, "kept", "max.message.bytes").as_deref(), Some("1048588"));
        let records = clients::read_from(&config, "kept", 4, 0);
        assert_eq!(records, [(0, Record::of("in the new one"))]);
    };
    all_is_there(&broker);
    broker.restart();
    all_is_there(&broker);
    broker.kill_and_begin();
    all_is_there(&broker);
}

#[test]
fn a_topic_of_an_earlier_name_starts_empty() {
    let mut broker = Broker::start();
    let config = clients::config(&broker);
    for round in 0..3 {
        clients::create_topic(&broker, "phoenix", 1);
        let records: Vec<Record> = (0..10).map(|i| Record::of(format!("{round} {i}"))).collect();
        let offsets = clients::offsets(clients::produce(&config, "phoenix", 0, &records));
        assert_eq!(offsets, (0..10).collect::<Vec<i64>>(), "round {round}");
        if round == 1 {
            broker.kill_and_begin();
        }
        let read: Vec<Record> = clients::read_from(&config, "phoenix", 0, 0).into_iter().map(|(_, r)| r).collect();
        assert_eq!(read, records, "round {round}");
        assert_eq!(delete(&broker, "phoenix"), Ok(()));
    }
}

#[test]
fn metadata_creates_a_topic_only_where_it_is_asked_to() {
    let broker = Broker::start();
    let mut client = wire::connect(&broker);
    let mut ask = |name: &str, create: bool| {
        let topic = MetadataRequestTopic::default().with_name(Some(wire::topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(create);
        let response = client.call(request).expect("Metadata is answered");
        ErrorCode::try_from_code(response.topics[0].error_code)
    };
    assert_eq!(ask("shy", false), Some(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(partitions(&broker, "shy"), None);
    let first = ask("bold", true);
    assert!(
        matches!(first, None | Some(ErrorCode::LeaderNotAvailable | ErrorCode::UnknownTopicOrPartition)),
        "{first:?}"
    );
    let config = clients::config(&broker);
    assert_eq!(clients::offsets(clients::produce(&config, "bold", 0, &[Record::of("here")])), [0]);
}

#[test]
fn without_auto_creation_no_client_creates_a_topic_by_asking() {
    let broker = Broker::start_with(&["--set", "auto.create.topics.enable=false"]);
    let mut client = wire::connect(&broker);
    let topic = MetadataRequestTopic::default().with_name(Some(wire::topic_name("uninvited")));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(true);
    let response = client.call(request).expect("Metadata is answered");
    let error = ErrorCode::try_from_code(response.topics[0].error_code);
    assert_eq!(error, Some(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(partitions(&broker, "uninvited"), None);
    assert_eq!(wire::create_topic(&mut client, "invited", 1, 1, &[]).error_code, 0);
    assert_eq!(partitions(&broker, "invited"), Some(1));
}

#[test]
fn the_served_versions_are_those_that_are_advertised() {
    let broker = Broker::start();
    let client = wire::connect(&broker);
    for api in [ApiKey::Produce, ApiKey::Fetch, ApiKey::Metadata, ApiKey::ListOffsets, ApiKey::CreateTopics] {
        assert_eq!(client.version(api).expect("served"), api.api().highest, "{api:?}");
    }
}
