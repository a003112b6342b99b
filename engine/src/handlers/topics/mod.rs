//! Changes of topics: CreateTopics, DeleteTopics, CreatePartitions, and creation on first use.
//!
//! A change is answered once it is committed and every core's view shows it. New partitions must also have leaders
//! that serve, so the first produce after CreateTopics finds its partition.

pub(crate) mod collisions;
pub(crate) mod create;
pub(crate) mod internal;
pub(crate) mod names;
pub(crate) mod raw;
pub(crate) mod room;

use self::room::Asked;
use super::{
    metadata_topic,
    refusal::{self, Refusal},
    timeout_of,
};
use crate::{
    cluster::{
        internal_topics,
        meta::{self, CommandResult},
        placement::{self, AssignmentError},
    },
    config::topic as config_topic,
    core::{Core, brokers},
    long_work::Work,
};
use consensus::metadata::{Command, Outcome, Partition};
use net::{
    StrBytes, Uuid,
    codec::produce::TopicRef,
    errors::ErrorCode,
    messages::{
        BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
        TopicName,
        create_partitions_request::CreatePartitionsTopic,
        create_partitions_response::CreatePartitionsTopicResult,
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig},
        delete_topics_response::DeletableTopicResult,
    },
};
use runtime::{
    clock,
    sync::{Either, race},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// How long a request waits for a topic that is created on first use. After that, the client is told to retry.
const AUTO_CREATE_WAIT: Duration = Duration::from_secs(5);

/// Most partitions that one request may create, and that one topic may have. It guards against typing errors, and
/// is no limit of the design.
pub const PARTITIONS_MAX: i32 = 100_000;

/// Creates the topics in `names` that do not exist, with default settings, and waits for their leaders.
pub async fn auto_create<'a>(work: &mut Work<'_, Core>, names: impl Iterator<Item = &'a str>) {
    let core = work.core();
    let (mut new, mut may_collide) = (BTreeSet::new(), false);
    for name in names {
        work.entry().await;
        if core.view(|view| view.topic(name).is_none()) {
            may_collide |= names::may_collide(name);
            new.insert(name);
        }
    }
    // Only the newest view shows for certain which names are taken.
    if may_collide && meta::linearize(core).await.is_err() {
        return;
    }
    let (mut missing, mut alike) = (Vec::new(), names::Alike::default());
    for name in new {
        work.entry().await;
        let may_be_created = consensus::metadata::check_topic_name(name).is_ok()
            && metadata_topic::check_name(name).is_ok()
            && internal::check_reserved(name).is_ok();
        if !may_be_created || core.view(|view| view.topic(name).is_some()) {
            continue;
        }
        match internal_topics::find(name) {
            Some(internal) => internal::ensure(core, internal).await,
            None => {
                alike.add(name);
                missing.push(name);
            }
        }
    }
    if missing.is_empty() {
        return;
    }
    let commands = commands_for(work, &alike, missing).await;
    if !commands.is_empty() {
        create_unasked(core, commands).await;
    }
}

/// The commands that create topics without settings, as far as their names do not collide and there is room.
async fn commands_for(work: &mut Work<'_, Core>, alike: &names::Alike<'_>, missing: Vec<&str>) -> Vec<Command> {
    let core = work.core();
    let (mut commands, room, mut refused) = (Vec::new(), Asked::default(), None);
    let Ok(factor) = check_replication(core, -1) else {
        if core.placement.may_tell(clock::now()) {
            tracing::warn!("cannot create topics that clients use: too few brokers for default.replication.factor");
        }
        return commands;
    };
    let partitions = core.config.num_partitions as usize;
    for name in missing {
        work.entries(partitions).await;
        if alike.earlier(name).is_some() || collisions::check(core, name).is_err() {
            continue;
        }
        match room.place(core, name, partitions, factor) {
            Ok(replicas) => commands.push(create_command(name, replicas, BTreeMap::new())),
            Err(refusal) => {
                // There is no room for the others either.
                refused = Some(refusal);
                break;
            }
        }
    }
    if let Some(refusal) = refused.filter(|_| core.placement.may_tell(clock::now())) {
        tracing::warn!(why = refusal.message, "cannot create topics that clients use");
    }
    commands
}

/// The error for topics that a client uses and that are not created because the brokers lack memory for them.
pub fn check_auto_create(core: &Core) -> Result<(), Refusal> {
    match check_replication(core, -1) {
        Ok(factor) => Asked::default().place(core, "", core.config.num_partitions as usize, factor).map(drop),
        Err(_) => Ok(()),
    }
}

/// Creates topics that no client named in a CreateTopics. Waits until they can serve, even if another request
/// created them.
pub(super) async fn create_unasked(core: &Rc<Core>, commands: Vec<Command>) {
    let created = async {
        let mut commands = commands.into_iter();
        loop {
            let piece: Vec<Command> = commands.by_ref().take(refusal::CHANGES_MAX).collect();
            if piece.is_empty() {
                return;
            }
            let names: Vec<Arc<str>> = piece.iter().filter_map(new_name).collect();
            match meta::submit(core, piece).await {
                Ok(results) => {
                    collisions::undo(core, results.into_iter().map(|result| result.map_err(Refusal::from)).collect())
                        .await;
                }
                Err(error) => {
                    if core.placement.may_tell(clock::now()) {
                        tracing::warn!(%error, "cannot create topics that clients use");
                    }
                    return;
                }
            }
            let partitions = core.view(|view| {
                let topics = names.iter().filter_map(|name| view.topic(name));
                topics.flat_map(|topic| topic.partitions.clone()).collect()
            });
            until_led(core, partitions).await;
        }
    };
    if let Either::Second(()) = race(created, runtime::sleep(AUTO_CREATE_WAIT)).await
        && core.placement.may_tell(clock::now())
    {
        tracing::warn!("topics that clients use have no leaders after {} s", AUTO_CREATE_WAIT.as_secs());
    }
}

fn value_of(config: &CreatableTopicConfig) -> Result<&str, Refusal> {
    config.value.as_deref().ok_or_else(|| {
        let message = format!("'{}' has no value; leave it out for the default", config.name);
        Refusal::new(ErrorCode::InvalidConfig, message)
    })
}

fn new_name(command: &Command) -> Option<Arc<str>> {
    match command {
        Command::CreateTopic { name, .. } => Some(name.clone()),
        _ => None,
    }
}

pub(super) fn create_command(name: &str, replicas: Vec<Vec<i32>>, configs: BTreeMap<String, String>) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: runtime::draw_uuid(),
        // The leader chooses it right before the proposal, in the order of the log.
        first_group: 0,
        replicas,
        configs,
        created_ms: runtime::clock::wall_ms(),
        peers: Vec::new(),
    }
}

fn new_partitions(outcome: &Outcome) -> &[Partition] {
    match outcome {
        Outcome::TopicCreated(topic) => &topic.partitions,
        Outcome::PartitionsAdded { topic, first_new } => &topic.partitions[*first_new as usize..],
        _ => &[],
    }
}

/// Waits until this core knows the leaders of these partitions. Skips partitions that are deleted meanwhile, and
/// partitions without a live broker: they exist, and will have a leader once a broker is back.
pub async fn until_led(core: &Core, mut partitions: Vec<Partition>) {
    loop {
        let seen = core.view_changed.version();
        let live = brokers::alive_ids(core);
        let is_waited_for = |partition: &Partition| {
            core.leader_of(partition.group).is_none()
                && core.view(|view| view.has_group(partition.group))
                && partition.replicas.iter().any(|node| live.contains(node))
        };
        // All must have a leader, so it is enough to look at the last one. Each partition is looked at once, plus
        // one at each change.
        while partitions.pop_if(|partition| !is_waited_for(partition)).is_some() {}
        if partitions.is_empty() {
            return;
        }
        core.view_changed.past(seen).await;
    }
}

/// Changes topics, and waits until new partitions can serve, at most until the request's timeout.
pub(super) async fn change<T>(
    work: &mut Work<'_, Core>,
    items: &[T],
    check: impl Fn(&Core, &T) -> Result<Command, Refusal>,
    timeout_ms: i32,
) -> Vec<Result<(Command, Outcome), Refusal>> {
    let timeout = timeout_of(timeout_ms);
    let deadline = clock::now() + timeout;
    let core = work.core();
    refusal::change(work, items, check, async |commands| submit(core, commands, deadline, timeout).await).await
}

/// Keeps the first of the items with the same key, and returns the keys that occur more than once.
async fn take_repeats<T, K: Ord + Clone>(
    work: &mut Work<'_, Core>,
    items: &mut Vec<T>,
    key: impl Fn(&T) -> K,
) -> BTreeSet<K> {
    let mut named = names::Named::new();
    for item in std::mem::take(items) {
        work.entry().await;
        if named.is_first(key(&item)) {
            items.push(item);
        }
    }
    named.repeats
}

fn error_message(refusal: Refusal) -> Option<StrBytes> {
    Some(StrBytes::from_string(refusal.message))
}

/// Submits commands and waits until the new partitions can serve, but not beyond the deadline.
async fn submit(
    core: &Rc<Core>,
    commands: Vec<Command>,
    deadline: Duration,
    timeout: Duration,
) -> Vec<Result<Outcome, Refusal>> {
    if commands.is_empty() {
        return Vec::new();
    }
    let count = commands.len();
    let late = || Refusal::late(timeout);
    let mut deadline = pin!(runtime::sleep(deadline.saturating_sub(clock::now())));
    let results: Vec<CommandResult> = match race(meta::submit(core, commands), deadline.as_mut()).await {
        Either::First(Ok(results)) => results,
        Either::First(Err(error)) => return (0..count).map(|_| Err(error.into())).collect(),
        Either::Second(()) => return (0..count).map(|_| Err(late())).collect(),
    };
    let results: Vec<Result<Outcome, Refusal>> =
        collisions::undo(core, results.into_iter().map(|result| result.map_err(Refusal::from)).collect()).await;
    let created = results.iter().filter_map(|result| result.as_ref().ok()).flat_map(new_partitions).cloned().collect();
    let all_serve = matches!(race(until_led(core, created), deadline).await, Either::First(()));
    let is_led = |partition: &Partition| core.leader_of(partition.group).is_some();
    let serves = |outcome: &Outcome| all_serve || new_partitions(outcome).iter().all(is_led);
    results
        .into_iter()
        .map(|result| match result {
            Ok(outcome) if serves(&outcome) => Ok(outcome),
            Ok(_) => Err(late()),
            Err(refusal) => Err(refusal),
        })
        .collect()
}

pub(super) fn check_new_topic(core: &Core, topic: &CreatableTopic, room: &Asked) -> Result<Command, Refusal> {
    let name = topic.name.0.as_str();
    consensus::metadata::check_topic_name(name)
        .map_err(|error| Refusal::new(ErrorCode::InvalidTopicException, error.to_string()))?;
    metadata_topic::check_name(name)?;
    if core.view(|view| view.topic(name).is_some()) {
        return Err(Refusal::new(ErrorCode::TopicAlreadyExists, format!("topic '{name}' already exists")));
    }
    internal::check_reserved(name)?;
    if let Some(internal) = internal_topics::find(name) {
        return internal::check_new(core, internal, topic);
    }
    let factor = match topic.assignments.is_empty() {
        true => check_replication(core, topic.replication_factor)?,
        false => 1,
    };
    let partitions = if topic.assignments.is_empty() {
        if topic.num_partitions == -1 { core.config.num_partitions } else { topic.num_partitions }
    } else {
        topic.assignments.len() as i32
    };
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        let message = format!("{partitions} partitions; a topic has 1 to {PARTITIONS_MAX} (-1: the default)");
        return Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    }
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let value = value_of(config)?;
        config_topic::validate(config.name.as_str(), value).map_err(Refusal::invalid_config)?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    let replicas = match topic.assignments.is_empty() {
        true => room.place(core, name, partitions as usize, factor)?,
        false => room.assigned(core, name, assigned(&brokers::alive_ids(core), topic)?)?,
    };
    Ok(create_command(name, replicas, configs))
}

fn check_replication(core: &Core, factor: i16) -> Result<usize, Refusal> {
    let factor = if factor == -1 { core.config.default_replication_factor } else { factor };
    let refuse = |error: placement::TooMany| Refusal::new(ErrorCode::InvalidReplicationFactor, error.to_string());
    brokers::candidates(core).check(factor).map_err(refuse)
}

/// Replicas assigned by the client: partitions 0 to n-1 once each, all on live brokers.
fn assigned(live: &[i32], topic: &CreatableTopic) -> Result<Vec<Vec<i32>>, Refusal> {
    let by_number: BTreeMap<i32, &CreatableReplicaAssignment> =
        topic.assignments.iter().map(|assignment| (assignment.partition_index, assignment)).collect();
    let consecutive =
        by_number.len() == topic.assignments.len() && by_number.keys().copied().eq(0..by_number.len() as i32);
    if !consecutive || topic.num_partitions != -1 {
        let message = "an assignment names partitions 0 to n-1 once each, with a partition count of -1";
        return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message.to_owned()));
    }
    by_number.values().map(|assignment| on_live(live, &assignment.broker_ids)).collect()
}

fn on_live(live: &[i32], brokers: &[BrokerId]) -> Result<Vec<i32>, Refusal> {
    let brokers: Vec<i32> = brokers.iter().map(|broker| broker.0).collect();
    let refuse = |error: AssignmentError| Refusal::new(ErrorCode::InvalidReplicaAssignment, error.to_string());
    placement::assigned(live, &brokers).map_err(refuse)
}

pub async fn delete(core: &Rc<Core>, request: DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let mut work = Work::on(core);
    let (mut asked, mut named) = (Vec::new(), names::Named::new());
    let by_reference = request.topics.into_iter().map(|topic| (topic.name, topic.topic_id));
    let by_name = request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil()));
    // Before version 6, topics have names only.
    for reference in by_reference.filter(|_| version >= 6).chain(by_name.filter(|_| version < 6)) {
        work.entry().await;
        if named.is_first(reference.clone()) {
            asked.push(reference);
        }
    }
    let find = |core: &Core, reference: &names::Reference| {
        names::check_reference(reference)?;
        if named.repeats.contains(reference) {
            return Err(names::twice());
        }
        let command = find_to_delete(core, reference.0.as_ref(), reference.1)?;
        let Command::DeleteTopic { name, id } = &command else { unreachable!("{command:?} deletes nothing") };
        match named.named_both_ways(reference, name, *id) {
            true => Err(names::twice()),
            false => Ok(command),
        }
    };
    let results = change(&mut work, &asked, find, request.timeout_ms).await;
    let mut responses = Vec::with_capacity(results.len());
    for ((name, id), result) in asked.into_iter().zip(results) {
        work.entry().await;
        let deleted = DeletableTopicResult::default();
        responses.push(match result {
            Ok((Command::DeleteTopic { name, id }, _)) => {
                deleted.with_name(Some(TopicName(StrBytes::from_string(name.to_string())))).with_topic_id(id)
            }
            Ok((other, _)) => unreachable!("{other:?} deletes nothing"),
            Err(refusal) => deleted
                .with_name(name)
                .with_topic_id(id)
                .with_error_code(refusal.code.code())
                .with_error_message(error_message(refusal)),
        });
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

fn find_to_delete(core: &Core, name: Option<&TopicName>, id: Uuid) -> Result<Command, Refusal> {
    let asked = name.map_or(TopicRef::Id(id), |name| TopicRef::Name(name.0.clone()));
    let topic = core.find_topic(&asked);
    topic.as_ref().map_or(Ok(()), |topic| internal::check_name(&topic.name))?;
    let delete = topic.map(|topic| Command::DeleteTopic { name: topic.name.clone(), id: topic.id });
    delete.ok_or_else(|| match name {
        Some(name) => Refusal::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic '{}'", name.0)),
        None => Refusal::new(ErrorCode::UnknownTopicId, format!("there is no topic with id {id}")),
    })
}

pub async fn add_partitions(core: &Rc<Core>, mut request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let mut work = Work::on(core);
    let repeats = take_repeats(&mut work, &mut request.topics, |topic| topic.name.clone()).await;
    let room = Asked::default();
    let check_one = |core: &Core, topic: &CreatePartitionsTopic| match repeats.contains(&topic.name) {
        true => Err(names::twice()),
        false => check_more(core, topic, &room),
    };
    let mut refusals: Vec<Option<Refusal>> = Vec::with_capacity(request.topics.len());
    if request.validate_only {
        refusals.extend(refusal::check(&mut work, &request.topics, check_one).await.into_iter().map(Result::err));
    } else {
        let results = change(&mut work, &request.topics, check_one, request.timeout_ms).await;
        refusals.extend(results.into_iter().map(Result::err));
    }
    let mut results = Vec::with_capacity(refusals.len());
    for (topic, refusal) in request.topics.into_iter().zip(refusals) {
        work.entry().await;
        let result = CreatePartitionsTopicResult::default().with_name(topic.name);
        results.push(match refusal {
            None => result,
            Some(refusal) => result.with_error_code(refusal.code.code()).with_error_message(error_message(refusal)),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

fn check_more(core: &Core, request: &CreatePartitionsTopic, room: &Asked) -> Result<Command, Refusal> {
    let name = request.name.0.as_str();
    internal::check_name(name)?;
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
    // New partitions get as many replicas as the topic's first partition has.
    let factor = topic.partitions[0].replicas.len() as i16;
    let replicas = match &request.assignments {
        None => {
            let factor = check_replication(core, factor)?;
            room.place(core, name, more as usize, factor)?
        }
        Some(assignments) => {
            let live = brokers::alive_ids(core);
            if assignments.len() as i32 != more {
                let message = format!("{} assignments for {more} new partitions", assignments.len());
                return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
            }
            let replicas = assignments.iter().map(|assignment| on_live(&live, &assignment.broker_ids));
            room.assigned(core, name, replicas.collect::<Result<_, _>>()?)?
        }
    };
    Ok(Command::CreatePartitions {
        name: topic.name.clone(),
        id: topic.id,
        present: present as u32,
        first_group: 0,
        replicas,
        peers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_hand(assignments: &[(i32, i32)], num_partitions: i32) -> CreatableTopic {
        let assignments = assignments.iter().map(|(partition, broker)| {
            CreatableReplicaAssignment::default()
                .with_partition_index(*partition)
                .with_broker_ids(vec![BrokerId(*broker)])
        });
        CreatableTopic::default().with_assignments(assignments.collect()).with_num_partitions(num_partitions)
    }

    #[test]
    fn assignments_by_hand_are_taken_in_the_order_of_partitions() {
        let topic = by_hand(&[(2, 5), (0, 1), (1, 5)], -1);
        assert_eq!(assigned(&[1, 5], &topic), Ok(vec![vec![1], vec![5], vec![5]]));
        for (assignments, num_partitions, words) in [
            (&[(0, 1), (2, 1)][..], -1, "partitions 0 to n-1 once each"),
            (&[(0, 1), (0, 1)], -1, "partitions 0 to n-1 once each"),
            (&[(1, 1)], -1, "partitions 0 to n-1 once each"),
            (&[(0, 1)], 1, "with a partition count of -1"),
            (&[(0, 1), (1, 7)], -1, "broker 7 is not registered or not alive; alive brokers: 1, 5"),
        ] {
            let refusal = assigned(&[1, 5], &by_hand(assignments, num_partitions)).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::InvalidReplicaAssignment);
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
    }
}
