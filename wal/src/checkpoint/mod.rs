//! A core's checkpoint: the state of every group that need not be read from the ring any more. Encoding only; one
//! file, replaced as a whole.
//! Lives on: the owning core only.
//!
//! ```text
//!    0 | magic "MLC1" | crc: 8..end | version u32 | 0 u32 | length u64 | epoch | number | cut |
//!   48 | groups: count u64, then each group
//!      | removed groups: count u64, then each: id, end of its removal's record
//!      | files to be removed: count u64, then each: kind u64 (0 segment, 1 snapshot), three u64
//!
//! a group, all u64 unless said:
//!      | id | flags (1: by snapshot, 2: directory made) | term | vote | commit | log start | replay from | next serial
//!      | before first: index, term, offset | flushed: index, term, offset | applied index
//!      | conf state: length, bytes | app blob: length, bytes
//!      | segments: count, then each: serial, base offset, end offset, first index, last index, length,
//!      |   first timestamp, max timestamp, flags (1: sealed)
//!      | terms: count, then each: first index, term, base offset
//!      | since version 3, and since version 2 of a group by snapshot: kept entries, see `checkpoint::kept`
//! ```
//!
//! All numbers are little-endian, the CRC is CRC-32C. Versions 1 and 2 are read too; the next checkpoint is written
//! as version 3. Invariant: a checkpoint is checked before it is written and after it is read.

pub(crate) mod kept;

use crate::{
    crc::combine,
    log::{AppState, terms::TermRuns},
    record::{Held, LogMark as Mark, LogPos},
    segment::{Segment, format::SegmentId},
};
use bytes::Bytes;
use types::{GroupId, HardState, RaftIndex, Term, TermRun};

pub const CHECKPOINT_MAGIC: u32 = u32::from_le_bytes(*b"MLC1");
pub const CHECKPOINT_VERSION: u32 = 3;
/// The oldest version that is read.
const VERSION_MIN: u32 = 1;
/// The file's name in the core's directory.
pub const CHECKPOINT_FILE: &str = "checkpoint";

/// The last index and the last offset. Clients know offsets as signed numbers.
const PLACE_MAX: u64 = i64::MAX as u64;

const NOT_ASCENDING: &str = "its groups are not in ascending order";
const THERE_AND_REMOVED: &str = "a group is both present and removed";

/// The contents of a core's checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub epoch: u64,
    /// The number of this checkpoint of the core's ring.
    pub number: u64,
    /// Records that begin below it are covered, except for groups with a `replay_from` of their own.
    pub cut: LogPos,
    pub groups: Vec<GroupState>,
    pub removed: Vec<RemovedGroup>,
    pub garbage: Vec<Garbage>,
}

/// One group in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    pub id: GroupId,
    pub by_snapshot: bool,
    pub dir_made: bool,
    pub hard_state: HardState,
    pub log_start: u64,
    /// The group's records that begin below this are covered.
    pub replay_from: LogPos,
    pub next_serial: u64,
    pub before_first: Mark,
    pub flushed: Mark,
    /// For a group by snapshot, without the blob, which is in the snapshot's file.
    pub app: AppState,
    pub segments: Vec<Segment>,
    /// Up to the flushed index.
    pub terms: Vec<TermRun>,
    /// The entries behind the flushed one that the ring need not have any more. Their records end at or below
    /// `replay_from`. Empty while a checkpoint is being written, since the log itself then provides them.
    pub kept: Vec<Held>,
}

/// A removed group that may still have traces in the ring or on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedGroup {
    pub id: GroupId,
    /// The end of the removal's record.
    pub at: LogPos,
}

/// A file that is obsolete once the checkpoint that lists it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    Segment { id: SegmentId, base_offset: u64 },
    Snapshot { group: GroupId, index: RaftIndex, term: Term },
}

impl Garbage {
    pub(crate) fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot { .. })
    }
}

/// Why the bytes are not a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    Damaged(&'static str),
    Newer(u32),
}

impl Checkpoint {
    /// The lowest position that the ring must keep.
    pub fn needs_ring_from(&self) -> LogPos {
        self.groups.iter().map(|group| group.replay_from).fold(self.cut, LogPos::min)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new(self.epoch, self.number, self.cut, 0);
        for group in &self.groups {
            to.group(group, group.kept.iter());
        }
        to.finish(&self.removed, &self.garbage)
    }

    /// How many bytes of a valid checkpoint's file belong to it.
    pub(crate) fn len(file: &[u8]) -> u64 {
        crate::segment::format::u64_at(file, 16)
    }

    pub fn decode(from: &[u8]) -> Result<Self, DecodeError> {
        use crate::segment::format::{u32_at, u64_at};
        if from.len() < 24 || u32_at(from, 0) != CHECKPOINT_MAGIC {
            return Err(DecodeError::Damaged("it does not begin with a checkpoint's header"));
        }
        // The version comes first: a newer format may use a different check.
        let version = u32_at(from, 8);
        match version {
            VERSION_MIN..=CHECKPOINT_VERSION => {}
            newer if newer > CHECKPOINT_VERSION => return Err(DecodeError::Newer(newer)),
            _ => return Err(DecodeError::Damaged("its version never existed")),
        }
        let whole = usize::try_from(u64_at(from, 16)).ok().filter(|len| (24..=from.len()).contains(len));
        let Some(len) = whole else { return Err(DecodeError::Damaged("it is shorter than its length field says")) };
        if crc32c::crc32c(&from[8..len]) != u32_at(from, 4) {
            return Err(DecodeError::Damaged("it fails its CRC"));
        }
        let mut from = Reader(&from[24..len]);
        let this = (|| {
            let [epoch, number, cut] = from.words()?;
            let groups = from.each(|from| GroupState::decode(from, version))?;
            let removed = from.each(|from| {
                let [id, at] = from.words()?;
                Some(RemovedGroup { id: GroupId(id), at: LogPos(at) })
            })?;
            let garbage = from.each(|from| match from.words()? {
                [0, group, serial, base_offset] => {
                    Some(Garbage::Segment { id: SegmentId { group: GroupId(group), serial }, base_offset })
                }
                [1, group, index, term] => {
                    let (group, index, term) = (GroupId(group), RaftIndex::new(index), Term(term));
                    Some(Garbage::Snapshot { group, index, term })
                }
                _ => None,
            })?;
            Some(Self { epoch, number, cut: LogPos(cut), groups, removed, garbage })
        })();
        let this = this.filter(|_| from.0.is_empty()).ok_or(DecodeError::Damaged("its contents are malformed"))?;
        this.check().map_err(DecodeError::Damaged)?;
        Ok(this)
    }

    /// Checks the invariants of every checkpoint.
    fn check(&self) -> Result<(), &'static str> {
        let ascending = self.groups.windows(2).all(|pair| pair[0].id < pair[1].id);
        if !ascending {
            return Err(NOT_ASCENDING);
        }
        for group in &self.groups {
            group.check(group.kept.iter())?;
        }
        if self.removed.iter().any(|gone| self.groups.binary_search_by_key(&gone.id, |group| group.id).is_ok()) {
            return Err(THERE_AND_REMOVED);
        }
        Ok(())
    }
}

/// Encodes a checkpoint group by group, so that the caller need not hold the states of all groups at once. Panics if
/// its input is inconsistent.
pub(crate) struct Encoder {
    to: Writer,
    /// The groups so far, ascending.
    ids: Vec<GroupId>,
    needs_ring_from: LogPos,
    /// The CRC of the groups' bytes, computed while they are in the CPU's cache.
    groups_crc: u32,
}

/// Where the groups begin, behind their count.
const GROUPS_AT: usize = 56;

impl Encoder {
    /// `bytes` is the expected size.
    pub fn new(epoch: u64, number: u64, cut: LogPos, bytes: usize) -> Self {
        let mut to = Writer(Vec::with_capacity(bytes + bytes / 4 + 4096));
        to.0.extend_from_slice(&CHECKPOINT_MAGIC.to_le_bytes());
        to.0.extend_from_slice(&[0; 4]);
        to.0.extend_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        to.0.extend_from_slice(&[0; 4]);
        // The length and the number of groups are known only at the end.
        to.words(&[0, epoch, number, cut.0, 0]);
        debug_assert_eq!(to.0.len(), GROUPS_AT);
        Self { to, ids: Vec::new(), needs_ring_from: cut, groups_crc: 0 }
    }

    /// Adds the next group and its carried entries. Groups must come in ascending order.
    pub fn group<'a>(&mut self, group: &GroupState, kept: impl Iterator<Item = &'a Held> + Clone) {
        let ascends = self.ids.last().is_none_or(|last| *last < group.id);
        let checked = if ascends { group.check(kept.clone()) } else { Err(NOT_ASCENDING) };
        checked.unwrap_or_else(|why| panic!("a checkpoint must not be written: {why}"));
        let begin = self.to.0.len();
        group.encode(kept, &mut self.to);
        self.groups_crc = crc32c::crc32c_append(self.groups_crc, &self.to.0[begin..]);
        self.ids.push(group.id);
        self.needs_ring_from = self.needs_ring_from.min(group.replay_from);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.to.0.len()
    }

    pub fn has(&self, group: GroupId) -> bool {
        self.ids.binary_search(&group).is_ok()
    }

    /// Like [`Checkpoint::needs_ring_from`], for the groups so far.
    pub fn needs_ring_from(&self) -> LogPos {
        self.needs_ring_from
    }

    pub fn finish(self, removed: &[RemovedGroup], garbage: &[Garbage]) -> Vec<u8> {
        assert!(!removed.iter().any(|gone| self.has(gone.id)), "a checkpoint must not be written: {THERE_AND_REMOVED}");
        let Self { mut to, ids, groups_crc, .. } = self;
        let groups_end = to.0.len();
        to.words(&[removed.len() as u64]);
        for removed in removed {
            to.words(&[removed.id.0, removed.at.0]);
        }
        to.words(&[garbage.len() as u64]);
        for garbage in garbage {
            to.words(&match *garbage {
                Garbage::Segment { id, base_offset } => [0, id.group.0, id.serial, base_offset],
                Garbage::Snapshot { group, index, term } => [1, group.0, index.get(), term.0],
            });
        }
        let mut to = to.0;
        let len = to.len() as u64;
        to[16..24].copy_from_slice(&len.to_le_bytes());
        to[GROUPS_AT - 8..GROUPS_AT].copy_from_slice(&(ids.len() as u64).to_le_bytes());
        let crc = combine(crc32c::crc32c(&to[8..GROUPS_AT]), groups_crc, groups_end - GROUPS_AT);
        let crc = crc32c::crc32c_append(crc, &to[groups_end..]);
        to[4..8].copy_from_slice(&crc.to_le_bytes());
        to
    }
}

impl GroupState {
    fn check<'a>(&self, kept: impl Iterator<Item = &'a Held>) -> Result<(), &'static str> {
        if self.before_first.index > self.flushed.index || self.before_first.offset > self.flushed.offset {
            return Err("a log ends before it begins");
        }
        if self.by_snapshot && (!self.segments.is_empty() || self.before_first != self.flushed) {
            return Err("a snapshot group has segments");
        }
        if self.flushed.index.get() > PLACE_MAX || self.flushed.offset > PLACE_MAX {
            return Err("the flushed entry is beyond the last index or offset");
        }
        let mut next = (self.before_first.index.next(), self.before_first.offset);
        for segment in &self.segments {
            if (segment.first_index, segment.base_offset) != next || segment.serial >= self.next_serial {
                return Err("segments do not follow one another");
            }
            if segment.last_index > self.flushed.index {
                return Err("segments go beyond the flushed entry");
            }
            next = (segment.last_index.next(), segment.end_offset);
        }
        if next != (self.flushed.index.next(), self.flushed.offset) {
            return Err("segments do not reach the flushed entry");
        }
        if self.flushed.index > self.before_first.index
            && self.terms.first().is_none_or(|run| run.first_index != self.before_first.index.next())
        {
            return Err("terms do not begin with the log");
        }
        if !self.terms.windows(2).all(|pair| pair[0].first_index < pair[1].first_index && pair[0].term < pair[1].term) {
            return Err("terms do not ascend");
        }
        let last_term = self.terms.last().map_or(self.before_first.term, |run| run.term);
        if last_term != self.flushed.term {
            return Err("the last term is not the flushed entry's");
        }
        kept::check(self, kept)
    }

    fn encode<'a>(&self, kept: impl Iterator<Item = &'a Held> + Clone, to: &mut Writer) {
        let flags = u64::from(self.by_snapshot) | u64::from(self.dir_made) << 1;
        to.words(&[self.id.0, flags, self.hard_state.term.0, self.hard_state.vote, self.hard_state.commit.get()]);
        to.words(&[self.log_start, self.replay_from.0, self.next_serial]);
        to.words(&[self.before_first.index.get(), self.before_first.term.0, self.before_first.offset]);
        to.words(&[self.flushed.index.get(), self.flushed.term.0, self.flushed.offset, self.app.index.get()]);
        to.bytes(&self.app.conf_state);
        to.bytes(if self.by_snapshot { &[] } else { &self.app.blob });
        to.words(&[self.segments.len() as u64]);
        for segment in &self.segments {
            to.words(&[segment.serial, segment.base_offset, segment.end_offset]);
            to.words(&[segment.first_index.get(), segment.last_index.get(), segment.len]);
            to.words(&[segment.first_timestamp as u64, segment.max_timestamp as u64, u64::from(segment.sealed)]);
        }
        to.words(&[self.terms.len() as u64]);
        for run in &self.terms {
            to.words(&[run.first_index.get(), run.term.0, run.base_offset]);
        }
        kept::encode(kept, to);
    }

    fn decode(from: &mut Reader, version: u32) -> Option<Self> {
        let [id, flags, term, vote, commit] = from.words()?;
        let [log_start, replay_from, next_serial] = from.words()?;
        let mut mark = || {
            let [index, term, offset] = from.words()?;
            Some(Mark { index: RaftIndex::new(index), term: Term(term), offset })
        };
        let (before_first, flushed) = (mark()?, mark()?);
        let [applied] = from.words()?;
        let (conf_state, blob) = (from.bytes()?, from.bytes()?);
        let segments = from.each(|from| {
            let [serial, base_offset, end_offset, first_index, last_index, len, first, max, sealed] = from.words()?;
            Some(Segment {
                serial,
                base_offset,
                end_offset,
                first_index: RaftIndex::new(first_index),
                last_index: RaftIndex::new(last_index),
                len,
                first_timestamp: first as i64,
                max_timestamp: max as i64,
                sealed: sealed == 1,
            })
        })?;
        let terms = from.each(|from| {
            let [first_index, term, base_offset] = from.words()?;
            Some(TermRun { first_index: RaftIndex::new(first_index), term: Term(term), base_offset })
        })?;
        let by_snapshot = flags & 1 != 0;
        let has_kept = version >= if by_snapshot { 2 } else { 3 };
        let kept = if has_kept { kept::decode(from)? } else { Vec::new() };
        Some(Self {
            id: GroupId(id),
            by_snapshot,
            dir_made: flags & 2 != 0,
            hard_state: HardState { term: Term(term), vote, commit: RaftIndex::new(commit) },
            log_start,
            replay_from: LogPos(replay_from),
            next_serial,
            before_first,
            flushed,
            app: AppState { index: RaftIndex::new(applied), blob, conf_state },
            segments,
            terms,
            kept,
        })
    }

    /// The terms in the form that the log keeps.
    pub fn term_runs(&self) -> TermRuns {
        TermRuns::new(self.terms.clone())
    }
}

pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn words(&mut self, words: &[u64]) {
        for word in words {
            self.0.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.words(&[bytes.len() as u64]);
        self.0.extend_from_slice(bytes);
    }
}

pub(crate) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    pub(crate) fn words<const N: usize>(&mut self) -> Option<[u64; N]> {
        let (words, rest) = self.0.split_at_checked(N * 8)?;
        self.0 = rest;
        Some(std::array::from_fn(|at| crate::segment::format::u64_at(words, at * 8)))
    }

    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        let [len] = self.words()?;
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(Bytes::copy_from_slice(bytes))
    }

    /// Reads a count and that many items, each of which takes at least eight bytes.
    pub(crate) fn each<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let [count] = self.words()?;
        let count = usize::try_from(count).ok().filter(|count| *count <= self.0.len() / 8)?;
        (0..count).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests;
