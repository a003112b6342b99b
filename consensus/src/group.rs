//! One replica of one Raft group: raft-rs's `RawNode` behind four verbs, without I/O, clock or randomness of its own.
//!
//! [`Group::propose`], [`Group::step`] and [`Group::tick`] feed it; [`Group::ready`] says what to persist, send and apply;
//! [`Group::on_persisted`] and [`Group::applied_to`] report back. Persistence is asynchronous: a group goes on proposing while
//! earlier Readys are still on their way to the disk.
//!
//! Invariants: completions come in the order of the Readys; a proposal is appended here or refused, never forwarded
//! (raft-rs would); what is applied is committed.

use crate::{group_log::logger, group_storage::GroupStorage};
use bytes::Bytes;
use raft::{
    Config, RawNode, StateRole,
    eraftpb::{self, ConfState, EntryType, Message, MessageType},
};
use std::collections::VecDeque;

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

impl Entry {
    /// Whether it carries data of ours: a leader's first entry has none.
    pub fn is_command(&self) -> bool {
        self.entry_type == ENTRY_NORMAL && !self.data.is_empty()
    }

    fn from_raft(entry: eraftpb::Entry) -> Self {
        Self { index: entry.index, term: entry.term, entry_type: entry.entry_type as u8, data: entry.data }
    }

    fn into_raft(self) -> eraftpb::Entry {
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
    /// Ticks without a leader before an election; fixed per node, since raft-rs would draw it from the thread's generator and a
    /// failing simulation could not be replayed.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// Bytes of entry data that may be proposed and not committed; above, a proposal is refused.
    pub uncommitted_bytes_max: u64,
}

impl GroupConfig {
    /// A group whose only voter is this replica.
    pub fn single(group: u64, peer: u64) -> Self {
        Self {
            group,
            peer,
            voters: vec![peer],
            election_ticks: 10,
            heartbeat_ticks: 1,
            uncommitted_bytes_max: 64 << 20,
        }
    }
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
    /// To be given to [`Group::on_persisted`] once `entries` and the hard state they ride with are durable.
    pub number: u64,
    /// To be made durable together with the hard state ([`Group::hard_state`] after this Ready). They replace what stands at
    /// and above the first of them.
    pub entries: Vec<Entry>,
    /// May be sent at once.
    pub messages: Vec<Message>,
    /// May be sent only when this Ready is durable.
    pub persisted_messages: Vec<Message>,
    /// To be applied now, in order, then reported by [`Group::applied_to`]. They are durable on a majority, not always here.
    pub committed: Vec<Entry>,
}

pub struct Group {
    id: u64,
    raw: RawNode<GroupStorage>,
    /// The last Ready reported as persisted: completions come in order.
    persisted: u64,
}

impl Group {
    pub fn new(config: GroupConfig, restored: Restored) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Raft { group: config.group, why };
        let before = restored.before.map_or(0, |before| before.index);
        let conf_state = if restored.conf_state.is_empty() {
            ConfState::from((config.voters.clone(), vec![]))
        } else {
            decode_conf_state(&restored.conf_state)
                .map_err(|why| RestoreError::ConfState { group: config.group, why })?
        };
        let hard_state = eraftpb::HardState {
            term: restored.hard_state.term,
            vote: restored.hard_state.vote,
            // The recorded commit lags: it is written with the next record only. What was applied, or compacted, was
            // committed.
            commit: restored.hard_state.commit.max(restored.applied).max(before),
            ..eraftpb::HardState::default()
        };
        let entries: VecDeque<eraftpb::Entry> = restored.entries.into_iter().map(Entry::into_raft).collect();
        let storage = GroupStorage::new(hard_state.clone(), conf_state, before, entries, restored.terms);
        if hard_state.commit > storage.last() {
            let (commit, last) = (hard_state.commit, storage.last());
            return Err(refused(format!("entries up to {commit} were committed, but the log ends at {last}")));
        }
        let raft_config = Config {
            id: config.peer,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: config.election_ticks,
            max_election_tick: config.election_ticks + 1,
            applied: restored.applied.max(before),
            max_size_per_msg: config.uncommitted_bytes_max.min(1 << 20),
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: config.uncommitted_bytes_max,
            max_committed_size_per_ready: 16 << 20,
            ..Config::default()
        };
        let raw = RawNode::new(&raft_config, storage, logger()).map_err(|error| refused(error.to_string()))?;
        Ok(Self { id: config.group, raw, persisted: 0 })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// One unit of the timers has passed.
    pub fn tick(&mut self) {
        self.raw.tick();
    }

    /// A message from a peer. One that does not concern this replica any more is dropped.
    pub fn step(&mut self, message: Message) {
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(group = self.id, %error, "a message from a peer was dropped");
        }
    }

    /// Stands for election now. A lone voter leads when this returns.
    pub fn campaign(&mut self) {
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(group = self.id, %error, "cannot stand for election");
        }
    }

    /// Appends an entry to this leader's log, or refuses it with nothing changed.
    pub fn propose(&mut self, data: Bytes) -> Result<Position, ProposeError> {
        if !self.is_leader() {
            return Err(ProposeError::NotLeader);
        }
        let entry = eraftpb::Entry { data, ..eraftpb::Entry::default() };
        let mut message = Message { from: self.raw.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        match self.raw.raft.step(message) {
            Ok(()) => Ok(Position { index: self.last_index(), term: self.term() }),
            // A leader that hands over, or has too much uncommitted.
            Err(_) => Err(ProposeError::Full),
        }
    }

    /// What is to be done now, if anything. Call until `None`.
    pub fn ready(&mut self) -> Option<Ready> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        assert!(ready.snapshot().is_empty(), "snapshots are not sent by anybody yet");
        if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().hard_state = hard_state.clone();
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        let messages = ready.take_messages();
        let persisted_messages = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let number = ready.number();
        self.raw.advance_append_async(ready);
        Some(Ready {
            number,
            entries: entries.into_iter().map(Entry::from_raft).collect(),
            messages,
            persisted_messages,
            committed: committed.into_iter().map(Entry::from_raft).collect(),
        })
    }

    /// The Ready `number`, and every one before it, is durable.
    pub fn on_persisted(&mut self, number: u64) {
        assert!(number > self.persisted, "Ready {number} was reported after Ready {}", self.persisted);
        self.persisted = number;
        self.raw.on_persist_ready(number);
    }

    /// Committed entries up to `index` are applied.
    pub fn applied_to(&mut self, index: u64) {
        assert!(index <= self.commit(), "entry {index} is not committed, {} is", self.commit());
        self.raw.advance_apply_to(index);
    }

    /// Forgets the data of entries up to `index`, or up to what is applied and durable if that is less. Their terms stay.
    pub fn compact(&mut self, index: u64) {
        let keep_above = index.min(self.applied()).min(self.raw.raft.raft_log.persisted);
        self.raw.mut_store().compact(keep_above);
    }

    pub fn hard_state(&self) -> HardState {
        let state = self.raw.raft.hard_state();
        HardState { term: state.term, vote: state.vote, commit: state.commit }
    }

    /// The voters and learners, as bytes for a checkpoint.
    pub fn conf_state(&self) -> Bytes {
        encode_conf_state(&self.raw.raft.prs().conf().to_conf_state())
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader's id, if this replica knows one.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|leader| *leader != 0)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn applied(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The term of an index that the log retains.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.raw.store().term_of(index)
    }

    /// The runs of terms over the retained log, ascending.
    pub fn terms(&self) -> &[TermRun] {
        self.raw.store().terms()
    }

    /// Panics if the group's own invariants do not hold.
    pub fn check(&self) {
        let log = &self.raw.raft.raft_log;
        assert!(log.applied <= log.committed, "applied {} is above committed {}", log.applied, log.committed);
        assert!(log.committed <= log.last_index(), "committed {} is above the end {}", log.committed, log.last_index());
        assert!(log.persisted <= log.last_index(), "persisted {} is above the end {}", log.persisted, log.last_index());
        self.raw.store().check();
    }
}

/// ```text
/// 0        4                8
/// ┌────────┬────────────────┬───────────────────────────────┐
/// │ voters │ learners (u32) │ ids, u64 each, voters first   │  little-endian
/// └────────┴────────────────┴───────────────────────────────┘
/// ```
/// A configuration in transition (joint consensus) is not checkpointed: the change is still in the log.
fn encode_conf_state(state: &ConfState) -> Bytes {
    let mut bytes = Vec::with_capacity(8 + 8 * (state.voters.len() + state.learners.len()));
    bytes.extend_from_slice(&(state.voters.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(state.learners.len() as u32).to_le_bytes());
    for id in state.voters.iter().chain(&state.learners) {
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes.into()
}

fn decode_conf_state(bytes: &[u8]) -> Result<ConfState, String> {
    let (counts, ids) = bytes.split_first_chunk::<8>().ok_or("it is shorter than its counts")?;
    let [voters, learners] =
        [0, 4].map(|at| u32::from_le_bytes(counts[at..at + 4].try_into().expect("four bytes")) as usize);
    if ids.len() as u64 != (voters as u64 + learners as u64) * 8 {
        return Err(format!("{voters} voters and {learners} learners do not fit {} bytes", bytes.len()));
    }
    let ids: Vec<u64> = ids.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().expect("eight bytes"))).collect();
    Ok(ConfState::from((ids[..voters].to_vec(), ids[voters..].to_vec())))
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
