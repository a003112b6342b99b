//! One replica of one Raft group: raft-rs's `RawNode` behind a few verbs, without I/O, clock or randomness of its
//! own.
//!
//! [`Group::propose`], [`Group::step`] and [`Group::tick`] are its inputs. [`Group::ready`] returns what to
//! persist, send and apply. [`Group::on_persisted`] and [`Group::applied_to`] report completion. Persistence is
//! asynchronous: a group accepts proposals while earlier Readys are still being written to disk.
//!
//! Invariants:
//!
//! - Readys complete in the order in which they were handed out.
//! - A proposal is appended here or refused. It is never forwarded, as raft-rs would do.
//! - Only committed entries are applied.
//! - A recorded commit index is never above the last durable entry.
//! - A lone voter does not stand for election while entries are still being written to its disk.

mod check;
pub mod descriptor;
mod errors;
mod interface;
mod log;
pub(crate) mod members;
#[cfg(test)]
mod peers_tests;
mod rest;
#[cfg(test)]
mod script_tests;
mod state;
mod storage;
#[cfg(test)]
mod tests;

pub use crate::group::{
    check::{INDEX_MAX, TERM_MAX, Unfit},
    errors::{ConfigurationError, EntryError, MembersRefused},
    interface::{
        ENTRY_NORMAL, Entry, GroupConfig, MembersError, PeerProgress, ProposeError, ReadIndex, Ready, RestoreError,
        Restored, SnapshotMark, Succession, Unreadable, Wanted, election_jitter,
    },
    members::{Member, encode as conf_state_bytes, member_changes},
};
use crate::group::{
    interface::ENTRY_MEMBERS,
    log::logger,
    storage::{GroupStorage, Lacking},
};
use bytes::Bytes;
use raft::{Config, RawNode, StateRole};
use raft_proto::eraftpb::{self, ConfChangeV2, ConfState};
pub use raft_proto::eraftpb::{Entry as RaftEntry, Message, MessageType};
use std::collections::VecDeque;
use types::{GroupId, Position, RaftIndex, Term};

pub struct Group {
    id: GroupId,
    pub(crate) raw: RawNode<GroupStorage>,
    /// The numbers of the last Ready handed out and of the last reported as persisted. Completions come in order.
    handed_out: u64,
    persisted: u64,
    /// The current term, and the number of the first Ready that had it.
    term_since: (Term, u64),
    /// Membership changes that were handed out and are not applied yet, with their indices.
    changes: VecDeque<(RaftIndex, ConfChangeV2)>,
    /// The number of the Ready that brought a snapshot, and the snapshot's index, until that Ready is durable.
    restoring: Option<(u64, RaftIndex)>,
    /// The configurations over the retained log, each with the first index at which it is in force.
    configurations: Vec<(RaftIndex, ConfState)>,
    /// For how many ticks this replica grants no vote after it has heard from a leader.
    promised_ticks: usize,
    kept_entries_max: u64,
    /// Ticks left during which this replica grants no vote. Its leader's lease relies on that (see
    /// [`Group::step`]).
    vow_ticks: usize,
    /// Checks that data is valid for an entry of this group.
    pub(crate) holds: fn(&[u8]) -> Result<(), EntryError>,
    /// Why the last message was dropped, if no replica of this group can have sent it.
    unfit: Option<Unfit>,
    /// The committed entry that can't be applied; this replica has stopped for good before it.
    unreadable: Option<Unreadable>,
}

/// The context of a vote request whose candidate was chosen by the leader's hand-over. raft-rs sets it.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// The kinds of messages that replicas send to each other. The others are internal to raft-rs, or answer requests
/// that are never sent.
pub(crate) const KINDS: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn is_of_peers(message: &Message) -> bool {
    KINDS.contains(&message.get_msg_type())
}

/// The configurations that a checkpoint holds, or the one with which the group begins.
fn configurations(config: &GroupConfig, checkpointed: &[u8]) -> Result<Vec<(RaftIndex, ConfState)>, RestoreError> {
    if checkpointed.is_empty() {
        return Ok(vec![(RaftIndex::ZERO, ConfState::from((config.voters.clone(), vec![])))]);
    }
    members::decode_all(checkpointed).map_err(|why| RestoreError::ConfState { group: config.group, why })
}

/// raft-rs's settings for a group that has applied the entries up to `applied`.
fn raft_config(config: &GroupConfig, applied: RaftIndex) -> Config {
    Config {
        id: config.peer,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        min_election_tick: config.election_ticks + config.election_jitter,
        max_election_tick: config.election_ticks + config.election_jitter + 1,
        applied: applied.get(),
        max_size_per_msg: config.uncommitted_bytes_max.min(1 << 20),
        // Each peer's progress reserves 8 bytes for each of these messages.
        max_inflight_msgs: 64,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: config.uncommitted_bytes_max,
        max_committed_size_per_ready: config.committed_bytes_max,
        ..Config::default()
    }
}

impl Group {
    pub fn new(config: GroupConfig, restored: Restored) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Raft { group: config.group, why };
        let before = restored.before.map_or(RaftIndex::ZERO, |before| before.index);
        if let Some(run) = restored.terms.last().filter(|run| run.term > restored.hard_state.term) {
            let (last, term) = (run.term, restored.hard_state.term);
            return Err(refused(format!("the log ends in term {last}, but the hard state's term is only {term}")));
        }
        let configurations = configurations(&config, &restored.conf_state)?;
        let conf_state = configurations.last().expect("there is one").1.clone();
        // The recorded commit index lags, because it is written only with the next record. Applied or compacted entries
        // were committed.
        let commit = restored.hard_state.commit.max(restored.applied).max(before);
        let hard_state = eraftpb::HardState {
            term: restored.hard_state.term.0,
            vote: restored.hard_state.vote,
            commit: commit.get(),
            ..eraftpb::HardState::default()
        };
        let entries: VecDeque<eraftpb::Entry> = restored.entries.into_iter().map(Entry::into_raft).collect();
        let storage = GroupStorage::new(
            hard_state.clone(),
            conf_state,
            restored.before,
            restored.gone,
            entries,
            restored.terms,
            config.beside,
        );
        if commit > storage.last() {
            let last = storage.last();
            return Err(refused(format!("entries up to {commit} were committed, but the log ends at {last}")));
        }
        let raft_config = raft_config(&config, restored.applied.max(before));
        let term_since = (restored.hard_state.term, 0);
        // Before a restart the replica may have promised its leader not to elect another. A new replica has
        // promised nothing.
        let promised_ticks = if config.has_leases { config.election_ticks } else { 0 };
        let vow_ticks = if restored.hard_state.term > Term(0) { promised_ticks } else { 0 };
        let raw = RawNode::new(&raft_config, storage, logger()).map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            id: config.group,
            raw,
            handed_out: 0,
            persisted: 0,
            term_since,
            changes: VecDeque::new(),
            restoring: None,
            configurations,
            promised_ticks,
            kept_entries_max: config.kept_entries_max,
            vow_ticks,
            holds: config.holds,
            unfit: None,
            unreadable: None,
        })
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Advances the timers by one tick. A group whose only voter leads it needs no ticks.
    pub fn tick(&mut self) {
        self.vow_ticks = self.vow_ticks.saturating_sub(1);
        if self.unreadable.is_none() && !self.may_not_stand() {
            self.raw.tick();
        }
    }

    /// Handles a message from a peer. It drops messages that no longer concern this replica. It also drops
    /// proposals, because a leader takes proposals only from its own broker.
    ///
    /// In a group with [leases](GroupConfig::has_leases), a replica that has heard from a leader grants no vote for
    /// the least election timeout. The same holds after a restart. A leader's lease relies on both. raft-rs alone
    /// would forget the promise on a restart, or when a late answer of another term makes it forget its leader. The
    /// only exception is a candidate that the leader itself hands over to; that leader has already given up its
    /// lease.
    ///
    /// A message that no replica of this group can have sent is dropped too; [`Group::take_unfit`] says why.
    pub fn step(&mut self, mut message: Message) {
        if message.to != self.raw.raft.id
            || !is_of_peers(&message)
            || message.get_msg_type() == MessageType::MsgSnapshot
        {
            return self.refuse(&message);
        }
        if !self.is_fit(&message) {
            return;
        }
        match message.get_msg_type() {
            MessageType::MsgTimeoutNow if self.may_not_stand() => return self.refuse(&message),
            // This rejection was sent before the peer acknowledged later entries. raft-rs would go back to entries
            // that may be gone by now.
            MessageType::MsgAppendResponse
                if message.reject && RaftIndex::new(message.index) <= self.matched_by(message.from) =>
            {
                return self.refuse(&message);
            }
            // Skip whole terms in one step. raft-rs would probe entry by entry, however many there are.
            MessageType::MsgAppendResponse if message.reject && message.log_term > 0 => {
                let hint = RaftIndex::new(message.reject_hint);
                message.reject_hint = self.raw.store().last_of_term(hint, Term(message.log_term)).get();
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.vow_ticks > 0 && message.context[..] != *CAMPAIGN_TRANSFER =>
            {
                return self.refuse(&message);
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat if Term(message.term) >= self.term() => {
                self.vow_ticks = self.promised_ticks;
            }
            _ => {}
        }
        self.take(message);
    }

    /// The last index that a peer is known to have; 0 if this replica does not lead.
    fn matched_by(&self, peer: u64) -> RaftIndex {
        let progress = self.raw.raft.prs().get(peer).filter(|_| self.is_leader());
        progress.map_or(RaftIndex::ZERO, |progress| RaftIndex::new(progress.matched))
    }

    /// Handles the leader's MsgSnapshot. To be called once the snapshot's state is durable beside the log.
    pub fn step_snapshot(&mut self, message: Message) {
        assert_eq!(message.get_msg_type(), MessageType::MsgSnapshot);
        if message.to != self.raw.raft.id {
            return self.refuse(&message);
        }
        if !self.is_fit(&message) {
            return;
        }
        if Term(message.term) >= self.term() {
            self.vow_ticks = self.promised_ticks;
        }
        self.take(message);
    }

    /// Whether a replica of this group can have sent the message, and this replica has not [stopped](Group::stop).
    fn is_fit(&mut self, message: &Message) -> bool {
        if self.unreadable.is_some() {
            return false;
        }
        match self.check_message(message) {
            Ok(()) => true,
            Err(unfit) => {
                self.unfit = Some(unfit);
                false
            }
        }
    }

    /// Takes the reason why the last stepped message was dropped, if no replica of this group can have sent it.
    pub fn take_unfit(&mut self) -> Option<Unfit> {
        self.unfit.take()
    }

    /// Stops the group: the committed entry at `index` can't be applied, and it must not be skipped. All entries
    /// before it are applied. The replica stops leading, accepts no more messages and hands out no more Readys.
    pub fn stop(&mut self, index: RaftIndex, why: EntryError) {
        tracing::debug!(group = self.id.0, %index, %why, "the group stops");
        self.unreadable.get_or_insert(Unreadable { group: self.id, index, why });
        if self.is_leader() {
            let term = self.term();
            self.raw.raft.become_follower(term.0, 0);
        }
    }

    /// Why this replica has [stopped](Group::stop).
    pub fn unreadable(&self) -> Option<&Unreadable> {
        self.unreadable.as_ref()
    }

    fn take(&mut self, message: Message) {
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(group = self.id.0, %error, "dropped a message from a peer");
        }
    }

    fn refuse(&self, message: &Message) {
        tracing::debug!(group = self.id.0, kind = ?message.get_msg_type(), to = message.to, "rejected a message");
    }

    /// Stands for election now. A lone voter leads when this returns, unless entries are still being written to its
    /// disk. A replica that has stopped, or is installing a snapshot, does not stand.
    pub fn campaign(&mut self) {
        if self.may_not_stand() {
            return;
        }
        // A new group has no leader that an election could disturb, so it skips the pre-vote.
        let is_new = self.term() == Term(0) && self.raw.raft.state == StateRole::Follower;
        let stood = if is_new {
            self.raw.raft.step(Message { msg_type: MessageType::MsgTimeoutNow, ..Message::default() })
        } else {
            self.raw.campaign()
        };
        if let Err(error) = stood {
            tracing::debug!(group = self.id.0, %error, "cannot stand for election");
        }
    }

    /// Whether this replica must not stand for election now.
    ///
    /// A lone voter wins at once, without a message that would wait for the disk. Its log must be durable before it
    /// leads. A replica whose log is being replaced by a snapshot does not stand either.
    fn may_not_stand(&self) -> bool {
        let raft = &self.raw.raft;
        if self.restoring.is_some() || self.unreadable.is_some() {
            return true;
        }
        !self.is_leader()
            && raft.raft_log.persisted < raft.raft_log.last_index()
            && raft.prs().conf().voters().ids().len() <= 1
    }

    /// Appends an entry to this leader's log, or refuses it and changes nothing.
    pub fn propose(&mut self, data: Bytes) -> Result<Position, ProposeError> {
        if !self.is_leader() || self.unreadable.is_some() {
            return Err(ProposeError::NotLeader);
        }
        let entry = eraftpb::Entry { data, ..eraftpb::Entry::default() };
        let mut message = Message { from: self.raw.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        match self.raw.raft.step(message) {
            Ok(()) => Ok(Position { index: self.last_index(), term: self.term() }),
            // The leader is handing over, or has too many uncommitted bytes.
            Err(_) => Err(ProposeError::Full),
        }
    }

    /// Appends a membership change to this leader's log. Each peer applies it when it applies the entry. Several
    /// changes are made in one step, through joint consensus.
    pub fn propose_members(&mut self, changes: &[Member]) -> Result<Position, MembersError> {
        assert!(!changes.is_empty(), "a change of the members changes something");
        if !self.is_leader() {
            return Err(MembersError::NotLeader);
        }
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        // raft-rs would append an empty entry instead of the change.
        if self.raw.raft.has_pending_conf() || !conf_state.voters_outgoing.is_empty() {
            return Err(MembersError::Busy);
        }
        match self.raw.propose_conf_change(Vec::new(), members::conf_change(changes)) {
            Ok(()) => Ok(Position { index: self.last_index(), term: self.term() }),
            Err(_) => Err(MembersError::Busy),
        }
    }

    /// Asks the voters whether this replica still leads. Once a quorum has confirmed it, a later Ready contains the
    /// answer with this token. The answer may never come. Panics unless this leader has committed an entry in its
    /// term.
    pub fn read_index(&mut self, token: u64) {
        assert!(self.epoch().is_some(), "only a leader that has committed in its term asks its quorum");
        self.raw.read_index(token.to_le_bytes().to_vec());
    }

    /// Hands leadership over to a voter, which stands for election once its log is complete. This leader refuses
    /// proposals until then, or until it gives the hand-over up after the least election timeout.
    pub fn hand_over(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// Whether a hand-over is in progress.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Sets the snapshot that peers get from now on if they lack compacted entries. Its state must stay readable
    /// until a newer snapshot is set.
    pub fn set_snapshot(&mut self, mark: SnapshotMark) {
        let conf_state = members::decode(&mark.conf_state).expect("it was encoded here");
        self.raw.mut_store().snapshot = Some((mark.at, conf_state));
    }

    /// Whether a peer has needed a snapshot since the last call and the newest one was unusable. If so, a new one
    /// must be made.
    pub fn snapshot_wanted(&self) -> bool {
        self.raw.store().snapshot_wanted.replace(false)
    }

    /// Reports whether a peer has received the snapshot that a MsgSnapshot announced, or will not get it.
    pub fn report_snapshot(&mut self, peer: u64, arrived: bool) {
        let status = if arrived { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure };
        self.raw.report_snapshot(peer, status);
    }

    /// Takes the range of entries to read from the log's store because a peer needs them.
    pub fn lacking(&mut self) -> Option<Wanted> {
        self.raw.store().lacking.borrow_mut().take().map(|Lacking { from, below, context }| Wanted {
            from,
            below,
            context,
        })
    }

    /// Takes the entries that were [lacking](Group::lacking): from the first wanted index on, as many as could be
    /// read. The next Ready sends them.
    pub fn fetched(&mut self, wanted: Wanted, entries: Vec<Entry>) {
        let is_it = |(at, entry): (u64, &Entry)| {
            entry.index == wanted.from.plus(at) && self.term_at(entry.index) == Some(entry.term)
        };
        if !(0..).zip(&entries).all(is_it) {
            return;
        }
        self.raw.mut_store().hold_fetched(entries.into_iter().map(Entry::into_raft).collect());
        self.raw.on_entries_fetched(wanted.context);
        self.raw.mut_store().hold_fetched(Vec::new());
    }

    /// Notes that entries up to `index`, all applied, are deleted from the log's store. A peer that lacks them gets
    /// a snapshot.
    pub fn forget(&mut self, index: RaftIndex) {
        let index = index.min(self.applied()).min(self.stable());
        self.raw.mut_store().compact(index);
        self.raw.mut_store().trim(index);
        let keep = self.configurations.partition_point(|(since, _)| *since <= index).saturating_sub(1);
        self.configurations.drain(..keep);
    }

    /// Forgets a lost leader: this follower has no leader from now on, and may help to elect another.
    pub fn lose_leader(&mut self) {
        if !self.is_leader() && self.leader().is_some() {
            let term = self.term();
            self.raw.raft.become_follower(term.0, 0);
        }
    }

    /// Whether [`Group::ready`] would return a Ready.
    pub fn has_work(&self) -> bool {
        self.unreadable.is_none() && self.raw.has_ready()
    }

    /// Returns the next work to do, if there is any. Call it until it returns `None`.
    pub fn ready(&mut self) -> Option<Ready> {
        if !self.has_work() {
            return None;
        }
        let mut ready = self.raw.ready();
        let snapshot = self.take_snapshot(&ready);
        if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().hard_state = hard_state.clone();
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        let number = ready.number();
        if self.term_since.0 != self.term() {
            self.term_since = (self.term(), number);
        }
        let mut messages = ready.take_messages();
        let mut persisted_messages = ready.take_persisted_messages();
        if !self.has_durable_term() {
            // A lone voter leads before its vote is durable. After a crash it would lead again in the same term,
            // with different entries. Its learners must not have seen any of the lost entries.
            persisted_messages.append(&mut messages);
        }
        let mut committed: Vec<Entry> = ready.take_committed_entries().into_iter().map(Entry::from_raft).collect();
        self.note_changes(&mut committed);
        let reads = ready.take_read_states().into_iter().map(|read| ReadIndex {
            token: u64::from_le_bytes(read.request_ctx[..].try_into().expect("a token of ours is eight bytes")),
            index: RaftIndex::new(read.index),
        });
        let reads = reads.collect();
        self.handed_out = number;
        self.raw.advance_append_async(ready);
        if let Some(mark) = &snapshot {
            self.changes.clear();
            self.restoring = Some((number, mark.at.index));
        }
        Some(Ready {
            number,
            entries: entries.into_iter().map(Entry::from_raft).collect(),
            messages,
            persisted_messages,
            snapshot,
            committed,
            reads,
        })
    }

    /// Keeps committed membership changes until they are applied. If one can't be read, neither it nor any entry
    /// behind it is handed out.
    fn note_changes(&mut self, committed: &mut Vec<Entry>) {
        for (at, entry) in committed.iter().enumerate().filter(|(_, entry)| entry.entry_type != ENTRY_NORMAL) {
            let read = match entry.entry_type {
                ENTRY_MEMBERS => members::decode_change(&entry.data).map_err(EntryError::from),
                other => Err(EntryError::Type(other)),
            };
            match read {
                Ok(change) => self.changes.push_back((entry.index, change)),
                Err(why) => {
                    let index = entry.index;
                    committed.truncate(at);
                    return self.stop(index, why);
                }
            }
        }
    }

    /// Restarts the log behind the snapshot of this Ready, if it has one.
    fn take_snapshot(&mut self, ready: &raft::Ready) -> Option<SnapshotMark> {
        if ready.snapshot().is_empty() {
            return None;
        }
        let metadata = ready.snapshot().get_metadata();
        let at = Position { index: RaftIndex::new(metadata.index), term: Term(metadata.term) };
        let conf_state = metadata.get_conf_state().clone();
        let mark = SnapshotMark { at, conf_state: members::encode(&conf_state) };
        self.configurations = vec![(at.index, conf_state.clone())];
        self.raw.mut_store().restart(at, conf_state);
        Some(mark)
    }

    /// Reports that the Ready `number`, and every one before it, is durable.
    pub fn on_persisted(&mut self, number: u64) {
        assert!(number > self.persisted, "Ready {number} was reported after Ready {}", self.persisted);
        assert!(number <= self.handed_out, "Ready {number} was reported, but only {} were handed out", self.handed_out);
        self.persisted = number;
        self.raw.on_persist_ready(number);
        if let Some((_, index)) = self.restoring.take_if(|(since, _)| *since <= number) {
            self.raw.advance_apply_to(index.get());
        }
    }

    /// Reports that committed entries up to `index` are applied. An impossible membership change among them
    /// [stops](Group::stop) the group before it.
    pub fn applied_to(&mut self, index: RaftIndex) {
        assert!(index <= self.commit(), "entry {index} is not committed, {} is", self.commit());
        while self.changes.front().is_some_and(|(at, _)| *at <= index) {
            let (at, change) = self.changes.pop_front().expect("it was just looked at");
            match self.raw.apply_conf_change(&change) {
                Ok(members) => self.configurations.push((at, members)),
                Err(error) => {
                    self.raw.advance_apply_to(at.prev().get());
                    let why = error.to_string();
                    let refused = MembersRefused { change: format!("{change:?}"), why };
                    return self.stop(at, EntryError::MembersRefused(Box::new(refused)));
                }
            }
            if self.is_leader() && !self.raw.raft.promotable() {
                // raft-rs would let a removed leader go on leading, refusing every proposal.
                let term = self.term();
                self.raw.raft.become_follower(term.0, 0);
            }
        }
        self.raw.advance_apply_to(index.get());
    }

    /// Drops the in-memory data of entries up to `index`, or fewer; the terms stay. Entries that are not applied
    /// and durable are kept. A leader also keeps entries that a peer has not acknowledged, up to
    /// `kept_entries_max`. Returns the last index whose data is dropped.
    pub fn compact(&mut self, index: RaftIndex) -> RaftIndex {
        let raft = &self.raw.raft;
        let index = index.min(self.applied()).min(self.stable());
        let peers = raft.prs().iter().map(|(_, peer)| RaftIndex::new(peer.matched)).min().filter(|_| self.is_leader());
        let wanted = peers.map_or(index, |matched| matched.max(index.back(self.kept_entries_max)));
        self.raw.mut_store().compact(index.min(wanted))
    }
}
