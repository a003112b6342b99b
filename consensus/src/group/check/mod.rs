//! Checks a peer's message before raft-rs sees it. raft-rs trusts its peers: on fields that no replica of the group
//! would send, it aborts the process or corrupts its own state.
//!
//! The check does not look the sender up among this replica's members. That list lags behind, and a new leader or
//! learner would be locked out.

use crate::group::{
    EntryError, Group, Message, MessageType,
    interface::{ENTRY_MEMBERS, ENTRY_NORMAL},
    members,
};
use raft::StateRole;
use raft_proto::eraftpb::{self, ConfState};
use std::collections::BTreeSet;
use types::{RaftIndex, Term};

/// The largest term. A partition's term is the leader epoch that Kafka's clients see, an int32.
pub const TERM_MAX: u64 = i32::MAX as u64;
/// The most that a message's term may exceed a replica's own. One election per second would take half a year to get
/// there.
const TERM_LEAP_MAX: u64 = 1 << 24;
/// The largest index. Arithmetic on indices up to here does not overflow.
pub const INDEX_MAX: u64 = 1 << 60;
/// Bytes of a read index's token, which its answer repeats.
const TOKEN_BYTES: usize = 8;
/// The most members that a snapshot may name.
const MEMBERS_MAX: usize = 255;

/// Why a peer's message is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("peer {0:#x} can't have sent it")]
    Sender(u64),
    #[error("its term {term} is outside 1 to {TERM_MAX}, or too far above this replica's term {own}")]
    Term { term: Term, own: Term },
    #[error("{what} {value} is invalid in a message of its kind")]
    Field { what: &'static str, value: u64 },
    #[error("its entry {index} can't be read: {why}")]
    Entry { index: RaftIndex, why: EntryError },
    #[error("the members in its snapshot are invalid: {0}")]
    Members(&'static str),
    #[error("peer {from:#x} claims to lead in term {term}, but another peer leads in that term")]
    SecondLeader { term: Term, from: u64 },
    #[error(
        "it contradicts entry {committed}, which is committed here in term {term}: the sender or this replica has lost \
         a part of its log"
    )]
    Conflict { committed: RaftIndex, term: Term },
    #[error(
        "it relies on entry {claimed} of this replica, whose log ends at {last}: this replica may have lost a part of \
         its log, such as by a disk that was replaced or restored"
    )]
    Lost { claimed: RaftIndex, last: RaftIndex },
}

impl Unfit {
    /// Whether the most likely reason is that this replica's own log has lost a part.
    pub fn is_possible_loss(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Conflict { .. })
    }
}

impl Group {
    /// Checks that a replica of this group can have sent a peer's message to this replica.
    pub fn check_message(&self, message: &Message) -> Result<(), Unfit> {
        let raft = &self.raw.raft;
        let (kind, own) = (message.get_msg_type(), raft.term);
        if message.from == 0 || message.from == raft.id {
            return Err(Unfit::Sender(message.from));
        }
        // raft-rs treats a message of term 0 as its own. A replica without a term accepts any other term.
        let leaps = own > 0 && message.term > own.saturating_add(TERM_LEAP_MAX);
        if message.term == 0 || message.term > TERM_MAX || leaps {
            return Err(Unfit::Term { term: Term(message.term), own: Term(own) });
        }
        check_fields(message)?;
        if matches!(kind, MessageType::MsgAppend) {
            self.check_entries(message)?;
        }
        if message.term < own {
            return Ok(());
        }
        let last = self.last_index();
        let to_leader = message.term == own && raft.state == StateRole::Leader;
        match kind {
            MessageType::MsgAppend => {
                self.check_leader(message)?;
                self.check_against_committed(RaftIndex::new(message.index), Term(message.log_term))
            }
            MessageType::MsgHeartbeat => {
                self.check_leader(message)?;
                // The leader names at most the index that this replica has acknowledged to it.
                counted_on(message.commit, last)
            }
            MessageType::MsgSnapshot => {
                self.check_leader(message)?;
                let metadata = message.get_snapshot().get_metadata();
                self.check_against_committed(RaftIndex::new(metadata.index), Term(metadata.term))
            }
            MessageType::MsgTimeoutNow => {
                if message.term > own {
                    return Err(Unfit::Term { term: Term(message.term), own: Term(own) });
                }
                self.check_leader(message)
            }
            MessageType::MsgAppendResponse if to_leader => counted_on(message.index.max(message.commit), last),
            MessageType::MsgHeartbeatResponse if to_leader => counted_on(message.commit, last),
            _ => Ok(()),
        }
    }

    /// A term has at most one leader.
    fn check_leader(&self, message: &Message) -> Result<(), Unfit> {
        let raft = &self.raw.raft;
        let (from, term) = (message.from, message.term);
        let is_another = raft.state == StateRole::Leader || (raft.leader_id != 0 && raft.leader_id != from);
        if term == raft.term && is_another { Err(Unfit::SecondLeader { term: Term(term), from }) } else { Ok(()) }
    }

    /// Every leader's log contains all committed entries.
    fn check_against_committed(&self, index: RaftIndex, term: Term) -> Result<(), Unfit> {
        let committed = self.commit();
        let committed_term = Term(self.raw.raft.raft_log.term(committed.get()).unwrap_or(0));
        let contradicts = if index == committed { term != committed_term } else { term < committed_term };
        if index >= committed && contradicts {
            return Err(Unfit::Conflict { committed, term: committed_term });
        }
        Ok(())
    }

    fn check_entries(&self, message: &Message) -> Result<(), Unfit> {
        let mut before = message.log_term;
        for (entry, index) in message.entries.iter().zip(message.index + 1..) {
            if entry.index != index {
                return Err(Unfit::Field { what: "an entry's index", value: entry.index });
            }
            if entry.term == 0 || entry.term < before || entry.term > message.term {
                return Err(Unfit::Field { what: "an entry's term", value: entry.term });
            }
            before = entry.term;
            self.check_entry(entry).map_err(|why| Unfit::Entry { index: RaftIndex::new(index), why })?;
        }
        Ok(())
    }

    /// Checks that this group can apply an entry.
    pub(crate) fn check_entry(&self, entry: &eraftpb::Entry) -> Result<(), EntryError> {
        match entry.entry_type as u8 {
            ENTRY_NORMAL => (self.holds)(&entry.data),
            ENTRY_MEMBERS => Ok(members::decode_change(&entry.data).map(drop)?),
            other => Err(EntryError::Type(other)),
        }
    }
}

fn counted_on(claimed: u64, last: RaftIndex) -> Result<(), Unfit> {
    let claimed = RaftIndex::new(claimed);
    if claimed > last { Err(Unfit::Lost { claimed, last }) } else { Ok(()) }
}

/// Checks the fields that do not depend on the receiver's state.
fn check_fields(message: &Message) -> Result<(), Unfit> {
    let refuse = |what, value| Err(Unfit::Field { what, value });
    let kind = message.get_msg_type();
    for (what, index) in [("index", message.index), ("commit", message.commit), ("hint", message.reject_hint)] {
        if index > INDEX_MAX {
            return refuse(what, index);
        }
    }
    for (what, term) in [("log term", message.log_term), ("commit term", message.commit_term)] {
        if term > message.term {
            return refuse(what, term);
        }
    }
    if message.priority != 0 {
        return refuse("priority", message.priority as u64);
    }
    if message.request_snapshot != 0 {
        return refuse("request for a snapshot", message.request_snapshot);
    }
    let is_append = kind == MessageType::MsgAppend;
    if !is_append && !message.entries.is_empty() {
        return refuse("number of entries", message.entries.len() as u64);
    }
    if message.index > INDEX_MAX - message.entries.len() as u64 {
        return refuse("index", message.index);
    }
    let names_entry = is_append || matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
    if names_entry && (message.index == 0) != (message.log_term == 0) {
        return refuse("log term", message.log_term);
    }
    if kind == MessageType::MsgAppendResponse && message.reject && message.reject_hint > message.index {
        return refuse("hint", message.reject_hint);
    }
    match kind {
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
            if !matches!(message.context.len(), 0 | TOKEN_BYTES) =>
        {
            refuse("length of its context", message.context.len() as u64)
        }
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            if metadata.index == 0 || metadata.index > INDEX_MAX {
                return refuse("index of a snapshot", metadata.index);
            }
            if metadata.term == 0 || metadata.term > message.term {
                return refuse("term of a snapshot", metadata.term);
            }
            check_members(metadata.get_conf_state())
        }
        _ => Ok(()),
    }
}

/// Checks that raft-rs can build a configuration from these members. If it can't, it aborts.
fn check_members(state: &ConfState) -> Result<(), Unfit> {
    let refuse = |why| Err(Unfit::Members(why));
    let lists = [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next];
    if lists.iter().map(|list| list.len()).sum::<usize>() > MEMBERS_MAX {
        return refuse("they are too many");
    }
    let [voters, learners, outgoing, next] = lists.map(|list| list.iter().copied().collect::<BTreeSet<u64>>());
    let sets = [&voters, &learners, &outgoing, &next];
    if sets.iter().zip(lists).any(|(set, list)| set.len() != list.len() || set.contains(&0)) {
        return refuse("one is named twice, or is 0");
    }
    if voters.is_empty() {
        return refuse("there is no voter");
    }
    if !learners.is_disjoint(&voters) || !learners.is_disjoint(&outgoing) {
        return refuse("a learner is also a voter");
    }
    if !next.is_subset(&outgoing) || !next.is_disjoint(&voters) {
        return refuse("the next learners are not former voters");
    }
    if outgoing.is_empty() && state.auto_leave {
        return refuse("it ends a change that has not begun");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz_tests;
