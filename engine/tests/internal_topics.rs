//! `__consumer_offsets`: every way to cause its creation creates the same topic, and no client can make groups lose
//! their data in it.

mod support;

use net::{
    client::blocking::Client,
    errors::{self, ErrorCode},
    messages::{
        CreatePartitionsRequest, DeleteTopicsRequest, DescribeConfigsRequest, DescribeTopicPartitionsRequest,
        FindCoordinatorRequest, GroupId, MetadataRequest, OffsetFetchRequest,
        create_partitions_request::CreatePartitionsTopic,
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        describe_topic_partitions_request::TopicRequest,
        metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic,
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    },
};
use support::{
    PATIENCE,
    broker::Broker,
    cluster::{Cluster, wait_until},
    wire::{self, alter_topic, commit, connect, create_topic, text, topic_name},
};

const OFFSETS: &str = "__consumer_offsets";

/// Settings of the offsets topic that nobody can change.
const FIXED: [(&str, &str); 5] = [
    ("cleanup.policy", "delete"),
    ("compression.type", "producer"),
    ("message.timestamp.type", "CreateTime"),
    ("retention.bytes", "-1"),
    ("retention.ms", "-1"),
];

/// A way to cause the creation of the offsets topic.
type Cause = fn(&mut Client);

fn by_metadata(client: &mut Client) {
    metadata(client, OFFSETS, true);
}

fn by_create_topics(client: &mut Client) {
    let created = create_topic(client, OFFSETS, 1, 1, &[("segment.bytes", "1048576")]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
    assert_eq!((created.num_partitions, created.replication_factor), (50, 1));
}

fn by_find_coordinator(client: &mut Client) {
    let found = client.call(FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")])).unwrap();
    assert_eq!(errors::check(found.coordinators[0].error_code), Ok(()));
}

fn metadata(client: &mut Client, topic: &str, create: bool) -> MetadataResponseTopic {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(create);
    wire::metadata(client, request).topics.remove(0)
}

/// The offsets topic as a broker returns it, without an error.
fn offsets_topic(client: &mut Client) -> MetadataResponseTopic {
    let told = metadata(client, OFFSETS, false);
    assert_eq!(errors::check(told.error_code), Ok(()));
    assert!(told.partitions.iter().all(|partition| partition.error_code == errors::NONE), "{told:?}");
    told
}

fn setting(client: &mut Client, name: &str) -> Option<String> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(OFFSETS))
        .with_configuration_keys(Some(vec![text(name)]));
    let described = client.call(DescribeConfigsRequest::default().with_resources(vec![resource])).unwrap();
    assert_eq!(errors::check(described.results[0].error_code), Ok(()));
    described.results[0].configs[0].value.as_ref().map(ToString::to_string)
}

fn committed(client: &mut Client) -> i64 {
    let topic = OffsetFetchRequestTopics::default().with_name(topic_name("work")).with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text("g"))).with_topics(Some(vec![topic]));
    let fetched = client.call(OffsetFetchRequest::default().with_groups(vec![group])).unwrap();
    assert_eq!(errors::check(fetched.groups[0].error_code), Ok(()));
    let partition = &fetched.groups[0].topics[0].partitions[0];
    assert_eq!(errors::check(partition.error_code), Ok(()));
    partition.committed_offset
}

#[test]
fn any_request_that_creates_the_offsets_topic_creates_the_same_one() {
    let causes: [(&str, Cause); 3] =
        [("Metadata", by_metadata), ("CreateTopics", by_create_topics), ("FindCoordinator", by_find_coordinator)];
    for (api, cause) in causes {
        let broker = Broker::start();
        let mut client = connect(&broker);
        cause(&mut client);
        let told = offsets_topic(&mut client);
        assert!(told.is_internal, "{api}");
        assert_eq!(told.partitions.len(), 50, "{api}");
        assert!(told.partitions.iter().all(|partition| partition.replica_nodes.len() == 1), "{api}");
        let described = client
            .call(
                DescribeTopicPartitionsRequest::default()
                    .with_topics(vec![TopicRequest::default().with_name(topic_name(OFFSETS))]),
            )
            .unwrap();
        assert_eq!(errors::check(described.topics[0].error_code), Ok(()), "{api}");
        assert!(described.topics[0].is_internal, "{api}");
        for (name, value) in FIXED {
            assert_eq!(setting(&mut client, name).as_deref(), Some(value), "{api}: {name}");
        }
    }
}

#[test]
fn a_name_like_an_internal_topics_is_taken_from_nobody() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    for like in ["__consumer.offsets", "_.consumer_offsets", "__transaction.state"] {
        let told = metadata(&mut client, like, true);
        assert_eq!(errors::check(told.error_code), Err(ErrorCode::InvalidTopicException), "{like}");
        let created = create_topic(&mut client, like, 1, 1, &[]);
        assert_eq!(errors::check(created.error_code), Err(ErrorCode::InvalidTopicException), "{like}");
        assert!(created.error_message.is_some_and(|why| why.contains("collides with topic '__")), "{like}");
    }
    by_find_coordinator(&mut client);
    assert_eq!(offsets_topic(&mut client).partitions.len(), 50);
}

/// The offsets topic as a broker shows it, once it shows the leaders of all partitions.
fn shown(broker: &Broker) -> MetadataResponseTopic {
    let mut topic = metadata(&mut connect(broker), OFFSETS, false);
    wait_until("offsets topic with leaders", || {
        topic = metadata(&mut connect(broker), OFFSETS, false);
        topic.error_code == 0 && topic.partitions.iter().all(|partition| partition.error_code == 0)
    });
    topic
}

/// Asserts that a broker deletes, grows and reconfigures the offsets topic for no client.
fn refuses_changes(broker: &Broker, replicas: usize) {
    let mut client = connect(broker);
    let id = shown(broker).topic_id;
    for topic in [
        DeleteTopicState::default().with_name(Some(topic_name(OFFSETS))),
        DeleteTopicState::default().with_name(None).with_topic_id(id),
    ] {
        let request =
            DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(PATIENCE.as_millis() as i32);
        let deleted = client.call(request).unwrap().responses.remove(0);
        assert_eq!(errors::check(deleted.error_code), Err(ErrorCode::InvalidTopicException));
        let message = deleted.error_message.unwrap();
        assert!(message.contains("__consumer_offsets is an internal topic"), "{message}");
    }
    let more = CreatePartitionsTopic::default().with_name(topic_name(OFFSETS)).with_count(60).with_assignments(None);
    let more = CreatePartitionsRequest::default().with_topics(vec![more]).with_timeout_ms(PATIENCE.as_millis() as i32);
    let grown = client.call(more).unwrap().results.remove(0);
    assert_eq!(errors::check(grown.error_code), Err(ErrorCode::InvalidTopicException));

    let (more, least) = ((replicas + 1).to_string(), format!("has {replicas} replicas; set 1 to {replicas}"));
    for (name, value, words) in [
        ("retention.ms", Some("1000"), "is always -1"),
        ("retention.ms", None, "is always -1"),
        ("retention.bytes", Some("0"), "is always -1"),
        ("max.message.bytes", Some("64"), "follows the brokers' own settings"),
        ("min.insync.replicas", Some(&*more), &*least),
    ] {
        let (code, message) = alter_topic(broker, OFFSETS, name, value);
        assert_eq!(errors::check(code), Err(ErrorCode::InvalidConfig), "{name} {value:?}: {message}");
        assert!(message.contains(words), "{name} {value:?}: {message}");
    }
    let batch = wire::batch(&[b"no commit"]);
    let written = wire::produce(&mut client, OFFSETS, 0, batch);
    assert_eq!(errors::check(written.error_code), Err(ErrorCode::InvalidTopicException));
}

#[test]
fn no_client_makes_groups_lose_their_offsets() {
    let mut broker = Broker::start();
    let mut client = connect(&broker);
    assert_eq!(create_topic(&mut client, "work", 1, 1, &[]).error_code, 0);
    by_find_coordinator(&mut client);
    assert_eq!(commit(&mut client, "g", "work", 5), Ok(()));

    refuses_changes(&broker, 1);
    let (code, message) = alter_topic(&broker, OFFSETS, "segment.bytes", Some("8192"));
    assert_eq!(errors::check(code), Ok(()), "{message}");
    assert_eq!(setting(&mut client, "segment.bytes").as_deref(), Some("8192"));

    assert_eq!((commit(&mut client, "g", "work", 6), committed(&mut client)), (Ok(()), 6));
    broker.restart();
    let mut client = connect(&broker);
    assert_eq!(committed(&mut client), 6);
}

/// The broker that coordinates the group, once it takes a commit.
fn coordinator(cluster: &Cluster, offset: i64) -> &Broker {
    let mut at = 0;
    wait_until("coordinator", || {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]);
        let found = connect(cluster.broker(0)).call(request).unwrap().coordinators.remove(0);
        at = usize::try_from(found.node_id.0 - 1).unwrap_or(0);
        found.error_code == 0 && commit(&mut connect(cluster.broker(at)), "g", "work", offset) == Ok(())
    });
    cluster.broker(at)
}

#[test]
fn any_request_that_creates_the_offsets_topic_on_a_cluster_creates_the_same_one_and_nobody_changes_it() {
    const BROKERS: usize = 3;
    let by_metadata: fn(&Broker) -> bool = |broker| metadata(&mut connect(broker), OFFSETS, true).error_code == 0;
    let by_create_topics: fn(&Broker) -> bool =
        |broker| create_topic(&mut connect(broker), OFFSETS, 1, 1, &[]).error_code == 0;
    let by_find_coordinator: fn(&Broker) -> bool = |broker| {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]);
        connect(broker).call(request).unwrap().coordinators[0].error_code == 0
    };
    let seven = ["--set", "offsets.topic.num.partitions=7"];
    for (api, cause, flags, partitions) in [
        ("Metadata", by_metadata, &[][..], 50),
        ("CreateTopics", by_create_topics, &[], 50),
        ("FindCoordinator", by_find_coordinator, &seven, 7),
    ] {
        let cluster = Cluster::start(BROKERS, flags);
        let other = cluster.broker((cluster.leader() + 1) % BROKERS);
        // Until all founders have registered, no broker creates it.
        wait_until("offsets topic", || cause(other));
        for broker in (0..BROKERS).map(|at| cluster.broker(at)) {
            let topic = shown(broker);
            assert!(topic.is_internal, "{api}");
            assert_eq!(topic.partitions.len(), partitions, "{api}");
            for partition in &topic.partitions {
                let mut replicas: Vec<i32> = partition.replica_nodes.iter().map(|node| node.0).collect();
                replicas.sort_unstable();
                assert_eq!(replicas, [1, 2, 3], "{api}");
            }
            for (name, value) in FIXED {
                assert_eq!(setting(&mut connect(broker), name).as_deref(), Some(value), "{api}: {name}");
            }
        }
        let created = create_topic(&mut connect(other), "work", 1, 3, &[]);
        assert_eq!(errors::check(created.error_code), Ok(()), "{api}");
        coordinator(&cluster, 5);
        (0..BROKERS).for_each(|at| refuses_changes(cluster.broker(at), BROKERS));
        assert_eq!(committed(&mut connect(coordinator(&cluster, 6))), 6, "{api}");
        assert!((0..BROKERS).all(|at| shown(cluster.broker(at)).partitions.len() == partitions), "{api}");
    }
}

#[test]
fn names_of_kafkas_other_internal_topics_are_kept_for_them() {
    let broker = Broker::start();
    let mut client = connect(&broker);
    for name in ["__transaction_state", "__share_group_state"] {
        let refused = create_topic(&mut client, name, 1, 1, &[]);
        assert_eq!(errors::check(refused.error_code), Err(ErrorCode::InvalidTopicException));
        let message = refused.error_message.unwrap();
        assert!(message.contains("which this broker does not serve yet"), "{message}");
        let asked = metadata(&mut client, name, true);
        assert_eq!(errors::check(asked.error_code), Err(ErrorCode::InvalidTopicException));
    }
    let refused = create_topic(&mut client, OFFSETS, 1, 1, &[("retention.ms", "1000")]);
    assert_eq!(errors::check(refused.error_code), Err(ErrorCode::InvalidConfig), "{:?}", refused.error_message);
}
