//! What a group is made from, and what it gives: its configuration, entries, and what is to be done with them.

#[cfg(doc)]
use crate::group::Group;
use bytes::Bytes;
use raft::eraftpb::{self, EntryType, Message};

/// A maximal run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    pub first_index: u64,
    pub term: u64,
}

/// What a group must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// One entry's small data; a payload, if it has one, travels beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    /// raft-proto's number: 0 normal, 1 and 2 configuration changes.
    pub entry_type: u8,
    pub data: Bytes,
}

/// The number of [`Entry::entry_type`] for an entry that carries data of ours, or none.
pub const ENTRY_NORMAL: u8 = 0;
/// The number for a change of the group's members. (1, its older form, is never proposed here.)
pub(crate) const ENTRY_MEMBERS: u8 = 2;

impl Entry {
    /// Whether it carries data of ours: a leader's first entry has none.
    pub fn is_command(&self) -> bool {
        self.entry_type == ENTRY_NORMAL && !self.data.is_empty()
    }

    /// The largest number of a kind of entry.
    pub(crate) const KIND_MAX: u8 = ENTRY_MEMBERS;

    pub(crate) fn from_raft(entry: eraftpb::Entry) -> Self {
        Self { index: entry.index, term: entry.term, entry_type: entry.entry_type as u8, data: entry.data }
    }

    pub(crate) fn into_raft(self) -> eraftpb::Entry {
        let mut entry =
            eraftpb::Entry { index: self.index, term: self.term, data: self.data, ..eraftpb::Entry::default() };
        entry.set_entry_type(match self.entry_type {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            other => panic!("entry {} has the unknown type {other}", self.index),
        });
        entry
    }
}

/// Where an entry stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// Identity and timers of a replica.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub group: u64,
    /// This replica's id in the group; belongs to one disk incarnation and is never used again. Not 0.
    pub peer: u64,
    /// The voters of a group that has no log yet.
    pub voters: Vec<u64>,
    /// Least number of ticks without a leader before anybody stands for election; the same on all peers, more than
    /// `heartbeat_ticks`. For so long a peer that hears from its leader refuses its vote, and a leader that hears from no
    /// majority gives up.
    pub election_ticks: usize,
    /// What this peer waits beyond that, from [`election_jitter`]: raft-rs would draw it from the thread's generator, and a
    /// failing simulation could not be replayed.
    pub election_jitter: usize,
    pub heartbeat_ticks: usize,
    /// Bytes of entry data that may be proposed and not committed; above, a proposal is refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of committed entries that one Ready hands out; one entry alone may be larger.
    pub committed_bytes_max: u64,
    /// A leader keeps the entries that a peer lacks, but no more than this many: a peer further behind gets a snapshot.
    pub kept_entries_max: u64,
    /// How many bytes travel beside an entry with such data: messages are limited by these too.
    pub beside: fn(&[u8]) -> u64,
    /// Whether such data is what this group's entries hold; if not, why. A peer's entries are refused by it.
    pub holds: fn(&[u8]) -> Result<(), String>,
    /// A leader's lease stands on this group's members: see [`Group::step`].
    pub has_leases: bool,
}

impl GroupConfig {
    /// A group whose only voter is this replica.
    pub fn single(group: u64, peer: u64) -> Self {
        Self {
            group,
            peer,
            voters: vec![peer],
            election_ticks: 8,
            election_jitter: 0,
            heartbeat_ticks: 1,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_max: 16 << 20,
            kept_entries_max: 10_000,
            beside: |_| 0,
            holds: |_| Ok(()),
            has_leases: true,
        }
    }
}

/// A peer's own [`GroupConfig::election_jitter`], 0 to `election_ticks`, drawn from a seed that differs from node to node.
pub fn election_jitter(seed: u64, group: u64, election_ticks: usize) -> usize {
    fastrand::Rng::with_seed(seed ^ group.wrapping_mul(0x9E37_79B9_7F4A_7C15)).usize(..=election_ticks)
}

/// A group as storage found it; the default is a group that has no log yet.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub hard_state: HardState,
    /// [`Group::conf_state`] as it was checkpointed; empty if it never was.
    pub conf_state: Bytes,
    /// Covers the whole retained log, ascending.
    pub terms: Vec<TermRun>,
    /// The index and term before the first of `entries`: what lies there and below is known by its term alone.
    pub before: Option<Position>,
    /// The last index that is gone for good: entries above it that are not in memory can be [fetched](Group::lacking). `None`: what
    /// is not in memory is gone.
    pub gone: Option<Position>,
    /// Ascending without holes.
    pub entries: Vec<Entry>,
    /// Applied up to here already; at least `before`, at most the last index.
    pub applied: u64,
}

/// Why an entry was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this replica does not lead its group")]
    NotLeader,
    #[error("too much of this group is not committed yet; try again")]
    Full,
}

/// A committed entry that can't be applied: its group has stopped there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("group {group} has stopped before its committed entry {index}, which can't be applied: {why}")]
pub struct Unreadable {
    pub group: u64,
    pub index: u64,
    pub why: String,
}

/// Why the members of a group are not being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    #[error("this replica does not lead its group")]
    NotLeader,
    #[error("an earlier change of the members is not finished; try again")]
    Busy,
}

/// Why a group can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("group {group}: the checkpointed configuration can't be read: {why}")]
    ConfState { group: u64, why: String },
    #[error("group {group}: {why}")]
    Raft { group: u64, why: String },
}

/// What is to be done now.
#[derive(Debug)]
pub struct Ready {
    /// To be given to [`Group::on_persisted`] once `entries` and the hard state are durable.
    pub number: u64,
    /// To be made durable in order, each together with [`Group::hard_state_with`] its index. They replace what stands at and
    /// above the first of them. Without entries, a [`Group::hard_state`] of another term or vote is made durable by itself;
    /// another commit index alone is not worth a write.
    pub entries: Vec<Entry>,
    /// A leader's: may be sent at once, while its own entries are on their way to the disk (Raft thesis 10.2.1). Its term is
    /// durable.
    pub messages: Vec<Message>,
    /// May be sent only when this Ready, and every one before it, is durable: a vote or an acknowledgement says that it is.
    pub persisted_messages: Vec<Message>,
    /// Replaces the whole log and what was applied, before anything else of this Ready. It was staged durably before
    /// [`Group::step_snapshot`], and counts as applied once this Ready is reported as persisted.
    pub snapshot: Option<SnapshotMark>,
    /// To be applied now, in order, then reported by [`Group::applied_to`]. They are durable on a majority and here.
    pub committed: Vec<Entry>,
    /// Answers to [`Group::read_index`].
    pub reads: Vec<ReadIndex>,
}

/// Where a snapshot of the applied state was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMark {
    pub at: Position,
    /// [`Group::conf_state`] as of that index.
    pub conf_state: Bytes,
}

/// Entries from `from` on that are to be fetched: some of those below `below`.
pub struct Wanted {
    pub from: u64,
    pub below: u64,
    pub(crate) context: raft::GetEntriesContext,
}

/// When [`Group::read_index`] was called, this replica led and had committed up to `index`, and a quorum said so since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    pub token: u64,
    pub index: u64,
}

/// How far a peer has come, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    pub peer: u64,
    pub voter: bool,
    /// The last index that it has acknowledged.
    pub matched: u64,
    /// Heard of lately: since the last check of the quorum.
    pub active: bool,
}
