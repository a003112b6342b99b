//! Three brokers through Kafka's protocol. All give the same answers about the cluster, and a broker that cannot serve
//! a request sends the client to the right one.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Instant,
};

use net::{
    client::blocking::Client,
    codec::produce::TopicRef,
    errors::{self, ErrorCode},
    messages::{
        BrokerId, CreateTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, DescribeQuorumRequest,
        FindCoordinatorRequest, GroupId, HeartbeatRequest, IncrementalAlterConfigsRequest, ListGroupsRequest,
        ListOffsetsRequest, MetadataRequest, UnregisterBrokerRequest,
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
        describe_configs_request::DescribeConfigsResource,
        describe_quorum_request,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
};
use support::{
    PATIENCE,
    broker::Broker,
    wire::{self, batch, commit, connect, fetch_request, text, topic_name},
};

const NODES: [i32; 3] = [1, 2, 3];

fn connect_all(brokers: &[Broker]) -> BTreeMap<i32, Client> {
    NODES.into_iter().zip(brokers.iter().map(connect)).collect()
}

/// Asks until the answer is right: a change that one broker has acknowledged may reach another one a moment later.
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !ask() {
        assert!(Instant::now() < give_up, "it never comes about: {what}");
    }
}

/// The leaders of a topic's partitions, as one broker returns them.
fn leaders(client: &mut Client, topic: &str) -> Vec<i32> {
    wire::partitions(client, topic).iter().map(|partition| partition.leader_id.0).collect()
}

#[test]
fn every_broker_tells_the_same_of_the_cluster() {
    let brokers = Broker::cluster(3);
    let mut told = BTreeSet::new();
    for client in connect_all(&brokers).values_mut() {
        until("all are registered", || wire::alive(client) == NODES.len());
        let metadata = wire::metadata(client, MetadataRequest::default().with_topics(None));
        let cluster = client.call(DescribeClusterRequest::default().with_endpoint_type(1)).unwrap();
        assert_eq!(errors::check(cluster.error_code), Ok(()));
        let listed: Vec<_> = metadata.brokers.iter().map(|one| (one.node_id, one.host.clone(), one.port)).collect();
        let described: Vec<_> = cluster.brokers.iter().map(|one| (one.broker_id, one.host.clone(), one.port)).collect();
        assert_eq!(listed, described);
        assert_eq!(listed.iter().map(|(node, ..)| node.0).collect::<Vec<_>>(), NODES);
        assert_eq!(metadata.cluster_id.as_ref(), Some(&cluster.cluster_id));
        assert_eq!(metadata.controller_id, cluster.controller_id);

        let partition = describe_quorum_request::PartitionData::default();
        let topic = describe_quorum_request::TopicData::default()
            .with_topic_name(topic_name("__cluster_metadata"))
            .with_partitions(vec![partition]);
        let quorum = client.call(DescribeQuorumRequest::default().with_topics(vec![topic])).unwrap();
        assert_eq!(errors::check(quorum.error_code), Ok(()));
        let partition = &quorum.topics[0].partitions[0];
        assert_eq!(errors::check(partition.error_code), Ok(()));
        let voters: BTreeSet<_> =
            partition.current_voters.iter().map(|voter| (voter.replica_id.0, voter.replica_directory_id)).collect();
        assert_eq!(voters.iter().map(|(node, _)| *node).collect::<Vec<_>>(), NODES);
        assert_eq!((partition.leader_id, partition.observers.len()), (cluster.controller_id, 0));
        assert_eq!(quorum.nodes.len(), 3);
        told.insert((cluster.cluster_id, cluster.controller_id.0, partition.leader_epoch, voters));
    }
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn partitions_go_round_the_brokers_and_whoever_asks_the_wrong_one_learns_the_leader() {
    let brokers = Broker::cluster(3);
    let mut clients = connect_all(&brokers);
    let created = wire::create_topic(clients.get_mut(&2).unwrap(), "spread", 9, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
    let leaders_of: Vec<i32> = leaders(clients.get_mut(&2).unwrap(), "spread");
    let held = NODES.map(|node| leaders_of.iter().filter(|leader| **leader == node).count());
    assert_eq!(held, [3, 3, 3], "{leaders_of:?}");

    let asked: Vec<i32> = (0..9).collect();
    for (node, client) in &mut clients {
        until("the leaders are known", || leaders(client, "spread") == leaders_of);
        for partition in &asked {
            let leader = leaders_of[*partition as usize];
            let produced = client.produce(wire::produce_request("spread", *partition, -1, batch(&[b"x"]))).unwrap();
            let answer = &produced.responses[0].partition_responses[0];
            let list = ListOffsetsPartition::default().with_partition_index(*partition).with_timestamp(-1);
            let list = ListOffsetsTopic::default().with_name(topic_name("spread")).with_partitions(vec![list]);
            let list = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![list]);
            let listed = client.call(list).unwrap().topics[0].partitions[0].error_code;
            let mut fetch = fetch_request("spread", *partition, 0, 0, 0);
            // Only versions that name topics by id return where the leaders are.
            fetch.topics[0].topic = TopicRef::Id(created.topic_id);
            let fetched = client.fetch(fetch).unwrap();
            let found = wire::only_partition(&fetched);
            if *node == leader {
                assert_eq!((answer.error_code, listed, found.error_code), (0, 0, 0));
                continue;
            }
            let wrong = ErrorCode::NotLeaderOrFollower.code();
            assert_eq!((answer.error_code, listed, found.error_code), (wrong, wrong, wrong));
            assert_eq!((answer.current_leader.leader_id.0, found.current_leader.leader_id.0), (leader, leader));
            let address = brokers[leader as usize - 1].bootstrap();
            let (produced, found) = (&produced.node_endpoints[0], &fetched.node_endpoints[0]);
            let told = [
                (produced.node_id.0, format!("{}:{}", produced.host, produced.port)),
                (found.node_id.0, format!("{}:{}", found.host, found.port)),
            ];
            assert_eq!(told, [(leader, address.clone()), (leader, address)], "KIP-951");
        }
    }
}

#[test]
fn partitions_are_assigned_by_hand_to_brokers_that_there_are() {
    let brokers = Broker::cluster(3);
    let mut client = connect(&brokers[0]);
    let mut create = |name: &str, nodes: &[&[i32]]| {
        let assignments = nodes.iter().enumerate().map(|(at, nodes)| {
            let nodes = nodes.iter().copied().map(BrokerId).collect();
            CreatableReplicaAssignment::default().with_partition_index(at as i32).with_broker_ids(nodes)
        });
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_assignments(assignments.collect());
        let timeout_ms = PATIENCE.as_millis() as i32;
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(timeout_ms);
        errors::check(client.call(request).unwrap().topics[0].error_code)
    };
    assert_eq!(create("by-hand", &[&[3], &[1], &[3]]), Ok(()));
    assert_eq!(create("nowhere", &[&[4]]), Err(ErrorCode::InvalidReplicaAssignment));
    assert_eq!(create("twice", &[&[1, 1]]), Err(ErrorCode::InvalidReplicaAssignment));
    assert_eq!(create("shared", &[&[2, 1], &[1, 3, 2]]), Ok(()));
    let four = wire::create_topic(&mut client, "four", 1, 4, &[]);
    assert_eq!(errors::check(four.error_code), Err(ErrorCode::InvalidReplicationFactor));
    let message = four.error_message.unwrap();
    assert!(message.contains("replication factor 4: the cluster has 3 brokers; ask for 1 to 3"), "{message}");
    assert_eq!(leaders(&mut client, "shared"), [2, 1]);
    assert_eq!(leaders(&mut client, "by-hand"), [3, 1, 3]);

    let refused = client.call(UnregisterBrokerRequest::default().with_broker_id(BrokerId(3))).unwrap();
    assert_eq!(errors::check(refused.error_code), Err(ErrorCode::InvalidRequest));
    let message = refused.error_message.unwrap();
    assert!(message.contains("the only replica of 2 partitions (by-hand-0, by-hand-2)"), "{message}");
    // Its disk could never join again.
    let refused = client.call(UnregisterBrokerRequest::default().with_broker_id(BrokerId(2))).unwrap();
    assert_eq!(errors::check(refused.error_code), Err(ErrorCode::InvalidRequest));
    let message = refused.error_message.unwrap();
    assert!(message.contains("broker 2 is alive"), "{message}");
}

#[test]
fn groups_are_coordinated_where_every_broker_says() {
    let brokers = Broker::cluster(3);
    let mut clients = connect_all(&brokers);
    for (node, client) in &mut clients {
        assert_eq!(groups_of(client), BTreeSet::new(), "broker {node}, before any group");
    }
    let groups: Vec<String> = (0..9).map(|n| format!("group-{n}")).collect();
    let keys = || groups.iter().map(|group| text(group)).collect();
    let mut told: BTreeSet<Vec<i32>> = BTreeSet::new();
    for client in clients.values_mut() {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(keys());
        let found = client.call(request).unwrap().coordinators;
        assert!(found.iter().all(|coordinator| coordinator.error_code == 0), "{found:?}");
        told.insert(found.iter().map(|coordinator| coordinator.node_id.0).collect());
    }
    assert_eq!(told.len(), 1, "{told:?}");
    let coordinators = told.pop_first().unwrap();
    assert_eq!(coordinators.iter().collect::<BTreeSet<_>>().len(), 3, "{coordinators:?}");

    assert_eq!(wire::create_topic(clients.get_mut(&1).unwrap(), "committed", 1, 1, &[]).error_code, 0);
    for (group, coordinator) in groups.iter().zip(&coordinators) {
        for (node, client) in &mut clients {
            let heartbeat = HeartbeatRequest::default().with_group_id(GroupId(text(group)));
            let refused = errors::check(client.call(heartbeat).unwrap().error_code);
            let expected = if node == coordinator { ErrorCode::UnknownMemberId } else { ErrorCode::NotCoordinator };
            assert_eq!(refused, Err(expected), "broker {node} of {group}");
        }
        let client = clients.get_mut(coordinator).unwrap();
        until("the topic is known", || leaders(client, "committed").len() == 1);
        assert_eq!(commit(client, group, "committed", 1), Ok(()));
    }
    for (node, client) in &mut clients {
        let own = groups.iter().zip(&coordinators).filter(|(_, coordinator)| *coordinator == node);
        assert_eq!(groups_of(client), own.map(|(group, _)| group.clone()).collect(), "broker {node}");
    }
}

/// The groups that a broker lists. It must answer without an error.
fn groups_of(client: &mut Client) -> BTreeSet<String> {
    let listed = client.call(ListGroupsRequest::default()).unwrap();
    assert_eq!(errors::check(listed.error_code), Ok(()));
    listed.groups.into_iter().map(|group| group.group_id.to_string()).collect()
}

/// The value of `metadata.acks` and its source, as a broker describes a resource.
fn acks(client: &mut Client, broker: &str) -> Option<(String, i8)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(text(broker))
        .with_configuration_keys(Some(vec![text("metadata.acks")]));
    let described = client.call(DescribeConfigsRequest::default().with_resources(vec![resource])).unwrap();
    assert_eq!(errors::check(described.results[0].error_code), Ok(()), "{:?}", described.results[0].error_message);
    let config = described.results[0].configs.first()?;
    Some((config.value.as_ref()?.to_string(), config.config_source))
}

#[test]
fn a_setting_of_all_brokers_is_changed_on_any_and_checked_without_being_changed() {
    let brokers = Broker::cluster(3);
    let mut clients = connect_all(&brokers);
    let alter = |client: &mut Client, broker: &str, name: &str, value: &str, validate_only: bool| {
        let config = AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)));
        let resource = AlterConfigsResource::default()
            .with_resource_type(4)
            .with_resource_name(text(broker))
            .with_configs(vec![config]);
        let request =
            IncrementalAlterConfigsRequest::default().with_resources(vec![resource]).with_validate_only(validate_only);
        errors::check(client.call(request).unwrap().responses[0].error_code)
    };
    let two = clients.get_mut(&2).unwrap();
    assert_eq!(alter(two, "", "metadata.acks", "leader", true), Ok(()));
    assert_eq!(acks(two, "2"), Some(("quorum".to_owned(), 5)));
    assert_eq!(alter(two, "", "metadata.acks", "leader", false), Ok(()));
    assert_eq!(acks(two, "2"), Some(("leader".to_owned(), 3)));
    assert_eq!(acks(two, ""), Some(("leader".to_owned(), 3)));
    assert_eq!(alter(two, "2", "metadata.acks", "quorum", false), Ok(()));
    assert_eq!(acks(two, "2"), Some(("quorum".to_owned(), 2)));
    assert_eq!(alter(two, "", "metadata.acks", "none", false), Err(ErrorCode::InvalidConfig));
    assert_eq!(alter(two, "2", "metadata.voters", "3", false), Err(ErrorCode::InvalidRequest));
    assert_eq!(alter(two, "", "num.partitions", "3", false), Err(ErrorCode::InvalidRequest));
    assert_eq!(alter(two, "4", "metadata.acks", "leader", false), Err(ErrorCode::InvalidRequest));
}

#[test]
fn one_of_two_colliding_names_is_made_whichever_brokers_are_asked_at_once() {
    let brokers = Broker::cluster(3);
    let mut clients: Vec<Client> = brokers.iter().map(connect).collect();
    for round in 0..30 {
        let names = [format!("a.b.{round}"), format!("a_b_{round}"), format!("a.b_{round}")];
        let codes: Vec<Result<(), ErrorCode>> = thread::scope(|scope| {
            let makers: Vec<_> = clients
                .iter_mut()
                .zip(&names)
                .map(|(client, name)| {
                    scope.spawn(|| errors::check(wire::create_topic(client, name, 1, 1, &[]).error_code))
                })
                .collect();
            makers.into_iter().map(|maker| maker.join().expect("an answer")).collect()
        });
        let made: Vec<&String> =
            names.iter().zip(&codes).filter(|(_, code)| code.is_ok()).map(|(name, _)| name).collect();
        assert!(made.len() == 1, "round {round}: {codes:?}");
        assert!(codes.iter().all(|code| matches!(code, Ok(()) | Err(ErrorCode::InvalidTopicException))), "{codes:?}");
        for client in &mut clients {
            until("one of the topics is there", || {
                let there = names.iter().filter(|name| !wire::partitions(client, name).is_empty()).collect::<Vec<_>>();
                there == made
            });
        }
    }
}
