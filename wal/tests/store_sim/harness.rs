//! A seeded life of a store beside a model that is a plain vector per group, and the comparison of the two after each crash.

use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    task::{Context, Waker},
};
use wal::{
    disk_sim::SimDisk,
    log::LogOptions,
    log_read::{Batch, Read, ReadError},
    manifest::{Manifest, change_cores, remove_stale_epochs},
    record::{Entry, GroupId, HardState, Span},
    ring::RingConfig,
    store::{AppState, FlushHost, LogPos, OpenError, RecoveredGroup, Store, StoreConfig, StoreDirs, TermRun},
};

pub const DATA: &str = "/data";
pub const META: GroupId = GroupId(0);

pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Polls tasks in a random order until `done`; the disk may stop for good at any operation.
pub fn drive(rng: &mut fastrand::Rng, mut tasks: Vec<Task>, done: impl Fn() -> bool) {
    let mut context = Context::from_waker(Waker::noop());
    let mut polls = 0u32;
    while !done() && !tasks.is_empty() {
        let at = rng.usize(..tasks.len());
        if tasks[at].as_mut().poll(&mut context).is_ready() {
            drop(tasks.swap_remove(at));
        }
        polls += 1;
        assert!(polls < 2_000_000, "nothing gets done");
    }
}

/// Drives one future alone.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2_000_000 {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("nothing gets done");
}

/// Like [`block_on`], with the store's loops beside it.
pub fn with_loops<T>(seed: u64, store: &Store<SimDisk>, host: Rc<dyn FlushHost>, work: impl Future<Output = T>) -> T {
    let value = RefCell::new(None);
    let finished = Cell::new(false);
    let mut rng = fastrand::Rng::with_seed(seed);
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(host).await;
        }),
        Box::pin(async {
            *value.borrow_mut() = Some(work.await);
            finished.set(true);
        }),
    ];
    drive(&mut rng, tasks, || finished.get());
    value.into_inner().expect("it finished")
}

pub fn config() -> StoreConfig {
    StoreConfig {
        ring_bytes: 512 << 10,
        ring: Some(RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(512 << 10) }),
        flush_trigger_bytes: 96 << 10,
        cache_bytes: 64 << 10,
        read_ahead_bytes: 64 << 10,
        index_bytes: 4 << 10,
        open_files_max: 3,
        flush_write_bytes: 8 << 10,
        flush_in_flight: 3,
        snapshot_group: Some(META),
    }
}

pub fn options() -> LogOptions {
    LogOptions { segment_bytes: 24 << 10, segment_ms: Some(5_000), index_interval_bytes: 4 << 10 }
}

pub fn dirs() -> StoreDirs {
    StoreDirs::new(DATA, 1, 0)
}

/// A disk with the data directory on it, durably.
pub fn fresh_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    block_on(async {
        use wal::disk::Disk;
        disk.create_dir(DATA.as_ref()).await.expect("a directory");
        disk.sync_dir("/".as_ref()).await.expect("synced");
    });
    disk
}

pub fn blob_of(group: GroupId, index: u64) -> Bytes {
    Bytes::from(format!("state of group {} at {index}", group.0).repeat(1 + (index % 3) as usize))
}

pub fn conf_of(group: GroupId, index: u64) -> Bytes {
    Bytes::from(format!("voters of {} at {index}", group.0))
}

fn app_of(group: GroupId, index: u64) -> AppState {
    if index == 0 {
        return AppState::default();
    }
    AppState { index, blob: blob_of(group, index), conf_state: conf_of(group, index) }
}

/// What an entry's batch holds, by where it is and when it was made.
fn payload(group: GroupId, index: u64, salt: u64, len: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(group.0 << 48 ^ index << 24 ^ salt);
    (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

#[derive(Clone, Debug)]
pub enum Event {
    Append(Entry),
    HardState,
    Truncate(u64),
    Removed,
}

/// One group: all entries since its beginning, and what happened since the last recovery.
#[derive(Clone, Debug, Default)]
pub struct GroupModel {
    /// As recovered (or created), then every event with its position in the ring.
    base: Vec<Entry>,
    base_hard_state: HardState,
    events: Vec<(LogPos, HardState, Event)>,
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
    /// Applied; never truncated below.
    pub commit: u64,
    pub log_start: u64,
    /// What a completed flush promised.
    floor_start: u64,
    floor_app: u64,
    removed: bool,
    /// It was in a checkpoint or in the ring, so it can't be gone without a removal.
    known: bool,
}

impl GroupModel {
    pub fn next_offset(&self) -> u64 {
        end_offset(&self.entries)
    }

    /// One past the last committed offset.
    pub fn high_watermark(&self) -> u64 {
        end_offset(&self.entries[..self.commit as usize])
    }

    /// Where the last record ends.
    pub fn last_pos(&self) -> Option<LogPos> {
        self.events.last().map(|(pos, ..)| *pos)
    }

    fn image(&self, events: usize) -> Option<Vec<Entry>> {
        let mut entries = self.base.clone();
        for (_, _, event) in &self.events[..events] {
            match event {
                Event::Append(entry) => entries.push(entry.clone()),
                Event::Truncate(from) => entries.truncate(*from as usize - 1),
                Event::HardState => {}
                Event::Removed => return None,
            }
        }
        Some(entries)
    }
}

fn end_offset(entries: &[Entry]) -> u64 {
    let spans = entries.iter().rev().find_map(|entry| entry.payload.as_ref());
    spans.map_or(0, |(span, _)| span.base_offset + u64::from(span.count))
}

#[derive(Default)]
pub struct Model {
    pub groups: BTreeMap<GroupId, GroupModel>,
    next_group: u64,
    clock: i64,
    /// The first thing that was wrong.
    pub wrong: Option<String>,
    pub reads: [u64; 2],
}

pub type Shared = Rc<RefCell<Model>>;

pub struct Host(pub Shared);

impl FlushHost for Host {
    fn app_state(&self, group: GroupId) -> Option<AppState> {
        self.0.borrow().groups.get(&group).map(|model| app_of(group, model.commit))
    }

    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        assert!(attempt > 0);
        Box::pin(async {})
    }

    fn flush_failed(&self, why: &str) {
        assert!(!why.is_empty());
    }
}

impl Model {
    pub fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// The next entry of a group: mostly batches, some without.
    pub fn next_entry(&mut self, rng: &mut fastrand::Rng, group: GroupId) -> Entry {
        self.clock += rng.i64(0..400);
        let timestamp = self.clock;
        let model = self.groups.get_mut(&group).expect("a group");
        if rng.u32(..40) == 0 {
            model.hard_state.term += 1;
            model.hard_state.vote = 1;
        }
        model.hard_state.term = model.hard_state.term.max(1);
        let index = model.entries.len() as u64 + 1;
        let term = model.hard_state.term;
        let data: Bytes = vec![index as u8; rng.usize(..40)].into();
        let payload = (group != META && rng.u32(..12) > 0).then(|| {
            let len = match rng.u32(..10) {
                0 => rng.usize(4_000..20_000),
                _ => rng.usize(1..2_000),
            };
            let span = Span { base_offset: model.next_offset(), count: rng.u32(1..5), max_timestamp: timestamp };
            (span, payload(group, index, term << 32 ^ rng.u64(..1 << 20), len))
        });
        Entry { index, term, entry_type: rng.u8(..3), data, payload }
    }

    pub fn appended(&mut self, group: GroupId, entry: Entry, pos: LogPos) {
        let model = self.groups.get_mut(&group).expect("a group");
        let hard_state = model.hard_state;
        model.entries.push(entry.clone());
        model.known = true;
        model.events.push((pos, hard_state, Event::Append(entry)));
    }

    pub fn live(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|(_, model)| !model.removed).map(|(id, _)| *id).collect()
    }
}

/// Appends the next entry of `group` to the store and to the model.
pub fn append(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng, group: GroupId) -> Option<LogPos> {
    let entry = model.borrow_mut().next_entry(rng, group);
    let mut hard_state = model.borrow().groups[&group].hard_state;
    hard_state.commit = model.borrow().groups[&group].commit;
    match store.append(group, hard_state, &entry) {
        Ok(staged) => {
            model.borrow_mut().appended(group, entry, staged.pos);
            Some(staged.pos)
        }
        Err(_) => None,
    }
}

/// Everything in one writer: appends, hard states, truncations, trims, removals, flushes.
async fn write(store: &Store<SimDisk>, model: &Shared, seed: u64, steps: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        if store.poisoned().is_some() {
            return;
        }
        let live = model.borrow().live();
        let group = live[rng.usize(..live.len())];
        match rng.u32(..100) {
            0..3 if live.len() < 7 => {
                let id = {
                    let mut model = model.borrow_mut();
                    model.next_group += 1;
                    let id = GroupId(model.next_group);
                    model.groups.insert(id, GroupModel::default());
                    id
                };
                store.create_group(id, options());
            }
            3..4 if group != META && live.len() > 3 => {
                if let Ok(pos) = store.remove_group(group) {
                    let mut model = model.borrow_mut();
                    let gone = model.groups.get_mut(&group).expect("live");
                    gone.removed = true;
                    gone.known = true;
                    gone.events.push((pos, HardState::default(), Event::Removed));
                }
            }
            4..8 => {
                let mut hard_state = {
                    let mut model = model.borrow_mut();
                    let hard_state = &mut model.groups.get_mut(&group).expect("live").hard_state;
                    hard_state.term += 1;
                    hard_state.vote = rng.u64(0..3);
                    *hard_state
                };
                hard_state.commit = model.borrow().groups[&group].commit;
                if let Ok(staged) = store.append_hard_state(group, hard_state) {
                    let mut model = model.borrow_mut();
                    let group = model.groups.get_mut(&group).expect("live");
                    group.known = true;
                    group.events.push((staged.pos, hard_state, Event::HardState));
                }
            }
            8..14 if group != META => truncate(store, model, &mut rng, group),
            14..18 if group != META => {
                let to = {
                    let mut model = model.borrow_mut();
                    let group = model.groups.get_mut(&group).expect("live");
                    let high = group.high_watermark();
                    // Mostly old records; sometimes all of them, as DeleteRecords may.
                    let to = if rng.u32(..6) == 0 { high } else { group.log_start + (high - group.log_start) / 2 };
                    group.log_start = to.max(group.log_start);
                    to
                };
                store.set_log_start(group, to);
            }
            18..22 => flush(store, model).await,
            22..45 => {
                let view = store.log(group).expect("a live group");
                let mut model = model.borrow_mut();
                let group = model.groups.get_mut(&group).expect("live");
                group.commit = rng.u64(group.commit..=view.stable_index.max(group.commit));
            }
            45..50 => {
                let durable = store.durable();
                let behind = model
                    .borrow()
                    .groups
                    .values()
                    .any(|group| group.events.last().is_some_and(|(pos, ..)| *pos > durable));
                if behind && store.durable_past(durable).await.is_err() {
                    return;
                }
            }
            _ => {
                while store.admit(24 << 10) == wal::store::Admission::Wait && store.poisoned().is_none() {
                    store.space_freed().await;
                }
                for _ in 0..rng.usize(1..4) {
                    append(store, model, &mut rng, group);
                }
            }
        }
        store.check();
        pause().await;
    }
}

fn truncate(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng, group: GroupId) {
    let (from, offset, hard_state) = {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&group).expect("live");
        let end = group.entries.len() as u64;
        if end <= group.commit {
            return;
        }
        let from = rng.u64(group.commit + 1..=end);
        group.hard_state.term += 1;
        (from, end_offset(&group.entries[..from as usize - 1]), HardState { commit: group.commit, ..group.hard_state })
    };
    if let Ok(staged) = store.truncate(group, hard_state, from, offset) {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&group).expect("live");
        group.entries.truncate(from as usize - 1);
        group.known = true;
        group.events.push((staged.pos, hard_state, Event::Truncate(from)));
    }
}

/// Lets the other tasks go first.
async fn pause() {
    let mut once = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut once, true) {
        true => std::task::Poll::Ready(()),
        false => std::task::Poll::Pending,
    })
    .await
}

/// A completed flush promises the log starts and applied indices as of its beginning.
pub async fn flush(store: &Store<SimDisk>, model: &Shared) {
    let promised: Vec<(GroupId, u64, u64)> = {
        let model = model.borrow();
        let live = model.groups.iter().filter(|(id, group)| !group.removed && **id != META);
        live.map(|(id, group)| {
            // Asked for only where the checkpointed state lies behind the segments.
            (*id, group.log_start, 0)
        })
        .collect()
    };
    if store.flush_now().await.is_ok() {
        let mut model = model.borrow_mut();
        for (id, start, app) in promised {
            let group = model.groups.get_mut(&id).expect("models stay");
            group.known = true;
            group.floor_start = group.floor_start.max(start);
            group.floor_app = group.floor_app.max(app);
        }
    }
}

async fn snapshots(store: &Store<SimDisk>, model: &Shared, seed: u64, stop: &Cell<bool>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !stop.get() {
        let wanted = store.snapshot_wanted();
        let mut wanted = std::pin::pin!(wanted);
        for _ in 0..rng.usize(..200) {
            let mut context = Context::from_waker(Waker::noop());
            if wanted.as_mut().poll(&mut context).is_ready() {
                break;
            }
            pause().await;
        }
        if store.poisoned().is_some() {
            return;
        }
        let (index, term) = {
            let mut model = model.borrow_mut();
            let Some(meta) = model.groups.get_mut(&META) else { continue };
            meta.commit = store.log(META).expect("it is there").stable_index.max(meta.commit);
            let Some(last) = meta.entries[..meta.commit as usize].last() else { continue };
            (last.index, last.term)
        };
        if store.write_snapshot(META, term, app_of(META, index)).await.is_ok() && store.flush_now().await.is_ok() {
            let mut model = model.borrow_mut();
            let meta = model.groups.get_mut(&META).expect("it is there");
            meta.floor_app = meta.floor_app.max(index);
        }
    }
}

async fn read(store: &Store<SimDisk>, model: &Shared, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        pause().await;
        let live = model.borrow().live();
        let group = live[rng.usize(..live.len())];
        if group == META {
            continue;
        }
        let (start, high) = {
            let model = model.borrow();
            let group = &model.groups[&group];
            (group.log_start, group.high_watermark())
        };
        // A consumer that goes on for a while from somewhere.
        let mut from = rng.u64(start..=high);
        for _ in 0..rng.usize(1..6) {
            match read_once(store, model, group, from, high, rng.usize(..8_000)).await {
                Ok(Some(next)) => from = next,
                Ok(None) => break,
                Err(wrong) => return model.borrow_mut().wrong(wrong),
            }
        }
        if rng.u32(..4) == 0
            && let Err(wrong) = find(store, model, group, &mut rng).await
        {
            return model.borrow_mut().wrong(wrong);
        }
    }
}

/// Reads and compares; the next offset, or nothing at the end or when the log changed.
pub async fn read_once(
    store: &Store<SimDisk>,
    model: &Shared,
    group: GroupId,
    from: u64,
    high: u64,
    max_bytes: usize,
) -> Result<Option<u64>, String> {
    let (batches, cold) = match store.read(group, from, high, max_bytes, true) {
        Read::Memory(batches) => (batches, 0),
        Read::Cold(read) => match read.await {
            Ok(batches) => (batches, 1),
            Err(ReadError::Changed) => {
                let model = model.borrow();
                let group = &model.groups[&group];
                return match group.removed || group.log_start > from {
                    true => Ok(None),
                    false => Err("a log that did not change is said to have".to_owned()),
                };
            }
            Err(error) => return Err(error.to_string()),
        },
        Read::OffsetOutOfRange { start, .. } if from < start => return Ok(None),
        Read::UnknownGroup if model.borrow().groups[&group].removed => return Ok(None),
        Read::OffsetOutOfRange { start, end } => return Err(format!("{from} is not in {start}..{end}")),
        Read::UnknownGroup => return Err(format!("group {} is not known", group.0)),
    };
    let mut model = model.borrow_mut();
    model.reads[cold] += 1;
    let log_start = model.groups[&group].log_start;
    let Some(first) = batches.first() else {
        return match from >= high || log_start > from {
            true => Ok(None),
            false => Err(format!("group {}: nothing at {from}, below {high}", group.0)),
        };
    };
    if !(first.base_offset <= from && from < first.end_offset()) {
        return Err(format!("group {}: {} was read at {from}", group.0, first.base_offset));
    }
    let total: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
    if batches.len() > 1 && total > max_bytes {
        return Err(format!("{total} bytes were read, {max_bytes} allowed"));
    }
    let mut next = first.base_offset;
    for batch in &batches {
        if batch.base_offset != next || batch.end_offset() > high {
            return Err(format!("group {}: batch {} at {next}, below {high}", group.0, batch.base_offset));
        }
        next = batch.end_offset();
        compare(batch, &model.groups[&group].entries, group)?;
    }
    Ok((next < high).then_some(next))
}

fn compare(batch: &Batch, entries: &[Entry], group: GroupId) -> Result<(), String> {
    let entry =
        entries.get(batch.index as usize - 1).ok_or_else(|| format!("index {} is beyond the end", batch.index))?;
    let same = entry.term == batch.term
        && entry.payload.as_ref().is_some_and(|(span, bytes)| {
            span.base_offset == batch.base_offset
                && span.count == batch.count
                && span.max_timestamp == batch.max_timestamp
                && *bytes == batch.bytes
        });
    same.then_some(()).ok_or_else(|| format!("group {}: another batch at index {}", group.0, batch.index))
}

async fn find(store: &Store<SimDisk>, model: &Shared, group: GroupId, rng: &mut fastrand::Rng) -> Result<(), String> {
    let (timestamp, high, start) = {
        let model = model.borrow();
        let group = &model.groups[&group];
        (rng.i64(0..=model.clock + 10), group.high_watermark(), group.log_start)
    };
    let found = match store.find_timestamp(group, timestamp, high).await {
        Ok(found) => found,
        Err(ReadError::Changed) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let model = model.borrow();
    let model = &model.groups[&group];
    let batches = model.entries.iter().filter_map(|entry| entry.payload.as_ref().map(|(span, _)| (entry.index, span)));
    let mut matching = batches
        .filter(|(_, span)| span.max_timestamp >= timestamp && span.base_offset + u64::from(span.count) <= high)
        .filter(|(_, span)| span.base_offset + u64::from(span.count) > start);
    match found {
        Some(batch) => {
            compare(&batch, &model.entries, group)?;
            let first = matching.find(|(_, span)| span.base_offset + u64::from(span.count) > model.log_start);
            let expected = first.is_none_or(|(index, _)| index >= batch.index);
            // The log start may have moved during the search: then a batch between the two starts is as good.
            expected.then_some(()).ok_or_else(|| format!("group {}: timestamp {timestamp} was found late", group.0))
        }
        None if matching.next().is_none() || model.log_start > start || model.removed => Ok(()),
        None => Err(format!("group {}: timestamp {timestamp} was not found", group.0)),
    }
}

/// Opens the store and compares what it recovered with what was acked.
pub fn recover(disk: &SimDisk, model: &Shared, durable: LogPos, clean: bool) -> Result<Store<SimDisk>, String> {
    let opened = block_on(Store::open(disk.clone(), &dirs(), 1, config()));
    let (store, groups, report) = opened.map_err(|error: OpenError| error.to_string())?;
    if report.groups != groups.len() {
        return Err("the report counts other groups".to_owned());
    }
    let mut found: BTreeMap<GroupId, RecoveredGroup> = groups.into_iter().map(|group| (group.id, group)).collect();
    let ids: Vec<GroupId> = model.borrow().groups.keys().copied().collect();
    for id in ids {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&id).expect("listed");
        let acked = group.events.partition_point(|(pos, ..)| clean || *pos <= durable);
        match found.remove(&id) {
            None => {
                let may_be_gone = group.removed || (!group.known && acked == 0);
                // A removal that was not acked may have happened; anything else acked must be there.
                if !may_be_gone && (acked > 0 || group.base_known()) {
                    return Err(format!("group {} is gone, {acked} of {} records acked", id.0, group.events.len()));
                }
                model.groups.remove(&id);
            }
            Some(recovered) => {
                let at = matching_image(group, acked, &recovered).map_err(|why| format!("group {}: {why}", id.0))?;
                let hard_states: Vec<HardState> =
                    group.events[acked.saturating_sub(1)..].iter().map(|(_, hard_state, _)| *hard_state).collect();
                let image = group.image(at).expect("it matched");
                if end_offset(&image[..recovered.app.index as usize]) < recovered.log_start {
                    return Err(format!("group {}: the log start is ahead of the applied index", id.0));
                }
                check_group(group, &recovered, &hard_states).map_err(|why| format!("group {}: {why}", id.0))?;
                group.entries = image;
                group.base = group.entries.clone();
                group.events.clear();
                group.removed = false;
                group.known = true;
                group.hard_state = recovered.hard_state;
                group.base_hard_state = recovered.hard_state;
                group.commit = recovered.app.index;
                group.log_start = recovered.log_start;
                group.floor_start = recovered.log_start;
                group.floor_app = recovered.app.index;
                store.set_options(id, options());
            }
        }
    }
    if let Some(id) = found.keys().next() {
        return Err(format!("group {} came from nowhere, or back from the dead", id.0));
    }
    store.check();
    no_strangers(disk, &store)?;
    Ok(store)
}

impl GroupModel {
    fn base_known(&self) -> bool {
        self.known && !self.base.is_empty()
    }
}

/// How many of the events happened, at least the acked ones; an error if no number fits.
fn matching_image(group: &GroupModel, acked: usize, recovered: &RecoveredGroup) -> Result<usize, String> {
    let last = recovered.terms.last().map_or((0, recovered.first_prev_term), |run| (run.first_index, run.term));
    for at in (acked..=group.events.len()).rev() {
        let Some(image) = group.image(at) else { continue };
        let ends = (end_offset(&image), image.last().map_or(0, |entry| entry.term));
        if ends != (recovered.next_offset, last.1) || terms_of(&image, recovered.first_index) != recovered.terms {
            continue;
        }
        let tail = &recovered.tail;
        let from = recovered.flushed_index.min(recovered.app.index);
        if image.len() as u64 == from + tail.len() as u64 && image[from as usize..] == tail[..] {
            return Ok(at);
        }
    }
    Err(format!(
        "{} of {} records were acked, found offset {}, flushed {}, terms {:?}, {} in the tail",
        acked,
        group.events.len(),
        recovered.next_offset,
        recovered.flushed_index,
        recovered.terms,
        recovered.tail.len()
    ))
}

fn terms_of(entries: &[Entry], first: u64) -> Vec<TermRun> {
    let mut runs: Vec<TermRun> = Vec::new();
    for entry in entries.iter().skip(first as usize - 1) {
        if runs.last().is_none_or(|run| run.term != entry.term) {
            let base_offset = end_offset(&entries[..entry.index as usize - 1]);
            runs.push(TermRun { first_index: entry.index, term: entry.term, base_offset });
        }
    }
    runs
}

fn check_group(group: &GroupModel, recovered: &RecoveredGroup, hard_states: &[HardState]) -> Result<(), String> {
    let found = recovered.hard_state;
    let base = std::iter::once(&group.base_hard_state).filter(|_| hard_states.len() == group.events.len());
    if !hard_states.iter().chain(base).any(|one| (one.term, one.vote) == (found.term, found.vote)) {
        return Err(format!("hard state {found:?} is none of {hard_states:?}"));
    }
    let last = recovered.tail.last().map_or(recovered.flushed_index, |entry| entry.index);
    if found.commit < recovered.app.index || found.commit > last {
        return Err(format!("commit {} is not in {}..={last}", found.commit, recovered.app.index));
    }
    if recovered.app.index < group.floor_app || recovered.app.index > group.commit {
        return Err(format!("applied {} is not in {}..={}", recovered.app.index, group.floor_app, group.commit));
    }
    if recovered.app != app_of(recovered.id, recovered.app.index) {
        return Err(format!("the state at {} is another one", recovered.app.index));
    }
    if recovered.log_start < group.floor_start || recovered.log_start > group.log_start {
        return Err(format!("log start {} is not in {}..={}", recovered.log_start, group.floor_start, group.log_start));
    }
    Ok(())
}

/// No segment file is on the disk that no log has, but for what the next checkpoint has to let go first.
fn no_strangers(disk: &SimDisk, store: &Store<SimDisk>) -> Result<(), String> {
    let known: BTreeSet<String> = store.groups().iter().map(|group| group.0.to_string()).collect();
    for path in disk.files() {
        if let Ok(name) = path.strip_prefix("/data/logs") {
            let group = name.iter().next().and_then(|name| name.to_str()).unwrap_or_default();
            if !known.contains(group) {
                return Err(format!("{} belongs to no group", path.display()));
            }
        }
    }
    Ok(())
}

/// After a flush, exactly the segments of the logs are on the disk.
pub fn only_segments(disk: &SimDisk, store: &Store<SimDisk>) -> Result<(), String> {
    let listed: BTreeSet<PathBuf> =
        store.groups().into_iter().flat_map(|group| store.segment_files(group)).map(|(path, _)| path).collect();
    let there: BTreeSet<PathBuf> =
        disk.files().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
    let hint = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "idx");
    if let Some(lone) =
        disk.files().iter().filter(|path| hint(path)).find(|path| !listed.contains(&path.with_extension("log")))
    {
        return Err(format!("{} is the index of no segment", lone.display()));
    }
    if listed != there {
        let missing: Vec<_> = listed.difference(&there).collect();
        let extra: Vec<_> = there.difference(&listed).collect();
        return Err(format!("missing {missing:?}, extra {extra:?}"));
    }
    Ok(())
}

/// Reads every group from its start to its end and compares.
pub async fn read_everything(store: &Store<SimDisk>, model: &Shared) -> Result<(), String> {
    let live = model.borrow().live();
    for group in live.into_iter().filter(|group| *group != META) {
        let (mut from, end) = {
            let model = model.borrow();
            (model.groups[&group].log_start, model.groups[&group].next_offset())
        };
        while let Some(next) = read_once(store, model, group, from, end, 30_000).await? {
            from = next;
        }
    }
    Ok(())
}

/// How a life goes.
#[derive(Clone, Copy)]
pub struct Life {
    pub steps: usize,
    /// The disk stops for good at the n-th operation.
    pub stop_after: u64,
    pub close: bool,
}

/// One life: from an open store to its end, clean or not. Returns what was durable, and whether the end was clean.
pub fn live(seed: u64, disk: &SimDisk, store: &Store<SimDisk>, model: &Shared, life: Life) -> (LogPos, bool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    if !model.borrow().groups.contains_key(&META) {
        store.create_group(META, options());
        model.borrow_mut().groups.insert(META, GroupModel::default());
    }
    disk.stop_after(life.stop_after);
    let (written, closed) = (Cell::new(false), Cell::new(false));
    let (stop, stopped) = (Cell::new(false), Cell::new(false));
    let host = Rc::new(Host(model.clone()));
    let seeds: [u64; 4] = std::array::from_fn(|_| rng.u64(..));
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(host).await;
        }),
        Box::pin(async {
            write(store, model, seeds[0], life.steps).await;
            if life.close {
                stop.set(true);
                while !stopped.get() {
                    pause().await;
                }
                flush(store, model).await;
                closed.set(store.close_clean().await.is_ok());
            }
            written.set(true);
        }),
        Box::pin(read(store, model, seeds[1])),
        Box::pin(read(store, model, seeds[2])),
        Box::pin(async {
            snapshots(store, model, seeds[3], &stop).await;
            stopped.set(true);
        }),
    ];
    let wrong = || model.borrow().wrong.is_some();
    drive(&mut rng, tasks, || written.get() || disk.stopped() || wrong());
    (store.durable(), closed.get())
}

/// Several lives on one disk with a crash after each. The first thing that was wrong, if any.
pub fn lives(seed: u64, disk: SimDisk, count: usize, prepare: &dyn Fn(&SimDisk)) -> Result<Shared, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let model: Shared = Rc::default();
    let mut disk = disk;
    let (mut durable, mut clean) = (LogPos::default(), false);
    for _ in 0..count {
        prepare(&disk);
        let store = match recover(&disk, &model, durable, clean) {
            Ok(store) => store,
            Err(_) if disk.stopped() => {
                disk = disk.crash();
                continue;
            }
            Err(wrong) => return Err(wrong),
        };
        if rng.bool() {
            block_on(read_everything(&store, &model))?;
        }
        let life = Life {
            steps: rng.usize(20..300),
            stop_after: if rng.u32(..5) == 0 { u64::MAX >> 1 } else { rng.u64(1..2_500) },
            close: rng.u32(..4) == 0,
        };
        (durable, clean) = live(rng.u64(..), &disk, &store, &model, life);
        if let Some(wrong) = model.borrow_mut().wrong.take() {
            return Err(wrong);
        }
        drop(store);
        disk = disk.crash();
    }
    // The end: everything is flushed, and nothing superfluous is left.
    prepare(&disk);
    let store = recover(&disk, &model, durable, clean)?;
    block_on(read_everything(&store, &model))?;
    let host = Rc::new(Host(model.clone()));
    with_loops(seed, &store, host, flush(&store, &model));
    only_segments(&disk, &store)?;
    block_on(read_everything(&store, &model))?;
    Ok(model)
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what is expected to go wrong: a panic is an error like another, and prints nothing.
pub fn quietly(run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    QUIET.set(false);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    })
}

/// A data directory set up for two cores, filled, then changed to three with a crash somewhere, and again until it succeeds.
pub fn cores_life(seed: u64, prepare: &dyn Fn(&SimDisk)) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = SimDisk::new(seed);
    let old = Manifest { cluster_id: "simulated".to_owned(), epoch: 1, cores: 2 };
    let data = std::path::Path::new(DATA);
    let text = |error: OpenError| error.to_string();
    prepare(&disk);
    block_on(old.write(&disk, data)).map_err(text)?;
    // Appends on both cores; what is durable at the end counts.
    let mut expected: BTreeMap<GroupId, Vec<Entry>> = BTreeMap::new();
    for core in 0..old.cores {
        let dirs = StoreDirs::new(DATA, old.epoch, core);
        let (store, ..) = block_on(Store::open(disk.clone(), &dirs, old.epoch, config())).map_err(text)?;
        let model: Shared = Rc::default();
        let groups: Vec<GroupId> = (0..6).filter(|id| *id as usize % old.cores == core).map(GroupId).collect();
        for group in &groups {
            store.create_group(*group, options());
            model.borrow_mut().groups.insert(*group, GroupModel::default());
        }
        let host = Rc::new(Host(model.clone()));
        with_loops(rng.u64(..), &store, host, fill(&store, &model, &groups, rng.fork()));
        if let Some(poisoned) = store.poisoned() {
            return Err(poisoned.0);
        }
        for (id, group) in &model.borrow().groups {
            expected.insert(*id, group.entries.clone());
        }
    }
    disk = disk.crash();
    // The change, cut short at ever other operations until it gets to its end.
    let mut attempts = 0;
    let new = loop {
        attempts += 1;
        prepare(&disk);
        let found = block_on(Manifest::read(&disk, data)).map_err(text)?.ok_or("there is no manifest")?;
        if found.cores == 3 {
            break found;
        }
        if found != old {
            return Err(format!("the manifest is neither old nor new: {found:?}"));
        }
        if attempts < 6 {
            disk.stop_after(rng.u64(1..600));
        }
        let changed = until_stop(&disk, change_cores(&disk, data, &found, 3, &config(), |group| group.0 as usize % 3));
        match changed {
            Some(changed) => drop(changed.map_err(text)?),
            None => assert!(disk.stopped()),
        }
        disk = disk.crash();
    };
    prepare(&disk);
    block_on(remove_stale_epochs(&disk, data, &new)).map_err(text)?;
    if let Some(stale) = disk.files().iter().find(|path| path.starts_with("/data/epoch-1")) {
        return Err(format!("{} is left", stale.display()));
    }
    for core in 0..new.cores {
        let dirs = StoreDirs::new(DATA, new.epoch, core);
        let (store, groups, _) = block_on(Store::open(disk.clone(), &dirs, new.epoch, config())).map_err(text)?;
        for group in groups {
            if group.id.0 as usize % 3 != core {
                return Err(format!("group {} is on core {core}", group.id.0));
            }
            let entries = expected.remove(&group.id).ok_or("a group came from nowhere")?;
            let from = group.flushed_index.min(group.app.index) as usize;
            let last = group.hard_state.term.min(entries.last().map_or(0, |last| last.term));
            if group.next_offset != end_offset(&entries) || group.tail != entries[from..] || last == 0 {
                return Err(format!("group {} ends at {}", group.id.0, group.next_offset));
            }
            let model: Shared = Rc::default();
            let commit = entries.len() as u64;
            model.borrow_mut().groups.insert(group.id, GroupModel { entries, commit, ..GroupModel::default() });
            block_on(read_everything(&store, &model))?;
        }
    }
    match expected.keys().next() {
        Some(lost) => Err(format!("group {} is gone", lost.0)),
        None => Ok(()),
    }
}

/// Appends to all groups, flushes now and then, and ends when everything is durable.
async fn fill(store: &Store<SimDisk>, model: &Shared, groups: &[GroupId], mut rng: fastrand::Rng) {
    for _ in 0..rng.usize(30..80) {
        let group = groups[rng.usize(..groups.len())];
        append(store, model, &mut rng, group);
        if rng.u32(..25) == 0 {
            flush(store, model).await;
        }
        pause().await;
    }
    for group in groups {
        append(store, model, &mut rng, *group);
    }
    let staged = store.append_hard_state(groups[0], model.borrow().groups[&groups[0]].hard_state).expect("room");
    while store.durable() < staged.pos && store.durable_past(store.durable()).await.is_ok() {}
}

/// Drives a future until it is done or the disk stops.
fn until_stop<T>(disk: &SimDisk, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2_000_000 {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        if disk.stopped() {
            return None;
        }
    }
    panic!("nothing gets done");
}
