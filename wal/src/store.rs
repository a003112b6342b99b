//! One core's storage as one thing that recovers: the ring, every partition's log, the checkpoint and the snapshots.
//! Lives on: the owning core only (`Rc`, not `Send`). Talks to: `journal` above it in time, `log` and `checkpoint` below.
//!
//! A batch goes to the ring and, as the ring's own memory, to its partition's tail; the flusher later writes what is
//! durable to segment files, checkpoints, and only then lets the ring recycle its space.
//!
//! Invariants, per partition: start <= flushed <= stable <= end. What the ring has given back is in a synced segment (or
//! snapshot) that a durable checkpoint names.

use crate::{
    disk::Disk,
    log::{LogOptions, LogView},
    log_read::{Batch, Read, ReadError},
    record::{Entry, GroupId, HardState},
};
use bytes::Bytes;
use std::{io, marker::PhantomData, path::PathBuf, pin::Pin, rc::Rc};

/// Sizes and bounds of one core's store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The ring's total size in bytes.
    pub ring_bytes: u64,
    /// A flush starts when this much of the ring is in use. 0 means a quarter of the ring.
    pub flush_trigger_bytes: u64,
    /// Memory for batches that are already in segments, kept for tailing consumers; counted by the ring memory they pin.
    /// When it is full, the oldest batches of the core are let go, and reads of them become cold.
    pub cache_bytes: u64,
    /// Memory for what cold reads have read ahead. When it is full, the least recently used buffer is let go.
    pub read_ahead_bytes: u64,
    /// Open descriptors of segments. When that many are open, the least recently used one is closed.
    pub open_files_max: usize,
    /// Groups whose files are written and synced side by side in a flush.
    pub flush_in_flight: usize,
    /// The group that keeps no segments: its entries count as flushed once a snapshot covers them.
    pub snapshot_group: Option<GroupId>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 256 << 20,
            flush_trigger_bytes: 0,
            cache_bytes: 128 << 20,
            read_ahead_bytes: 32 << 20,
            open_files_max: 4096,
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

/// A maximal run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    pub first_index: u64,
    pub term: u64,
    /// The offset at which the run begins (KIP-101's start offset of the leader epoch).
    pub base_offset: u64,
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
    pub end: LogPos,
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
    shared: Rc<PhantomData<D>>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

#[allow(unused_variables)]
impl<D: Disk> Store<D> {
    /// Recovers the store, or creates it: checkpoint, then the ring in order. Groups come in ascending order.
    pub async fn open(
        disk: D,
        dirs: &StoreDirs,
        epoch: u64,
        config: StoreConfig,
    ) -> Result<(Self, Vec<RecoveredGroup>, RecoveryReport), OpenError> {
        unimplemented!()
    }

    /// A new, empty group whose first entry has index 1 and whose first offset is 0. Volatile until its first record or the
    /// next checkpoint. Panics if it exists.
    pub fn create_group(&self, group: GroupId, options: LogOptions) {
        unimplemented!()
    }

    /// Other options for a group that exists (recovered ones have the default until told otherwise).
    pub fn set_options(&self, group: GroupId, options: LogOptions) {
        unimplemented!()
    }

    /// Forgets the group at once and for good: a ring record says so, its files go with a later flush. The group is certainly
    /// gone once the returned position is durable; its id is never used again.
    pub fn remove_group(&self, group: GroupId) -> Result<LogPos, AppendError> {
        unimplemented!()
    }

    /// Stages the next entry (index = last + 1, base offset = next offset) with its hard state: copies the payload into the ring's memory,
    /// from where it is also read from now on.
    pub fn append(&self, group: GroupId, hard_state: HardState, entry: &Entry) -> Result<Staged, AppendError> {
        unimplemented!()
    }

    /// Stages a hard state without an entry.
    pub fn append_hard_state(&self, group: GroupId, hard_state: HardState) -> Result<Staged, AppendError> {
        unimplemented!()
    }

    /// Drops the entries at and above `from_index`, whose first offset is `from_offset`. Segments are cut once the ring record is synced.
    pub fn truncate(
        &self,
        group: GroupId,
        hard_state: HardState,
        from_index: u64,
        from_offset: u64,
    ) -> Result<Staged, AppendError> {
        unimplemented!()
    }

    /// Everything staged before this position is durable.
    pub fn durable(&self) -> LogPos {
        unimplemented!()
    }

    /// Waits until [`Store::durable`] is above `past`; returns it.
    pub async fn durable_past(&self, past: LogPos) -> Result<LogPos, Poisoned> {
        unimplemented!()
    }

    /// Why nothing is acked any more, if so.
    pub fn poisoned(&self) -> Option<Poisoned> {
        unimplemented!()
    }

    /// Whether `bytes` more of payload may be proposed.
    pub fn admit(&self, bytes: usize) -> Admission {
        unimplemented!()
    }

    /// Waits until the ring has given back space since the call.
    pub async fn space_freed(&self) {
        unimplemented!()
    }

    /// Writes the ring; spawn it before anything is awaited. Ends after [`Store::close_clean`] or when poisoned.
    pub async fn run_journal(&self) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// Flushes whenever the ring asks for it; spawn it. Ends like [`Store::run_journal`].
    pub async fn run_flusher(&self, host: Rc<dyn FlushHost>) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// Flushes and checkpoints all that is durable at the call. Needs the two loops running.
    pub async fn flush_now(&self) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// Flushes and checkpoints everything staged, marks the ring clean and ends the two loops. No append may follow.
    pub async fn close_clean(&self) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// The ids of all groups, ascending.
    pub fn groups(&self) -> Vec<GroupId> {
        unimplemented!()
    }

    /// The group's offsets; `None` if there is no such group.
    pub fn log(&self, group: GroupId) -> Option<LogView> {
        unimplemented!()
    }

    /// Whole batches from the one that holds `from_offset` on, below `below_offset` (the high watermark), up to `max_bytes`; with
    /// `at_least_one`, the first batch comes whatever its size.
    pub fn read(
        &self,
        group: GroupId,
        from_offset: u64,
        below_offset: u64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Read {
        unimplemented!()
    }

    /// The first batch below `below_offset` whose largest timestamp is at least `timestamp`.
    pub async fn find_timestamp(
        &self,
        group: GroupId,
        timestamp: i64,
        below_offset: u64,
    ) -> Result<Option<Batch>, ReadError> {
        unimplemented!()
    }

    /// Moves the log start up; never back. Whole segments below it go with a later flush.
    pub fn set_log_start(&self, group: GroupId, offset: u64) {
        unimplemented!()
    }

    /// The log start that retention asks for, if it is above the present one: at a segment's end, at most `below_offset` (the
    /// high watermark). `None` for a limit means no limit.
    pub fn retention(
        &self,
        group: GroupId,
        now_ms: i64,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        below_offset: u64,
    ) -> Option<u64> {
        unimplemented!()
    }

    /// Makes a snapshot of the snapshot group durable; its entries up to `app.index` count as flushed from then on.
    pub async fn write_snapshot(&self, group: GroupId, term: u64, app: AppState) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// Resolves when the snapshot group's entries hold more of the ring than a flush may leave.
    pub async fn snapshot_wanted(&self) -> Result<(), Poisoned> {
        unimplemented!()
    }

    /// For the metrics page.
    pub fn stats(&self) -> StoreStats {
        unimplemented!()
    }
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
