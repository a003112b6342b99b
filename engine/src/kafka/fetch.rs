//! Fetch: from each partition's owner once over and once back, waiting there for `min_bytes` if need be.
//!
//! Sessions (KIP-227) are not kept: every answer carries session id 0, which tells the client to send full requests.
//! Waits are woken by the append that moves a high watermark, never by polling.

use super::brokers;
use crate::{
    core::{Core, CoreId},
    long_work::Work,
    meta::{self, LogWatch, META_GROUP},
    partition::{FetchRead, Partition, Watch},
    rt,
    sync::{self, Either, Notify, race},
};
use bytes::Bytes;
use net::{
    errors::{self, ErrorCode},
    fetch::{FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse},
};
use std::collections::BTreeMap;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use wal::record::GroupId;

/// An answer without a session.
const EMPTY: FetchResponse = FetchResponse {
    throttle_time_ms: 0,
    error_code: errors::NONE,
    session_id: 0,
    topics: Vec::new(),
    node_endpoints: Vec::new(),
};

/// One partition's part of a fetch, on its way to the owner.
#[derive(Clone)]
struct Item {
    /// The partition's place in the request.
    place: usize,
    group: GroupId,
    offset: i64,
    bytes_max: usize,
    leader_epoch: i32,
}

/// What the owner found.
struct Part {
    place: usize,
    found: Result<Found, ErrorCode>,
}

pub struct Found {
    pub high_watermark: u64,
    pub log_start: u64,
    pub batches: Vec<Bytes>,
}

impl Found {
    fn bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }
}

/// How much, and for how long.
#[derive(Clone, Copy)]
struct Wish {
    bytes_min: usize,
    bytes_max: usize,
    wait: Duration,
    /// Names this fetch on other cores, for [`Fetches::cancel`].
    id: (CoreId, u64),
}

pub async fn handle(core: &Rc<Core>, request: FetchRequest, version: i16) -> FetchResponse {
    if request.session_id != 0 && request.session_epoch > 0 {
        // We never gave out a session; the client falls back to a full fetch.
        return FetchResponse { error_code: ErrorCode::FetchSessionIdNotFound.code(), ..EMPTY };
    }
    let mut parts: Vec<Option<Result<Found, ErrorCode>>> = Vec::new();
    let mut by_owner: Vec<Vec<Item>> = (0..core.cores()).map(|_| Vec::new()).collect();
    let mut work = Work::on(core);
    for topic in &request.topics {
        for partition in &topic.partitions {
            work.entry().await;
            let place = parts.len();
            match core.find_group(&topic.topic, partition.partition) {
                Ok(group) => {
                    by_owner[core.owner(group).0].push(Item {
                        place,
                        group,
                        offset: partition.fetch_offset,
                        bytes_max: partition.partition_max_bytes.max(0) as usize,
                        leader_epoch: partition.current_leader_epoch,
                    });
                    parts.push(None);
                }
                Err(code) => parts.push(Some(Err(code))),
            }
        }
    }
    let refused_at_once = parts.iter().any(Option::is_some);
    let wish = Wish {
        bytes_min: request.min_bytes.max(0) as usize,
        bytes_max: (request.max_bytes.max(0) as usize).min(core.config.fetch_max_bytes),
        // With an error to tell there is nothing to wait for.
        wait: if refused_at_once { Duration::ZERO } else { Duration::from_millis(request.max_wait_ms.max(0) as u64) },
        id: core.fetches.next_id(core.id()),
    };
    gather(core, by_owner, wish, &mut parts).await;
    respond(core, request, parts, wish.bytes_max, version)
}

/// Asks every owner; as soon as one brings enough, calls the others back from their waits.
async fn gather(core: &Rc<Core>, by_owner: Vec<Vec<Item>>, wish: Wish, parts: &mut [Option<Result<Found, ErrorCode>>]) {
    // Owners that have not answered yet.
    let owing: Vec<CoreId> = (0..by_owner.len()).map(CoreId).filter(|owner| !by_owner[owner.0].is_empty()).collect();
    let owing = RefCell::new(owing);
    let gathered = Cell::new(0usize);
    let called_back = Cell::new(false);
    let asked = by_owner.into_iter().enumerate().filter(|(_, items)| !items.is_empty()).map(|(owner, items)| {
        let call = core.call(CoreId(owner), move |there| async move { read_here(&there, items, wish).await });
        let (gathered, called_back, owing) = (&gathered, &called_back, &owing);
        async move {
            let (found, enough) = call.result().await;
            gathered.set(
                gathered.get()
                    + found.iter().filter_map(|part| part.found.as_ref().ok()).map(Found::bytes).sum::<usize>(),
            );
            owing.borrow_mut().retain(|other| other.0 != owner);
            let ends = enough || gathered.get() >= wish.bytes_min;
            // Who was not to wait answers without being told.
            if ends && !wish.wait.is_zero() && !called_back.replace(true) {
                for other in owing.borrow().iter().copied() {
                    // Behind the request itself, in the same lane, so that it finds what it ends.
                    core.send(other, move |there| there.fetches.cancel(wish.id));
                }
            }
            found
        }
    });
    for part in sync::all(asked.collect()).await.into_iter().flatten() {
        parts[part.place] = Some(part.found);
    }
}

/// Reads this core's part of a fetch, and waits until there is enough of it, something to report, or no more time.
/// The flag says that the whole fetch should end now.
async fn read_here(core: &Rc<Core>, items: Vec<Item>, wish: Wish) -> (Vec<Part>, bool) {
    let wake = Rc::new(Notify::default());
    let _registered = (!wish.wait.is_zero()).then(|| core.fetches.register(wish.id, wake.clone()));
    let (parts, enough) = read_once(core, &items, wish).await;
    if enough || wish.wait.is_zero() {
        return (parts, enough);
    }
    let of_metadata = items.iter().any(|item| item.group == META_GROUP);
    let _log_watch: Option<LogWatch> = of_metadata.then(|| meta::watch_log(core, wake.clone()));
    let _watches: Vec<Watch> = items
        .iter()
        .filter_map(|item| core.partition(item.group))
        .map(|partition| partition.watch(wake.clone()))
        .collect();
    core.metrics.fetch_waits_total.add(1);
    let timeout = rt::sleep(wish.wait);
    let mut timeout = std::pin::pin!(timeout);
    loop {
        let seen = wake.version();
        let (parts, enough) = read_once(core, &items, wish).await;
        if enough || core.fetches.is_cancelled(wish.id) || core.is_stopping() {
            return (parts, enough);
        }
        if let Either::Second(()) = race(wake.past(seen), timeout.as_mut()).await {
            return (read_once(core, &items, wish).await.0, false);
        }
    }
}

/// One pass over the items. The first batch of all is served whatever its size, or a consumer could never get past it.
async fn read_once(core: &Rc<Core>, items: &[Item], wish: Wish) -> (Vec<Part>, bool) {
    let mut left = wish.bytes_max;
    let mut total = 0;
    let mut refused = false;
    let mut parts = Vec::with_capacity(items.len());
    let mut work = Work::on(core);
    for item in items {
        work.entry().await;
        let found = match core.partition(item.group) {
            None if item.group == META_GROUP => read_metadata(core, item, left, total == 0),
            Some(partition) => read_partition(core, &partition, item, left, total == 0).await,
            None => Err(ErrorCode::NotLeaderOrFollower),
        };
        match &found {
            Ok(found) => {
                let bytes = found.bytes();
                work.share.take_entries(found.batches.len());
                total += bytes;
                left = left.saturating_sub(bytes);
            }
            Err(_) => refused = true,
        }
        parts.push(Part { place: item.place, found });
    }
    (parts, refused || total >= wish.bytes_min)
}

async fn read_partition(
    core: &Rc<Core>,
    partition: &Rc<Partition>,
    item: &Item,
    bytes_left: usize,
    at_least_one: bool,
) -> Result<Found, ErrorCode> {
    partition.check_epoch(core, item.leader_epoch)?;
    let high_watermark = partition.high_watermark();
    let log_start = core.store.log(partition.group()).map_or(0, |log| log.start_offset);
    let offset = u64::try_from(item.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
    if offset < log_start || offset > high_watermark {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let bytes_max = item.bytes_max.min(bytes_left);
    if offset == high_watermark || (bytes_max == 0 && !at_least_one) {
        return Ok(Found { high_watermark, log_start, batches: Vec::new() });
    }
    match partition.read(core, offset, high_watermark, bytes_max, at_least_one) {
        FetchRead::Hot(batches) => {
            core.metrics.fetch_bytes_memory_total.add(batches.iter().map(|batch| batch.len() as u64).sum());
            Ok(Found { high_watermark, log_start, batches })
        }
        FetchRead::Cold(read) => {
            let batches = read.await?;
            core.metrics.fetch_bytes_cold_total.add(batches.iter().map(|batch| batch.len() as u64).sum());
            Ok(Found { high_watermark, log_start, batches })
        }
        FetchRead::Refused(code) => Err(code),
    }
}

/// From the metadata's log; see [`super::metadata_log`].
fn read_metadata(core: &Core, item: &Item, bytes_left: usize, at_least_one: bool) -> Result<Found, ErrorCode> {
    let (log_start, high_watermark) = meta::log_range(core)?;
    let offset = u64::try_from(item.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
    if offset < log_start || offset > high_watermark {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let bytes_max = item.bytes_max.min(bytes_left);
    let batches = match offset == high_watermark || (bytes_max == 0 && !at_least_one) {
        true => Vec::new(),
        false => meta::read_log(core, offset, bytes_max, at_least_one)?,
    };
    Ok(Found { high_watermark, log_start, batches })
}

/// Puts the parts in the request's order. Several owners may together have brought more than `bytes_max`: what is over is left
/// for the next fetch.
fn respond(
    core: &Rc<Core>,
    request: FetchRequest,
    parts: Vec<Option<Result<Found, ErrorCode>>>,
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
                            if total > 0 && total + found.bytes() > bytes_max {
                                found.batches.clear();
                            }
                            total += found.bytes();
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

/// The fetches that wait on this core, by the name that their origin gave them.
#[derive(Default)]
pub struct Fetches {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<(CoreId, u64), Waiting>>,
}

struct Waiting {
    wake: Rc<Notify>,
    cancelled: bool,
}

/// Takes a fetch off the list when it ends.
struct Registered<'a> {
    fetches: &'a Fetches,
    id: (CoreId, u64),
}

impl Fetches {
    fn next_id(&self, origin: CoreId) -> (CoreId, u64) {
        self.next.set(self.next.get() + 1);
        (origin, self.next.get())
    }

    fn register(&self, id: (CoreId, u64), wake: Rc<Notify>) -> Registered<'_> {
        self.waiting.borrow_mut().insert(id, Waiting { wake, cancelled: false });
        Registered { fetches: self, id }
    }

    /// Ends a wait: another core has brought enough. A fetch that does not wait (any more) is answered already.
    fn cancel(&self, id: (CoreId, u64)) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&id) {
            waiting.cancelled = true;
            waiting.wake.notify();
        }
    }

    /// Ends all waits: the broker stops.
    pub fn cancel_all(&self) {
        for waiting in self.waiting.borrow_mut().values_mut() {
            waiting.cancelled = true;
            waiting.wake.notify();
        }
    }

    fn is_cancelled(&self, id: (CoreId, u64)) -> bool {
        self.waiting.borrow().get(&id).is_some_and(|waiting| waiting.cancelled)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.fetches.waiting.borrow_mut().remove(&self.id);
    }
}
