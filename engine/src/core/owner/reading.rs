//! One core's part of a fetch: what it reads from its partitions, and how it waits for more.

use super::waits::FetchId;
use crate::{
    cluster::meta::{self, LogWatch},
    core::Core,
    long_work::Work,
    memory::{Answers, Held},
    partition::{ColdFetch, FetchRead, Partition, Watch},
};
use bytes::Bytes;
use net::{errors::ErrorCode, records::batch::BatchHeader};
use runtime::{
    clock,
    sync::{self, Either, Marks, race},
};
use std::{rc::Rc, time::Duration};
use types::{GroupId, LeaderEpoch, META_GROUP};
use wal::store::read::READ_AHEAD;

/// Interval at which an owner reports a small increase of its bytes to the gathering core.
const TELL_EVERY: Duration = Duration::from_millis(5);

/// A fetch waits for memory as long as for records, within these bounds.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// One partition's part of a fetch, for its owner.
#[derive(Clone)]
pub struct Item {
    /// The partition's index in the request.
    pub place: usize,
    pub group: GroupId,
    pub offset: i64,
    pub bytes_max: usize,
    pub leader_epoch: LeaderEpoch,
}

/// How much a fetch wants, and how long it may wait.
#[derive(Clone, Copy)]
pub struct Wish {
    /// For the whole request.
    pub bytes_min: usize,
    pub bytes_max: usize,
    /// This owner's part of `bytes_max`.
    pub share: usize,
    /// The number of cores that own partitions of this request.
    pub owners: usize,
    pub wait: Duration,
    pub id: FetchId,
    /// The place whose first batch is read whatever its size, or else a consumer could never get past it (KIP-74).
    /// `None`: the first place that has a batch. With several owners, no core knows at once which place that is.
    pub first: Option<usize>,
}

/// The results of one owner.
pub struct Brought {
    pub parts: Vec<Part>,
    /// The whole fetch should end now.
    pub ends: bool,
    /// The first place with a batch that was too large to read, within this share or at all.
    pub blocked: Option<usize>,
}

pub struct Part {
    pub place: usize,
    pub found: Result<Found, ErrorCode>,
}

pub struct Found {
    pub high_watermark: u64,
    pub log_start: u64,
    pub batches: Vec<Bytes>,
    /// The batches came from memory. Their bytes are counted only when they are sent.
    is_hot: bool,
    /// Memory for the batches, held until they are sent.
    held: Option<Held>,
    /// The offset after the last batch. Without batches, the offset at which the fetch begins.
    end: u64,
}

impl Found {
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }

    /// The bytes that count as fetched from memory, called when they are sent.
    pub fn hot_bytes(&self) -> usize {
        if self.is_hot { self.bytes() } else { 0 }
    }

    /// Ties the held memory to the last batch: it is released once that batch is no longer referenced.
    pub fn hold(&mut self) {
        if let Some(held) = self.held.take()
            && let Some(last) = self.batches.last_mut()
        {
            *last = held.with(std::mem::take(last));
        }
    }

    /// Holds the memory of batches that were read from the disk. They are parts of larger buffers. While memory is
    /// short, a copy lets these go.
    fn hold_from_disk(&mut self, mut held: Held, is_short: bool) {
        let bytes = self.bytes();
        let is_copied = is_short && bytes <= READ_AHEAD;
        if is_copied {
            self.batches.iter_mut().for_each(|batch| *batch = Bytes::copy_from_slice(batch));
        }
        held.shrink_to(if is_copied { bytes } else { bytes + READ_AHEAD });
        self.held = Some(held);
    }

    fn new(range: (u64, u64), offset: u64, batches: Vec<Bytes>, is_hot: bool) -> Self {
        let (log_start, high_watermark) = range;
        let last = batches.last().and_then(|last| BatchHeader::read(last).ok());
        let end = last.map_or(offset, |last| last.next_offset() as u64);
        Found { high_watermark, log_start, batches, is_hot, held: None, end }
    }

    fn has_more(&self) -> bool {
        self.end < self.high_watermark
    }
}

/// Reads this core's part of a fetch. Waits until the request has enough, something to report, or no more time.
pub async fn read_here(core: &Rc<Core>, items: Vec<Item>, wish: Wish) -> Brought {
    if wish.wait.is_zero() {
        return read_once(core, &items, wish).await;
    }
    let registered = core.fetches.register(wish.id);
    let brought = read_once(core, &items, wish).await;
    if brought.ends || registered.is_called_back() {
        return brought;
    }
    core.metrics.fetch_waits_total.add(1);
    let wake = Rc::new(Marks::all(items.len()));
    registered.wake_by(wake.clone());
    let mut growth = Growth::new(core, &items, wish, brought, wake.clone());
    let timeout = runtime::sleep(wish.wait);
    let mut timeout = std::pin::pin!(timeout);
    loop {
        let seen = wake.version();
        if growth.ends() || registered.is_called_back() || core.is_stopping() {
            break;
        }
        let told_late = growth.tell();
        let woken = async {
            match told_late {
                Some(wait) => _ = race(wake.past(seen), runtime::sleep(wait)).await,
                None => wake.past(seen).await,
            }
        };
        if let Either::Second(()) = race(woken, timeout.as_mut()).await {
            break;
        }
    }
    drop(growth);
    read_once(core, &items, wish).await
}

/// Counts the bytes that are there while a fetch waits. It does not hold them.
struct Growth<'a> {
    core: &'a Rc<Core>,
    items: &'a [Item],
    wish: Wish,
    wake: Rc<Marks>,
    watches: Vec<Option<Watch>>,
    _log_watches: Vec<LogWatch>,
    /// For each item, the offset up to which it is counted.
    counted_to: Vec<u64>,
    total: usize,
    told: usize,
    told_at: Option<Duration>,
}

impl<'a> Growth<'a> {
    /// Starts from a complete first read.
    fn new(core: &'a Rc<Core>, items: &'a [Item], wish: Wish, read: Brought, wake: Rc<Marks>) -> Self {
        let watch = |(at, item): (usize, &Item)| Some(core.partition(item.group)?.watch(wake.clone(), at));
        let of_metadata = items.iter().enumerate().filter(|(_, item)| item.group == META_GROUP);
        let found = || read.parts.iter().filter_map(|part| part.found.as_ref().ok());
        Self {
            core,
            items,
            wish,
            watches: items.iter().enumerate().map(watch).collect(),
            _log_watches: of_metadata.map(|(at, _)| meta::watch_log(core, wake.clone(), at)).collect(),
            wake,
            counted_to: found().map(|found| found.end).collect(),
            total: found().map(Found::bytes).sum(),
            told: 0,
            told_at: None,
        }
    }

    /// Counts new records. Returns whether there is enough here, or something to report.
    fn ends(&mut self) -> bool {
        while let Some(at) = self.wake.take() {
            match self.count(at) {
                Some(bytes) => self.total += bytes,
                None => return true,
            }
        }
        self.total >= self.wish.bytes_min
    }

    /// `None`: there is an error, or more than can be counted here. A read will then find out.
    fn count(&mut self, at: usize) -> Option<usize> {
        let (item, from) = (&self.items[at], self.counted_to[at]);
        let left = self.wish.bytes_min.saturating_sub(self.total);
        let found = match &self.watches[at] {
            None if item.group == META_GROUP => {
                let range @ (_, end) = meta::log_range(self.core).ok()?;
                let batches = if from < end { meta::read_log(self.core, from, left, true).ok()? } else { Vec::new() };
                Found::new(range, from, batches, true)
            }
            None => return None,
            Some(watch) => {
                let partition = watch.partition();
                partition.check_epoch(self.core, item.leader_epoch).ok()?;
                let high_watermark = partition.high_watermark();
                if high_watermark <= from {
                    return (high_watermark == from).then_some(0);
                }
                match partition.read(self.core, from, high_watermark, left, true) {
                    FetchRead::Hot(batches) => Found::new((0, high_watermark), from, batches, true),
                    FetchRead::Cold(_) | FetchRead::Refused(_) => return None,
                }
            }
        };
        self.counted_to[at] = found.end;
        (!found.has_more()).then(|| found.bytes())
    }

    /// Reports the count to the gathering core, if other owners have parts too. A large increase is reported at
    /// once, a small one after a while. Returns how long to wait before the next report.
    fn tell(&mut self) -> Option<Duration> {
        let more = self.total - self.told;
        if more == 0 || self.wish.owners == 1 {
            return None;
        }
        let (now, (origin, _)) = (clock::now(), self.wish.id);
        let since = self.told_at.map(|told_at| now.saturating_sub(told_at));
        if let Some(wait) = since.and_then(|since| TELL_EVERY.checked_sub(since)).filter(|wait| !wait.is_zero())
            && more < self.wish.bytes_min / self.wish.owners
        {
            return Some(wait);
        }
        (self.told, self.told_at) = (self.total, Some(now));
        self.core.tell_fetch_has(origin, self.wish.id, self.total);
        None
    }
}

/// One pass over the items.
async fn read_once(core: &Rc<Core>, items: &[Item], wish: Wish) -> Brought {
    let mut left = wish.share;
    let mut total = 0;
    let mut brought = Brought { parts: Vec::with_capacity(items.len()), ends: false, blocked: None };
    let mut work = Work::on(core);
    let mut room = Room { core, wait: wish.wait.clamp(WAIT_MIN, WAIT_MAX), is_out: false };
    for item in items {
        work.entry().await;
        let limit = Limit {
            bytes_max: item.bytes_max.min(left),
            one_of: match wish.first {
                None if total == 0 => Some(usize::MAX),
                Some(place) if place == item.place => Some(usize::MAX),
                // This may exceed the share, as long as it fits into the request's `bytes_max`.
                Some(_) if total == 0 => Some(item.bytes_max.min(wish.bytes_max)),
                _ => None,
            },
            one_of_cold: wish.first.is_none_or(|place| place == item.place)
                || wish.share >= core.config.message_max_bytes / 2,
        };
        let found = match core.partition(item.group) {
            None if item.group == META_GROUP => read_metadata(core, item, limit),
            Some(partition) => {
                let wanted = wish.bytes_min.saturating_sub(total);
                room.is_out |= total > 0 && room.is_short();
                read_partition(core, &partition, item, limit, wanted, &mut room).await
            }
            None => Err(ErrorCode::NotLeaderOrFollower),
        };
        match &found {
            Ok(found) => {
                let bytes = found.bytes();
                work.share.take_entries(found.batches.len());
                total += bytes;
                left = left.saturating_sub(bytes);
                // There is more than this request may have, so it should not wait.
                brought.ends |= found.has_more();
                if bytes == 0 && found.has_more() {
                    brought.blocked.get_or_insert(item.place);
                }
            }
            Err(_) => brought.ends = true,
        }
        brought.parts.push(Part { place: item.place, found });
    }
    brought.ends |= total >= wish.bytes_min;
    brought
}

/// How much of a partition may be read.
#[derive(Clone, Copy)]
struct Limit {
    bytes_max: usize,
    /// One batch may be larger than `bytes_max`, up to this size.
    one_of: Option<usize>,
    /// This also holds if the batch must be read from the disk to learn its size.
    one_of_cold: bool,
}

impl Limit {
    fn is_nothing(&self) -> bool {
        self.bytes_max == 0 && self.one_of.is_none()
    }

    /// Drops a single batch that is too large. Returns whether it did.
    fn clip(&self, batches: &mut Vec<Bytes>) -> bool {
        let single_max = self.bytes_max.max(self.one_of.unwrap_or(0));
        let is_too_large = batches.len() == 1 && batches[0].len() > single_max;
        if is_too_large {
            batches.clear();
        }
        is_too_large
    }
}

/// The memory for one request's reads.
struct Room<'a> {
    core: &'a Rc<Core>,
    /// How long each wait for memory may last.
    wait: Duration,
    /// Memory ran out: nothing more is read.
    is_out: bool,
}

impl Room<'_> {
    /// Whether other answers wait for memory. A request that has records then stops reading.
    fn is_short(&self) -> bool {
        self.core.memory.answers.waiting() + self.core.memory.cold_answers.waiting() > 0
    }

    /// Memory for `bytes`. `None`: there is none in time. The client then gets what was read, perhaps nothing, and
    /// fetches again.
    async fn hold(&mut self, answers: &Answers, bytes: usize) -> Option<Held> {
        let held = answers.hold(&self.core.metrics, bytes, self.wait).await;
        self.is_out |= held.is_none();
        held
    }
}

/// Reads one partition. From the disk, it takes only what the first read returns, unless more is wanted.
async fn read_partition(
    core: &Rc<Core>,
    partition: &Rc<Partition>,
    item: &Item,
    limit: Limit,
    wanted: usize,
    room: &mut Room<'_>,
) -> Result<Found, ErrorCode> {
    partition.check_epoch(core, item.leader_epoch)?;
    let high_watermark = partition.high_watermark();
    let log_start = core.store.log(partition.group()).map_or(0, |log| log.start_offset);
    let offset = u64::try_from(item.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
    if offset < log_start || offset > high_watermark {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let range = (log_start, high_watermark);
    if offset == high_watermark || limit.is_nothing() || room.is_out {
        return Ok(Found::new(range, offset, Vec::new(), true));
    }
    let read = |one| partition.read(core, offset, high_watermark, limit.bytes_max, one);
    let mut found = read(limit.one_of.is_some());
    if matches!(found, FetchRead::Cold(_)) && limit.one_of.is_some() && !limit.one_of_cold {
        found = read(false);
    }
    match found {
        FetchRead::Hot(mut batches) => {
            limit.clip(&mut batches);
            let mut found = Found::new(range, offset, batches, true);
            let bytes = found.bytes();
            if bytes > 0 {
                found.held = core.memory.answers.try_hold(bytes);
            }
            if bytes == 0 || found.held.is_some() {
                return Ok(found);
            }
            // A waiting fetch must not keep the records in memory.
            drop(found);
            let held = room.hold(&core.memory.answers, bytes).await;
            let mut found = Found::new(range, offset, Vec::new(), true);
            if held.is_some()
                && let FetchRead::Hot(mut batches) = read(limit.one_of.is_some())
            {
                limit.clip(&mut batches);
                found = Found { held, ..Found::new(range, offset, batches, true) };
            }
            Ok(found)
        }
        FetchRead::Cold(read) => {
            let nothing = Found::new(range, offset, Vec::new(), false);
            read_cold(core, partition, nothing, read, limit, wanted, room).await
        }
        FetchRead::Refused(error) => Err(error.into()),
    }
}

/// Reads one partition from the disk, from where `nothing` ends.
async fn read_cold(
    core: &Rc<Core>,
    partition: &Rc<Partition>,
    nothing: Found,
    read: ColdFetch,
    limit: Limit,
    wanted: usize,
    room: &mut Room<'_>,
) -> Result<Found, ErrorCode> {
    // The read may take more from the disk than the client gets.
    let bytes = limit.bytes_max.min(core.memory.cold_answers.answer_max()) + READ_AHEAD;
    let Some(held) = room.hold(&core.memory.cold_answers, bytes).await else { return Ok(nothing) };
    let (range, offset) = ((nothing.log_start, nothing.high_watermark), nothing.end);
    let (mut held, batches) = to_its_end(core, held, read).await?;
    let mut found = Found::new(range, offset, batches, false);
    let mut came = found.bytes();
    while came > 0 && found.has_more() && found.bytes() < wanted.min(limit.bytes_max) {
        let left = limit.bytes_max - found.bytes();
        let FetchRead::Cold(read) = partition.read(core, found.end, found.high_watermark, left, false) else { break };
        let (still, batches) = to_its_end(core, held, read).await?;
        held = still;
        let next = Found::new(range, found.end, batches, false);
        came = next.bytes();
        found.end = next.end;
        found.batches.extend(next.batches);
    }
    core.metrics.fetch_bytes_cold_total.add(found.bytes() as u64);
    if limit.clip(&mut found.batches) {
        found.end = offset;
    }
    found.hold_from_disk(held, core.memory.answers_are_short());
    Ok(found)
}

/// Runs a read to its end, even if the fetch is dropped meanwhile: the disk writes to its buffers until then, so their
/// memory stays held. Few reads of a core run at a time: each is up to 4 MiB, which the kernel maps when it begins, and
/// the core checks when it ends.
async fn to_its_end(core: &Rc<Core>, held: Held, read: ColdFetch) -> Result<(Held, Vec<Bytes>), ErrorCode> {
    let place = core.cold_reads.join();
    place.first().await;
    let (promise, answer) = sync::promise();
    runtime::spawn(async move {
        if !promise.is_abandoned() {
            let batches = read.await;
            promise.keep((held, batches));
        }
        drop(place);
    });
    let (held, batches) = answer.await.ok_or(ErrorCode::KafkaStorageError)?;
    Ok((held, batches?))
}

/// Reads from the metadata's log; see [`crate::core::metadata_topic`].
fn read_metadata(core: &Rc<Core>, item: &Item, limit: Limit) -> Result<Found, ErrorCode> {
    let range @ (log_start, high_watermark) = meta::log_range(core)?;
    let offset = u64::try_from(item.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
    if offset < log_start || offset > high_watermark {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let mut batches = match offset == high_watermark || limit.is_nothing() {
        true => Vec::new(),
        false => meta::read_log(core, offset, limit.bytes_max, limit.one_of.is_some())?,
    };
    limit.clip(&mut batches);
    Ok(Found::new(range, offset, batches, true))
}
