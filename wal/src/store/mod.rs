//! One core's storage, which recovers as a unit: the ring, every partition's log, the checkpoint and the snapshots.
//! Lives on: the owning core only (`Rc`, not `Send`). A batch passes `ring::journal` first; [`log`](crate::log) and
//! [`checkpoint`](crate::checkpoint) follow.
//!
//! The store writes a batch to the ring and adds it, as the ring's own memory, to its partition's tail. Later the
//! flusher writes durable batches to segment files and writes a checkpoint. Only then may the ring recycle their
//! space.
//!
//! Invariants: in each partition's [`LogView`], start <= flushed <= stable <= end. Everything that the ring has
//! released is in a synced segment (or snapshot) that a durable checkpoint names, or in the checkpoint itself.

mod ahead;
pub(crate) mod app_state;
pub(crate) mod checkpoint;
mod cuts;
pub(crate) mod entries;
pub(crate) mod flush;
pub(crate) mod interface;
mod kept;
pub mod read;
pub(crate) mod recovery;
pub(crate) mod reserve;
pub mod snapshot;
pub(crate) mod state;

pub use crate::store::{entries::Entries, interface::*};
use crate::{
    checkpoint::RemovedGroup,
    disk::{Disk, File},
    log::{FromMemory, Log, LogOptions, LogView},
    record::Entry,
    segment::{Segment, format::SegmentId},
    store::{
        read::{Batch, Read, ReadError, find_timestamp, read_cold},
        state::{Removed, Shared},
    },
};
use bytes::Bytes;
use std::{io, ops::Range, path::PathBuf, rc::Rc};
use types::{GroupId, HardState, RaftIndex, Term};

/// One core's store. Clones are handles to the same store.
pub struct Store<D: Disk> {
    pub(crate) shared: Rc<Shared<D>>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// How many entries an append evicts from memory at most. This is more than it adds, so any excess soon disappears.
const EVICTED_AN_APPEND: usize = 16;

impl<D: Disk> Store<D> {
    /// Recovers the store, or creates it: reads the checkpoint, then the ring in order. The groups are in ascending
    /// order.
    pub async fn open(
        disk: D,
        dirs: &StoreDirs,
        epoch: u64,
        config: StoreConfig,
    ) -> Result<(Self, Vec<RecoveredGroup>, RecoveryReport), OpenError> {
        crate::store::recovery::open(disk, dirs, epoch, config).await
    }

    /// Creates an empty group whose first entry has index 1 and whose first offset is 0. The group is volatile until
    /// its first record or the next checkpoint is durable. Panics if it exists, or [was removed](Store::was_removed).
    pub fn create_group(&self, group: GroupId, options: LogOptions) {
        assert!(!self.was_removed(group), "group {} was removed", group.0);
        let mut state = self.shared.state.borrow_mut();
        let by_snapshot = self.shared.config.snapshot_group == Some(group);
        let before = state.groups.insert(group, Box::new(Log::new(group, options, by_snapshot)));
        assert!(before.is_none(), "group {} exists already", group.0);
    }

    /// Sets the options of an existing group. Recovered groups have the default options until then.
    pub fn set_options(&self, group: GroupId, options: LogOptions) {
        self.shared.state.borrow_mut().log(group).options = options;
    }

    /// Removes the group at once and for good. A ring record notes the removal, and a later flush removes its files.
    /// The removal is certain once the returned position is durable. The id must never be reused.
    pub fn remove_group(&self, group: GroupId) -> Result<LogPos, AppendError> {
        let shared = &self.shared;
        assert!(shared.state.borrow().groups.contains_key(&group), "there is no group {}", group.0);
        let at = shared.journal.remove_group(group)?;
        let mut state = shared.state.borrow_mut();
        state.uncount_carried(group);
        state.groups.remove(&group);
        state.removed.insert(group, Removed { group: RemovedGroup { id: group, at }, files_gone: false });
        drop(state);
        shared.forget_files(group);
        shared.ask_flush();
        Ok(at)
    }

    /// Whether the group was removed and is still remembered. A caller that replays the group's creation can find it
    /// removed already. Its id is never reused, so it may not be created again.
    pub fn was_removed(&self, group: GroupId) -> bool {
        self.shared.state.borrow().removed.contains_key(&group)
    }

    /// Stages the next entry (index = last + 1, base offset = next offset) with its hard state. Copies the payload
    /// into the ring's memory, from which it is also read from now on.
    pub fn append(&self, group: GroupId, hard_state: HardState, entry: &Entry) -> Result<Staged, AppendError> {
        self.append_with_head(group, hard_state, entry, &[])
    }

    /// Like [`Store::append`], but `head` replaces the first bytes of the payload. A caller that must change these
    /// bytes need not copy the payload first.
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
        assert_eq!(entry.index, log.end.index.next(), "group {}: entries come without holes", group.0);
        let start = shared.journal.staged();
        let staged = shared.journal.append_with_head(group, hard_state, entry, head)?;
        let crc = staged.payload.as_ref().map_or(0, |payload| payload.crc);
        let payload = entry
            .payload
            .as_ref()
            .map(|(span, _)| (*span, staged.payload.clone().expect("a staged payload is in the ring's memory").bytes));
        log.hard_state = hard_state;
        log.append(Entry { payload, ..entry.clone() }, crc, start, staged.pos);
        if !log.by_snapshot {
            state.cache.push_back((staged.pos, group));
        }
        state.mark_dirty(group);
        state.evict(staged.pos, shared.config.cache_bytes, EVICTED_AN_APPEND);
        drop(state);
        shared.flush_if_due();
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
        drop(state);
        // Endless elections fill the ring just as batches do.
        self.shared.flush_if_due();
        Ok(staged)
    }

    /// Drops the entries at and above `from_index`, whose first offset is `from_offset`. The flusher cuts the
    /// segments once the ring record is synced.
    pub fn truncate(
        &self,
        group: GroupId,
        hard_state: HardState,
        from_index: RaftIndex,
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
        drop(state);
        self.shared.flush_if_due();
        Ok(staged)
    }

    /// Everything staged at or before this position is durable.
    pub fn durable(&self) -> LogPos {
        self.shared.journal.durable()
    }

    /// The end of what was staged. Nothing staged later begins below it.
    pub fn staged(&self) -> LogPos {
        self.shared.journal.staged()
    }

    /// Waits until [`Store::durable`] is above `past`, then returns it.
    pub async fn durable_past(&self, past: LogPos) -> Result<LogPos, Poisoned> {
        self.shared.journal.durable_past(past).await
    }

    /// Why nothing is acknowledged any more; `None` while the store works.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.shared.poisoned()
    }

    /// Whether `bytes` more of payload may be proposed. Flushed entries leave the memory if that makes room.
    pub fn admit(&self, bytes: usize) -> Admission {
        let admission = match self.shared.journal.admit(bytes) {
            Admission::Ok if self.shared.memory_left(bytes) < bytes as u64 && self.poisoned().is_none() => {
                Admission::Wait
            }
            admission => admission,
        };
        if admission == Admission::Wait {
            self.shared.flush_for_room();
        }
        admission
    }

    /// How many entries of the snapshot group, with these bytes of data and in this order, may be staged now. They may
    /// use half of the reserve that [`Store::admit`] keeps. The other half is for hard states and truncations, which
    /// cannot be rejected.
    pub fn takes_to_reserve(&self, sizes: &[usize]) -> usize {
        let journal = &self.shared.journal;
        let takes = journal.takes(sizes, journal.space().reserve / 2);
        if takes < sizes.len() {
            self.shared.flush_for_room();
        }
        takes
    }

    /// Sets how much room, besides the reserve, is kept for an entry of the snapshot group that waits. Otherwise other
    /// entries would take all room as it is freed. 0: none waits.
    pub fn claim(&self, bytes: usize) {
        self.shared.journal.claim(bytes);
    }

    /// How many bytes of entries of any size may be staged without touching the reserve, if `wanted` bytes of them are
    /// to come. It is half of the free space, since writes end at block boundaries and entries do not straddle the
    /// ring's segments. It is also limited by the memory left. Flushed entries leave the memory if that makes room. If
    /// less than `wanted` is left, a flush is requested.
    pub fn room(&self, wanted: usize) -> usize {
        let space = self.shared.journal.space();
        let kept = space.reserve + space.claimed;
        let in_ring = usize::try_from(space.free.saturating_sub(kept) / 2).unwrap_or(usize::MAX);
        let in_memory = self.shared.memory_left(wanted.min(in_ring));
        let room = in_ring.min(usize::try_from(in_memory).unwrap_or(usize::MAX));
        if room < wanted {
            self.shared.flush_for_room();
        }
        room
    }

    /// The largest sum of an entry's data and payload that the ring can hold.
    pub fn entry_bytes_max(&self) -> usize {
        self.shared.journal.entry_bytes_max()
    }

    /// Waits until the ring or a flush frees space after the call.
    pub async fn space_freed(&self) {
        self.shared.journal.space_freed().await
    }

    /// Writes the ring. Spawn it before anything is awaited. Ends after [`Store::close_clean`] or when poisoned.
    pub async fn run_journal(&self) -> Result<(), Poisoned> {
        let ended = self.shared.journal.run().await;
        if let Err(poisoned) = &ended {
            self.shared.poison(poisoned.0.clone());
        }
        ended
    }

    /// The memory that the ring will need soon, see
    /// [`Journal::memory_wanted`](crate::ring::journal::Journal::memory_wanted).
    pub async fn memory_wanted(&self) -> usize {
        self.shared.journal.memory_wanted().await
    }

    /// Flushes on request; spawn it. Ends like [`Store::run_journal`].
    pub async fn run_flusher(&self, host: Rc<dyn FlushHost>) -> Result<(), Poisoned> {
        *self.shared.host.borrow_mut() = Some(Rc::downgrade(&host));
        crate::store::flush::run(&self.shared, &*host).await
    }

    /// Flushes and checkpoints everything that is durable at the call. The two loops must be running.
    pub async fn flush_now(&self) -> Result<(), Poisoned> {
        let asked = self.shared.ask_flush();
        loop {
            let seen = self.shared.rounds.version();
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

    /// The group's marks. `None` if there is no such group.
    pub fn log(&self, group: GroupId) -> Option<LogView> {
        let durable = self.durable();
        self.shared.state.borrow().groups.get(&group).map(|log| log.view(durable))
    }

    /// The offset at which the group's log begins; 0 if there is no such group.
    pub fn log_start(&self, group: GroupId) -> u64 {
        self.shared.state.borrow().groups.get(&group).map_or(0, |log| log.log_start)
    }

    /// Whole batches from the one that holds `from_offset` on, below `below_offset` (the high watermark), up to
    /// `max_bytes`. With `at_least_one`, the first batch is returned whatever its size.
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

    /// Entries from `from_index` on and below `below_index`, including entries without a batch. Returns as many as
    /// `bytes_max` of data and batches allow, but at least one. Segments may return fewer than fit, so the caller
    /// asks again.
    pub fn entries(&self, group: GroupId, from_index: RaftIndex, below_index: RaftIndex, bytes_max: usize) -> Entries {
        crate::store::entries::entries(&self.shared, group, from_index, below_index, bytes_max)
    }

    /// Bytes of the newest batches that are kept in memory once they are flushed.
    pub fn cache_bytes(&self) -> u64 {
        self.shared.config.cache_bytes
    }

    /// The batch of an entry, if it is in memory.
    pub fn payload(&self, group: GroupId, index: RaftIndex) -> Option<Bytes> {
        self.shared.state.borrow().groups.get(&group)?.payload(index)
    }

    /// The first batch with a record in `offsets` whose largest timestamp is at least `timestamp`, from 0 on. It must
    /// end within `offsets`.
    pub async fn find_timestamp(
        &self,
        group: GroupId,
        timestamp: i64,
        offsets: Range<u64>,
    ) -> Result<Option<Batch>, ReadError> {
        find_timestamp(self.shared.clone(), group, timestamp, offsets).await
    }

    /// Raises the log start, at most to the stable offset; it never goes back. A later flush removes the whole
    /// segments below it.
    pub fn set_log_start(&self, group: GroupId, offset: u64) {
        let durable = self.durable();
        let mut state = self.shared.state.borrow_mut();
        let log = state.log(group);
        if offset <= log.log_start {
            return;
        }
        assert!(offset <= log.stable(durable).offset, "group {}: only durable entries are trimmed", group.0);
        log.log_start = offset;
        let trims = log.can_trim();
        drop(state);
        if trims {
            self.shared.ask_flush();
        }
    }

    /// Whether [`Store::learn_file_times`] would help retention by time.
    pub fn needs_file_times(&self, group: GroupId, now_ms: i64) -> bool {
        let (state, times) = (self.shared.state.borrow(), self.shared.file_times.borrow());
        let unknown = |serial| !times.contains_key(&SegmentId { group, serial });
        let log = state.groups.get(&group);
        log.is_some_and(|log| log.segments_of_unknown_age(now_ms).any(|segment| unknown(segment.serial)))
    }

    /// Asks the disk when segments were last written, for those whose timestamps do not give their age.
    pub async fn learn_file_times(&self, group: GroupId, now_ms: i64) -> io::Result<()> {
        let segments: Vec<_> = {
            let (state, times) = (self.shared.state.borrow(), self.shared.file_times.borrow());
            let Some(log) = state.groups.get(&group) else { return Ok(()) };
            let segments = log.segments_of_unknown_age(now_ms).map(|segment| (segment.serial, segment.base_offset));
            segments.filter(|(serial, _)| !times.contains_key(&SegmentId { group, serial: *serial })).collect()
        };
        for (serial, base_offset) in segments {
            let id = SegmentId { group, serial };
            let modified_ms = self.shared.files.open(id, base_offset).await?.modified_ms().await?;
            let state = self.shared.state.borrow();
            // The segment may have gone meanwhile.
            if state.groups.get(&group).is_some_and(|log| log.segments.iter().any(|segment| segment.serial == serial)) {
                self.shared.file_times.borrow_mut().insert(id, modified_ms);
            }
        }
        Ok(())
    }

    /// The log start that retention asks for, if it is above the current one. It lies at a segment's end, at most at
    /// `below_offset` (the high watermark). `None` for a limit means no limit. Requests a flush if that could help
    /// the next call.
    pub fn retention(
        &self,
        group: GroupId,
        now_ms: i64,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        below_offset: u64,
    ) -> Option<u64> {
        let mut state = self.shared.state.borrow_mut();
        let idle = state.asked == state.done;
        let log = state.groups.get_mut(&group)?;
        let times = self.shared.file_times.borrow();
        let file_time = |serial| times.get(&SegmentId { group, serial }).copied();
        let start = log.retention(now_ms, retention_ms, retention_bytes, below_offset, file_time);
        drop(times);
        // Batches that are only in memory, the ring and checkpoints are in no segment yet that retention could
        // remove.
        if idle && log.retention_waits_for_flush(now_ms, retention_ms, retention_bytes) {
            log.flush_wanted = true;
            state.mark_dirty(group);
            drop(state);
            self.shared.ask_flush();
        }
        start
    }

    /// Makes a snapshot of the snapshot group durable. Its entries up to `app.index` count as flushed from then on. A
    /// snapshot that is not newer than the last is ignored. A full disk is an error here; the old snapshot stays.
    pub async fn write_snapshot(&self, group: GroupId, term: Term, app: AppState) -> Result<(), SnapshotError> {
        crate::store::snapshot::write(&self.shared, group, term, app).await
    }

    /// Makes a snapshot from elsewhere durable, beside the group's own data. It counts once it is installed; until
    /// then, a restart removes it.
    pub async fn stage_snapshot(&self, group: GroupId, term: Term, app: &AppState) -> Result<(), SnapshotError> {
        crate::store::snapshot::stage(&self.shared, group, term, app).await
    }

    /// Restarts the snapshot group's log behind a staged snapshot, in one step. The old log is dropped, and the next
    /// entry has the index behind the snapshot's. A crash before the returned position is durable leaves the old log
    /// or the new.
    pub fn install_snapshot(
        &self,
        group: GroupId,
        hard_state: HardState,
        term: Term,
        app: AppState,
    ) -> Result<LogPos, AppendError> {
        crate::store::snapshot::install(&self.shared, group, hard_state, term, app)
    }

    /// Restarts a group's log, empty, behind the entry `at`. The old log is dropped, and the next entry has the index
    /// and the offset behind it. `app` is the state as of that entry. A crash before the returned position is durable
    /// leaves the old log or the new. A later flush removes the files. Not for the snapshot group.
    pub fn restart_log(
        &self,
        group: GroupId,
        hard_state: HardState,
        at: LogMark,
        app: AppState,
    ) -> Result<LogPos, AppendError> {
        assert!(app.index == at.index, "the state is as of the last entry before the empty log");
        let mut state = self.shared.state.borrow_mut();
        let log = state.log(group);
        assert!(!log.by_snapshot && at.index > log.app.index, "group {}: a log never goes back", group.0);
        let staged = self.shared.journal.restart_at(group, hard_state, at, &app.conf_state, &app.blob)?;
        log.hard_state = hard_state;
        log.restart(at, staged.pos);
        log.app = app;
        state.mark_dirty(group);
        drop(state);
        self.shared.ask_flush();
        Ok(staged.pos)
    }

    /// Resolves when the snapshot group's entries hold at least `flush_trigger_bytes` of the ring.
    pub async fn snapshot_wanted(&self) -> Result<(), Poisoned> {
        loop {
            let seen = self.shared.snapshot.version();
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

    /// Asserts the invariants of all logs. Tests and simulations call this after each step.
    pub fn check(&self) {
        self.shared.check();
    }

    /// For the metrics page.
    pub fn stats(&self) -> StoreStats {
        let state = self.shared.state.borrow();
        let journal = self.shared.journal.stats();
        StoreStats {
            carried_bytes: state.carried_bytes,
            cached_bytes: state.cache_cost(self.shared.journal.staged()),
            ring_writes: journal.writes,
            ring_chunks: journal.chunks,
            ring_cold_chunks: journal.cold_chunks,
            ring_used_bytes: self.shared.journal.used(),
            ring_bytes: self.shared.config.ring_bytes,
            open_files: self.shared.files.open_count(),
            ..self.shared.stats.get()
        }
    }
}
