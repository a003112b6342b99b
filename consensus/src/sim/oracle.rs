//! Invariants that must always hold. The oracle sees and remembers everything that every node does.

use crate::group::Entry;
use bytes::Bytes;
use std::collections::{BTreeMap, btree_map};
use types::{GroupId, RaftIndex, Term, TermRun};

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Something that a node did.
#[derive(Debug)]
pub enum Seen {
    Voted {
        node: u64,
        group: GroupId,
        term: Term,
        to: u64,
    },
    Leads {
        node: u64,
        group: GroupId,
        term: Term,
        log: Vec<TermRun>,
    },
    /// A durable append. Appends that are not durable are not reported. A lone voter may lose one together with its
    /// term, and then append another entry in its place.
    Appended {
        group: GroupId,
        entry: Entry,
    },
    /// `term` is the term of the node when it applied the entry.
    Applied {
        node: u64,
        group: GroupId,
        term: Term,
        entry: Entry,
        result: String,
    },
    /// A snapshot replaced the node's log.
    Restored {
        node: u64,
        group: GroupId,
        index: RaftIndex,
    },
    State {
        group: GroupId,
        index: RaftIndex,
        state: Bytes,
    },
}

struct Committed {
    entry: Entry,
    /// The result of applying the entry.
    result: String,
    /// The entry was committed in this term or earlier. (The entry itself may be older still.)
    known_in: Term,
}

impl Seen {
    pub fn group(&self) -> GroupId {
        match self {
            Seen::Voted { group, .. }
            | Seen::Leads { group, .. }
            | Seen::Appended { group, .. }
            | Seen::Applied { group, .. }
            | Seen::Restored { group, .. }
            | Seen::State { group, .. } => *group,
        }
    }
}

/// The history of one group.
#[derive(Default)]
pub struct History {
    leaders: BTreeMap<Term, u64>,
    votes: BTreeMap<(Term, u64), u64>,
    /// Every entry ever appended, by index and term.
    appended: BTreeMap<(RaftIndex, Term), Entry>,
    /// The committed entries, from index 1 on.
    committed: Vec<Committed>,
    /// The last index that each node has applied, by peer.
    applied: BTreeMap<u64, RaftIndex>,
    states: BTreeMap<RaftIndex, Bytes>,
    /// The data that clients know to be committed, by index.
    acked: BTreeMap<RaftIndex, Bytes>,
}

impl History {
    pub fn committed(&self) -> u64 {
        self.committed.len() as u64
    }

    /// The last committed index.
    pub fn last(&self) -> RaftIndex {
        RaftIndex::ZERO.at_place(self.committed.len())
    }

    fn at(&self, index: RaftIndex) -> Option<&Committed> {
        self.committed.get(index.try_place_from(RaftIndex::FIRST)?)
    }

    pub fn acked(&self) -> u64 {
        self.acked.len() as u64
    }

    pub fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The newest term in which a node was seen to lead.
    pub fn newest_term(&self) -> Term {
        self.leaders.last_key_value().map_or(Term(0), |(term, _)| *term)
    }

    /// The term of a committed entry.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        Some(self.at(index)?.entry.term)
    }

    /// Records that a node has started from a checkpoint at index `applied`.
    pub fn started(&mut self, node: u64, applied: RaftIndex) {
        self.applied.insert(node, applied);
    }

    /// Records that a client knows its proposal at `index` to be committed.
    pub fn ack(&mut self, index: RaftIndex, data: Bytes) {
        self.acked.insert(index, data);
    }

    pub fn see(&mut self, seen: Seen) -> Result<(), Violation> {
        match seen {
            Seen::Voted { node, term, to, group } => {
                let first = *self.votes.entry((term, node)).or_insert(to);
                expect(first == to, || format!("group {group}: node {node} voted for {first} and {to} in term {term}"))
            }
            Seen::Leads { node, term, log, group } => {
                let first = *self.leaders.entry(term).or_insert(node);
                expect(first == node, || format!("group {group}: {first} and {node} both lead in term {term}"))?;
                self.leader_is_complete(group, node, term, &log)
            }
            Seen::Appended { entry, group } => match self.appended.entry((entry.index, entry.term)) {
                btree_map::Entry::Vacant(place) => {
                    place.insert(entry);
                    Ok(())
                }
                btree_map::Entry::Occupied(first) => expect(*first.get() == entry, || {
                    format!("group {group}: index {} has two entries of term {}", entry.index, entry.term)
                }),
            },
            Seen::Applied { node, term, entry, result, group } => {
                self.applied(group, node, Committed { entry, result, known_in: term })
            }
            Seen::Restored { node, index, group } => {
                let before = self.applied.insert(node, index).unwrap_or(RaftIndex::ZERO);
                expect(index > before, || format!("group {group}: node {node} went back from {before} to {index}"))
            }
            Seen::State { index, state, group } => {
                let first = self.states.entry(index).or_insert_with(|| state.clone());
                expect(*first == state, || format!("group {group}: two states at index {index}"))
            }
        }
    }

    /// A leader has every entry that was committed in earlier terms (Raft paper, 5.4: leader completeness).
    fn leader_is_complete(&self, group: GroupId, node: u64, term: Term, log: &[TermRun]) -> Result<(), Violation> {
        for committed in self.committed.iter().filter(|committed| committed.known_in < term) {
            let entry = &committed.entry;
            let after = log.partition_point(|run| run.first_index <= entry.index);
            // An entry below the first run was compacted, so the node has applied it.
            let found = log[..after].last().map_or(entry.term, |run| run.term);
            expect(found == entry.term, || {
                format!("group {group}: node {node} leads in term {term} without the committed entry {}", entry.index)
            })?;
        }
        Ok(())
    }

    fn applied(&mut self, group: GroupId, node: u64, now: Committed) -> Result<(), Violation> {
        let index = now.entry.index;
        let before = self.applied.insert(node, index).unwrap_or(RaftIndex::ZERO);
        expect(index == before.next(), || format!("group {group}: node {node} applied {index} after {before}"))?;
        match self.at(index) {
            Some(first) => {
                let (one, other) = (&first.entry, &now.entry);
                expect(one == other, || format!("group {group}: {one:?} and {other:?} were both committed"))?;
                let (one, other) = (&first.result, &now.result);
                expect(one == other, || format!("group {group}: entry {index} gave {one} and {other}"))
            }
            None => {
                let next = self.last().next();
                expect(index == next, || format!("group {group}: {index} was committed before {next}"))?;
                self.committed.push(now);
                Ok(())
            }
        }
    }

    /// Checks that every acknowledged proposal is committed unchanged.
    pub fn check_acked(&self, group: GroupId) -> Result<(), Violation> {
        self.acked.iter().try_for_each(|(index, data)| {
            let kept = self.at(*index).is_some_and(|kept| kept.entry.data == *data);
            expect(kept, || format!("group {group}: the acknowledged entry {index} is lost"))
        })
    }
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}
