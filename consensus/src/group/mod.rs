//! One replica of one Raft group: raft-rs's `RawNode` behind four verbs, without I/O, clock or randomness of its own.
//!
//! [`Group::propose`], [`Group::step`] and [`Group::tick`] feed it; [`Group::ready`] says what to persist, send and apply;
//! [`Group::on_persisted`] and [`Group::applied_to`] report back. Persistence is asynchronous: a group goes on proposing while
//! earlier Readys are still on their way to the disk.
//!
//! Invariants: completions come in the order of the Readys; a proposal is appended here or refused, never forwarded
//! (raft-rs would); what is applied is committed; a recorded commit index is never above what is durable; nobody stands for
//! election alone while entries are on their way to the disk.

mod check;
pub mod descriptor;
mod log;
pub(crate) mod members;
#[cfg(test)]
mod peers_tests;
mod storage;
#[cfg(test)]
mod tests;
mod types;

pub use crate::group::{
    check::{INDEX_MAX, TERM_MAX, Unfit},
    members::{Member, encode as conf_state_bytes, member_changes},
    types::{
        ENTRY_NORMAL, Entry, GroupConfig, HardState, MembersError, PeerProgress, Position, ProposeError, ReadIndex,
        Ready, RestoreError, Restored, SnapshotMark, TermRun, Unreadable, Wanted, election_jitter,
    },
};
use crate::group::{
    log::logger,
    storage::{GroupStorage, Lacking},
    types::ENTRY_MEMBERS,
};
use bytes::Bytes;
pub use raft::eraftpb::{Entry as RaftEntry, Message, MessageType};
use raft::{
    Config, RawNode, StateRole,
    eraftpb::{self, ConfChangeV2, ConfState},
};
use std::collections::VecDeque;

pub struct Group {
    id: u64,
    pub(crate) raw: RawNode<GroupStorage>,
    /// The last Ready handed out, and the last reported as persisted: completions come in order.
    handed_out: u64,
    persisted: u64,
    /// The present term, and the first Ready that had it.
    term_since: (u64, u64),
    /// Changes of the members that were handed out and are not applied.
    changes: VecDeque<(u64, ConfChangeV2)>,
    /// The Ready that brought a snapshot, and the snapshot's index, until that is durable.
    restoring: Option<(u64, u64)>,
    /// The members over the retained log, each with the index from which on.
    configurations: Vec<(u64, ConfState)>,
    /// How long this replica elects nobody after it has heard of a leader.
    promised_ticks: usize,
    kept_entries_max: u64,
    /// For so many ticks this replica helps nobody to be elected: its leader counts on that (see [`Group::step`]).
    vow_ticks: usize,
    /// Whether data is what this group's entries hold.
    pub(crate) holds: fn(&[u8]) -> Result<(), String>,
    /// Why the last message was dropped that no replica of this group can have sent.
    unfit: Option<Unfit>,
    /// The committed entry before which this replica has stopped for good.
    unreadable: Option<Unreadable>,
}

/// What raft-rs puts into the vote requests of a candidate to whom the leader hands over.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// Whether replicas send each other such messages; others are raft-rs's own affairs within one replica, or are never
/// asked for.
fn is_of_peers(message: &Message) -> bool {
    crate::wire::KINDS.contains(&message.get_msg_type())
}

impl Group {
    pub fn new(config: GroupConfig, restored: Restored) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Raft { group: config.group, why };
        let before = restored.before.map_or(0, |before| before.index);
        if let Some(run) = restored.terms.last().filter(|run| run.term > restored.hard_state.term) {
            let (last, term) = (run.term, restored.hard_state.term);
            return Err(refused(format!("the log ends in term {last}, but the hard state knows of none above {term}")));
        }
        let configurations = if restored.conf_state.is_empty() {
            vec![(0, ConfState::from((config.voters.clone(), vec![])))]
        } else {
            members::decode_all(&restored.conf_state)
                .map_err(|why| RestoreError::ConfState { group: config.group, why })?
        };
        let conf_state = configurations.last().expect("there is one").1.clone();
        let hard_state = eraftpb::HardState {
            term: restored.hard_state.term,
            vote: restored.hard_state.vote,
            // The recorded commit lags: it is written with the next record only. What was applied, or compacted, was
            // committed.
            commit: restored.hard_state.commit.max(restored.applied).max(before),
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
        if hard_state.commit > storage.last() {
            let (commit, last) = (hard_state.commit, storage.last());
            return Err(refused(format!("entries up to {commit} were committed, but the log ends at {last}")));
        }
        let raft_config = Config {
            id: config.peer,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: config.election_ticks + config.election_jitter,
            max_election_tick: config.election_ticks + config.election_jitter + 1,
            applied: restored.applied.max(before),
            max_size_per_msg: config.uncommitted_bytes_max.min(1 << 20),
            // Each peer's progress reserves 8 bytes for each of them.
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: config.uncommitted_bytes_max,
            max_committed_size_per_ready: config.committed_bytes_max,
            ..Config::default()
        };
        let term_since = (restored.hard_state.term, 0);
        // Before it stopped it may have promised its leader not to elect another. A new one has promised nothing.
        let promised_ticks = if config.has_leases { config.election_ticks } else { 0 };
        let vow_ticks = if restored.hard_state.term > 0 { promised_ticks } else { 0 };
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

    pub fn id(&self) -> u64 {
        self.id
    }

    /// One unit of the timers has passed. A group whose only voter leads it needs none.
    pub fn tick(&mut self) {
        self.vow_ticks = self.vow_ticks.saturating_sub(1);
        if self.unreadable.is_none() && !self.may_not_stand() {
            self.raw.tick();
        }
    }

    /// A message from a peer. One that does not concern this replica any more is dropped, and so is a proposal: only its own
    /// leader takes those.
    ///
    /// Who has heard of a leader elects nobody for the least election timeout from then on, and nobody does after a start: a
    /// leader's lease stands on that. (raft-rs alone forgets its promise when it restarts, or when a late answer of another
    /// term takes its leader from it.) Only a candidate to whom the leader itself hands over is heard; that leader has given
    /// its lease up.
    ///
    /// One that no replica of this group can have sent is dropped too; [`Group::take_unfit`] says why.
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
            // It was sent before the peer acknowledged more. raft-rs would go back to entries that may be gone by now.
            MessageType::MsgAppendResponse if message.reject && message.index <= self.matched_by(message.from) => {
                return self.refuse(&message);
            }
            // raft-rs would look for the same place entry by entry, however many there are.
            MessageType::MsgAppendResponse if message.reject && message.log_term > 0 => {
                message.reject_hint = self.raw.store().last_of_term(message.reject_hint, message.log_term);
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.vow_ticks > 0 && message.context[..] != *CAMPAIGN_TRANSFER =>
            {
                return self.refuse(&message);
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat if message.term >= self.term() => {
                self.vow_ticks = self.promised_ticks;
            }
            _ => {}
        }
        self.take(message);
    }

    /// The last index that a peer is known to have; 0 if this replica does not lead.
    fn matched_by(&self, peer: u64) -> u64 {
        let progress = self.raw.raft.prs().get(peer).filter(|_| self.is_leader());
        progress.map_or(0, |progress| progress.matched)
    }

    /// The leader's MsgSnapshot, once the state that goes with it is durable beside the log.
    pub fn step_snapshot(&mut self, message: Message) {
        assert_eq!(message.get_msg_type(), MessageType::MsgSnapshot);
        if message.to != self.raw.raft.id {
            return self.refuse(&message);
        }
        if !self.is_fit(&message) {
            return;
        }
        if message.term >= self.term() {
            self.vow_ticks = self.promised_ticks;
        }
        self.take(message);
    }

    /// Whether a message is one of this group's, and the group takes any.
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

    /// Why the message that was just stepped was dropped, if it was one that no replica of this group can have sent.
    pub fn take_unfit(&mut self) -> Option<Unfit> {
        self.unfit.take()
    }

    /// The committed entry at `index` can't be applied; those before it are. It must not be skipped: the replica leads
    /// no more, takes nothing more and hands nothing more out.
    pub fn stop(&mut self, index: u64, why: String) {
        tracing::debug!(group = self.id, index, why, "the group stops");
        self.unreadable.get_or_insert(Unreadable { group: self.id, index, why });
        if self.is_leader() {
            let term = self.term();
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// Why this replica has [stopped](Group::stop).
    pub fn unreadable(&self) -> Option<&Unreadable> {
        self.unreadable.as_ref()
    }

    fn take(&mut self, message: Message) {
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(group = self.id, %error, "a message from a peer was dropped");
        }
    }

    fn refuse(&self, message: &Message) {
        tracing::debug!(group = self.id, kind = ?message.get_msg_type(), to = message.to, "a message was refused");
    }

    /// Stands for election now. A lone voter leads when this returns, unless entries are still on their way to its disk.
    pub fn campaign(&mut self) {
        if self.may_not_stand() {
            return;
        }
        // Of a new group there is no leader whom an election could disturb: nobody needs to be asked beforehand.
        let is_new = self.term() == 0 && self.raw.raft.state == StateRole::Follower;
        let stood = if is_new {
            self.raw.raft.step(Message { msg_type: MessageType::MsgTimeoutNow, ..Message::default() })
        } else {
            self.raw.campaign()
        };
        if let Err(error) = stood {
            tracing::debug!(group = self.id, %error, "cannot stand for election");
        }
    }

    /// A lone voter wins at once, without a message that would wait for the disk; but a leader's log is durable when it begins. And
    /// nobody stands while a snapshot takes the log's place.
    fn may_not_stand(&self) -> bool {
        let raft = &self.raw.raft;
        if self.restoring.is_some() || self.unreadable.is_some() {
            return true;
        }
        !self.is_leader()
            && raft.raft_log.persisted < raft.raft_log.last_index()
            && raft.prs().conf().voters().ids().len() <= 1
    }

    /// Appends an entry to this leader's log, or refuses it with nothing changed.
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
            // A leader that hands over, or has too much uncommitted.
            Err(_) => Err(ProposeError::Full),
        }
    }

    /// Appends a change of the members to this leader's log. It takes effect on each peer when that applies it; several changes
    /// are made in one step, through joint consensus.
    pub fn propose_members(&mut self, changes: &[Member]) -> Result<Position, MembersError> {
        assert!(!changes.is_empty(), "a change of the members changes something");
        if !self.is_leader() {
            return Err(MembersError::NotLeader);
        }
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        // raft-rs would append an empty entry in its place.
        if self.raw.raft.has_pending_conf() || !conf_state.voters_outgoing.is_empty() {
            return Err(MembersError::Busy);
        }
        match self.raw.propose_conf_change(Vec::new(), members::conf_change(changes)) {
            Ok(()) => Ok(Position { index: self.last_index(), term: self.term() }),
            Err(_) => Err(MembersError::Busy),
        }
    }

    /// Asks the voters whether this replica still leads; the answer, with this token, comes in a later Ready once a quorum has
    /// said so, or never. Only a leader that has committed in its term may ask.
    pub fn read_index(&mut self, token: u64) {
        assert!(self.epoch().is_some(), "only a leader that has committed in its term asks");
        self.raw.read_index(token.to_le_bytes().to_vec());
    }

    /// Has a voter take over the lead. It stands for election once it has everything; until then, or until this is given up after
    /// the least election timeout, proposals are refused.
    pub fn hand_over(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// Whether a hand-over is under way.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// What a peer that lacks compacted entries gets from now on; its state must stay readable until there is a newer one.
    pub fn set_snapshot(&mut self, mark: SnapshotMark) {
        let conf_state = members::decode(&mark.conf_state).expect("it was encoded here");
        self.raw.mut_store().snapshot = Some((mark.at, conf_state));
    }

    /// Whether a peer has needed a snapshot since the last call, and the newest would not do: it is to be cut anew.
    pub fn snapshot_wanted(&self) -> bool {
        self.raw.store().snapshot_wanted.replace(false)
    }

    /// A peer has the snapshot that a MsgSnapshot announced, or does not get it.
    pub fn report_snapshot(&mut self, peer: u64, arrived: bool) {
        let status = if arrived { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure };
        self.raw.report_snapshot(peer, status);
    }

    /// Entries that are to be read from the log's store, since a peer needs them.
    pub fn lacking(&mut self) -> Option<Wanted> {
        self.raw.store().lacking.borrow_mut().take().map(|Lacking { from, below, context }| Wanted {
            from,
            below,
            context,
        })
    }

    /// What was [lacking](Group::lacking), from its first index on, as much as there was: it is sent in the next Ready.
    pub fn fetched(&mut self, wanted: Wanted, entries: Vec<Entry>) {
        let is_it = |(at, entry): (u64, &Entry)| {
            entry.index == wanted.from + at && self.term_at(entry.index) == Some(entry.term)
        };
        if !(0..).zip(&entries).all(is_it) {
            return;
        }
        self.raw.mut_store().hold_fetched(entries.into_iter().map(Entry::into_raft).collect());
        self.raw.on_entries_fetched(wanted.context);
        self.raw.mut_store().hold_fetched(Vec::new());
    }

    /// Entries up to `index`, all applied, are gone from the log's store: a peer that lacks them gets a snapshot.
    pub fn forget(&mut self, index: u64) {
        let index = index.min(self.applied()).min(self.stable());
        self.raw.mut_store().compact(index);
        self.raw.mut_store().trim(index);
        let keep = self.configurations.partition_point(|(since, _)| *since <= index).saturating_sub(1);
        self.configurations.drain(..keep);
    }

    /// Its leader is lost: this replica has none, and helps to elect another.
    pub fn lose_leader(&mut self) {
        if !self.is_leader() && self.leader().is_some() {
            let term = self.term();
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// Whether this leader has nothing left to tell anybody who is there, and a majority is: it needs no timers until something
    /// happens. Gives the position that all of them have, and who they are.
    pub fn at_rest(&self, is_there: impl Fn(u64) -> bool) -> Option<(Position, Vec<u64>)> {
        let raft = &self.raw.raft;
        let last = self.last_index();
        let is_settled = self.epoch().is_some()
            && !self.is_handing_over()
            && !self.raw.has_ready()
            && !raft.has_pending_conf()
            && [self.commit(), self.stable(), self.applied()] == [last; 3];
        if !is_settled || !raft.prs().conf().to_conf_state().voters_outgoing.is_empty() {
            return None;
        }
        let voters = self.voters();
        let (mut there, mut voters_there) = (Vec::new(), 0);
        for (peer, progress) in raft.prs().iter() {
            let is_me = *peer == raft.id;
            if is_me || is_there(*peer) {
                if !is_me && progress.matched != last {
                    return None;
                }
                voters_there += usize::from(voters.binary_search(peer).is_ok());
                if !is_me {
                    there.push(*peer);
                }
            }
        }
        (voters_there > voters.len() / 2).then_some((Position { index: last, term: self.term() }, there))
    }

    /// Whether this follower has everything that its leader, at rest, says that everybody has.
    pub fn rests_at(&self, at: Position) -> bool {
        !self.is_leader()
            && self.leader().is_some()
            && self.term() == at.term
            && [self.last_index(), self.commit(), self.stable()] == [at.index; 3]
            && !self.raw.has_ready()
    }

    /// Whether [`Group::ready`] has something to say.
    pub fn has_work(&self) -> bool {
        self.unreadable.is_none() && self.raw.has_ready()
    }

    /// What is to be done now, if anything. Call until `None`.
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
            // A lone voter leads before its vote is durable. After a crash it would lead in the same term again, with other
            // entries; its learners must not have seen any of these.
            persisted_messages.append(&mut messages);
        }
        let mut committed: Vec<Entry> = ready.take_committed_entries().into_iter().map(Entry::from_raft).collect();
        self.note_changes(&mut committed);
        let reads = ready.take_read_states().into_iter().map(|read| ReadIndex {
            token: u64::from_le_bytes(read.request_ctx[..].try_into().expect("a token of ours is eight bytes")),
            index: read.index,
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

    /// Keeps the changes of the members among committed entries until they are applied. One that can't be read, and
    /// what is behind it, is not handed out.
    fn note_changes(&mut self, committed: &mut Vec<Entry>) {
        for (at, entry) in committed.iter().enumerate().filter(|(_, entry)| entry.entry_type != ENTRY_NORMAL) {
            let read = match entry.entry_type {
                ENTRY_MEMBERS => members::decode_change(&entry.data),
                other => Err(format!("its type {other} is none that this version writes")),
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

    /// Begins the log anew behind the snapshot that a Ready brings, if it brings one.
    fn take_snapshot(&mut self, ready: &raft::Ready) -> Option<SnapshotMark> {
        if ready.snapshot().is_empty() {
            return None;
        }
        let metadata = ready.snapshot().get_metadata();
        let at = Position { index: metadata.index, term: metadata.term };
        let conf_state = metadata.get_conf_state().clone();
        let mark = SnapshotMark { at, conf_state: members::encode(&conf_state) };
        self.configurations = vec![(at.index, conf_state.clone())];
        self.raw.mut_store().restart(at, conf_state);
        Some(mark)
    }

    /// The Ready `number`, and every one before it, is durable.
    pub fn on_persisted(&mut self, number: u64) {
        assert!(number > self.persisted, "Ready {number} was reported after Ready {}", self.persisted);
        assert!(number <= self.handed_out, "Ready {number} was reported, but only {} handed out", self.handed_out);
        self.persisted = number;
        self.raw.on_persist_ready(number);
        if let Some((_, index)) = self.restoring.take_if(|(since, _)| *since <= number) {
            self.raw.advance_apply_to(index);
        }
    }

    /// Committed entries up to `index` are applied. A change of the members among them that is impossible
    /// [stops](Group::stop) the group before it.
    pub fn applied_to(&mut self, index: u64) {
        assert!(index <= self.commit(), "entry {index} is not committed, {} is", self.commit());
        while self.changes.front().is_some_and(|(at, _)| *at <= index) {
            let (at, change) = self.changes.pop_front().expect("it was just looked at");
            match self.raw.apply_conf_change(&change) {
                Ok(members) => self.configurations.push((at, members)),
                Err(error) => {
                    self.raw.advance_apply_to(at - 1);
                    return self.stop(at, format!("{change:?} is no change that these members allow: {error}"));
                }
            }
            if self.is_leader() && !self.raw.raft.promotable() {
                // raft-rs would let a leader that was removed go on, refusing every proposal.
                let term = self.term();
                self.raw.raft.become_follower(term, 0);
            }
        }
        self.raw.advance_apply_to(index);
    }

    /// Forgets the data of entries up to `index`, or less: what is not applied and durable is kept, and by a leader what some
    /// peer has not acknowledged, within bounds. Terms stay. Returns up to where data is forgotten.
    pub fn compact(&mut self, index: u64) -> u64 {
        let raft = &self.raw.raft;
        let index = index.min(self.applied()).min(self.stable());
        let peers = raft.prs().iter().map(|(_, peer)| peer.matched).min().filter(|_| self.is_leader());
        let wanted = peers.map_or(index, |matched| matched.max(index.saturating_sub(self.kept_entries_max)));
        self.raw.mut_store().compact(index.min(wanted))
    }

    /// What is to be recorded by itself, behind everything handed out so far.
    pub fn hard_state(&self) -> HardState {
        self.hard_state_with(self.raw.store().last())
    }

    /// What is to be recorded together with the entry at `index`, behind the records of those before it, or in a checkpoint when
    /// `index` is durable. Its commit index is never above that: no crash between two records leaves a commit above the log's
    /// end. But it must not get lost either: who acknowledged an entry that was proposed after a change of the members must not
    /// go back to the members before it.
    pub fn hard_state_with(&self, index: u64) -> HardState {
        let raft = &self.raw.raft;
        HardState { term: raft.term, vote: raft.vote, commit: raft.raft_log.committed.min(index) }
    }

    /// The members as of [`Group::applied`], as bytes for a checkpoint of that index.
    pub fn conf_state(&self) -> Bytes {
        members::encode(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// As [`Group::conf_state`], with those before over the retained log: what a checkpoint needs of a group that sends snapshots of
    /// its log's start.
    pub fn conf_states(&self) -> Bytes {
        members::encode_all(&self.configurations)
    }

    /// The members as of an index of the retained log, or right before it.
    pub fn conf_state_at(&self, index: u64) -> Bytes {
        let after = self.configurations.partition_point(|(since, _)| *since <= index);
        members::encode(&self.configurations[after.saturating_sub(1)].1)
    }

    /// Those who vote, ascending; while a change of several is under way, those who will.
    pub fn voters(&self) -> Vec<u64> {
        let mut voters = self.raw.raft.prs().conf().to_conf_state().take_voters();
        voters.sort_unstable();
        voters
    }

    /// Those who get the log but have no vote, ascending.
    pub fn learners(&self) -> Vec<u64> {
        let mut learners = self.raw.raft.prs().conf().to_conf_state().take_learners();
        learners.sort_unstable();
        learners
    }

    /// How far each member has come, as this leader knows; in no order.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let prs = self.raw.raft.prs();
        let voters = prs.conf().voters().ids();
        let own = self.raw.raft.id;
        let progress = prs.iter().map(|(peer, progress)| PeerProgress {
            peer: *peer,
            voter: voters.contains(*peer),
            matched: progress.matched,
            active: *peer == own || progress.recent_active,
        });
        progress.collect()
    }

    /// For people who look for a fault: where the log begins, and how this leader sees its peers.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn describe_progress(&self) -> String {
        let first = self.raw.raft.raft_log.first_index();
        let prs = self.raw.raft.prs().iter().filter(|_| self.is_leader());
        let peers = prs.map(|(peer, p)| {
            let (next, full) = (p.next_idx, p.ins.full());
            format!(
                "{peer}: {:?} matched {} next {next} paused {} full {full} active {}",
                p.state, p.matched, p.paused, p.recent_active
            )
        });
        format!("first {first} {:?}", peers.collect::<Vec<_>>())
    }

    pub fn peer(&self) -> u64 {
        self.raw.raft.id
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader's id, if this replica knows one.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|leader| *leader != 0)
    }

    /// This leader's term once it has committed an entry in it: the partition's leader epoch.
    pub fn epoch(&self) -> Option<u64> {
        (self.is_leader() && self.raw.raft.commit_to_current_term()).then_some(self.raw.raft.term)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// With a snapshot that has been handed out, though it may not be durable yet.
    pub fn applied(&self) -> u64 {
        self.restoring.map_or(self.raw.raft.raft_log.applied, |(_, index)| index)
    }

    /// The last index that is durable here.
    pub fn stable(&self) -> u64 {
        self.raw.raft.raft_log.persisted
    }

    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Whether a crash would leave this replica in its present term: until then, a leader has not been seen by anybody.
    pub fn has_durable_term(&self) -> bool {
        let (term, since) = self.term_since;
        term == self.term() && self.persisted >= since
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
        assert!(log.applied <= log.persisted, "applied {} is above persisted {}", log.applied, log.persisted);
        self.raw.store().check();
    }
}
