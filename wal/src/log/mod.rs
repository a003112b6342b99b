//! One partition's log: a tail in memory above segment files. Plain state; the flusher and the readers do the I/O.
//! Lives on: the owning core only.
//!
//! Invariants: in a [`LogView`], start <= flushed <= stable <= end. Indices and offsets have no gaps. Positions in
//! the ring ascend.

pub(crate) mod terms;

use crate::{
    log::terms::TermRuns,
    record::{Batch, Entry, LogPos},
    segment::Segment,
};
pub use crate::{
    record::{Held, LogMark as Mark},
    segment::{AHEAD_MAX_MS, tells_age},
};
use bytes::Bytes;
use std::collections::VecDeque;
use types::{GroupId, HardState, RaftIndex, Term};

/// How one log is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment ends before the batch that would take it past this many bytes (Kafka's `segment.bytes`).
    pub segment_bytes: u64,
    /// A segment ends when its batches' timestamps span more than this (Kafka's `segment.ms`).
    pub segment_ms: Option<u64>,
    /// Bytes of a segment per entry of its sparse index (Kafka's `index.interval.bytes`).
    pub index_interval_bytes: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 1 << 30, segment_ms: None, index_interval_bytes: 16 << 10 }
    }
}

/// The caller's own state of a group as of an applied index; opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppState {
    /// `blob` (and the log start) include all entries up to this index.
    pub index: RaftIndex,
    pub blob: Bytes,
    pub conf_state: Bytes,
}

/// A log's marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogView {
    pub start_offset: u64,
    /// Everything below it is in segments.
    pub flushed_offset: u64,
    /// Everything below it is durable on this disk.
    pub stable_offset: u64,
    /// The next batch gets this offset.
    pub next_offset: u64,
    /// The first index that is still in the log, and the offset at which it begins, which is at or below the start.
    pub first_index: RaftIndex,
    pub first_offset: u64,
    pub stable_index: RaftIndex,
    pub last_index: RaftIndex,
    pub last_term: Term,
    /// Bytes in segments.
    pub segment_bytes: u64,
}

/// Segments that reach above a truncation. They are cut once the truncation's record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingCut {
    pub from: Mark,
    pub after: LogPos,
}

/// The answer of memory to a read.
pub enum FromMemory {
    Batches(Vec<Batch>),
    /// The offset lies below the entries in memory.
    Colder,
}

pub struct Log {
    pub id: GroupId,
    pub options: LogOptions,
    /// The group has no segments: its entries count as flushed once a snapshot covers them.
    pub by_snapshot: bool,
    pub hard_state: HardState,
    /// The state as of the last checkpoint or the current flush.
    pub app: AppState,
    /// The owner's state shrank although nothing was applied, so the next checkpoint asks for it.
    pub app_has_changed: bool,
    pub log_start: u64,
    /// The log start as of `app`. A checkpoint stores this one, so that the log start never runs ahead of the applied
    /// index.
    pub app_log_start: u64,
    /// The entry before the first that the log still has.
    pub before_first: Mark,
    /// The end of what segments (or the snapshot) hold, up to a pending cut.
    pub flushed: Mark,
    /// Checkpoints carry the entries up to this index that no segment or snapshot holds, see `store::kept`. The
    /// ring need not have them.
    pub kept_index: RaftIndex,
    /// The last index that segments hold, or will hold once the current write is done. Cuts are based on it.
    pub written_index: RaftIndex,
    pub end: Mark,
    pub terms: TermRuns,
    pub segments: Vec<Segment>,
    pub next_serial: u64,
    /// The directory exists; it is durable once its parent was synced.
    pub dir_made: bool,
    pub pending_cut: Option<PendingCut>,
    /// Where the record of the newest truncation ends.
    pub truncated_at: LogPos,
    /// Segments, by serial, whose sparse index is due to be written out.
    pub index_due: Vec<u64>,
    /// The group is listed among those with entries to flush.
    pub dirty: bool,
    /// Bytes of this group that checkpoints carry, if they include batches; and whether the group is listed for them.
    pub carried_bytes: u64,
    pub carries: bool,
    /// The next flush writes the group's entries to a segment, however few they are.
    pub flush_wanted: bool,
    /// Contiguous up to `end`.
    pub held: VecDeque<Held>,
}

impl Log {
    pub fn new(id: GroupId, options: LogOptions, by_snapshot: bool) -> Self {
        Self {
            id,
            options,
            by_snapshot,
            hard_state: HardState::default(),
            app: AppState::default(),
            app_has_changed: false,
            log_start: 0,
            app_log_start: 0,
            before_first: Mark::default(),
            flushed: Mark::default(),
            kept_index: RaftIndex::ZERO,
            written_index: RaftIndex::ZERO,
            end: Mark::default(),
            terms: TermRuns::default(),
            segments: Vec::new(),
            next_serial: 0,
            dir_made: false,
            pending_cut: None,
            truncated_at: LogPos::default(),
            index_due: Vec::new(),
            dirty: false,
            carried_bytes: 0,
            carries: false,
            flush_wanted: false,
            held: VecDeque::new(),
        }
    }

    /// Adds the next entry, whose payload is the ring's memory and has this CRC.
    pub fn append(&mut self, entry: Entry, payload_crc: u32, start: LogPos, end: LogPos) {
        assert_eq!(entry.index, self.end.index.next(), "group {}: entries come without holes", self.id.0);
        if let Some((span, _)) = &entry.payload {
            assert_eq!(span.base_offset, self.end.offset, "group {}: offsets come without holes", self.id.0);
        }
        assert!(self.held.back().is_none_or(|last| last.end <= start), "positions in the ring ascend");
        self.terms.push(entry.index, entry.term, self.end.offset);
        let held = Held { start, end, base_offset: self.end.offset, entry, payload_crc };
        self.end = Mark { index: held.entry.index, term: held.entry.term, offset: held.end_offset() };
        if self.held.capacity() == 0 {
            // Most of many thousand partitions have a single entry, from their first election.
            self.held.reserve_exact(1);
        }
        self.held.push_back(held);
    }

    /// Drops the entries at and above `from_index`, whose first offset is `from_offset`. The truncation's record ends
    /// at `after`.
    pub fn truncate(&mut self, from_index: RaftIndex, from_offset: u64, after: LogPos) {
        if from_index > self.end.index {
            return;
        }
        assert!(from_index > self.before_first.index, "group {}: trimmed entries can't be truncated", self.id.0);
        let keep = self.held.partition_point(|held| held.entry.index < from_index);
        if let Some(first) = self.held.get(keep).filter(|held| held.entry.index == from_index) {
            assert_eq!(first.base_offset, from_offset, "group {}: the truncation's offset is its entry's", self.id.0);
        }
        self.held.truncate(keep);
        self.truncated_at = after;
        self.terms.cut_from(from_index);
        let term = if from_index == self.before_first.index.next() {
            self.before_first.term
        } else {
            self.terms.term_of(from_index.prev()).expect("the log covers what is above its first entry")
        };
        let to = Mark { index: from_index.prev(), term, offset: from_offset };
        self.end = to;
        self.kept_index = self.kept_index.min(to.index);
        if self.written_index >= from_index {
            let from = match self.pending_cut {
                Some(pending) if pending.from.index < to.index => pending.from,
                _ => to,
            };
            self.pending_cut = Some(PendingCut { from, after });
        }
        if self.flushed.index > to.index {
            self.flushed = to;
        }
    }

    /// Restarts the log behind the entry `to`. The restart's record ends at `after`.
    pub fn restart(&mut self, to: Mark, after: LogPos) {
        if !self.by_snapshot {
            // The cut also covers what a flush may be writing now, and what an earlier cut has not removed yet.
            let earlier = self.pending_cut.map(|pending| pending.from);
            let from = earlier.filter(|from| from.index < self.before_first.index).unwrap_or(self.before_first);
            self.pending_cut = Some(PendingCut { from, after });
            self.log_start = to.offset;
            self.app_log_start = to.offset;
        }
        self.held.clear();
        self.terms = TermRuns::default();
        self.before_first = to;
        self.flushed = to;
        self.kept_index = self.kept_index.min(to.index);
        self.written_index = to.index;
        self.end = to;
        self.truncated_at = after;
    }

    /// Records that the pending cut is done: the segments hold nothing at or above it any more.
    pub fn cut_done(&mut self) {
        let pending = self.pending_cut.take().expect("a cut was pending");
        self.written_index = self.written_index.min(pending.from.index).max(self.flushed.index);
    }

    /// Whether all its segments are from before the log restarted, and are still to be removed.
    pub fn has_old_segments(&self) -> bool {
        self.pending_cut.is_some_and(|pending| pending.from.index < self.before_first.index)
    }

    pub fn first_index(&self) -> RaftIndex {
        self.before_first.index.next()
    }

    /// The term of `index`, from the entry before the first to the last.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        if index == self.before_first.index {
            return Some(self.before_first.term);
        }
        (index <= self.end.index).then(|| self.terms.term_of(index)).flatten()
    }

    /// The position in memory of the first entry that is not in segments.
    pub(crate) fn first_unflushed(&self) -> usize {
        self.held.partition_point(|held| held.entry.index <= self.flushed.index)
    }

    /// The entries that no segment or snapshot holds.
    pub fn unflushed(&self) -> impl Iterator<Item = &Held> + Clone {
        self.held.range(self.first_unflushed()..)
    }

    /// Whether there are entries that no segment, snapshot or checkpoint holds.
    pub fn is_only_in_ring(&self) -> bool {
        self.end.index > self.flushed.index.max(self.kept_index)
    }

    /// Where the records of the entries that no segment or snapshot holds begin. `None` if there are no such entries.
    pub fn needs_ring_from(&self) -> Option<LogPos> {
        self.held.get(self.first_unflushed()).map(|held| held.start)
    }

    /// Where replay begins for a log that is checkpointed as it is now: at the first entry that only the ring has.
    /// Everything before it is flushed, kept in the checkpoint, or truncated by a durable record. Never above
    /// `durable`: records staged above it may be lost and replaced by others.
    pub fn replay_from(&self, durable: LogPos) -> LogPos {
        let elsewhere = self.flushed.index.max(self.kept_index);
        let first = self.held.partition_point(|held| held.entry.index <= elsewhere);
        self.held.get(first).map_or(durable, |held| held.start.min(durable))
    }

    pub fn stable(&self, durable: LogPos) -> Mark {
        let from = self.first_unflushed();
        let count = self.held.partition_point(|held| held.end <= durable);
        match count.checked_sub(1).filter(|last| *last >= from) {
            Some(last) => {
                let held = &self.held[last];
                Mark { index: held.entry.index, term: held.entry.term, offset: held.end_offset() }
            }
            None => self.flushed,
        }
    }

    pub fn view(&self, durable: LogPos) -> LogView {
        let stable = self.stable(durable);
        LogView {
            start_offset: self.log_start,
            flushed_offset: self.flushed.offset.max(self.log_start),
            stable_offset: stable.offset,
            next_offset: self.end.offset,
            first_index: self.first_index(),
            first_offset: self.before_first.offset,
            stable_index: stable.index,
            last_index: self.end.index,
            last_term: self.end.term,
            segment_bytes: self.segments.iter().map(|segment| segment.len).sum(),
        }
    }

    /// The offset from which memory can answer reads.
    pub fn memory_from(&self) -> u64 {
        self.held.front().map_or(self.end.offset, |held| held.base_offset)
    }

    /// Returns whole batches from the one that holds `from` on, below `below`, up to `max_bytes`. With
    /// `at_least_one`, the first batch may exceed `max_bytes`.
    pub fn read_memory(&self, from: u64, below: u64, max_bytes: usize, at_least_one: bool) -> FromMemory {
        if from < self.memory_from() {
            return FromMemory::Colder;
        }
        let first = self.held.partition_point(|held| held.end_offset() <= from);
        let mut limit = ReadLimit::new(below, max_bytes, at_least_one);
        let batches = self.held.range(first..).filter_map(Held::batch);
        FromMemory::Batches(batches.take_while(|batch| limit.admits(batch)).collect())
    }

    /// The first batch in memory at or above `from` whose largest timestamp is at least `timestamp`.
    pub fn find_timestamp(&self, timestamp: i64, from: u64) -> Option<Batch> {
        let first = self.held.partition_point(|held| held.end_offset() <= from);
        self.held.range(first..).filter_map(Held::batch).find(|batch| batch.max_timestamp >= timestamp)
    }

    /// The segments as readers may see them: without the parts that a truncation still has to cut from the files.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let Mark { index, offset, .. } = self.flushed;
        let own = if self.has_old_segments() { &[][..] } else { &self.segments[..] };
        let whole = own.iter().take_while(move |segment| segment.first_index <= index);
        whole.map(move |segment| Segment {
            last_index: segment.last_index.min(index),
            end_offset: segment.end_offset.min(offset),
            ..*segment
        })
    }

    /// The segment that holds `offset`.
    pub fn segment_of(&self, offset: u64) -> Option<Segment> {
        let at = self.segments.partition_point(|segment| segment.end_offset <= offset);
        let serial = self.segments.get(at)?.serial;
        let last = self.segments().nth(at)?;
        (last.serial == serial && last.base_offset <= offset && offset < last.end_offset).then_some(last)
    }

    /// Evicts the entries in memory up to the one that ends at `end` in the ring. Returns whether that is done or
    /// moot. An entry that checkpoints carry stays until it is flushed; it holds no memory but its own.
    pub fn evict(&mut self, end: LogPos) -> bool {
        let Ok(at) = self.held.binary_search_by_key(&end, |held| held.end) else { return true };
        let index = self.held[at].entry.index;
        if index <= self.flushed.index {
            self.held.drain(..=at);
            return true;
        }
        index <= self.kept_index
    }

    /// Forgets the entries up to `to`, which a snapshot or the log start made obsolete.
    pub fn forget_to(&mut self, to: Mark) {
        if to.index <= self.before_first.index {
            return;
        }
        assert!(to.index <= self.flushed.index, "only flushed entries are forgotten");
        let keep = self.held.partition_point(|held| held.entry.index <= to.index);
        self.held.drain(..keep);
        self.terms.trim_below(to.index.next(), to.offset, self.end.index.next());
        self.before_first = to;
    }

    /// Removes and returns the whole segments below the log start to be checkpointed, if their entries are applied.
    pub fn trim(&mut self) -> Vec<Segment> {
        if self.pending_cut.is_some() {
            return Vec::new();
        }
        let gone = self
            .segments
            .iter()
            .take_while(|segment| segment.end_offset <= self.app_log_start && segment.last_index <= self.app.index)
            .count();
        let Some(last) = gone.checked_sub(1).map(|at| self.segments[at]) else { return Vec::new() };
        let term = self.term_of(last.last_index).expect("segments lie within the log");
        self.forget_to(Mark { index: last.last_index, term, offset: last.end_offset });
        self.segments.drain(..gone).collect()
    }

    /// Whether the first segment lies wholly below the log start.
    pub fn can_trim(&self) -> bool {
        self.segments.first().is_some_and(|segment| segment.end_offset <= self.log_start)
    }

    /// Whether a checkpoint would store an older applied state than it could.
    pub fn app_is_behind(&self) -> bool {
        let is_behind = self.app.index < self.flushed.index || self.app_log_start < self.log_start;
        !self.by_snapshot && (is_behind || self.app_has_changed)
    }

    /// Adopts the state that is applied now.
    pub fn take_app(&mut self, app: AppState) {
        assert!(app.index >= self.app.index, "group {}: the applied index never goes back", self.id.0);
        assert!(app.index <= self.end.index, "group {}: applied entries are in the log", self.id.0);
        self.app = app;
        self.app_has_changed = false;
        self.app_log_start = self.log_start;
    }

    /// The segments whose timestamps do not give their age.
    pub fn segments_of_unknown_age(&self, now_ms: i64) -> impl Iterator<Item = &Segment> {
        let has_records = |segment: &&Segment| segment.base_offset < segment.end_offset;
        self.segments.iter().filter(has_records).filter(move |segment| !tells_age(segment.max_timestamp, now_ms))
    }

    /// The log start that retention asks for, see [`crate::store::Store::retention`]. `file_time` returns when a
    /// segment, by serial, was last written; it is called for segments of unknown age. A segment that it does not
    /// know stays.
    pub fn retention(
        &self,
        now_ms: i64,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        below: u64,
        file_time: impl Fn(u64) -> Option<i64>,
    ) -> Option<u64> {
        let mut kept: u64 = self.segments.iter().map(|segment| segment.len).sum();
        let mut start = self.log_start;
        for (at, segment) in self.segments.iter().enumerate() {
            let last = at + 1 == self.segments.len();
            let too_old = retention_ms.is_some_and(|limit| {
                let newest_allowed = now_ms.saturating_sub_unsigned(limit);
                let newest = match tells_age(segment.max_timestamp, now_ms) || segment.base_offset == segment.end_offset
                {
                    true => Some(segment.max_timestamp),
                    false => file_time(segment.serial),
                };
                newest.is_some_and(|newest| newest < newest_allowed)
            });
            let too_much = !last && retention_bytes.is_some_and(|limit| kept - segment.len >= limit);
            if segment.end_offset > below || !(too_old || too_much || segment.end_offset <= self.log_start) {
                break;
            }
            kept -= segment.len;
            start = start.max(segment.end_offset);
        }
        (start > self.log_start).then_some(start)
    }

    /// Whether batches that no segment holds yet are too old or too many.
    pub fn retention_waits_for_flush(
        &self,
        now_ms: i64,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
    ) -> bool {
        let spans = || self.unflushed().filter_map(|held| held.entry.payload.as_ref());
        let too_old = retention_ms.is_some_and(|limit| {
            let newest_allowed = now_ms.saturating_sub_unsigned(limit);
            // Once in a segment, even a batch of unknown age has one: that of its file.
            let oldest = spans().next().map(|(span, _)| span.max_timestamp);
            oldest.is_some_and(|oldest| oldest < newest_allowed || !tells_age(oldest, now_ms))
        });
        too_old
            || retention_bytes.is_some_and(|limit| {
                let unflushed: u64 = spans().map(|(_, bytes)| bytes.len() as u64).sum();
                unflushed > limit.max(self.options.segment_bytes)
            })
    }

    /// Merges the hard state of a record or a checkpoint, taking the newer value of each part.
    pub fn merge_hard_state(&mut self, other: HardState) {
        let mine = &mut self.hard_state;
        match other.term.cmp(&mine.term) {
            std::cmp::Ordering::Greater => {
                mine.term = other.term;
                mine.vote = other.vote;
            }
            std::cmp::Ordering::Equal if mine.vote == 0 => mine.vote = other.vote,
            _ => {}
        }
        mine.commit = mine.commit.max(other.commit);
    }

    pub fn check(&self, durable: LogPos) {
        let view = self.view(durable);
        let name = self.id.0;
        assert!(
            view.start_offset <= view.next_offset
                && view.flushed_offset <= view.stable_offset
                && view.stable_offset <= view.next_offset,
            "group {name}: start, flushed <= stable <= end, not {view:?}"
        );
        assert!(self.before_first.index <= self.flushed.index && self.flushed.index <= self.end.index);
        assert!(self.pending_cut.is_some() || self.written_index >= self.flushed.index);
        assert!(self.kept_index <= self.end.index, "group {name}: kept entries are in the log");
        self.terms.check();
        for segment in &self.segments {
            segment.check();
        }
        for pair in self.segments.windows(2) {
            assert!(pair[0].sealed, "group {name}: only the last segment grows");
            assert_eq!(pair[0].last_index.next(), pair[1].first_index, "group {name}: segments follow one another");
            assert_eq!(pair[0].end_offset, pair[1].base_offset, "group {name}: segments follow one another");
        }
        if let (Some(first), Some(last)) = (self.segments.first(), self.segments.last()) {
            let begins = self.has_old_segments() || first.first_index == self.first_index();
            assert!(begins, "group {name}: the log begins with its first segment");
            assert!(self.pending_cut.is_some() || last.last_index == self.flushed.index);
        }
        if let (Some(first), Some(last)) = (self.held.front(), self.held.back()) {
            assert!(
                first.entry.index <= self.flushed.index.next(),
                "group {name}: memory or segments hold every entry"
            );
            assert_eq!(last.entry.index, self.end.index, "group {name}: memory reaches the end");
        } else {
            assert_eq!(self.flushed, self.end, "group {name}: entries outside memory are flushed");
        }
    }
}

/// How much more an answer may take.
pub struct ReadLimit {
    below: u64,
    left: usize,
    first: bool,
}

impl ReadLimit {
    pub fn new(below: u64, max_bytes: usize, at_least_one: bool) -> Self {
        Self { below, left: max_bytes, first: at_least_one }
    }

    /// Whether `batch`, the next one, belongs into the answer. Once a batch does not, no later one does.
    pub fn admits(&mut self, batch: &Batch) -> bool {
        let fits = batch.bytes.len() <= self.left || self.first;
        let admits = fits && batch.base_offset + u64::from(batch.count) <= self.below;
        self.first = false;
        self.left = if admits { self.left.saturating_sub(batch.bytes.len()) } else { 0 };
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_begins_anew_twice_before_its_segments_are_cut_keeps_none_of_them() {
        let options = LogOptions { segment_bytes: 4096, segment_ms: None, index_interval_bytes: 4096 };
        let mut log = Log::new(GroupId(1), options, false);
        log.restart(Mark { index: RaftIndex::new(5), term: Term(1), offset: 50 }, LogPos(1));
        log.restart(Mark { index: RaftIndex::new(9), term: Term(2), offset: 90 }, LogPos(2));
        assert_eq!(log.pending_cut.map(|pending| (pending.from, pending.after)), Some((Mark::default(), LogPos(2))));
        assert!(log.has_old_segments());
    }
}
