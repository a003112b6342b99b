//! Entries on their way through the slices. Speculated and committed entries go to the slices in log order, and
//! their results are published in log order.
//!
//! Invariants: the entries above the last published one have no holes. All committed ones lie below all uncommitted
//! ones. Only a leader has uncommitted entries here, all of its own term.

use super::{Acks, Ask, Token, members::returning};
use crate::{
    group::{Entry, EntryError},
    metadata::{self, Applied, AskedTooLate, Delta, Placed, Request, RequestResult},
};
use std::collections::VecDeque;
use types::{RaftIndex, Term};

/// Work for the slices. Every owner of slices gets its part, in this order.
#[derive(Clone, Debug)]
pub enum SliceOp {
    /// Apply an uncommitted entry of the leader, and remember how to undo it.
    Speculate(SliceEntry),
    /// Apply a committed entry that was not speculated.
    Apply(SliceEntry),
    /// The speculated entries up to here are committed.
    Commit { index: RaftIndex },
    /// Undo all uncommitted entries.
    RollBack,
}

/// One entry's requests.
#[derive(Clone, Debug)]
pub struct SliceEntry {
    /// Returned with the results.
    pub generation: u64,
    pub index: RaftIndex,
    pub requests: Vec<Request>,
}

type Outcome = Result<Applied, AskedTooLate>;

/// The submitter of some requests of an entry, who waits for their results.
pub(super) struct Owner {
    pub(super) who: Who,
    /// The place of its first request in the entry.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The acknowledgement it asked for. A retried write waits for its commit all the same.
    pub(super) acks: Acks,
    pub(super) retried: bool,
    pub(super) acked: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Who {
    Here(Token),
    There(i32, Ask),
}

impl Owner {
    pub(super) fn may_be_fast(&self) -> bool {
        self.acks == Acks::Leader && !self.retried && !self.acked
    }
}

pub(super) struct FlowEntry {
    pub(super) index: RaftIndex,
    pub(super) term: Term,
    generation: u64,
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    pub(super) committed: bool,
    /// The submitters that wait for its results, if this broker proposed it.
    pub(super) owners: Vec<Owner>,
    /// Partitions and replicas that its requests create, unless a slice rejects them for another reason.
    placed: Placed,
    /// Brokers that its requests make alive, and their incarnations.
    returning: Vec<(i32, u64)>,
}

impl FlowEntry {
    /// Whether every slice has answered.
    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The results of an owner's requests. Panics if the entry is not complete.
    pub(super) fn results(&self, owner: &Owner) -> Vec<RequestResult> {
        let outcomes = self.outcomes[owner.first..owner.first + owner.count].iter();
        outcomes
            .map(|outcome| {
                let outcome = outcome.as_ref().expect("every slice has answered");
                outcome.as_ref().map(|applied| applied.outcome.clone()).map_err(|late| *late)
            })
            .collect()
    }

    pub(super) fn deltas(&self) -> Vec<Delta> {
        self.outcomes.iter().flatten().flatten().flat_map(|applied| applied.deltas.iter().cloned()).collect()
    }
}

pub(super) struct Flow {
    entries: VecDeque<FlowEntry>,
    published: RaftIndex,
    committed: RaftIndex,
    generation: u64,
    /// The last speculated index, until its commit is sent to the slices; 0 if there is none.
    speculated: RaftIndex,
}

impl Flow {
    pub(super) fn new(applied: RaftIndex) -> Self {
        Self {
            entries: VecDeque::new(),
            published: applied,
            committed: applied,
            generation: 0,
            speculated: RaftIndex::ZERO,
        }
    }

    pub(super) fn published(&self) -> RaftIndex {
        self.published
    }

    /// Adds the entry that this leader has just proposed, and sends it to the slices.
    pub(super) fn speculate(
        &mut self,
        index: RaftIndex,
        term: Term,
        mut requests: Vec<Request>,
        owners: Vec<Owner>,
        slices: &mut Vec<SliceOp>,
    ) {
        // The group itself appended the entries in between, in this term: membership changes.
        while self.end() < index {
            let between = self.entry(self.end(), term, &mut [], Vec::new());
            self.entries.push_back(between);
        }
        assert_eq!(self.end(), index, "an entry is proposed after those before it");
        let entry = self.entry(index, term, &mut requests, owners);
        let generation = entry.generation;
        self.entries.push_back(entry);
        self.speculated = index;
        slices.push(SliceOp::Speculate(SliceEntry { generation, index, requests }));
    }

    fn entry(&mut self, index: RaftIndex, term: Term, requests: &mut [Request], owners: Vec<Owner>) -> FlowEntry {
        let (outcomes, missing) = (requests.iter().map(|_| None).collect(), requests.len());
        let returning = requests.iter().filter_map(returning).collect();
        let mut placed = Placed::default();
        for (_, replicas) in requests.iter_mut().filter_map(|request| request.command.new_replicas()) {
            placed.join(&Placed::of(&*replicas));
        }
        let (generation, committed) = (self.generation, false);
        FlowEntry { index, term, generation, outcomes, missing, committed, owners, placed, returning }
    }

    /// Brokers that the unpublished entries make alive, and their incarnations.
    pub(super) fn returning(&self) -> impl Iterator<Item = (i32, u64)> {
        self.entries.iter().flat_map(|entry| entry.returning.iter().copied())
    }

    /// Partitions and replicas that the unpublished entries create.
    pub(super) fn placed(&self) -> Placed {
        let mut placed = Placed::default();
        self.entries.iter().for_each(|entry| placed.join(&entry.placed));
        placed
    }

    /// The index behind the last entry here.
    fn end(&self) -> RaftIndex {
        self.published.next().at_place(self.entries.len())
    }

    /// Marks an entry as committed. Returns the first group id above all those that it assigns, or 0. If the entry
    /// can't be read, returns the reason and changes nothing.
    pub(super) fn commit(&mut self, entry: &Entry, slices: &mut Vec<SliceOp>) -> Result<u64, EntryError> {
        assert_eq!(entry.index, self.committed.next(), "entries are committed in order");
        let at = entry.index.place_from(self.published.next());
        if let Some(speculated) = self.entries.get_mut(at) {
            assert_eq!(speculated.term, entry.term, "entry {} is not the one that was speculated", entry.index);
            speculated.committed = true;
            self.committed = entry.index;
            return Ok(0);
        }
        // An entry without commands is a leader's first entry, or a membership change.
        let mut requests = if entry.is_command() { decode(&entry.data)? } else { Vec::new() };
        let mut end = 0;
        for (count, first) in requests.iter_mut().filter_map(|request| request.command.new_groups()) {
            end = end.max(*first + count as u64);
        }
        self.committed = entry.index;
        let mut flowing = self.entry(entry.index, entry.term, &mut requests, Vec::new());
        flowing.committed = true;
        let generation = flowing.generation;
        self.entries.push_back(flowing);
        if !requests.is_empty() {
            slices.push(SliceOp::Apply(SliceEntry { generation, index: entry.index, requests }));
        }
        Ok(end)
    }

    /// Sends the slices the index up to which their speculation is final.
    pub(super) fn commit_speculated(&mut self, index: RaftIndex, slices: &mut Vec<SliceOp>) {
        if self.speculated > RaftIndex::ZERO {
            slices.push(SliceOp::Commit { index });
        }
        if self.speculated <= index {
            self.speculated = RaftIndex::ZERO;
        }
    }

    /// Takes the results of one owner of slices. Returns `false` if the entry is no longer here.
    pub(super) fn take_results(&mut self, generation: u64, index: RaftIndex, results: Vec<(usize, Outcome)>) -> bool {
        let at = index.try_place_from(self.published.next());
        let Some(entry) = at.and_then(|at| self.entries.get_mut(at)).filter(|entry| entry.generation == generation)
        else {
            return false;
        };
        for (at, result) in results {
            assert!(entry.outcomes[at].replace(result).is_none(), "a request is applied once");
            entry.missing -= 1;
        }
        true
    }

    /// Takes the next entry to publish, if it is committed and complete.
    pub(super) fn publish(&mut self) -> Option<FlowEntry> {
        let next = self.entries.pop_front_if(|entry| entry.committed && entry.is_complete())?;
        self.published = next.index;
        Some(next)
    }

    /// The uncommitted entries, oldest first.
    pub(super) fn uncommitted(&mut self) -> impl Iterator<Item = &mut FlowEntry> {
        self.entries.iter_mut().skip_while(|entry| entry.committed)
    }

    /// Takes the uncommitted entries out and has the slices undo them, because this broker no longer leads.
    pub(super) fn roll_back(&mut self, slices: &mut Vec<SliceOp>) -> Vec<FlowEntry> {
        let from = self.entries.iter().position(|entry| !entry.committed).unwrap_or(self.entries.len());
        let rolled_back: Vec<FlowEntry> = self.entries.drain(from..).collect();
        if !rolled_back.is_empty() {
            self.generation += 1;
            self.speculated = RaftIndex::ZERO;
            slices.push(SliceOp::RollBack);
        }
        rolled_back
    }

    /// Starts again behind a snapshot.
    pub(super) fn restart(&mut self, index: RaftIndex) {
        assert!(index >= self.committed, "a snapshot does not go back");
        self.entries.clear();
        self.generation += 1;
        self.speculated = RaftIndex::ZERO;
        self.published = index;
        self.committed = index;
    }
}

/// Checks that the data of an entry of the metadata log can be read and applied, or says why not.
pub fn check_entry(data: &[u8]) -> Result<(), EntryError> {
    if data.is_empty() { Ok(()) } else { decode(data).map(drop) }
}

/// Decodes an entry's requests: all of them, or none. The slices would diverge from the log if one were left out.
fn decode(data: &[u8]) -> Result<Vec<Request>, EntryError> {
    let mut requests = metadata::decode_requests(data)?;
    for (count, first) in requests.iter_mut().filter_map(|request| request.command.new_groups()) {
        // Ids are assigned consecutively, from 1.
        if first.checked_add(count as u64).is_none_or(|end| end > GROUP_ID_MAX) {
            return Err(EntryError::GroupIds { first: *first, last: GROUP_ID_MAX });
        }
    }
    Ok(requests)
}

/// The largest id of a group.
const GROUP_ID_MAX: u64 = 1 << 60;
