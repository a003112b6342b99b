//! What the store's callers say and hear: sizes, places, states, refusals.
//! Lives on: the owning core; plain values.

use crate::{
    log::terms::TermRun,
    record::{Entry, GroupId, HardState},
    ring::{Payload, RingConfig},
};
use bytes::Bytes;
use std::{io, path::PathBuf, pin::Pin};

/// Sizes and bounds of one core's store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The ring's total size in bytes.
    pub ring_bytes: u64,
    /// The largest sum of an entry's data and payload that the ring is to take: its segments are as large as that needs.
    pub entry_bytes: usize,
    /// The ring's exact sizes, if they are not to follow from `ring_bytes`.
    pub ring: Option<RingConfig>,
    /// A flush starts when this much of the ring is in use. 0 means a quarter of the ring.
    pub flush_trigger_bytes: u64,
    /// Memory for batches that are already in segments, kept for tailing consumers; counted by the ring memory they pin.
    /// When it is full, the oldest batches of the core are let go, and reads of them become cold.
    pub cache_bytes: u64,
    /// Memory for all batches that are not let go, flushed or not: while there is more, [`Store::admit`](crate::store::Store::admit) lets
    /// appends wait. What is recovered counts, too, but is never refused.
    pub memory_bytes: u64,
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
    /// Entries that a flush takes, writes or lets go of before others of the core have their turn.
    pub flush_turn_entries: usize,
    /// Groups that a checkpoint takes down before others of the core have their turn.
    pub checkpoint_turn_groups: usize,
    /// The group that keeps no segments: its entries count as flushed once a snapshot covers them.
    pub snapshot_group: Option<GroupId>,
    /// Bytes of that group's entries that a checkpoint carries itself, so that they do not hold the ring while they are not decided.
    /// Those beyond do, until a snapshot covers what comes before them.
    pub kept_bytes: usize,
    /// Bytes of other groups' last batches that a checkpoint carries itself, so that a flush need not write and sync a file for each of
    /// many groups with little that is new. So much is written once more with each checkpoint, and held in memory; as much is kept free on
    /// the disk once it is used. 0: none.
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

/// An entry's place in its log, and the offset behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMark {
    pub index: u64,
    pub term: u64,
    pub offset: u64,
}

/// The caller's own state of a group as of an applied index; opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppState {
    /// All entries up to this index are in `blob` (and in the log start).
    pub index: u64,
    pub blob: Bytes,
    pub conf_state: Bytes,
}

/// What [`Store::open`](crate::store::Store::open) found of one group.
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
    /// Durable when [`Store::durable`](crate::store::Store::durable) has reached this.
    pub pos: LogPos,
    /// The payload in the ring's memory.
    pub payload: Option<Payload>,
}

/// Nothing leaves this core any more; a restart recovers. The text says what failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store stopped: {0}")]
pub struct Poisoned(pub String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The ring has no room even in its reserve; [`Store::admit`](crate::store::Store::admit) was not asked.
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
    /// The ring is down to its reserve: await [`Store::space_freed`](crate::store::Store::space_freed), or answer with a retriable error.
    Wait,
    /// The entry is above [`Store::entry_bytes_max`](crate::store::Store::entry_bytes_max): this ring never has room for it.
    TooLarge,
}

/// What the flusher asks of the engine.
pub trait FlushHost {
    /// Wall-clock time in ms since the epoch.
    fn wall_ms(&self) -> i64;
    /// The group's state as of some applied index, cut in one synchronous step; `None` keeps the one checkpointed before.
    /// All entries up to that index must have been reported durable.
    fn app_state(&self, group: GroupId) -> Option<AppState>;
    /// The disk is full: returns after a pause that grows with `attempt` (from 1).
    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>>;
    /// Between two turns of long work: returns once all else that can go on has gone on.
    fn give_way(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(crate::signal::yield_now())
    }
    /// Between two large writes of a flush that is in no hurry: returns after a pause in which the disk can make the first durable.
    fn breathe(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
    /// A flush could not go on, and will be tried again after [`FlushHost::back_off`].
    fn flush_failed(&self, why: &str);
    /// A flush got to its end.
    fn flushed(&self) {}
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
    /// Writes of the ring, each with its sync.
    pub ring_writes: u64,
    /// Pieces of memory that the ring took to stage writes in, and those for which none was at hand.
    pub ring_chunks: u64,
    pub ring_cold_chunks: u64,
    pub flushes: u64,
    pub flushed_bytes: u64,
    /// Writes of segments that ended with a sync.
    pub flushed_files: u64,
    /// What the next checkpoint carries of the groups' last batches.
    pub carried_bytes: u64,
    pub flush_failures: u64,
    pub checkpoints: u64,
    pub cold_reads: u64,
    pub cold_read_bytes: u64,
    pub cached_bytes: u64,
    pub ring_used_bytes: u64,
    pub ring_bytes: u64,
    pub open_files: usize,
}
