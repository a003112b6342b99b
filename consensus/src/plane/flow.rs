//! Entries on their way through the slices: what is speculated or committed goes to them in log order, what comes back is
//! published in log order.
//!
//! Invariants: entries follow each other without holes above what is published; those committed lie below those that are not;
//! only a leader has entries that are not committed, all of its own term.

use super::leading::Owner;
use crate::{
    group::Entry,
    metadata::{self, Applied, AskedTooLate, Delta, Placed, Request, RequestResult},
};
use std::collections::VecDeque;

/// Work for the slices. Every owner of slices gets its part, in this order.
#[derive(Clone, Debug)]
pub enum SliceOp {
    /// The leader's entry, not committed: apply it, and remember how to undo it.
    Speculate(SliceEntry),
    /// A committed entry that was not speculated.
    Apply(SliceEntry),
    /// What was speculated up to here is committed.
    Commit { index: u64 },
    /// Undo everything that is not committed.
    RollBack,
}

/// One entry's requests.
#[derive(Clone, Debug)]
pub struct SliceEntry {
    /// Goes back with the results.
    pub generation: u64,
    pub index: u64,
    pub requests: Vec<Request>,
}

type Outcome = Result<Applied, AskedTooLate>;

pub(super) struct FlowEntry {
    pub(super) index: u64,
    pub(super) term: u64,
    generation: u64,
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    pub(super) committed: bool,
    /// Those who wait for its results, if this broker proposed it.
    pub(super) owners: Vec<Owner>,
    /// Partitions and replicas that its requests create, unless something else refuses them.
    placed: Placed,
}

impl FlowEntry {
    /// Whether every slice has answered.
    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// What an owner's requests gave; only of a complete entry.
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
    published: u64,
    committed: u64,
    generation: u64,
    /// The last index that was speculated, if it is not final for the slices yet.
    speculated: u64,
}

impl Flow {
    pub(super) fn new(applied: u64) -> Self {
        Self { entries: VecDeque::new(), published: applied, committed: applied, generation: 0, speculated: 0 }
    }

    pub(super) fn published(&self) -> u64 {
        self.published
    }

    /// Takes up the entry that this leader has just proposed.
    pub(super) fn speculate(
        &mut self,
        index: u64,
        term: u64,
        mut requests: Vec<Request>,
        owners: Vec<Owner>,
        slices: &mut Vec<SliceOp>,
    ) {
        // What lies between was appended by the group itself, in this term: changes of its members.
        while self.end() < index {
            let between = self.entry(self.end(), term, &mut [], Vec::new());
            self.entries.push_back(between);
        }
        assert_eq!(self.end(), index, "an entry is proposed behind those before it");
        let entry = self.entry(index, term, &mut requests, owners);
        let generation = entry.generation;
        self.entries.push_back(entry);
        self.speculated = index;
        slices.push(SliceOp::Speculate(SliceEntry { generation, index, requests }));
    }

    fn entry(&mut self, index: u64, term: u64, requests: &mut [Request], owners: Vec<Owner>) -> FlowEntry {
        let (outcomes, missing) = (requests.iter().map(|_| None).collect(), requests.len());
        let mut placed = Placed::default();
        for (_, replicas) in requests.iter_mut().filter_map(|request| request.command.new_replicas()) {
            placed.join(&Placed::of(&*replicas));
        }
        FlowEntry { index, term, generation: self.generation, outcomes, missing, committed: false, owners, placed }
    }

    /// Partitions and replicas that the unpublished entries create.
    pub(super) fn placed(&self) -> Placed {
        let mut placed = Placed::default();
        self.entries.iter().for_each(|entry| placed.join(&entry.placed));
        placed
    }

    /// The index behind the last entry here.
    fn end(&self) -> u64 {
        self.published + self.entries.len() as u64 + 1
    }

    /// An entry is committed; returns the group id behind all that it names, or why the entry can't be read. Then
    /// nothing has changed.
    pub(super) fn commit(&mut self, entry: &Entry, slices: &mut Vec<SliceOp>) -> Result<u64, String> {
        assert_eq!(entry.index, self.committed + 1, "entries are committed in order");
        let at = (entry.index - self.published - 1) as usize;
        if let Some(speculated) = self.entries.get_mut(at) {
            assert_eq!(speculated.term, entry.term, "entry {} is not the one that was speculated", entry.index);
            speculated.committed = true;
            self.committed = entry.index;
            return Ok(0);
        }
        // An entry without commands is a leader's first, or a change of the group itself.
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

    /// Tells the slices up to where their speculation is final.
    pub(super) fn commit_speculated(&mut self, index: u64, slices: &mut Vec<SliceOp>) {
        if self.speculated > 0 {
            slices.push(SliceOp::Commit { index });
        }
        if self.speculated <= index {
            self.speculated = 0;
        }
    }

    /// Takes the results of one owner of slices; `false` if nobody wants them any more.
    pub(super) fn take_results(&mut self, generation: u64, index: u64, results: Vec<(usize, Outcome)>) -> bool {
        let at = index.checked_sub(self.published + 1).map(|at| at as usize);
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

    /// Takes out the next entry to be published.
    pub(super) fn publish(&mut self) -> Option<FlowEntry> {
        let next = self.entries.pop_front_if(|entry| entry.committed && entry.is_complete())?;
        self.published = next.index;
        Some(next)
    }

    /// Entries that are not committed, oldest first.
    pub(super) fn uncommitted(&mut self) -> impl Iterator<Item = &mut FlowEntry> {
        self.entries.iter_mut().skip_while(|entry| entry.committed)
    }

    /// Takes out what is not committed: this broker leads no more.
    pub(super) fn roll_back(&mut self, slices: &mut Vec<SliceOp>) -> Vec<FlowEntry> {
        let from = self.entries.iter().position(|entry| !entry.committed).unwrap_or(self.entries.len());
        let rolled_back: Vec<FlowEntry> = self.entries.drain(from..).collect();
        if !rolled_back.is_empty() {
            self.generation += 1;
            self.speculated = 0;
            slices.push(SliceOp::RollBack);
        }
        rolled_back
    }

    /// Begins anew behind a snapshot.
    pub(super) fn restart(&mut self, index: u64) {
        assert!(index >= self.committed, "a snapshot does not go back");
        self.entries.clear();
        self.generation += 1;
        self.speculated = 0;
        self.published = index;
        self.committed = index;
    }
}

/// Whether the data of an entry of the metadata's log can be read, and applied; if not, why.
pub fn check_entry(data: &[u8]) -> Result<(), String> {
    if data.is_empty() { Ok(()) } else { decode(data).map(drop) }
}

/// The slices would differ from the log if any of it were left out.
fn decode(data: &[u8]) -> Result<Vec<Request>, String> {
    let mut requests = metadata::decode_requests(data).map_err(|error| error.to_string())?;
    for (count, first) in requests.iter_mut().filter_map(|request| request.command.new_groups()) {
        // Ids are given out one after the other, from 1.
        if first.checked_add(count as u64).is_none_or(|end| end > GROUP_ID_MAX) {
            return Err(format!("groups from {first} on; ids end at {GROUP_ID_MAX}"));
        }
    }
    Ok(requests)
}

/// The largest id of a group.
const GROUP_ID_MAX: u64 = 1 << 60;
