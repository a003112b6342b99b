//! The public values of the store: sizes, directories, states, errors.
//! Lives on: the owning core; plain values.

pub use crate::{
    errors::{AppendError, OpenError, Poisoned},
    log::AppState,
    record::{LogMark, LogPos},
    ring::{Admission, Staged},
};
use crate::{record::Entry, ring::RingConfig};
use std::{io, path::PathBuf, pin::Pin};
use types::{GroupId, HardState, RaftIndex, Term, TermRun};

/// Sizes and bounds of one core's store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The ring's total size in bytes.
    pub ring_bytes: u64,
    /// The largest sum of an entry's data and payload that the ring must accept. Its segments are as large as that
    /// needs.
    pub entry_bytes: usize,
    /// The ring's exact sizes, instead of sizes derived from `ring_bytes`.
    pub ring: Option<RingConfig>,
    /// A flush starts when this much of the ring is in use. 0 means a quarter of the ring.
    pub flush_trigger_bytes: u64,
    /// Memory for batches that are already in segments, kept for tailing consumers. It counts the ring memory that
    /// they pin. When it is full, the core's oldest batches are evicted, and reads of them become cold.
    pub cache_bytes: u64,
    /// Memory for all batches that are not evicted, flushed or not. [`Store::admit`](crate::store::Store::admit) evicts
    /// flushed ones for a batch that would exceed it, and then makes the append wait. A batch of any size is admitted
    /// while the others take no more than a quarter. Recovered batches count too, but are never rejected.
    pub memory_bytes: u64,
    /// Memory for read-ahead of cold reads. When it is full, the least recently used buffer is evicted.
    pub read_ahead_bytes: u64,
    /// Memory for sparse indexes. When it is full, the least recently used one is evicted, and is later read or
    /// rebuilt.
    pub index_bytes: u64,
    /// The most open descriptors of segments. At this limit, the least recently used one is closed.
    pub open_files_max: usize,
    /// Bytes per write of a flush.
    pub flush_write_bytes: usize,
    /// How many groups a flush writes and syncs concurrently. Each has one write or sync in flight.
    pub flush_in_flight: usize,
    /// How many entries a flush takes, writes or evicts before it yields to other tasks of the core.
    pub flush_turn_entries: usize,
    /// How many groups a checkpoint encodes before it yields to other tasks of the core.
    pub checkpoint_turn_groups: usize,
    /// The group without segments: its entries count as flushed once a snapshot covers them.
    pub snapshot_group: Option<GroupId>,
    /// How many bytes of that group's entries a checkpoint carries itself, so that they do not hold the ring while
    /// they are undecided. Entries beyond this hold the ring until a snapshot covers the entries before them.
    pub kept_bytes: usize,
    /// How many bytes of other groups' last batches a checkpoint carries itself. A flush then need not write and sync
    /// a file for each of many groups with few new bytes. These bytes are written again with each checkpoint and held
    /// in memory. The same amount is kept free on the disk once it is used. 0: none.
    pub carried_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 256 << 20,
            entry_bytes: 0,
            ring: None,
            flush_trigger_bytes: 0,
            cache_bytes: 128 << 20,
            memory_bytes: u64::MAX,
            read_ahead_bytes: 32 << 20,
            index_bytes: 64 << 20,
            open_files_max: 4096,
            flush_write_bytes: 1 << 20,
            flush_in_flight: 4,
            flush_turn_entries: 128,
            checkpoint_turn_groups: 128,
            snapshot_group: Some(GroupId(0)),
            kept_bytes: 1 << 20,
            carried_bytes: 16 << 20,
        }
    }
}

impl From<&StoreConfig> for RingConfig {
    fn from(config: &StoreConfig) -> Self {
        config.ring.unwrap_or_else(|| RingConfig::of_bytes_for(config.ring_bytes, config.entry_bytes))
    }
}

/// The directories of one core's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDirs {
    /// The data directory itself. It must exist.
    pub data: PathBuf,
    /// Ring and checkpoint: `<data>/epoch-<n>/core-<c>`.
    pub core: PathBuf,
    /// `<data>/logs`: one directory per partition, on any core.
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

/// The state of one group that [`Store::open`](crate::store::Store::open) found.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    pub id: GroupId,
    /// Its commit is at least `app.index` and at most the last index.
    pub hard_state: HardState,
    /// Entries up to here are in segments (or in the snapshot, for the snapshot group).
    pub flushed_index: RaftIndex,
    pub flushed_term: Term,
    /// The first index that is still in the log, or one past the last if the log is empty; and the term before it.
    pub first_index: RaftIndex,
    pub first_prev_term: Term,
    /// Covers `first_index ..= last index`, ascending.
    pub terms: Vec<TermRun>,
    /// The entries above min(`flushed_index`, `app.index`), in order, without gaps. They include all entries to be
    /// applied again.
    pub tail: Vec<Entry>,
    /// For the snapshot group, `blob` is the newest snapshot.
    pub app: AppState,
    pub log_start: u64,
    pub next_offset: u64,
}

/// The outcome of recovery, for the log and the banner.
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

/// The services that the flusher needs from the engine.
pub trait FlushHost {
    /// Wall-clock time in ms since the epoch.
    fn wall_ms(&self) -> i64;
    /// The group's state as of some applied index, captured in one synchronous step. `None` keeps the state that was
    /// checkpointed before. All entries up to that index must have been reported durable.
    fn app_state(&self, group: GroupId) -> Option<AppState>;
    /// Called when the disk is full. Returns after a pause that grows with `attempt` (from 1).
    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>>;
    /// Yields between two turns of long work. Returns once all other ready tasks have run.
    fn give_way(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(runtime::yield_now())
    }
    /// Called between two large writes of a flush that is not urgent. Returns after a pause in which the disk can
    /// make the first write durable.
    fn breathe(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
    /// A flush failed. The flusher retries it after [`FlushHost::back_off`].
    fn flush_failed(&self, why: &str);
    /// A flush completed.
    fn flushed(&self) {}
}

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk is full. Free some space and retry; the old snapshot stays.
    #[error("{what}: {source}")]
    Full { what: String, source: io::Error },
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Counters since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Writes of the ring, each with its sync.
    pub ring_writes: u64,
    /// Chunks of memory that the ring took to stage writes, and how many of them found none in the pool.
    pub ring_chunks: u64,
    pub ring_cold_chunks: u64,
    pub flushes: u64,
    pub flushed_bytes: u64,
    /// Writes of segments that ended with a sync.
    pub flushed_files: u64,
    /// Bytes of the groups' last batches that the next checkpoint carries.
    pub carried_bytes: u64,
    pub flush_failures: u64,
    /// Files that are no longer needed and that could not be removed the last time.
    pub unremoved_files: u64,
    pub checkpoints: u64,
    pub cold_reads: u64,
    pub cold_read_bytes: u64,
    pub cached_bytes: u64,
    pub ring_used_bytes: u64,
    pub ring_bytes: u64,
    pub open_files: usize,
}
