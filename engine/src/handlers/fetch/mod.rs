//! Fetch: one message to each partition's owner and one back. The owner waits for `min_bytes` if needed.
//!
//! The broker keeps no sessions (KIP-227): every answer carries session id 0, so clients send full requests. The
//! append that moves a high watermark wakes waiting fetches. They never poll.
//!
//! `max_bytes` holds for the whole request. Each owner gets a share of it, in proportion to the bytes that its
//! partitions ask for. So a request over many cores reads about as much as it returns. The first partition with a
//! batch gets that batch whatever its size. If an owner did not know that its partition would be the first, it is
//! asked a second time.
//! [`crate::core::owner::reading`] is an owner's part.

use super::{TIMEOUT_MAX, timeout_of};
use crate::{
    connection::client::Client,
    core::{
        Core, brokers,
        messages::Read,
        owner::reading::{Brought, Found, Item, Wish},
    },
    long_work::Work,
    memory::FREE_DECODED_BYTES,
};
use net::{
    codec::{
        fetch::{FetchPartition, FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse},
        request::ELEMENT_BYTES_MAX,
    },
    errors::{self, ErrorCode},
};
use runtime::sync;
use std::{rc::Rc, time::Duration};
use types::{CoreId, GroupId, LeaderEpoch};

/// An answer without a session.
const EMPTY: FetchResponse = FetchResponse {
    throttle_time_ms: 0,
    error_code: errors::NONE,
    session_id: 0,
    topics: Vec::new(),
    node_endpoints: Vec::new(),
};

/// The state of one partition of the request: not answered yet, records, or an error.
type Answered = Option<Result<Found, ErrorCode>>;

/// Longest wait of a fetch that names so much that its decoded form has a reservation. Others wait for that memory, for
/// 10 s at most.
const LARGE_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a fetch waits for records.
fn wait_of(request: &FetchRequest) -> Duration {
    let named: usize = request.topics.iter().map(|topic| 1 + topic.partitions.len()).sum();
    let longest = if named * ELEMENT_BYTES_MAX > FREE_DECODED_BYTES { LARGE_WAIT_MAX } else { TIMEOUT_MAX };
    timeout_of(request.max_wait_ms).min(longest)
}

/// The least that a fetch may read while memory for answers is short. A socket takes it at once.
const SHORT_MEMORY_MIN: usize = 64 << 10;

pub async fn handle(core: &Rc<Core>, client: &Client, mut request: FetchRequest, version: i16) -> FetchResponse {
    // Without sessions there is nothing to forget, so their memory is not kept during a wait.
    request.forgotten = Vec::new();
    if request.session_id != 0 && request.session_epoch > 0 {
        // The broker never gave out a session, so the client falls back to a full fetch.
        return FetchResponse { error_code: ErrorCode::FetchSessionIdNotFound.code(), ..EMPTY };
    }
    let mut parts: Vec<Answered> = Vec::new();
    let mut by_owner: Vec<Vec<Item>> = (0..core.cores()).map(|_| Vec::new()).collect();
    let mut work = Work::on(core);
    for topic in &request.topics {
        for partition in &topic.partitions {
            work.entry().await;
            let place = parts.len();
            match core.find_group(&topic.topic, partition.partition) {
                Ok(group) => {
                    by_owner[core.owner(group).0].push(item(place, group, partition));
                    parts.push(None);
                }
                Err(code) => parts.push(Some(Err(code))),
            }
        }
    }
    let refused_at_once = parts.iter().any(Option::is_some);
    let bytes_max = (request.max_bytes.max(0) as usize).min(core.config.fetch_max_bytes);
    // One client must not take all memory for answers, neither of the hot nor of the cold ones.
    let bytes_max = bytes_max.min(core.memory.answers.answer_max());
    let bytes_max = match core.memory.answers_are_short() {
        true => bytes_max.min(client.answer_max(SHORT_MEMORY_MIN)),
        false => bytes_max,
    };
    let wish = Wish {
        bytes_min: request.min_bytes.max(0) as usize,
        bytes_max,
        share: bytes_max,
        owners: by_owner.iter().filter(|items| !items.is_empty()).count(),
        // An error is reported at once, without waiting.
        wait: if refused_at_once { Duration::ZERO } else { wait_of(&request) },
        id: core.fetches.next_id(core.id()),
        first: None,
    };
    if let Some(first) = gather(core, by_owner, wish, &mut parts).await {
        let partitions = request
            .topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(move |partition| (&topic.topic, partition)));
        if let Some((topic, partition)) = partitions.into_iter().nth(first)
            && let Ok(group) = core.find_group(topic, partition.partition)
        {
            let items = vec![item(first, group, partition)];
            let wish = Wish { wait: Duration::ZERO, owners: 1, first: None, ..wish };
            place_all(core.ask(core.owner(group), Read { items, wish }).await, &mut parts);
        }
    }
    respond(core, request, parts, bytes_max, version)
}

fn item(place: usize, group: GroupId, partition: &FetchPartition) -> Item {
    Item {
        place,
        group,
        offset: partition.fetch_offset,
        bytes_max: partition.partition_max_bytes.max(0) as usize,
        leader_epoch: LeaderEpoch::new(partition.current_leader_epoch),
    }
}

/// Asks every owner. Once they have enough together, calls back those that still wait. Returns a place to ask for a
/// second time: the first place with a batch, if its owner did not know that and so did not read that large batch.
async fn gather(
    core: &Rc<Core>,
    mut by_owner: Vec<Vec<Item>>,
    mut wish: Wish,
    parts: &mut [Answered],
) -> Option<usize> {
    let several = wish.owners > 1;
    if several {
        wish.first = by_owner.iter().flatten().map(|item| item.place).min();
    }
    let owing = || (0..by_owner.len()).map(CoreId).filter(|owner| !by_owner[owner.0].is_empty()).collect();
    let sum = (several && !wish.wait.is_zero()).then(|| core.fetches.gather(wish.id, wish.bytes_min, owing()));
    let asked_for: u64 = by_owner.iter().flatten().map(|item| item.bytes_max as u64).sum();
    let asked = by_owner.iter_mut().enumerate().filter(|(_, items)| !items.is_empty()).map(|(owner, items)| {
        let items = std::mem::take(items);
        let wish = if several { Wish { share: share(&items, asked_for, wish.bytes_max), ..wish } } else { wish };
        let sum = &sum;
        let asked = core.ask(CoreId(owner), Read { items, wish });
        async move {
            let brought = asked.await;
            if sum.is_some() {
                let bytes = brought.parts.iter().filter_map(|part| part.found.as_ref().ok()).map(Found::bytes).sum();
                core.fetches.has_answered(core, wish.id, CoreId(owner), bytes, brought.ends);
            }
            brought
        }
    });
    let mut blocked = None;
    for brought in sync::all(asked.collect()).await {
        blocked = [blocked, brought.blocked].into_iter().flatten().min();
        place_all(brought, parts);
    }
    let served = parts.iter().position(|part| matches!(part, Some(Ok(found)) if found.bytes() > 0));
    blocked.filter(|blocked| several && served.is_none_or(|served| *blocked < served))
}

fn place_all(brought: Brought, parts: &mut [Answered]) {
    for part in brought.parts {
        parts[part.place] = Some(part.found);
    }
}

/// An owner's part of `bytes_max`, where `asked_for` is the sum over all owners.
fn share(items: &[Item], asked_for: u64, bytes_max: usize) -> usize {
    let own: u64 = items.iter().map(|item| item.bytes_max as u64).sum();
    if asked_for <= bytes_max as u64 {
        return own as usize;
    }
    (u128::from(own) * bytes_max as u128 / u128::from(asked_for)) as usize
}

/// Puts the parts in the request's order. Several owners may together have brought more than `bytes_max`. The
/// excess is left for the next fetch. Only the first batch of all may be larger.
fn respond(
    core: &Rc<Core>,
    request: FetchRequest,
    parts: Vec<Answered>,
    bytes_max: usize,
    version: i16,
) -> FetchResponse {
    let mut parts = parts.into_iter();
    let mut total = 0;
    let mut leaders = Vec::new();
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|partition| {
                    let number = partition.partition;
                    match parts.next().flatten().expect("every partition asked for is answered") {
                        Ok(mut found) => {
                            let mut bytes = found.bytes();
                            while total + bytes > bytes_max && (total > 0 || found.batches.len() > 1) {
                                let Some(last) = found.batches.pop() else { break };
                                bytes -= last.len();
                            }
                            total += bytes;
                            found.hold();
                            core.metrics.fetch_bytes_memory_total.add(found.hot_bytes() as u64);
                            FetchPartitionResponse::found(
                                number,
                                found.high_watermark as i64,
                                found.log_start as i64,
                                found.batches,
                            )
                        }
                        Err(code) => {
                            let mut response = FetchPartitionResponse::refused(number, code);
                            if version >= 12 && code == ErrorCode::NotLeaderOrFollower {
                                response.current_leader = core.leader_hint(&topic.topic, number);
                                leaders.extend(response.current_leader.map(|leader| leader.leader_id));
                            }
                            response
                        }
                    }
                })
                .collect();
            FetchTopicResponse { topic: topic.topic, partitions }
        })
        .collect();
    FetchResponse { topics, node_endpoints: brokers::endpoints(core, leaders), ..EMPTY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{
        StrBytes,
        codec::{fetch::FetchTopic, produce::TopicRef},
    };

    #[test]
    fn a_fetch_whose_decoded_form_has_a_reservation_waits_for_a_few_seconds() {
        let fetch = |partitions, wait_ms| {
            let partitions = (0..partitions).map(|index| FetchPartition::of_consumer(index, 0, 1)).collect();
            let topic = FetchTopic { topic: TopicRef::Name(StrBytes::from_static_str("t")), partitions };
            wait_of(&FetchRequest::of_consumer(wait_ms, 1, 1, vec![topic])).as_millis()
        };
        assert_eq!([fetch(400, 60_000), fetch(400, i32::MAX)], [60_000, 300_000]);
        assert_eq!([fetch(500, 500), fetch(500, 60_000)], [500, 5_000]);
    }
}
