//! Produce: to each partition's owner once over and once back, answered when every batch is committed.
//!
//! acks=all waits for the commit, acks=1 for the leader's disk; acks=0 gets no answer and its errors close nothing, as with Kafka's
//! network layer only a malformed frame does.

use super::{Pending, brokers};
use crate::{
    admission::Turn,
    clock,
    core::{Core, CoreId},
    partition::{Acks, Appended, Committed},
    rt,
    sync::{self, Either, race},
};
use bytes::Bytes;
use net::{
    StrBytes,
    batch::{self, BatchHeader},
    errors::{self, ErrorCode},
    produce::{ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopicResponse, TopicRef},
};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use wal::record::GroupId;

/// One batch on its way to the partition's owner.
struct Item {
    /// Where the answer goes: the partition's place in the request.
    place: usize,
    group: GroupId,
    batch: Bytes,
    info: BatchHeader,
    acks: Acks,
}

type Outcome = Result<Appended, ErrorCode>;

/// Checks the request, hands every batch to its partition, and returns what to wait for.
pub fn start(core: &Rc<Core>, request: ProduceRequest, version: i16) -> Pending {
    let mut answer = Answer { topics: Vec::with_capacity(request.topics.len()), outcomes: Vec::new() };
    let mut by_owner: Vec<Vec<Item>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let place = answer.outcomes.len();
            partitions.push(partition.index);
            let checked = check(core, &topic.topic, partition.index, partition.records, version, request.acks);
            match checked {
                Ok((group, batch, info)) => {
                    let acks = if request.acks == -1 { Acks::All } else { Acks::Leader };
                    by_owner[core.owner(group).0].push(Item { place, group, batch, info, acks });
                    answer.outcomes.push(Err(Refusal::from(ErrorCode::RequestTimedOut)));
                }
                Err(refusal) => answer.outcomes.push(Err(refusal)),
            }
        }
        answer.topics.push((topic.topic, partitions));
    }
    let timeout = Duration::from_millis(request.timeout_ms.max(0) as u64);
    let calls: Vec<_> = by_owner
        .into_iter()
        .enumerate()
        .filter(|(_, items)| !items.is_empty())
        .map(|(owner, items)| core.call(CoreId(owner), move |there| append_all(there, items, timeout)).result())
        .collect();
    let core = core.clone();
    let started = Instant::now();
    Box::pin(async move {
        for outcomes in sync::all(calls).await {
            for (place, outcome) in outcomes {
                answer.outcomes[place] = outcome.map_err(Refusal::from);
            }
        }
        core.metrics.produce_latency_seconds.record(started.elapsed());
        (request.acks != 0).then(|| answer.response(&core, version).into())
    })
}

/// Why a batch was not appended, and in words where the code alone would puzzle.
struct Refusal {
    code: ErrorCode,
    message: Option<String>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

/// What can be checked on any core: the request's form, the topic, and the batch itself (its CRC is paid for here, not by the
/// partition's owner).
fn check(
    core: &Rc<Core>,
    topic: &TopicRef,
    partition: i32,
    records: Option<Bytes>,
    version: i16,
    acks: i16,
) -> Result<(GroupId, Bytes, BatchHeader), Refusal> {
    if version < ProduceRequest::VERSION_STORABLE_MIN {
        return Err(ErrorCode::UnsupportedForMessageFormat.into());
    }
    if !(-1..=1).contains(&acks) {
        return Err(ErrorCode::InvalidRequiredAcks.into());
    }
    let group = core.find_group(topic, partition)?;
    if let Some(internal) = core.internal(topic) {
        let message = format!("{internal} is written by the broker alone");
        return Err(Refusal { code: ErrorCode::InvalidTopicException, message: Some(message) });
    }
    let batch = records.ok_or(ErrorCode::InvalidRecord)?;
    let checked = batch::validate(&batch, version)
        .map_err(|error| Refusal { code: errors::of_batch(&error), message: Some(error.to_string()) })?;
    if let (Some(times), Some(bounds)) = (checked.times, core.timestamp_bounds(topic))
        && let Some(message) = bounds.refusal(times, clock::wall_ms())
    {
        return Err(Refusal { code: ErrorCode::InvalidTimestamp, message: Some(message) });
    }
    Ok((group, batch, checked.header))
}

/// Appends on the owner. What the ring has room for is in the logs when this returns; the rest waits for room, in order. Who waits for
/// replicas longer than the request's timeout is told so, as Kafka does; the record may be committed all the same.
fn append_all(core: Rc<Core>, items: Vec<Item>, timeout: Duration) -> impl Future<Output = Vec<(usize, Outcome)>> {
    let now_ms = clock::wall_ms();
    let begun: Vec<_> = items
        .into_iter()
        .map(|item| match core.admission.enter(&core.store, item.batch.len()) {
            None => (item.place, item.acks, Begun::Appended(append(&core, item, now_ms))),
            Some(turn) => (item.place, item.acks, Begun::Waiting(turn, item)),
        })
        .collect();
    async move {
        let deadline = clock::now() + timeout;
        let mut started = Vec::with_capacity(begun.len());
        for (place, acks, begun) in begun {
            let begun = match begun {
                Begun::Appended(begun) => begun,
                Begun::Waiting(turn, item) => match before(deadline, turn.come()).await {
                    Some(()) => append(&core, item, clock::wall_ms()),
                    None => Err(ErrorCode::RequestTimedOut),
                },
            };
            started.push((place, acks, begun));
        }
        let mut outcomes = Vec::with_capacity(started.len());
        for (place, acks, begun) in started {
            let outcome = match begun {
                Ok(committed) if acks == Acks::All => before(deadline, committed).await,
                Ok(committed) => Some(committed.await),
                Err(code) => Some(Some(Err(code))),
            };
            // A promise dropped without an answer is a partition closed under us: deleted, or moved.
            let closed = Err(ErrorCode::NotLeaderOrFollower);
            outcomes
                .push((place, outcome.map_or(Err(ErrorCode::RequestTimedOut), |outcome| outcome.unwrap_or(closed))));
        }
        outcomes
    }
}

/// What comes of it, if it comes before the deadline.
async fn before<T>(deadline: Duration, what: impl Future<Output = T>) -> Option<T> {
    match race(what, rt::sleep(deadline.saturating_sub(clock::now()))).await {
        Either::First(done) => Some(done),
        Either::Second(()) => None,
    }
}

enum Begun {
    Appended(Started),
    Waiting(Turn, Item),
}

type Started = Result<Committed, ErrorCode>;

fn append(core: &Rc<Core>, item: Item, now_ms: i64) -> Started {
    let partition = core.partition(item.group).ok_or(ErrorCode::NotLeaderOrFollower)?;
    partition.append(core, item.batch, &item.info, now_ms, item.acks)
}

/// The answer in the making: outcomes lie in the order of the request's partitions.
struct Answer {
    topics: Vec<(TopicRef, Vec<i32>)>,
    outcomes: Vec<Result<Appended, Refusal>>,
}

impl Answer {
    fn response(self, core: &Rc<Core>, version: i16) -> ProduceResponse {
        let mut outcomes = self.outcomes.into_iter();
        let topics: Vec<_> = self
            .topics
            .into_iter()
            .map(|(topic, partitions)| {
                let partitions = partitions
                    .into_iter()
                    .zip(&mut outcomes)
                    .map(|(index, outcome)| partition_response(core, &topic, index, outcome, version))
                    .collect();
                ProduceTopicResponse { topic, partitions }
            })
            .collect();
        let partitions = topics.iter().flat_map(|topic: &ProduceTopicResponse| &topic.partitions);
        let leaders = partitions.filter_map(|partition| partition.current_leader).map(|leader| leader.leader_id);
        let node_endpoints = brokers::endpoints(core, leaders);
        ProduceResponse { topics, throttle_time_ms: 0, node_endpoints }
    }
}

fn partition_response(
    core: &Rc<Core>,
    topic: &TopicRef,
    index: i32,
    outcome: Result<Appended, Refusal>,
    version: i16,
) -> ProducePartitionResponse {
    match outcome {
        Ok(appended) => ProducePartitionResponse::stored(
            index,
            appended.base_offset as i64,
            appended.log_append_time.unwrap_or(-1),
            appended.log_start as i64,
        ),
        Err(Refusal { code, message }) => {
            let mut response = ProducePartitionResponse::refused(index, code, message.map(StrBytes::from_string));
            if version >= 10 && code == ErrorCode::NotLeaderOrFollower {
                response.current_leader = core.leader_hint(topic, index);
            }
            response
        }
    }
}
