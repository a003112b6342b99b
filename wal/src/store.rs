//! One core's storage as one thing that recovers: the ring, every partition's log, the checkpoint and the snapshots.
//! Lives on: the owning core only (`Rc`, not `Send`). Talks to: `journal` above it in time, `log` and `checkpoint` below.
//!
//! A batch goes to the ring and, as the ring's own memory, to its partition's tail; the flusher later writes what is
//! durable to segment files, checkpoints, and only then lets the ring recycle its space.
//!
//! Invariants, per partition: start <= flushed <= stable <= end. What the ring has given back is in a synced segment (or
//! snapshot) that a durable checkpoint names.

pub use crate::terms::TermRun;
use crate::{
    checkpoint::{Garbage, RemovedGroup},
    disk::Disk,
    files::Files,
    journal::Journal,
    log::{FromMemory, Log, LogOptions, LogView},
    log_read::{Ahead, Batch, Read, ReadError, find_timestamp, read_cold},
    lru::Lru,
    record::{Entry, GroupId, HardState},
    ring::RingConfig,
    segment::{Segment, SparseIndex},
    segment_format::SegmentId,
    signal::Signal,
};

use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
};

/// Sizes and bounds of one core's store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The ring's total size in bytes.
    pub ring_bytes: u64,
    /// The ring's exact sizes, if they are not to follow from `ring_bytes`.
    pub ring: Option<RingConfig>,
    /// A flush starts when this much of the ring is in use. 0 means a quarter of the ring.
    pub flush_trigger_bytes: u64,
    /// Memory for batches that are already in segments, kept for tailing consumers; counted by the ring memory they pin.
    /// When it is full, the oldest batches of the core are let go, and reads of them become cold.
    pub cache_bytes: u64,
    /// Memory for what cold reads have read ahead. When it is full, the least recently used buffer is let go.
    pub read_ahead_bytes: u64,
    /// Memory for sparse indexes. When it is full, the least recently used one is let go, to be read or made again.
    pub index_bytes: u64,
    /// Open descriptors of segments. When that many are open, the least recently used one is closed.
    pub open_files_max: usize,
    /// Bytes per write of a flush.
    pub flush_write_bytes: usize,
    /// Groups whose files are written and synced side by side in a flush: one write or sync of each is in flight.
    pub flush_in_flight: usize,
    /// The group that keeps no segments: its entries count as flushed once a snapshot covers them.
    pub snapshot_group: Option<GroupId>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 256 << 20,
            ring: None,
            flush_trigger_bytes: 0,
            cache_bytes: 128 << 20,
            read_ahead_bytes: 32 << 20,
            index_bytes: 64 << 20,
            open_files_max: 4096,
            flush_write_bytes: 1 << 20,
            flush_in_flight: 4,
            snapshot_group: Some(GroupId(0)),
        }
    }
}

/// Where one core's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDirs {
    /// The data directory itself; it exists.
    pub data: PathBuf,
    /// Ring and checkpoint: `<data>/epoch-<n>/core-<c>`.
    pub core: PathBuf,
    /// `<data>/logs`: one directory per partition, whatever its core.
    pub logs: PathBuf,
    /// `<data>/snapshots`.
    pub snapshots: PathBuf,
}

impl StoreDirs {
    pub fn new(data: impl Into<PathBuf>, epoch: u64, core: usize) -> Self {
        let data = data.into();
        Self {
            core: data.join(format!("epoch-{epoch}")).join(format!("core-{core}")),
            logs: data.join("logs"),
            snapshots: data.join("snapshots"),
            data,
        }
    }
}

/// The caller's own state of a group as of an applied index; opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppState {
    /// All entries up to this index are in `blob` (and in the log start).
    pub index: u64,
    pub blob: Bytes,
    pub conf_state: Bytes,
}

/// What [`Store::open`] found of one group.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    pub id: GroupId,
    /// Its commit is at least `app.index` and at most the last index.
    pub hard_state: HardState,
    /// Entries up to here are in segments (or in the snapshot, for the snapshot group).
    pub flushed_index: u64,
    pub flushed_term: u64,
    /// The first index that is still in the log, or the one after the last if the log holds nothing; and the term before it.
    pub first_index: u64,
    pub first_prev_term: u64,
    /// Covers `first_index ..= last index`, ascending.
    pub terms: Vec<TermRun>,
    /// The entries above min(`flushed_index`, `app.index`), in order, without holes: what is to be applied again, and more.
    pub tail: Vec<Entry>,
    /// For the snapshot group, `blob` is the newest snapshot.
    pub app: AppState,
    pub log_start: u64,
    pub next_offset: u64,
}

/// What recovery did, for the log and the banner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub groups: usize,
    pub ring_records: u64,
    pub ring_bytes: u64,
    /// The last stop was clean: nothing had to be replayed.
    pub clean: bool,
    /// Bytes of an unfinished write that were cut from the ring's end.
    pub torn_bytes: u64,
    /// Files removed because no checkpoint names them.
    pub orphans: usize,
}

/// Why a store can't be opened. Every variant names the file or the group.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Synced bytes are not what was written: restore the replica from its peers or from a copy.
    #[error("damaged: {0}")]
    Damaged(String),
    #[error(
        "{path} has format version {found}, newer than {newest}, the newest that this version reads; run the newer version"
    )]
    Newer { path: String, found: u32, newest: u32 },
}

/// A position in the ring's history, in bytes; only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos(pub u64);

/// A record that is on its way to the ring.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Durable when [`Store::durable`] has reached this.
    pub pos: LogPos,
    /// The payload in the ring's memory.
    pub payload: Option<Bytes>,
}

/// Nothing leaves this core any more; a restart recovers. The text says what failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store stopped: {0}")]
pub struct Poisoned(pub String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The ring has no room even in its reserve; [`Store::admit`] was not asked.
    #[error("the ring is full")]
    Full,
    /// The entry fits into no segment of the ring; a larger ring has larger segments.
    #[error("an entry of {bytes} bytes fits into no segment of the ring: {max} bytes fit")]
    TooLarge { bytes: usize, max: usize },
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Whether there is room for more; asked before an entry is proposed, since a staged one can't be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Ok,
    /// The ring is down to its reserve: await [`Store::space_freed`], or answer with a retriable error.
    Wait,
}

/// What the flusher asks of the engine.
pub trait FlushHost {
    /// The group's state as of some applied index, cut in one synchronous step; `None` keeps the one checkpointed before.
    /// All entries up to that index must have been reported durable.
    fn app_state(&self, group: GroupId) -> Option<AppState>;
    /// The disk is full: returns after a pause that grows with `attempt` (from 1).
    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>>;
    /// A flush could not go on, and will be tried again after [`FlushHost::back_off`].
    fn flush_failed(&self, why: &str);
}

/// One core's store. Clones are handles to the same one.
pub struct Store<D: Disk> {
    pub(crate) shared: Rc<Shared<D>>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// What the handles, the flusher and the readers share.
pub(crate) struct Shared<D: Disk> {
    pub disk: D,
    pub dirs: StoreDirs,
    pub epoch: u64,
    pub config: StoreConfig,
    pub journal: Journal<D>,
    pub files: Files<D>,
    pub state: RefCell<State>,
    pub indexes: RefCell<Lru<SegmentId, Rc<SparseIndex>>>,
    pub ahead: RefCell<Lru<(GroupId, u64), Ahead>>,
    /// A flush is wanted.
    pub wanted: Signal,
    /// A flush ended, well or not, or the store stopped.
    pub rounds: Signal,
    /// The snapshot group's entries, or what a snapshot covers, changed.
    pub snapshot: Signal,
    pub stats: Cell<StoreStats>,
}

#[derive(Default)]
pub(crate) struct State {
    pub groups: BTreeMap<GroupId, Log>,
    /// Groups with entries that no flush has taken up, each once.
    pub dirty: Vec<GroupId>,
    /// Entries in memory in the order of their arrival, by the end of their record.
    pub cache: VecDeque<(LogPos, GroupId)>,
    pub removed: Vec<Removed>,
    pub garbage: Vec<Garbage>,
    /// The logs' directory has new names that are not durable.
    pub logs_dir_changed: bool,
    /// Of the newest checkpoint.
    pub number: u64,
    /// Up to where the newest flush took entries.
    pub cut: LogPos,
    /// Flushes asked for and done, counted.
    pub asked: u64,
    pub done: u64,
    pub closing: bool,
    pub poison: Option<Poisoned>,
}

/// A removed group whose traces are not all gone.
#[derive(Clone, Copy)]
pub(crate) struct Removed {
    pub group: RemovedGroup,
    pub files_gone: bool,
}

impl State {
    pub fn mark_dirty(&mut self, group: GroupId) {
        if let Some(log) = self.groups.get_mut(&group)
            && !std::mem::replace(&mut log.dirty, true)
        {
            self.dirty.push(group);
        }
    }

    /// Marks a group of which a flush left something.
    pub fn mark_if_unflushed(&mut self, group: GroupId) {
        let log = self.groups.get(&group);
        if log.is_some_and(|log| log.pending_cut.is_some() || log.needs_ring_from().is_some()) {
            self.mark_dirty(group);
        }
    }

    fn log(&mut self, group: GroupId) -> &mut Log {
        self.groups.get_mut(&group).unwrap_or_else(|| panic!("there is no group {}", group.0))
    }

    /// Lets go of the oldest flushed entries until what memory pins fits `cache_bytes`.
    pub fn evict(&mut self, end: LogPos, cache_bytes: u64) {
        while let Some(&(oldest, group)) = self.cache.front() {
            if self.cache_cost(end) <= cache_bytes {
                return;
            }
            if self.groups.get_mut(&group).is_some_and(|log| !log.evict(oldest)) {
                return;
            }
            self.cache.pop_front();
        }
    }

    /// The ring's chunks are shared by batches in the order of their arrival: all from the oldest one held on are pinned.
    pub fn cache_cost(&self, end: LogPos) -> u64 {
        let pinned = self.cache.front().map_or(0, |(oldest, _)| end.0.saturating_sub(oldest.0));
        pinned + (self.cache.len() * CACHED_ENTRY_COST) as u64
    }
}

/// What an entry in memory takes beside its bytes.
const CACHED_ENTRY_COST: usize = size_of::<crate::log::Held>() + size_of::<(LogPos, GroupId)>();

impl<D: Disk> Shared<D> {
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.state.borrow().poison.clone().or_else(|| self.journal.poisoned())
    }

    /// Stops the store for good.
    pub fn poison(&self, why: String) -> Poisoned {
        let poisoned = self.state.borrow_mut().poison.get_or_insert(Poisoned(why)).clone();
        self.journal.poison(&poisoned.0);
        for signal in [&self.wanted, &self.rounds, &self.snapshot] {
            signal.notify();
        }
        poisoned
    }

    pub fn ask_flush(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.asked += 1;
        let asked = state.asked;
        drop(state);
        self.wanted.notify();
        asked
    }

    pub async fn open_segment(&self, id: SegmentId, segment: &Segment) -> Result<Rc<D::File>, ReadError> {
        let file = self.files.open(id, segment.base_offset).await;
        file.map_err(|source| ReadError::Io {
            what: self.files.segment(id, segment.base_offset).display().to_string(),
            source,
        })
    }

    /// `error`, unless the segment it came from is not the log's any more.
    pub fn unless_changed(&self, group: GroupId, segment: &Segment, error: ReadError) -> ReadError {
        let state = self.state.borrow();
        let still = state
            .groups
            .get(&group)
            .is_some_and(|log| log.segments.iter().any(|now| now.serial == segment.serial && now.len >= segment.len));
        if still { error } else { ReadError::Changed }
    }

    pub fn keep_index(&self, id: SegmentId, index: &Rc<SparseIndex>) {
        let mut indexes = self.indexes.borrow_mut();
        if indexes.get(&id).is_none_or(|known| known.covered <= index.covered) {
            indexes.insert(id, index.clone(), index.cost());
        }
    }

    pub fn count_cold(&self, bytes: u64) {
        let mut stats = self.stats.get();
        stats.cold_reads += 1;
        stats.cold_read_bytes += bytes;
        self.stats.set(stats);
    }

    /// Forgets everything in memory about a group's files.
    pub fn forget_files(&self, group: GroupId) {
        self.files.forget_group(group);
        self.indexes.borrow_mut().remove_where(|id| id.group == group);
        self.ahead.borrow_mut().remove_where(|(of, _)| *of == group);
    }

    /// Whether a snapshot would free more of the ring than a flush can.
    fn wants_snapshot(&self) -> bool {
        let state = self.state.borrow();
        let log = self.config.snapshot_group.and_then(|group| state.groups.get(&group));
        let held_from = log.and_then(Log::needs_ring_from);
        held_from.is_some_and(|from| self.journal.staged().0 - from.0 >= self.config.flush_trigger_bytes)
    }

    /// Asserts what holds for every log at any time.
    pub fn check(&self) {
        let durable = self.journal.durable();
        for log in self.state.borrow().groups.values() {
            log.check(durable);
        }
    }
}

impl<D: Disk> Store<D> {
    /// Recovers the store, or creates it: checkpoint, then the ring in order. Groups come in ascending order.
    pub async fn open(
        disk: D,
        dirs: &StoreDirs,
        epoch: u64,
        config: StoreConfig,
    ) -> Result<(Self, Vec<RecoveredGroup>, RecoveryReport), OpenError> {
        crate::store_recovery::open(disk, dirs, epoch, config).await
    }

    /// A new, empty group whose first entry has index 1 and whose first offset is 0. Volatile until its first record or the
    /// next checkpoint. Panics if it exists.
    pub fn create_group(&self, group: GroupId, options: LogOptions) {
        let mut state = self.shared.state.borrow_mut();
        let by_snapshot = self.shared.config.snapshot_group == Some(group);
        let before = state.groups.insert(group, Log::new(group, options, by_snapshot));
        assert!(before.is_none(), "group {} exists", group.0);
    }

    /// Other options for a group that exists (recovered ones have the default until told otherwise).
    pub fn set_options(&self, group: GroupId, options: LogOptions) {
        self.shared.state.borrow_mut().log(group).options = options;
    }

    /// Forgets the group at once and for good: a ring record says so, its files go with a later flush. The group is certainly
    /// gone once the returned position is durable; its id is never used again.
    pub fn remove_group(&self, group: GroupId) -> Result<LogPos, AppendError> {
        let shared = &self.shared;
        assert!(shared.state.borrow().groups.contains_key(&group), "there is no group {}", group.0);
        let at = shared.journal.remove_group(group)?;
        let mut state = shared.state.borrow_mut();
        state.groups.remove(&group);
        state.removed.push(Removed { group: RemovedGroup { id: group, at }, files_gone: false });
        drop(state);
        shared.forget_files(group);
        shared.ask_flush();
        Ok(at)
    }

    /// Stages the next entry (index = last + 1, base offset = next offset) with its hard state: copies the payload into the
    /// ring's memory, from where it is also read from now on.
    pub fn append(&self, group: GroupId, hard_state: HardState, entry: &Entry) -> Result<Staged, AppendError> {
        self.append_with_head(group, hard_state, entry, &[])
    }

    /// As [`Store::append`], with `head` in place of as many of the payload's first bytes: what the caller has to change
    /// there is written where it belongs, and the payload is copied once.
    pub fn append_with_head(
        &self,
        group: GroupId,
        hard_state: HardState,
        entry: &Entry,
        head: &[u8],
    ) -> Result<Staged, AppendError> {
        let shared = &self.shared;
        let mut state = shared.state.borrow_mut();
        let log = state.log(group);
        assert_eq!(entry.index, log.end.index + 1, "group {}: entries come without holes", group.0);
        let start = shared.journal.staged();
        let staged = shared.journal.append_with_head(group, hard_state, entry, head)?;
        let payload = entry.payload.as_ref().map(|(span, _)| {
            (*span, staged.payload.clone().expect("a payload that was staged is in the ring's memory"))
        });
        log.hard_state = hard_state;
        log.append(Entry { payload, ..entry.clone() }, start, staged.pos);
        if !log.by_snapshot {
            state.cache.push_back((staged.pos, group));
        }
        state.mark_dirty(group);
        state.evict(staged.pos, shared.config.cache_bytes);
        let flush = staged.pos.0 - state.cut.0 >= shared.config.flush_trigger_bytes && state.asked == state.done;
        drop(state);
        if flush {
            shared.ask_flush();
        }
        if shared.config.snapshot_group == Some(group) {
            shared.snapshot.notify();
        }
        Ok(staged)
    }

    /// Stages a hard state without an entry.
    pub fn append_hard_state(&self, group: GroupId, hard_state: HardState) -> Result<Staged, AppendError> {
        let mut state = self.shared.state.borrow_mut();
        let log = state.log(group);
        let staged = self.shared.journal.append_hard_state(group, hard_state)?;
        log.hard_state = hard_state;
        Ok(staged)
    }

    /// Drops the entries at and above `from_index`, whose first offset is `from_offset`. Segments are cut once the ring
    /// record is synced.
    pub fn truncate(
        &self,
        group: GroupId,
        hard_state: HardState,
        from_index: u64,
        from_offset: u64,
    ) -> Result<Staged, AppendError> {
        let mut state = self.shared.state.borrow_mut();
        let log = state.log(group);
        assert!(from_index > log.app.index, "group {}: applied entries can't be truncated", group.0);
        let staged = self.shared.journal.truncate(group, hard_state, from_index, from_offset)?;
        log.hard_state = hard_state;
        log.truncate(from_index, from_offset, staged.pos);
        if log.pending_cut.is_some() {
            state.mark_dirty(group);
        }
        Ok(staged)
    }

    /// Everything staged at or before this position is durable.
    pub fn durable(&self) -> LogPos {
        self.shared.journal.durable()
    }

    /// Waits until [`Store::durable`] is above `past`; returns it.
    pub async fn durable_past(&self, past: LogPos) -> Result<LogPos, Poisoned> {
        self.shared.journal.durable_past(past).await
    }

    /// Why nothing is acked any more, if so.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.shared.poisoned()
    }

    /// Whether `bytes` more of payload may be proposed.
    pub fn admit(&self, bytes: usize) -> Admission {
        let admission = self.shared.journal.admit(bytes);
        if admission == Admission::Wait && self.shared.flush_helps() {
            self.shared.ask_flush();
        }
        admission
    }

    /// The largest sum of an entry's data and payload that the ring can hold.
    pub fn entry_bytes_max(&self) -> usize {
        self.shared.journal.entry_bytes_max()
    }

    /// Waits until the ring has given back space since the call.
    pub async fn space_freed(&self) {
        self.shared.journal.space_freed().await
    }

    /// Writes the ring; spawn it before anything is awaited. Ends after [`Store::close_clean`] or when poisoned.
    pub async fn run_journal(&self) -> Result<(), Poisoned> {
        let ended = self.shared.journal.run().await;
        if let Err(poisoned) = &ended {
            self.shared.poison(poisoned.0.clone());
        }
        ended
    }

    /// Flushes whenever the ring asks for it; spawn it. Ends like [`Store::run_journal`].
    pub async fn run_flusher(&self, host: Rc<dyn FlushHost>) -> Result<(), Poisoned> {
        crate::store_flush::run(&self.shared, &*host).await
    }

    /// Flushes and checkpoints all that is durable at the call. Needs the two loops running.
    pub async fn flush_now(&self) -> Result<(), Poisoned> {
        let asked = self.shared.ask_flush();
        loop {
            let seen = self.shared.rounds.count();
            if let Some(poisoned) = self.shared.poisoned() {
                return Err(poisoned);
            }
            if self.shared.state.borrow().done >= asked {
                return Ok(());
            }
            self.shared.rounds.past(seen).await;
        }
    }

    /// Flushes and checkpoints everything staged, marks the ring clean and ends the two loops. No append may follow.
    pub async fn close_clean(&self) -> Result<(), Poisoned> {
        loop {
            let (durable, staged) = (self.durable(), self.shared.journal.staged());
            if durable >= staged {
                break;
            }
            self.durable_past(durable).await?;
        }
        self.flush_now().await?;
        self.shared.state.borrow_mut().closing = true;
        self.shared.wanted.notify();
        self.shared.journal.close_clean().await
    }

    /// The ids of all groups, ascending.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<GroupId> = self.shared.state.borrow().groups.keys().copied().collect();
        groups.sort_unstable();
        groups
    }

    /// The group's marks; `None` if there is no such group.
    pub fn log(&self, group: GroupId) -> Option<LogView> {
        let durable = self.durable();
        self.shared.state.borrow().groups.get(&group).map(|log| log.view(durable))
    }

    /// The offset at which the group's log begins; 0 if there is no such group.
    pub fn log_start(&self, group: GroupId) -> u64 {
        self.shared.state.borrow().groups.get(&group).map_or(0, |log| log.log_start)
    }

    /// Whole batches from the one that holds `from_offset` on, below `below_offset` (the high watermark), up to
    /// `max_bytes`; with `at_least_one`, the first batch comes whatever its size.
    pub fn read(
        &self,
        group: GroupId,
        from_offset: u64,
        below_offset: u64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Read {
        let state = self.shared.state.borrow();
        let Some(log) = state.groups.get(&group) else { return Read::UnknownGroup };
        if from_offset < log.log_start || from_offset > log.end.offset {
            return Read::OffsetOutOfRange { start: log.log_start, end: log.end.offset };
        }
        if from_offset >= below_offset {
            return Read::Memory(Vec::new());
        }
        match log.read_memory(from_offset, below_offset, max_bytes, at_least_one) {
            FromMemory::Batches(batches) => Read::Memory(batches),
            FromMemory::Colder => {
                let shared = self.shared.clone();
                Read::Cold(Box::pin(read_cold(shared, group, from_offset, below_offset, max_bytes, at_least_one)))
            }
        }
    }

    /// The first batch below `below_offset` whose largest timestamp is at least `timestamp`.
    pub async fn find_timestamp(
        &self,
        group: GroupId,
        timestamp: i64,
        below_offset: u64,
    ) -> Result<Option<Batch>, ReadError> {
        find_timestamp(self.shared.clone(), group, timestamp, below_offset).await
    }

    /// Moves the log start up, at most to the stable offset; never back. Whole segments below it go with a later flush.
    pub fn set_log_start(&self, group: GroupId, offset: u64) {
        let durable = self.durable();
        let mut state = self.shared.state.borrow_mut();
        let log = state.log(group);
        if offset <= log.log_start {
            return;
        }
        assert!(offset <= log.stable(durable).offset, "group {}: only what is durable is trimmed", group.0);
        log.log_start = offset;
        let trims = log.can_trim();
        drop(state);
        if trims {
            self.shared.ask_flush();
        }
    }

    /// The log start that retention asks for, if it is above the present one: at a segment's end, at most `below_offset`
    /// (the high watermark). `None` for a limit means no limit.
    pub fn retention(
        &self,
        group: GroupId,
        now_ms: i64,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        below_offset: u64,
    ) -> Option<u64> {
        let state = self.shared.state.borrow();
        state.groups.get(&group)?.retention(now_ms, retention_ms, retention_bytes, below_offset)
    }

    /// Makes a snapshot of the snapshot group durable; its entries up to `app.index` count as flushed from then on. One that
    /// is not newer than the last is ignored. A full disk is an error here; the old snapshot stays.
    pub async fn write_snapshot(&self, group: GroupId, term: u64, app: AppState) -> Result<(), SnapshotError> {
        crate::snapshot::write(&self.shared, group, term, app).await
    }

    /// Resolves when the snapshot group's entries hold more of the ring than a flush may leave.
    pub async fn snapshot_wanted(&self) -> Result<(), Poisoned> {
        loop {
            let seen = self.shared.snapshot.count();
            if let Some(poisoned) = self.shared.poisoned() {
                return Err(poisoned);
            }
            if self.shared.wants_snapshot() {
                return Ok(());
            }
            self.shared.snapshot.past(seen).await;
        }
    }

    /// The group's segment files, oldest first, and how many bytes of each count.
    pub fn segment_files(&self, group: GroupId) -> Vec<(PathBuf, u64)> {
        let state = self.shared.state.borrow();
        let segments = state.groups.get(&group).map_or(&[][..], |log| &log.segments[..]);
        let file = |segment: &Segment| {
            let id = SegmentId { group, serial: segment.serial };
            (self.shared.files.segment(id, segment.base_offset), segment.len)
        };
        segments.iter().map(file).collect()
    }

    /// Asserts the invariants of all logs; for tests and simulations, after each step.
    pub fn check(&self) {
        self.shared.check();
    }

    /// For the metrics page.
    pub fn stats(&self) -> StoreStats {
        let state = self.shared.state.borrow();
        StoreStats {
            cached_bytes: state.cache_cost(self.shared.journal.staged()),
            ring_used_bytes: self.shared.journal.used(),
            ring_bytes: self.shared.config.ring_bytes,
            open_files: self.shared.files.open_count(),
            ..self.shared.stats.get()
        }
    }
}

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No space: free some and try again; the old snapshot stays.
    #[error("{what}: {source}")]
    Full { what: String, source: io::Error },
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Counters since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub flushes: u64,
    pub flushed_bytes: u64,
    pub flush_failures: u64,
    pub checkpoints: u64,
    pub cold_reads: u64,
    pub cold_read_bytes: u64,
    pub cached_bytes: u64,
    pub ring_used_bytes: u64,
    pub ring_bytes: u64,
    pub open_files: usize,
}
