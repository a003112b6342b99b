//! Topics: Metadata, CreateTopics, DeleteTopics, CreatePartitions.
//!
//! A change is answered once it is committed, every core's view shows it and, for new partitions, their leaders can serve:
//! the first produce after CreateTopics finds its partition.

use crate::{
    config_topic,
    core::Core,
    meta::{self, CommandResult, SubmitError},
    rt,
    sync::{Either, race},
};
use consensus::metadata::{Command, Outcome, Rejection, Topic};
use net::{
    StrBytes, Uuid,
    errors::{self, ErrorCode},
    messages::{
        BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
        DeleteTopicsRequest, DeleteTopicsResponse, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
        MetadataRequest, MetadataResponse, TopicName,
        create_partitions_request::CreatePartitionsTopic,
        create_partitions_response::CreatePartitionsTopicResult,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
        delete_topics_response::DeletableTopicResult,
        describe_topic_partitions_response::{
            Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
        },
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use wal::record::GroupId;

/// The internal topic of the group coordinator.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// How long an auto-created topic may keep a Metadata request waiting; then the client is told to ask again.
const AUTO_CREATE_WAIT: Duration = Duration::from_secs(5);

/// Partitions that one request may create, and one topic may have; a guard against typing errors, not a limit of the design.
pub const PARTITIONS_MAX: i32 = 100_000;

/// A refusal with the words that go into the answer.
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::NoLeader => ErrorCode::NotController,
            SubmitError::TimedOut => ErrorCode::RequestTimedOut,
            SubmitError::Storage => ErrorCode::KafkaStorageError,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection {
            Rejection::TopicExists(_) => ErrorCode::TopicAlreadyExists,
            Rejection::UnknownTopic(_) => ErrorCode::UnknownTopicOrPartition,
            Rejection::InvalidName(_) => ErrorCode::InvalidTopicException,
            Rejection::PartitionCount { .. } | Rejection::NoPartitions => ErrorCode::InvalidPartitions,
            Rejection::UnknownPartition(_) => ErrorCode::UnknownTopicOrPartition,
            Rejection::ReplicasChanged => ErrorCode::InvalidReplicaAssignment,
            Rejection::StaleBroker { .. } => ErrorCode::StaleBrokerEpoch,
            Rejection::PeerGone { .. } => ErrorCode::DuplicateBrokerRegistration,
            Rejection::UnknownBroker(_) => ErrorCode::BrokerIdNotRegistered,
            Rejection::FeatureDowngrade { .. } => ErrorCode::InvalidRequest,
        };
        Self::new(code, rejection.to_string())
    }
}

pub async fn metadata(core: &Rc<Core>, request: MetadataRequest, version: i16) -> MetadataResponse {
    // Version 0 asks for all topics by an empty list, later ones by null.
    let asked = request.topics.filter(|topics| version > 0 || !topics.is_empty());
    let topics = match asked {
        None => core.view(|view| view.topics().map(|topic| describe(core, topic)).collect()),
        Some(asked) => {
            let may_create =
                core.config.auto_create_topics_enable && (version < 4 || request.allow_auto_topic_creation);
            let names: Vec<&str> =
                asked.iter().filter_map(|topic| topic.name.as_ref()).map(|name| name.0.as_str()).collect();
            if may_create {
                auto_create(core, &names).await;
            }
            asked.iter().map(|topic| find(core, topic.name.as_ref(), topic.topic_id, may_create)).collect()
        }
    };
    let (brokers, controller) = brokers(core);
    MetadataResponse::default()
        .with_brokers(brokers)
        .with_cluster_id(Some(StrBytes::from_string(core.cluster_id.to_string())))
        .with_controller_id(controller)
        .with_topics(topics)
}

fn brokers(core: &Core) -> (Vec<MetadataResponseBroker>, BrokerId) {
    let (host, port) = core.advertised();
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(core.node()))
        .with_host(StrBytes::from_string(host.to_owned()))
        .with_port(i32::from(port));
    (vec![broker], BrokerId(core.node()))
}

fn find(core: &Core, name: Option<&TopicName>, id: Uuid, may_create: bool) -> MetadataResponseTopic {
    let found = core.view(|view| match name {
        Some(name) => view.topic(name.0.as_str()).cloned(),
        None => view.topic_by_id(id).cloned(),
    });
    if let Some(topic) = found {
        return describe(core, &topic);
    }
    let code = match name {
        None => ErrorCode::UnknownTopicId,
        Some(name) if consensus::metadata::check_topic_name(name.0.as_str()).is_err() => {
            ErrorCode::InvalidTopicException
        }
        // It could not be created in time: the client asks again.
        Some(_) if may_create => ErrorCode::LeaderNotAvailable,
        Some(_) => ErrorCode::UnknownTopicOrPartition,
    };
    MetadataResponseTopic::default().with_error_code(code.code()).with_name(name.cloned()).with_topic_id(id)
}

fn describe(core: &Core, topic: &Topic) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().enumerate().map(|(number, partition)| {
        let leader = core.leader_of(GroupId(partition.group));
        let nodes: Vec<BrokerId> = partition.replicas.iter().copied().map(BrokerId).collect();
        MetadataResponsePartition::default()
            .with_error_code(if leader.is_some() { errors::NONE } else { ErrorCode::LeaderNotAvailable.code() })
            .with_partition_index(number as i32)
            .with_leader_id(BrokerId(leader.map_or(-1, |leader| leader.node)))
            .with_leader_epoch(leader.map_or(-1, |leader| leader.epoch))
            .with_replica_nodes(nodes.clone())
            .with_isr_nodes(nodes)
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.to_string()))))
        .with_topic_id(topic.id)
        .with_is_internal(&*topic.name == OFFSETS_TOPIC)
        .with_partitions(partitions.collect())
}

/// Creates those of `names` that do not exist, with default settings, and waits for their leaders.
async fn auto_create(core: &Rc<Core>, names: &[&str]) {
    let missing: BTreeSet<&str> = core.view(|view| {
        names
            .iter()
            .copied()
            .filter(|name| view.topic(name).is_none() && consensus::metadata::check_topic_name(name).is_ok())
            .collect()
    });
    if missing.is_empty() {
        return;
    }
    let commands = missing
        .into_iter()
        .map(|name| create_command(core, name, core.config.num_partitions, BTreeMap::new()))
        .collect();
    let created = async {
        if let Ok(results) = meta::submit(core, commands).await {
            let groups = results.iter().filter_map(|result| result.as_ref().ok()).flat_map(new_groups).collect();
            core.leaders_known(groups).await;
        }
    };
    if let Either::Second(()) = race(created, rt::sleep(AUTO_CREATE_WAIT)).await {
        tracing::warn!("topics asked for by name were not created within {} s", AUTO_CREATE_WAIT.as_secs());
    }
}

/// The internal topic of the group coordinator, created on first use.
pub async fn ensure_offsets_topic(core: &Rc<Core>) -> Result<Arc<Topic>, ErrorCode> {
    if core.view(|view| view.topic(OFFSETS_TOPIC).is_none()) {
        // Commits are forgotten by the coordinator's rules (offsets.retention.minutes), never because they lie far back in the log.
        let configs =
            BTreeMap::from(["retention.ms", "retention.bytes"].map(|name| (name.to_owned(), "-1".to_owned())));
        let command = create_command(core, OFFSETS_TOPIC, core.config.offsets_topic_num_partitions, configs);
        let results = meta::submit(core, vec![command]).await.map_err(|_| ErrorCode::CoordinatorNotAvailable)?;
        let groups = results.iter().filter_map(|result| result.as_ref().ok()).flat_map(new_groups).collect();
        core.leaders_known(groups).await;
    }
    core.view(|view| view.topic(OFFSETS_TOPIC).cloned()).ok_or(ErrorCode::CoordinatorNotAvailable)
}

fn create_command(core: &Core, name: &str, partitions: i32, configs: BTreeMap<String, String>) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: Uuid::new_v4(),
        // Chosen where the log's order is: on core 0, right before the proposal.
        first_group: 0,
        replicas: vec![vec![core.node()]; partitions as usize],
        configs,
        created_ms: crate::core::wall_ms(),
    }
}

fn new_groups(outcome: &Outcome) -> Vec<GroupId> {
    match outcome {
        Outcome::TopicCreated(topic) => topic.partitions.iter().map(|partition| GroupId(partition.group)).collect(),
        Outcome::PartitionsAdded { topic, first_new } => {
            topic.partitions[*first_new as usize..].iter().map(|partition| GroupId(partition.group)).collect()
        }
        _ => Vec::new(),
    }
}

pub async fn create(core: &Rc<Core>, request: CreateTopicsRequest, version: i16) -> CreateTopicsResponse {
    let mut seen = BTreeMap::new();
    for topic in &request.topics {
        *seen.entry(topic.name.0.as_str()).or_insert(0) += 1;
    }
    let mut results: Vec<Result<(), Refusal>> = Vec::with_capacity(request.topics.len());
    let mut commands = Vec::new();
    for topic in &request.topics {
        let checked = if seen[topic.name.0.as_str()] > 1 {
            Err(Refusal::new(ErrorCode::InvalidRequest, "the request names this topic more than once"))
        } else {
            check_new_topic(core, topic)
        };
        results.push(checked.map(|command| {
            if !request.validate_only {
                commands.push(command);
            }
        }));
    }
    let mut outcomes = submit(core, commands, request.timeout_ms).await.into_iter();
    let topics = request.topics.into_iter().zip(results).map(|(topic, result)| {
        let outcome = match result {
            Ok(()) if request.validate_only => Ok(None),
            Ok(()) => outcomes.next().expect("every command has an outcome").map(Some),
            Err(refusal) => Err(refusal),
        };
        topic_result(core, topic, outcome, version)
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

/// Submits commands and waits until what they created can serve, at most the request's own time.
async fn submit(core: &Rc<Core>, commands: Vec<Command>, timeout_ms: i32) -> Vec<Result<Outcome, Refusal>> {
    if commands.is_empty() {
        return Vec::new();
    }
    let count = commands.len();
    let done = async {
        let results: Vec<CommandResult> = match meta::submit(core, commands).await {
            Ok(results) => results,
            Err(error) => return (0..count).map(|_| Err(error.into())).collect(),
        };
        let groups = results.iter().filter_map(|result| result.as_ref().ok()).flat_map(new_groups).collect();
        core.leaders_known(groups).await;
        results.into_iter().map(|result| result.map_err(Refusal::from)).collect()
    };
    match race(done, rt::sleep(Duration::from_millis(timeout_ms.max(0) as u64))).await {
        Either::First(results) => results,
        Either::Second(()) => {
            let late = format!("not done within the request's timeout of {timeout_ms} ms; it may still come about");
            (0..count).map(|_| Err(Refusal::new(ErrorCode::RequestTimedOut, late.clone()))).collect()
        }
    }
}

fn check_new_topic(core: &Core, topic: &CreatableTopic) -> Result<Command, Refusal> {
    let name = topic.name.0.as_str();
    consensus::metadata::check_topic_name(name)
        .map_err(|error| Refusal::new(ErrorCode::InvalidTopicException, error.to_string()))?;
    if core.view(|view| view.topic(name).is_some()) {
        return Err(Refusal::new(ErrorCode::TopicAlreadyExists, format!("topic '{name}' already exists")));
    }
    let partitions = if topic.assignments.is_empty() {
        check_replication(topic.replication_factor)?;
        if topic.num_partitions == -1 { core.config.num_partitions } else { topic.num_partitions }
    } else {
        check_assignments(core, topic)?
    };
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        let message = format!("{partitions} partitions; a topic has 1 to {PARTITIONS_MAX} (-1: the default)");
        return Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    }
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let Some(value) = &config.value else { continue };
        config_topic::validate(config.name.as_str(), value.as_str())
            .map_err(|error| Refusal::new(ErrorCode::InvalidConfig, error.to_string()))?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    Ok(create_command(core, name, partitions, configs))
}

fn check_replication(factor: i16) -> Result<(), Refusal> {
    if matches!(factor, -1 | 1) {
        return Ok(());
    }
    let message =
        format!("replication factor {factor}; this broker serves alone, so only 1 (or -1, the default) is possible");
    Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message))
}

/// Assignments by hand: partitions 0 … n-1, each on this broker. Returns n.
fn check_assignments(core: &Core, topic: &CreatableTopic) -> Result<i32, Refusal> {
    let numbers: BTreeSet<i32> = topic.assignments.iter().map(|assignment| assignment.partition_index).collect();
    let count = topic.assignments.len() as i32;
    let consecutive = numbers.len() == topic.assignments.len() && numbers.iter().copied().eq(0..count);
    let here = topic.assignments.iter().all(|assignment| assignment.broker_ids == [BrokerId(core.node())]);
    if consecutive && here && topic.num_partitions == -1 {
        return Ok(count);
    }
    let message = format!(
        "an assignment names partitions 0 to n-1 once each, all on broker {}, with a partition count of -1",
        core.node()
    );
    Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message))
}

fn topic_result(
    core: &Core,
    topic: CreatableTopic,
    outcome: Result<Option<Outcome>, Refusal>,
    version: i16,
) -> CreatableTopicResult {
    let result = CreatableTopicResult::default().with_name(topic.name.clone());
    match outcome {
        Ok(Some(Outcome::TopicCreated(created))) => {
            let configs = config_topic::describe(&created.configs, &core.config).into_iter().map(|config| {
                CreatableTopicConfigs::default()
                    .with_name(StrBytes::from_string(config.name.to_owned()))
                    .with_value(Some(StrBytes::from_string(config.value)))
                    .with_config_source(config.source)
            });
            result
                .with_topic_id(created.id)
                .with_num_partitions(created.partitions.len() as i32)
                .with_replication_factor(1)
                .with_configs((version >= 5).then(|| configs.collect()))
        }
        Ok(_) => result.with_num_partitions(topic.num_partitions).with_replication_factor(1),
        Err(Refusal { code, message }) => result
            .with_error_code(code.code())
            .with_error_message(Some(StrBytes::from_string(message)))
            .with_num_partitions(-1)
            .with_replication_factor(-1),
    }
}

pub async fn delete(core: &Rc<Core>, request: DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let asked: Vec<(Option<TopicName>, Uuid)> = if version >= 6 {
        request.topics.into_iter().map(|topic| (topic.name, topic.topic_id)).collect()
    } else {
        request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil())).collect()
    };
    let mut found: Vec<Result<Arc<Topic>, Refusal>> = Vec::with_capacity(asked.len());
    for (name, id) in &asked {
        let topic = core.view(|view| match name {
            Some(name) => view.topic(name.0.as_str()).cloned(),
            None => view.topic_by_id(*id).cloned(),
        });
        found.push(topic.ok_or_else(|| match name {
            Some(name) => Refusal::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic '{}'", name.0)),
            None => Refusal::new(ErrorCode::UnknownTopicId, format!("there is no topic with id {id}")),
        }));
    }
    let commands = found
        .iter()
        .filter_map(|topic| topic.as_ref().ok())
        .map(|topic| Command::DeleteTopic { name: topic.name.clone(), id: topic.id })
        .collect();
    let mut outcomes = submit(core, commands, request.timeout_ms).await.into_iter();
    let responses = asked.into_iter().zip(found).map(|((name, id), topic)| {
        let (name, id, outcome) = match topic {
            Ok(topic) => {
                let name = Some(TopicName(StrBytes::from_string(topic.name.to_string())));
                (name, topic.id, outcomes.next().expect("every command has an outcome").map(drop))
            }
            Err(refusal) => (name, id, Err(refusal)),
        };
        let result = DeletableTopicResult::default().with_name(name).with_topic_id(id);
        match outcome {
            Ok(()) => result,
            Err(Refusal { code, message }) => {
                result.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
            }
        }
    });
    DeleteTopicsResponse::default().with_responses(responses.collect())
}

pub async fn add_partitions(core: &Rc<Core>, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let checked: Vec<Result<Command, Refusal>> = request.topics.iter().map(|topic| check_more(core, topic)).collect();
    let commands = if request.validate_only {
        Vec::new()
    } else {
        checked.iter().filter_map(|checked| checked.as_ref().ok()).cloned().collect()
    };
    let mut outcomes = submit(core, commands, request.timeout_ms).await.into_iter();
    let results = request.topics.into_iter().zip(checked).map(|(topic, checked)| {
        let outcome = match checked {
            Ok(_) if request.validate_only => Ok(()),
            Ok(_) => outcomes.next().expect("every command has an outcome").map(drop),
            Err(refusal) => Err(refusal),
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        match outcome {
            Ok(()) => result,
            Err(Refusal { code, message }) => {
                result.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
            }
        }
    });
    CreatePartitionsResponse::default().with_results(results.collect())
}

fn check_more(core: &Core, request: &CreatePartitionsTopic) -> Result<Command, Refusal> {
    let name = request.name.0.as_str();
    let topic = core
        .view(|view| view.topic(name).cloned())
        .ok_or_else(|| Refusal::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic '{name}'")))?;
    let present = topic.partitions.len() as i32;
    if request.count <= present || request.count > PARTITIONS_MAX {
        let message = format!(
            "topic '{name}' has {present} partitions; the new count {} must be above that and at most {PARTITIONS_MAX}",
            request.count
        );
        return Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    }
    let more = request.count - present;
    if let Some(assignments) = &request.assignments {
        let fits =
            assignments.len() as i32 == more && assignments.iter().all(|a| a.broker_ids == [BrokerId(core.node())]);
        if !fits {
            let message =
                format!("assignments must name broker {} once for each of the {more} new partitions", core.node());
            return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
        }
    }
    Ok(Command::CreatePartitions {
        name: topic.name.clone(),
        id: topic.id,
        present: present as u32,
        first_group: 0,
        replicas: vec![vec![core.node()]; more as usize],
    })
}

/// Partitions that one DescribeTopicPartitions answer tells at most, as Kafka's `max.request.partition.size.limit`.
const DESCRIBED_PARTITIONS_MAX: i32 = 2000;

/// DescribeTopicPartitions (KIP-966): like Metadata, in pages.
pub fn describe_partitions(
    core: &Rc<Core>,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let mut left = request.response_partition_limit.clamp(1, DESCRIBED_PARTITIONS_MAX) as usize;
    let from = request.cursor.map(|cursor| (cursor.topic_name.0, cursor.partition_index.max(0) as usize));
    let mut names: Vec<StrBytes> = if request.topics.is_empty() {
        core.view(|view| view.topics().map(|topic| StrBytes::from_string(topic.name.to_string())).collect())
    } else {
        request.topics.into_iter().map(|topic| topic.name.0).collect()
    };
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    let mut topics = Vec::new();
    let mut next_cursor = None;
    for name in names.into_iter().filter(|name| from.as_ref().is_none_or(|(first, _)| name.as_str() >= first.as_str()))
    {
        let first = from.as_ref().filter(|(topic, _)| *topic == name).map_or(0, |(_, partition)| *partition);
        if left == 0 {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)));
            break;
        }
        let found = find(core, Some(&TopicName(name.clone())), Uuid::nil(), false);
        let total = found.partitions.len();
        let page: Vec<_> = found
            .partitions
            .into_iter()
            .skip(first)
            .take(left)
            .map(|partition| {
                DescribeTopicPartitionsResponsePartition::default()
                    .with_error_code(partition.error_code)
                    .with_partition_index(partition.partition_index)
                    .with_leader_id(partition.leader_id)
                    .with_leader_epoch(partition.leader_epoch)
                    .with_replica_nodes(partition.replica_nodes)
                    .with_isr_nodes(partition.isr_nodes)
                    .with_eligible_leader_replicas(Some(Vec::new()))
                    .with_last_known_elr(Some(Vec::new()))
            })
            .collect();
        left -= page.len();
        let end = first + page.len();
        topics.push(
            DescribeTopicPartitionsResponseTopic::default()
                .with_error_code(found.error_code)
                .with_name(found.name)
                .with_topic_id(found.topic_id)
                .with_is_internal(found.is_internal)
                .with_partitions(page),
        );
        if end < total {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)).with_partition_index(end as i32));
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next_cursor)
}
