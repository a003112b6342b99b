//! Consumer groups: finds the partition of `__consumer_offsets` that coordinates a group, and asks there.

use super::{brokers, internal::ensure_offsets_topic, topics::until_led};
use crate::{
    coordinator::{Context, GroupRequest, GroupResponse, Route, partition_of},
    coordinators,
    core::Core,
    internal_topics::OFFSETS_TOPIC,
    meta, rt,
    sync::{self, race},
};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, OffsetCommitRequest, OffsetCommitResponse,
        find_coordinator_response::Coordinator,
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    },
    produce::TopicRef,
};
use std::{rc::Rc, time::Duration};
use wal::record::GroupId;

/// How long FindCoordinator waits for a leader that is to be expected.
const LEADER_WAIT: Duration = Duration::from_secs(2);

/// FindCoordinator's key types: 0 a group, 1 a transactional id, 2 a share group.
const KEY_GROUP: i8 = 0;

pub async fn find_coordinator(
    core: &Rc<Core>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let keys = if version < 4 { vec![request.key] } else { request.coordinator_keys };
    let offsets = if request.key_type != KEY_GROUP {
        Err((ErrorCode::InvalidRequest, "only groups (key type 0) have a coordinator here: there are no transactions"))
    } else if meta::may_read(core).await.is_err() {
        Err((ErrorCode::CoordinatorNotAvailable, "this broker may not answer reads now; try again"))
    } else {
        ensure_offsets_topic(core).await.map_err(|why| (ErrorCode::CoordinatorNotAvailable, why))
    };
    if let Ok(offsets) = &offsets {
        // Whoever created the topic waited for its leaders; this broker may hear of them a moment later.
        let partitions = keys.iter().map(|key| partition_of(key, offsets.partitions.len() as i32) as usize);
        let partitions = partitions.map(|partition| offsets.partitions[partition].clone()).collect();
        race(until_led(core, partitions), rt::sleep(LEADER_WAIT)).await;
    }
    let alive = brokers::alive(core);
    let find = |key: &str| {
        let offsets = offsets.as_ref().map_err(|refused| *refused)?;
        let partition = partition_of(key, offsets.partitions.len() as i32);
        let leader = core.leader_of(GroupId(offsets.partitions[partition as usize].group));
        let node = leader.and_then(|leader| alive.iter().find(|node| node.id == leader.node));
        node.ok_or((ErrorCode::CoordinatorNotAvailable, "the group's partition of the offsets topic has no leader now"))
    };
    let coordinators = keys.into_iter().map(|key| match find(key.as_str()) {
        Ok(node) => Coordinator::default()
            .with_key(key)
            .with_node_id(BrokerId(node.id))
            .with_host(node.host.clone())
            .with_port(i32::from(node.port)),
        Err((code, message)) => Coordinator::default()
            .with_key(key)
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(code.code())
            .with_error_message(Some(StrBytes::from_static_str(message))),
    });
    // Versions below 4 have one key and no list: encoding brings the one into their shape.
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

pub async fn handle(core: &Rc<Core>, request: GroupRequest, context: Context) -> GroupResponse {
    let Some(offsets) = core.view(|view| view.topic(OFFSETS_TOPIC).cloned()) else {
        return match request {
            // No group was ever here.
            GroupRequest::ListGroups(_) => request.empty_response(),
            _ => request.refuse(context.version, ErrorCode::NotCoordinator),
        };
    };
    let (request, unknown) = match request {
        GroupRequest::OffsetCommit(commit) => {
            let (known, unknown) = cut_unknown(core, commit);
            (GroupRequest::OffsetCommit(known), unknown)
        }
        other => (other, Vec::new()),
    };
    let empty = request.empty_response();
    let partitions = offsets.partitions.len() as i32;
    let parts = match request.route(context.version, partitions) {
        Route::One(partition, request) => vec![(partition, request)],
        Route::Parts(parts) => parts,
        // Of all groups, those are told that are coordinated here; clients ask every broker.
        Route::All(request) => {
            let here = (0..partitions).filter(|at| offsets.partitions[*at as usize].replicas.contains(&core.node()));
            here.map(|partition| (partition, request.clone())).collect()
        }
    };
    let asked = parts.into_iter().map(|(partition, request)| ask(core, partition, request, context.clone()));
    let mut answers = sync::all(asked.collect()).await.into_iter();
    let mut response = answers.next().unwrap_or(empty);
    answers.for_each(|answer| response.merge(answer));
    if let GroupResponse::OffsetCommit(commit) = &mut response {
        merge_unknown(commit, unknown);
    }
    response
}

async fn ask(core: &Rc<Core>, partition: i32, request: GroupRequest, context: Context) -> GroupResponse {
    let topic = TopicRef::Name(StrBytes::from_static_str(OFFSETS_TOPIC));
    match core.find_group(&topic, partition) {
        Ok(group) => {
            core.call(core.owner(group), move |there| coordinators::ask(there, group, context, request)).result().await
        }
        Err(_) => request.refuse(context.version, ErrorCode::NotCoordinator),
    }
}

type Unknown = Vec<OffsetCommitResponseTopic>;

/// Takes out the partitions that do not exist.
fn cut_unknown(core: &Core, mut commit: OffsetCommitRequest) -> (OffsetCommitRequest, Unknown) {
    let mut unknown = Vec::new();
    for topic in &mut commit.topics {
        let asked = TopicRef::Name(topic.name.0.clone());
        let count = core.find_topic(&asked).map_or(0, |topic| topic.partitions.len());
        let exists = |partition: i32| usize::try_from(partition).is_ok_and(|partition| partition < count);
        let refused: Vec<_> = topic
            .partitions
            .extract_if(.., |partition| !exists(partition.partition_index))
            .map(|partition| {
                OffsetCommitResponsePartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(ErrorCode::UnknownTopicOrPartition.code())
            })
            .collect();
        if !refused.is_empty() {
            unknown.push(OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(refused));
        }
    }
    commit.topics.retain(|topic| !topic.partitions.is_empty());
    (commit, unknown)
}

fn merge_unknown(response: &mut OffsetCommitResponse, unknown: Unknown) {
    for topic in unknown {
        match response.topics.iter_mut().find(|known| known.name == topic.name) {
            Some(known) => known.partitions.extend(topic.partitions),
            None => response.topics.push(topic),
        }
    }
}
