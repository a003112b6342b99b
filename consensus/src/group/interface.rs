//! A group's inputs and outputs: its configuration, its entries, and the work it hands out.

#[cfg(doc)]
use crate::group::Group;
use crate::group::errors::{ConfigurationError, EntryError};
use bytes::Bytes;
use raft_proto::eraftpb::{self, EntryType, Message};
use types::{GroupId, HardState, Position, RaftIndex, Term, TermRun};

/// One log entry. `data` is small; a payload, if it has one, travels beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: RaftIndex,
    pub term: Term,
    /// raft-proto's number: 0 normal, 1 and 2 configuration changes.
    pub entry_type: u8,
    pub data: Bytes,
}

/// The [`Entry::entry_type`] of an entry that carries application data, or none.
pub const ENTRY_NORMAL: u8 = 0;
/// The [`Entry::entry_type`] of a membership change. (The older form, 1, is never proposed here.)
pub(crate) const ENTRY_MEMBERS: u8 = 2;

impl Entry {
    /// Whether it carries application data. A leader's first entry has none.
    pub fn is_command(&self) -> bool {
        self.entry_type == ENTRY_NORMAL && !self.data.is_empty()
    }

    /// The largest known [`Entry::entry_type`].
    pub(crate) const KIND_MAX: u8 = ENTRY_MEMBERS;

    pub(crate) fn from_raft(entry: eraftpb::Entry) -> Self {
        Self {
            index: RaftIndex::new(entry.index),
            term: Term(entry.term),
            entry_type: entry.entry_type as u8,
            data: entry.data,
        }
    }

    pub(crate) fn into_raft(self) -> eraftpb::Entry {
        let mut entry =
            eraftpb::Entry { index: self.index.get(), term: self.term.0, data: self.data, ..eraftpb::Entry::default() };
        entry.set_entry_type(match self.entry_type {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            other => panic!("entry {} has the unknown type {other}", self.index),
        });
        entry
    }
}

/// Identity and timers of a replica.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub group: GroupId,
    /// This replica's id in the group. It belongs to one disk incarnation and is never reused. Not 0.
    pub peer: u64,
    /// The voters of a group that has no log yet.
    pub voters: Vec<u64>,
    /// The least number of ticks without a leader before a replica stands for election. It is the same on all
    /// peers, and more than `heartbeat_ticks`. For this long, a peer that hears from its leader refuses its vote. A
    /// leader that hears from no majority for this long steps down.
    pub election_ticks: usize,
    /// Ticks that this peer waits beyond `election_ticks`, from [`election_jitter`]. raft-rs would draw it from the
    /// thread's random generator, and a failing simulation could not be replayed.
    pub election_jitter: usize,
    pub heartbeat_ticks: usize,
    /// Bytes of entry data that may be proposed but uncommitted. Above this limit, a proposal is refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of committed entries that one Ready hands out at most. A single larger entry is handed out alone.
    pub committed_bytes_max: u64,
    /// A leader keeps in memory the entries that a peer lacks, but at most this many. A peer further behind gets a
    /// snapshot, or entries that are read from the log's store.
    pub kept_entries_max: u64,
    /// Returns how many bytes travel beside an entry with this data. They count towards the size limit of messages.
    pub beside: fn(&[u8]) -> u64,
    /// Checks that data is valid for an entry of this group, or says why not. It is used to reject a peer's
    /// entries.
    pub holds: fn(&[u8]) -> Result<(), EntryError>,
    /// Whether a leader's lease relies on this group's members to refuse their votes: see [`Group::step`].
    pub has_leases: bool,
}

impl GroupConfig {
    /// A group whose only voter is this replica.
    pub fn single(group: GroupId, peer: u64) -> Self {
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

/// A peer's own [`GroupConfig::election_jitter`], 0 to `election_ticks`. The seed must differ from node to node.
pub fn election_jitter(seed: u64, group: GroupId, election_ticks: usize) -> usize {
    fastrand::Rng::with_seed(seed ^ group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)).usize(..=election_ticks)
}

/// The fate of a leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// This replica still leads, or leads again.
    Leads,
    /// This leader heard from no majority and stepped down. It knows of no other leader.
    SteppedDown,
    /// Another replica stands for election. This one does not know yet who wins.
    Open,
    /// This peer leads.
    Passed(u64),
}

/// A group as storage found it at startup. The default is a group that has no log yet.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub hard_state: HardState,
    /// [`Group::conf_state`] or [`Group::conf_states`] from the checkpoint; empty if there was none.
    pub conf_state: Bytes,
    /// Covers the whole retained log, ascending.
    pub terms: Vec<TermRun>,
    /// The index and term right before the first of `entries`. Only the terms are known of the entries up to there.
    pub before: Option<Position>,
    /// The last deleted index. Entries above it that are not in memory can be [fetched](Group::lacking). `None`:
    /// everything that is not in memory is deleted.
    pub gone: Option<Position>,
    /// Ascending, without holes.
    pub entries: Vec<Entry>,
    /// The last applied index: at least that of `before`, at most the last index.
    pub applied: RaftIndex,
}

/// Why an entry was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this replica does not lead its group")]
    NotLeader,
    #[error("too much of this group's log is uncommitted; try again")]
    Full,
}

/// A committed entry that can't be applied; its group has stopped before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("group {group} has stopped before its committed entry {index}, which can't be applied: {why}")]
pub struct Unreadable {
    pub group: GroupId,
    pub index: RaftIndex,
    pub why: EntryError,
}

/// Why a membership change was not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    #[error("this replica does not lead its group")]
    NotLeader,
    #[error("an earlier membership change is not finished; try again")]
    Busy,
}

/// Why a group can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("group {group}: the checkpointed configuration can't be read: {why}")]
    ConfState { group: GroupId, why: ConfigurationError },
    #[error("group {group}: {why}")]
    Raft { group: GroupId, why: String },
}

/// The work to do now.
#[derive(Debug)]
pub struct Ready {
    /// To be passed to [`Group::on_persisted`] once `entries` and the hard state are durable.
    pub number: u64,
    /// Entries to make durable in order, each together with its [`Group::hard_state_with`]. They replace all
    /// entries from the first one's index on.
    ///
    /// Without entries, a [`Group::hard_state`] whose term or vote has changed is made durable on its own. A
    /// changed commit index alone is not worth a write.
    pub entries: Vec<Entry>,
    /// A leader's messages. They may be sent at once, while its own entries are still being written to disk (Raft
    /// thesis 10.2.1). The leader's term is durable.
    pub messages: Vec<Message>,
    /// Messages that may be sent only once this Ready, and every one before it, is durable. A vote or an
    /// acknowledgement promises that.
    pub persisted_messages: Vec<Message>,
    /// A snapshot that replaces the whole log and the applied state, before anything else in this Ready. It was
    /// staged durably before [`Group::step_snapshot`]. It counts as applied once this Ready is reported as
    /// persisted.
    pub snapshot: Option<SnapshotMark>,
    /// Entries to apply now, in order, and then to report with [`Group::applied_to`]. They are durable here and on
    /// a majority.
    pub committed: Vec<Entry>,
    /// Answers to [`Group::read_index`].
    pub reads: Vec<ReadIndex>,
}

/// The position at which a snapshot of the applied state was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMark {
    pub at: Position,
    /// [`Group::conf_state`] as of that index.
    pub conf_state: Bytes,
}

/// Entries to fetch from the log's store: from `from` on, and below `below`. Fewer will do.
pub struct Wanted {
    pub from: RaftIndex,
    pub below: RaftIndex,
    pub(crate) context: raft::GetEntriesContext,
}

/// The answer to [`Group::read_index`]: when it was called, this replica led and had committed up to `index`. A
/// quorum has confirmed that since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    pub token: u64,
    pub index: RaftIndex,
}

/// A peer's progress as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    pub peer: u64,
    pub voter: bool,
    /// The last index that it has acknowledged.
    pub matched: RaftIndex,
    /// Whether the leader has heard from it since its last quorum check.
    pub active: bool,
}
