//! ElectLeaders (KIP-183, KIP-460): moves leaderships to the preferred replicas, and waits until they lead.
//!
//! A replica that lacks acknowledged records never leads, so an unclean election is rejected.

use super::brokers;
use crate::handlers::refusal::{self, Refusal};
use crate::{clock, cluster::meta, core::Core, rt, sync::race};
use consensus::{metadata::Partition, wire::PeerMessage};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        ElectLeadersRequest, ElectLeadersResponse, TopicName,
        elect_leaders_response::{PartitionResult, ReplicaElectionResult},
    },
};
use std::{collections::BTreeMap, rc::Rc, time::Duration};
use types::CoreId;

/// Kinds of elections (`ElectionType`).
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// Interval at which a leader that has not handed over is asked again.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A partition, by its topic's name and its number.
type Named = (String, i32);

pub async fn elect(core: &Rc<Core>, request: ElectLeadersRequest) -> ElectLeadersResponse {
    // Partitions that need no election are reported only if the request named them.
    let named = request.topic_partitions.is_some();
    let asked: Vec<Named> = match &request.topic_partitions {
        Some(topics) => {
            let of_topic = |topic: &net::messages::elect_leaders_request::TopicPartitions| {
                let name = topic.topic.0.to_string();
                topic.partitions.iter().map(move |partition| (name.clone(), *partition)).collect::<Vec<_>>()
            };
            topics.iter().flat_map(of_topic).collect()
        }
        None => {
            if let Err(error) = meta::may_read(core).await {
                return ElectLeadersResponse::default().with_error_code(Refusal::from(error).code.code());
            }
            core.view(|view| {
                let topics = view.topics();
                topics
                    .flat_map(|topic| (0..topic.partitions.len()).map(|at| (topic.name.to_string(), at as i32)))
                    .collect()
            })
        }
    };
    let check = |core: &Core| asked.iter().map(|(topic, partition)| find(core, topic, *partition)).collect();
    let found = refusal::check(core, check).await;
    let mut results: Vec<Option<Result<(), Refusal>>> = Vec::with_capacity(found.len());
    let mut open = BTreeMap::new();
    for (at, found) in found.into_iter().enumerate() {
        let result = found.and_then(|partition| match request.election_type {
            PREFERRED => is_electable(core, &partition).map(|()| partition),
            other => Err(refuse_kind(core, &partition, other)),
        });
        results.push(match result {
            Ok(partition) => {
                open.insert(at, partition);
                None
            }
            Err(refusal) => Some(Err(refusal)),
        });
    }
    let deadline = clock::now() + Duration::from_millis(request.timeout_ms.max(0) as u64);
    until_preferred(core, &mut open, deadline).await;
    let late = || {
        let message =
            format!("not done within the request's timeout of {} ms; it may still take effect", request.timeout_ms);
        Refusal::new(ErrorCode::RequestTimedOut, message)
    };
    let results = results.into_iter().enumerate().map(|(at, result)| match result {
        Some(result) => result,
        None if open.contains_key(&at) => Err(late()),
        None => Ok(()),
    });
    // In the order of the request.
    let mut topics: Vec<(String, Vec<PartitionResult>)> = Vec::new();
    for ((topic, partition), result) in asked.into_iter().zip(results) {
        let row = PartitionResult::default().with_partition_id(partition);
        let row = match result {
            Err(refusal) if refusal.code == ErrorCode::ElectionNotNeeded && !named => continue,
            Err(Refusal { code, message }) => {
                row.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
            }
            Ok(()) => row,
        };
        match topics.last_mut() {
            Some((last, rows)) if *last == topic => rows.push(row),
            _ => topics.push((topic, vec![row])),
        }
    }
    let results = topics.into_iter().map(|(topic, rows)| {
        let topic = TopicName(StrBytes::from_string(topic));
        ReplicaElectionResult::default().with_topic(topic).with_partition_result(rows)
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

fn find(core: &Core, topic: &str, partition: i32) -> Result<Partition, Refusal> {
    let found = core.view(|view| view.topic(topic)?.partitions.get(usize::try_from(partition).ok()?).cloned());
    found.ok_or_else(|| {
        let message = format!("there is no partition {partition} of a topic '{topic}'");
        Refusal::new(ErrorCode::UnknownTopicOrPartition, message)
    })
}

fn leader(core: &Core, partition: &Partition) -> Option<i32> {
    core.leader_of(partition.group).map(|leader| leader.node)
}

/// Rejects if the preferred replica leads already, or can't lead.
fn is_electable(core: &Core, partition: &Partition) -> Result<(), Refusal> {
    let preferred = partition.replicas[0];
    if leader(core, partition) == Some(preferred) {
        let message = format!("the preferred replica, on broker {preferred}, leads already");
        return Err(Refusal::new(ErrorCode::ElectionNotNeeded, message));
    }
    let refuse = |why: &str| {
        let message = format!("the preferred replica, on broker {preferred}, {why}");
        Err(Refusal::new(ErrorCode::PreferredLeaderNotAvailable, message))
    };
    if !(brokers::alive_ids(core).contains(&preferred) && brokers::is_well(core, preferred)) {
        return refuse("is not alive or not healthy");
    }
    if core.view(|view| view.leader(partition.group).is_some_and(|known| !known.voters.contains(&preferred))) {
        return refuse("is not in sync");
    }
    Ok(())
}

fn refuse_kind(core: &Core, partition: &Partition, kind: i8) -> Refusal {
    match (kind, leader(core, partition)) {
        (UNCLEAN, Some(leader)) => {
            Refusal::new(ErrorCode::ElectionNotNeeded, format!("the partition has a leader, broker {leader}"))
        }
        (UNCLEAN, None) => Refusal::new(
            ErrorCode::EligibleLeadersNotAvailable,
            "a replica that may lack acknowledged records never leads; start more of the partition's brokers",
        ),
        (other, _) => {
            Refusal::new(ErrorCode::InvalidRequest, format!("unknown election type {other}; 0 is preferred, 1 unclean"))
        }
    }
}

/// Asks the leaders to hand over until the preferred replicas lead, or until the deadline. Removes a partition from
/// `open` once that is done.
async fn until_preferred(core: &Rc<Core>, open: &mut BTreeMap<usize, Partition>, deadline: Duration) {
    let mut ask_at = Duration::ZERO;
    loop {
        let seen = core.view_changed.version();
        // A partition that was deleted meanwhile is skipped.
        open.retain(|_, partition| {
            leader(core, partition) != Some(partition.replicas[0]) && core.view(|view| view.has_group(partition.group))
        });
        let now = clock::now();
        if open.is_empty() || now >= deadline {
            return;
        }
        if now >= ask_at {
            open.values().for_each(|partition| ask(core, partition));
            ask_at = now + ASK_EVERY;
        }
        race(core.view_changed.past(seen), rt::sleep(ask_at.min(deadline).saturating_sub(now))).await;
    }
}

fn ask(core: &Rc<Core>, partition: &Partition) {
    let group = partition.group;
    match leader(core, partition) {
        Some(here) if here == core.node() => {
            let CoreId(owner) = core.owner(group);
            core.post(CoreId(owner), move |there| {
                if let Some(partition) = there.partition(group) {
                    partition.prefer(there);
                }
            });
        }
        Some(other) => core.peers().send_to_node(other, PeerMessage::Elect { group }),
        None => {}
    }
}
