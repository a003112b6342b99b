//! The state that a store's handles, its flusher and its readers share.
//! Lives on: the owning core only. No borrow of the state is held across an await.
//!
//! Invariants: a dirty group is listed once. The cache lists entries in the order of arrival, and those of one log
//! are the front of its memory.

use crate::{
    checkpoint::{Garbage, RemovedGroup},
    disk::Disk,
    errors::ReadError,
    log::Log,
    ring::journal::Journal,
    segment::{Scanner, Segment, SparseIndex, files::Files, format::SegmentId, lru::Lru},
    store::{
        ahead::{Ahead, Next},
        interface::{FlushHost, LogPos, Poisoned, StoreConfig, StoreDirs, StoreStats},
    },
};
use runtime::{sync::Notify, yield_now};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::{Rc, Weak},
};
use types::GroupId;

/// Shared by the handles, the flusher and the readers.
pub(crate) struct Shared<D: Disk> {
    pub disk: D,
    pub dirs: StoreDirs,
    pub epoch: u64,
    pub config: StoreConfig,
    pub journal: Journal<D>,
    pub files: Files<D>,
    pub state: RefCell<State>,
    pub indexes: RefCell<Lru<SegmentId, Rc<SparseIndex>>>,
    /// When segments were last written, for segments whose timestamps do not give their age, as far as the disk was
    /// asked.
    pub file_times: RefCell<BTreeMap<SegmentId, i64>>,
    pub ahead: RefCell<Lru<(GroupId, Next), Ahead>>,
    /// A flush is wanted.
    pub wanted: Notify,
    /// A flush ended, successfully or not, or the store stopped.
    pub rounds: Notify,
    /// The snapshot group's entries changed, or the part that a snapshot covers.
    pub snapshot: Notify,
    pub stats: Cell<StoreStats>,
    /// The flusher's host, while the flusher runs.
    pub host: RefCell<Option<Weak<dyn FlushHost>>>,
    /// Bytes of the last checkpoint, without the batches that it carries.
    pub besides: Cell<u64>,
    /// Bytes of the file that reserves space for checkpoints, as far as known.
    pub reserved: Cell<u64>,
    /// Bytes of the last checkpoint's file. More than the checkpoint's own if it was written over reserved space.
    pub checkpoint_file: Cell<u64>,
    /// The number of the checkpoint from which on growing that file may be tried again.
    pub grows_after: Cell<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub groups: BTreeMap<GroupId, Box<Log>>,
    /// Groups with entries that no flush has taken, each listed once.
    pub dirty: Vec<GroupId>,
    /// Groups whose batches checkpoints carry, the longest carried first; and the total of these bytes. See
    /// `store::kept`.
    pub carriers: VecDeque<GroupId>,
    pub carried_bytes: u64,
    /// Entries in memory in the order of their arrival, by the end of their record.
    pub cache: VecDeque<(LogPos, GroupId)>,
    /// Removed groups, by id. There may be hundreds of thousands of them, from topics that were just deleted.
    pub removed: BTreeMap<GroupId, Removed>,
    pub garbage: Vec<Garbage>,
    /// The logs' directory has new names that are not durable.
    pub logs_dir_changed: bool,
    /// The number of the newest checkpoint.
    pub number: u64,
    /// The position up to which the newest flush took entries.
    pub cut: LogPos,
    /// When the newest flush began, in ms since the epoch.
    pub flush_ms: i64,
    /// How many flushes were requested and completed.
    pub asked: u64,
    pub done: u64,
    pub closing: bool,
    pub poison: Option<Poisoned>,
}

/// A removed group that still has traces in the ring or on the disk.
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

    /// Marks a group as dirty if a flush left some of its entries.
    pub fn mark_if_unflushed(&mut self, group: GroupId) {
        let log = self.groups.get(&group);
        if log.is_some_and(|log| log.pending_cut.is_some() || log.is_only_in_ring()) {
            self.mark_dirty(group);
        }
    }

    pub fn log(&mut self, group: GroupId) -> &mut Log {
        self.groups.get_mut(&group).unwrap_or_else(|| panic!("there is no group {}", group.0))
    }

    /// Evicts the oldest flushed entries until the memory that they pin fits `cache_bytes`, or until `most` are
    /// evicted. In the second case it returns `true`: there may be more to evict.
    pub fn evict(&mut self, end: LogPos, cache_bytes: u64, most: usize) -> bool {
        for _ in 0..most {
            let Some(&(oldest, group)) = self.cache.front() else { return false };
            if self.cache_cost(end) <= cache_bytes || self.groups.get_mut(&group).is_some_and(|log| !log.evict(oldest))
            {
                return false;
            }
            self.cache.pop_front();
        }
        true
    }

    /// Batches share the ring's chunks in the order of their arrival, so everything from the oldest held batch on is
    /// pinned.
    pub fn cache_cost(&self, end: LogPos) -> u64 {
        let pinned = self.cache.front().map_or(0, |(oldest, _)| end.0.saturating_sub(oldest.0));
        pinned + (self.cache.len() * CACHED_ENTRY_COST) as u64
    }
}

/// How many entries are evicted at once to make room for appends, besides those that an append needs.
const EVICTED_AT_ONCE: usize = 1024;

/// While no more than one part in this many of `memory_bytes` is in use, a batch of any size is admitted.
const FREE_FOR_ANY: u64 = 4;

/// The memory cost of an entry in addition to its bytes.
const CACHED_ENTRY_COST: usize = size_of::<crate::record::Held>() + size_of::<(LogPos, GroupId)>();

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

    fn host(&self) -> Option<Rc<dyn FlushHost>> {
        self.host.borrow().as_ref().and_then(Weak::upgrade)
    }

    /// Yields between two turns of long work.
    pub async fn give_way(&self) {
        match self.host() {
            Some(host) => host.give_way().await,
            None => yield_now().await,
        }
    }

    /// Pauses after a large write that is not synced, as long as the ring is less than half full. The ring's next
    /// sync has to wait until the disk has written all of it, so the flusher must not write too much at once.
    pub async fn breathe(&self) {
        let space = self.journal.space();
        if let Some(host) = self.host().filter(|_| space.used < space.capacity / 2) {
            host.breathe().await;
        }
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

    /// Returns `error`, or [`ReadError::Changed`] if its segment is no longer the log's, or was cut.
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

    /// Keeps the bytes that a scan has read beyond `position`, for the reader that continues there.
    pub fn keep_ahead(&self, id: SegmentId, next: Next, position: u64, scanner: &Scanner<D::File>) {
        let (buffer, buffer_start) = (scanner.buffer.clone(), scanner.buffer_start);
        let cost = buffer.len() as u64;
        // The buffer begins at the next frame, whose header was read already. Only padding lies before it, and
        // continuing there would read the buffer's bytes again.
        let position = position.max(buffer_start);
        let ahead = Ahead { id, position, buffer, buffer_start, coming: None };
        self.ahead.borrow_mut().insert((id.group, next), ahead, cost);
    }

    /// The bytes kept for the reader that continues at `next`, if they are from this segment.
    pub fn ahead_of(&self, id: SegmentId, next: Next) -> Option<Ahead> {
        self.ahead.borrow_mut().get(&(id.group, next)).filter(|ahead| ahead.id == id)
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
        let mut file_times = self.file_times.borrow_mut();
        let of_group = SegmentId { group, serial: 0 }..=SegmentId { group, serial: u64::MAX };
        let times: Vec<_> = file_times.range(of_group).map(|(id, _)| *id).collect();
        for id in times {
            file_times.remove(&id);
        }
        self.indexes.borrow_mut().remove_where(|id| id.group == group);
        self.ahead.borrow_mut().remove_where(|(of, _)| *of == group);
    }

    /// Whether the snapshot group's entries hold so much of the ring that a snapshot is needed to free it.
    pub fn wants_snapshot(&self) -> bool {
        let state = self.state.borrow();
        let log = self.config.snapshot_group.and_then(|group| state.groups.get(&group));
        let held_from = log.and_then(|log| log.needs_ring_from());
        held_from.is_some_and(|from| self.journal.staged().0 - from.0 >= self.config.flush_trigger_bytes)
    }

    /// Asserts the invariants of every log.
    pub fn check(&self) {
        let durable = self.journal.durable();
        for log in self.state.borrow().groups.values() {
            log.check(durable);
        }
    }

    pub fn count(&self, change: impl FnOnce(&mut StoreStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// How much memory more batches may take, if `wanted` bytes of them are to come. Flushed entries are evicted to
    /// make room. [`u64::MAX`] while no more than a quarter of the memory is in use: a batch that is larger than all
    /// of it must fit some time.
    ///
    /// Each entry frees at least its own cost, so one call frees `wanted` bytes, if that many are flushed.
    pub fn memory_left(&self, wanted: usize) -> u64 {
        let StoreConfig { cache_bytes, memory_bytes, .. } = self.config;
        let (end, free_for_any) = (self.journal.staged(), memory_bytes / FREE_FOR_ANY);
        let kept = memory_bytes.saturating_sub(wanted as u64).max(free_for_any);
        let mut state = self.state.borrow_mut();
        state.evict(end, kept.min(cache_bytes), EVICTED_AT_ONCE + wanted / CACHED_ENTRY_COST);
        match state.cache_cost(end) {
            cost if cost <= free_for_any => u64::MAX,
            cost => memory_bytes.saturating_sub(cost),
        }
    }

    /// Requests a flush unless one is pending or there is nothing to flush. For callers that found no room: the flush
    /// wakes those that wait.
    pub fn flush_for_room(&self) {
        let state = self.state.borrow();
        let helps = state.asked == state.done && self.journal.staged() > state.cut;
        drop(state);
        if helps {
            self.ask_flush();
        }
    }

    /// Whether enough was staged since the last flush that another is due.
    pub fn flush_due(&self) -> bool {
        let state = self.state.borrow();
        state.asked == state.done
            && self.journal.staged().0.saturating_sub(state.cut.0) >= self.config.flush_trigger_bytes
    }

    /// Requests a flush if one is due.
    pub fn flush_if_due(&self) {
        if self.flush_due() {
            self.ask_flush();
        }
    }
}
