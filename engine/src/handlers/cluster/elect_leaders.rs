//! ElectLeaders (KIP-183, KIP-460): moves leaderships to the preferred replicas, and waits until they lead.
//!
//! A replica that lacks acknowledged records never leads, so an unclean election is rejected.

use crate::handlers::{
    refusal::{self, Refusal},
    timeout_of,
};
use crate::{
    cluster::meta,
    core::{Core, brokers, messages::Notice},
    long_work::Work,
};
use consensus::{metadata::Partition, wire::PeerMessage};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        ElectLeadersRequest, ElectLeadersResponse, TopicName,
        elect_leaders_request::TopicPartitions,
        elect_leaders_response::{PartitionResult, ReplicaElectionResult},
    },
};
use runtime::{clock, sync::race};
use std::{collections::BTreeMap, ops::Bound, rc::Rc, time::Duration};

/// Kinds of elections (`ElectionType`).
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// Interval at which a leader that has not handed over is asked again.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A partition, by its topic's name and its number.
type Named = (TopicName, i32);

pub async fn elect(core: &Rc<Core>, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let mut work = Work::on(core);
    // Partitions that need no election are reported only if the request named them.
    let named = request.topic_partitions.is_some();
    let asked = match &request.topic_partitions {
        Some(topics) => named_partitions(&mut work, topics).await,
        None => {
            if let Err(error) = meta::may_read(core).await {
                return ElectLeadersResponse::default().with_error_code(Refusal::from(error).code.code());
            }
            all_partitions(&mut work).await
        }
    };
    let found = refusal::check(&mut work, &asked, |core, (topic, partition)| find(core, topic, *partition)).await;
    let alive = brokers::alive_ids(core);
    let mut results: Vec<Option<Result<(), Refusal>>> = Vec::with_capacity(found.len());
    let mut open = BTreeMap::new();
    for (at, found) in found.into_iter().enumerate() {
        work.entry().await;
        let result = found.and_then(|partition| match request.election_type {
            PREFERRED => is_electable(core, &alive, &partition).map(|()| partition),
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
    let timeout = timeout_of(request.timeout_ms);
    until_preferred(&mut work, &mut open, clock::now() + timeout).await;
    let results = results.into_iter().enumerate().map(|(at, result)| match result {
        Some(result) => result,
        None if open.contains_key(&at) => Err(Refusal::late(timeout)),
        None => Ok(()),
    });
    // In the order of the request.
    let mut topics: Vec<ReplicaElectionResult> = Vec::new();
    for ((topic, partition), result) in asked.into_iter().zip(results) {
        work.entry().await;
        let row = PartitionResult::default().with_partition_id(partition);
        let row = match result {
            Err(refusal) if refusal.code == ErrorCode::ElectionNotNeeded && !named => continue,
            Err(Refusal { code, message }) => {
                row.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
            }
            Ok(()) => row,
        };
        match topics.last_mut() {
            Some(last) if last.topic == topic => last.partition_result.push(row),
            _ => topics.push(ReplicaElectionResult::default().with_topic(topic).with_partition_result(vec![row])),
        }
    }
    ElectLeadersResponse::default().with_replica_election_results(topics)
}

async fn named_partitions(work: &mut Work<'_, Core>, topics: &[TopicPartitions]) -> Vec<Named> {
    let mut named = Vec::new();
    for topic in topics {
        for partition in &topic.partitions {
            work.entry().await;
            named.push((topic.topic.clone(), *partition));
        }
    }
    named
}

async fn all_partitions(work: &mut Work<'_, Core>) -> Vec<Named> {
    let mut all = Vec::new();
    let mut page = work.core().next_topics(Bound::Unbounded);
    while let Some(last) = page.last().map(|topic| topic.name.clone()) {
        for topic in page {
            let name = TopicName(StrBytes::from_string(topic.name.to_string()));
            for partition in 0..topic.partitions.len() as i32 {
                work.entry().await;
                all.push((name.clone(), partition));
            }
        }
        page = work.core().next_topics(Bound::Excluded(&last));
    }
    all
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
fn is_electable(core: &Core, alive: &[i32], partition: &Partition) -> Result<(), Refusal> {
    let preferred = partition.replicas[0];
    if leader(core, partition) == Some(preferred) {
        let message = format!("the preferred replica, on broker {preferred}, leads already");
        return Err(Refusal::new(ErrorCode::ElectionNotNeeded, message));
    }
    let refuse = |why: &str| {
        let message = format!("the preferred replica, on broker {preferred}, {why}");
        Err(Refusal::new(ErrorCode::PreferredLeaderNotAvailable, message))
    };
    if !(alive.contains(&preferred) && brokers::is_well(core, preferred)) {
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
async fn until_preferred(work: &mut Work<'_, Core>, open: &mut BTreeMap<usize, Partition>, deadline: Duration) {
    let core = work.core();
    let mut ask_at = Duration::ZERO;
    loop {
        let seen = core.view_changed.version();
        for (at, partition) in std::mem::take(open) {
            work.entry().await;
            let is_elected = leader(core, &partition) == Some(partition.replicas[0]);
            // A partition that was deleted meanwhile is skipped.
            if !is_elected && core.view(|view| view.has_group(partition.group)) {
                open.insert(at, partition);
            }
        }
        let now = clock::now();
        if open.is_empty() || now >= deadline {
            return;
        }
        if now >= ask_at {
            for partition in open.values() {
                work.entry().await;
                ask(core, partition);
            }
            ask_at = now + ASK_EVERY;
        }
        race(core.view_changed.past(seen), runtime::sleep(ask_at.min(deadline).saturating_sub(now))).await;
        work.resume();
    }
}

fn ask(core: &Rc<Core>, partition: &Partition) {
    let group = partition.group;
    match leader(core, partition) {
        Some(here) if here == core.node() => core.tell(core.owner(group), Notice::Prefer { group }),
        Some(other) => core.peers().send_to_node(other, PeerMessage::Elect { group }),
        None => {}
    }
}
