//! Appends batches to the partitions that this core owns, and waits for their commits.

use crate::{
    core::Core,
    partition::{Acks, Appended, Committed, PartitionError, admission::Turn},
};
use bytes::Bytes;
use net::{errors::ErrorCode, records::batch::BatchHeader};
use runtime::{
    clock,
    sync::{self, Either, Promise, promise, race},
};
use std::{rc::Rc, time::Duration};
use types::{GroupId, planted};

/// One batch on its way to the partition's owner.
pub struct Item {
    /// The index of its outcome in the answer.
    pub place: usize,
    pub group: GroupId,
    pub batch: Bytes,
    pub info: BatchHeader,
    pub acks: Acks,
}

pub type Outcome = Result<Appended, ErrorCode>;

/// Appends on the owner. Batches that have room are in the logs when this returns. The others wait for room, in order.
/// If the wait for replicas or the disk exceeds the request's timeout, the answer is an error, as in Kafka. The record
/// may still be committed.
pub fn append_all(core: Rc<Core>, items: Vec<Item>, timeout: Duration) -> impl Future<Output = Vec<(usize, Outcome)>> {
    let (now_ms, began) = (clock::wall_ms(), clock::now());
    let timeout = match items.first().map(|item| item.acks) {
        Some(Acks::Leader) => timeout.max(LEADER_TIMEOUT_MIN),
        _ => timeout,
    };
    let begun: Vec<_> = items
        .into_iter()
        .map(|item| {
            let (place, bytes) = (item.place, item.batch.len());
            let has_room = core.partition(item.group).is_none_or(|partition| partition.has_room(&core, bytes));
            let begun = match core.admission.enter(&core.store, item.group, bytes, has_room) {
                None => Begun::Appended(append(&core, item, now_ms)),
                Some(turn) => {
                    // It holds places in lines, so it must go on and end in time, also while its connection sends
                    // other answers, and while other batches of its request wait. It ends with its request.
                    let (promise, answer) = promise();
                    let core = core.clone();
                    runtime::spawn(async move {
                        let appended = append_in_turn(core, turn, item, began, timeout, &promise).await;
                        promise.keep(appended);
                    });
                    Begun::Waiting(answer)
                }
            };
            (place, begun)
        })
        .collect();
    finish(core, begun, began + timeout)
}

/// Appends a batch once it has room. Returns its error at the deadline, or when nobody waits for the result any more.
async fn append_in_turn(
    core: Rc<Core>,
    mut turn: Turn,
    item: Item,
    began: Duration,
    timeout: Duration,
    result: &Promise<Started>,
) -> Started {
    let admitted = race(admitted(&core, &mut turn, &item, began, timeout), result.abandoned()).await;
    if let Either::First(Some(())) = admitted {
        return append(&core, item, clock::wall_ms());
    }
    if planted!(AbandonedTurnStays) {
        std::mem::forget(turn);
    }
    if let Either::First(None) = admitted {
        core.metrics.admission_timed_out_total.add(1);
    }
    if let Some(partition) = core.partition(item.group) {
        partition.was_not_appended(&core, &item.info);
    }
    Err(too_late(&core))
}

/// Waits for the appends and their commits.
async fn finish(core: Rc<Core>, begun: Vec<(usize, Begun)>, deadline: Duration) -> Vec<(usize, Outcome)> {
    let mut outcomes = Vec::with_capacity(begun.len());
    for (place, begun) in begun {
        let started = match begun {
            Begun::Appended(started) => started,
            Begun::Waiting(started) => started.await.expect("the task keeps its promise"),
        };
        let outcome = match started {
            Ok(committed) => match before(deadline, committed).await {
                // A promise dropped without an answer means that the partition was closed here: deleted or
                // moved.
                Some(outcome) => outcome.unwrap_or(Err(PartitionError::NotLeader)).map_err(ErrorCode::from),
                None => Err(too_late(&core)),
            },
            Err(code) => Err(code),
        };
        outcomes.push((place, outcome));
    }
    outcomes
}

/// Waits for the append's turn, and for room in its partition and in the ring. Returns `None` when the request's time
/// is up. While the disk is full, that is after half of its timeout. A client that waits no longer than the timeout
/// which it names would otherwise never learn what is wrong.
async fn admitted(core: &Rc<Core>, turn: &mut Turn, item: &Item, began: Duration, timeout: Duration) -> Option<()> {
    let time_is_up = async {
        until(began + timeout / 2).await;
        race(core.until_disk_is_full(), until(began + timeout)).await;
    };
    let come = async {
        turn.first_of_partition().await;
        if let Some(partition) = core.partition(item.group) {
            partition.room(core, item.batch.len()).await;
        }
        turn.come(&core.store).await;
    };
    match race(come, time_is_up).await {
        Either::First(()) => Some(()),
        Either::Second(()) => None,
    }
}

/// Least timeout for acks=1 and acks=0. In Kafka the request's timeout applies to acks=all only, so clients may
/// send 0.
const LEADER_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// The error after the timeout. A full disk gets its own code, since it lasts until an operator or retention makes
/// room.
fn too_late(core: &Core) -> ErrorCode {
    if core.has_full_disk() { ErrorCode::KafkaStorageError } else { ErrorCode::RequestTimedOut }
}

/// The future's result, or `None` if the deadline comes first.
async fn before<T>(deadline: Duration, what: impl Future<Output = T>) -> Option<T> {
    match race(what, until(deadline)).await {
        Either::First(done) => Some(done),
        Either::Second(()) => None,
    }
}

fn until(moment: Duration) -> runtime::Sleep {
    runtime::sleep(moment.saturating_sub(clock::now()))
}

enum Begun {
    Appended(Started),
    /// It waits for room, in a task of its own.
    Waiting(sync::Answer<Started>),
}

type Started = Result<Committed, ErrorCode>;

fn append(core: &Rc<Core>, item: Item, now_ms: i64) -> Started {
    let partition = core.partition(item.group).ok_or(ErrorCode::NotLeaderOrFollower)?;
    Ok(partition.append(core, item.batch, &item.info, now_ms, item.acks)?)
}
