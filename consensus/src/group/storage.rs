//! The part of a group's log that raft-rs reads: the small data of recent entries, and the terms of all.
//! Owned by: the group's `RawNode`; changed only between its steps.
//!
//! Invariants: `entries` has no holes and begins right above `compacted`. `terms` ascends strictly in index and
//! term. It covers everything from its first run to the last index.

use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_proto::eraftpb::{ConfState, Entry, HardState, Snapshot};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};
use types::{Position, RaftIndex, Term, TermRun};

/// Entries that a peer needs and that are not in memory.
pub(crate) struct Lacking {
    pub(crate) from: RaftIndex,
    pub(crate) below: RaftIndex,
    pub(crate) context: GetEntriesContext,
}

pub(crate) struct GroupStorage {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    /// The snapshot for a peer that lacks compacted entries.
    pub(crate) snapshot: Option<(Position, ConfState)>,
    /// A peer needs a snapshot, and `snapshot` is missing or unusable for it.
    pub(crate) snapshot_wanted: Cell<bool>,
    /// The last deleted index. `None`: everything that is not in memory is deleted.
    gone: Option<RaftIndex>,
    /// The last index that is no longer in `entries`.
    compacted: RaftIndex,
    entries: VecDeque<Entry>,
    /// The fetched `lacking` entries, while raft-rs sends them.
    fetched: Vec<Entry>,
    /// Entries to fetch for a peer.
    pub(crate) lacking: RefCell<Option<Lacking>>,
    /// Returns how many bytes travel beside an entry with this data.
    beside: fn(&[u8]) -> u64,
    terms: Vec<TermRun>,
}

impl GroupStorage {
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        before: Option<Position>,
        gone: Option<Position>,
        entries: VecDeque<Entry>,
        mut terms: Vec<TermRun>,
        beside: fn(&[u8]) -> u64,
    ) -> Self {
        let compacted = before.map_or(RaftIndex::ZERO, |before| before.index);
        if let Some(before) = gone.or(before) {
            // The retained log may begin right above `before`. raft-rs asks for the term of `before` too.
            match terms.first_mut() {
                Some(run) if run.first_index <= before.index => {}
                Some(run) if run.term == before.term => run.first_index = before.index,
                _ => terms.insert(0, TermRun { first_index: before.index, term: before.term, base_offset: 0 }),
            }
        }
        let storage = Self {
            hard_state,
            conf_state,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
            gone: gone.map(|gone| gone.index),
            compacted,
            entries,
            fetched: Vec::new(),
            lacking: RefCell::default(),
            beside,
            terms,
        };
        storage.check();
        assert!(
            before.is_none_or(|before| storage.term_of(before.index) == Some(before.term)),
            "{before:?} does not match the terms {:?}",
            storage.terms
        );
        storage
    }

    pub(crate) fn check(&self) {
        for (place, entry) in self.entries.iter().enumerate() {
            let index = self.first().at_place(place);
            assert_eq!(RaftIndex::new(entry.index), index, "entries have no holes");
            assert_eq!(Some(Term(entry.term)), self.term_of(index), "the runs of terms match the entries");
        }
        for pair in self.terms.windows(2) {
            assert!(pair[0].first_index < pair[1].first_index && pair[0].term < pair[1].term, "runs of terms ascend");
        }
    }

    /// The index of the first of `entries`, also before there is one.
    fn first(&self) -> RaftIndex {
        self.compacted.next()
    }

    pub(crate) fn last(&self) -> RaftIndex {
        self.compacted.at_place(self.entries.len())
    }

    pub(crate) fn terms(&self) -> &[TermRun] {
        &self.terms
    }

    /// The term of any index that the log retains.
    pub(crate) fn term_of(&self, index: RaftIndex) -> Option<Term> {
        if index == RaftIndex::ZERO {
            return Some(Term(0));
        }
        if index > self.last() || self.gone.is_some_and(|gone| index < gone) {
            return None;
        }
        let after = self.terms.partition_point(|run| run.first_index <= index);
        self.terms[..after].last().map(|run| run.term)
    }

    /// The last retained index, at most `from`, whose term is at most `term`. Returns `from` if that is not
    /// retained.
    pub(crate) fn last_of_term(&self, from: RaftIndex, term: Term) -> RaftIndex {
        if self.term_of(from).is_none_or(|found| found <= term) {
            return from;
        }
        let above = self.terms.partition_point(|run| run.first_index <= from && run.term <= term);
        self.terms[above].first_index.prev()
    }

    /// Adds entries that raft-rs wants persisted. They replace all entries from the first one's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|first| RaftIndex::new(first.index)) else { return };
        assert!(first > self.compacted, "entry {first} is compacted already");
        assert!(first <= self.last().next(), "entry {first} leaves a hole above {}", self.last());
        self.entries.truncate(first.place_from(self.first()));
        while self.terms.last().is_some_and(|run| run.first_index >= first) {
            self.terms.pop();
        }
        if self.entries.capacity() == 0 {
            // Most groups only ever have the entry of their first election, and there are many thousands of groups.
            self.entries.reserve_exact(entries.len());
        }
        for entry in entries {
            let (index, term) = (RaftIndex::new(entry.index), Term(entry.term));
            if self.terms.last().is_none_or(|run| run.term != term) {
                self.terms.push(TermRun { first_index: index, term, base_offset: 0 });
            }
            self.entries.push_back(entry.clone());
        }
    }

    /// Restarts the log behind a snapshot.
    pub(crate) fn restart(&mut self, at: Position, conf_state: ConfState) {
        self.conf_state = conf_state;
        self.snapshot = None;
        self.gone = self.gone.map(|_| at.index);
        self.fetched.clear();
        self.lacking.take();
        self.compacted = at.index;
        self.entries.clear();
        self.terms = vec![TermRun { first_index: at.index, term: at.term, base_offset: 0 }];
    }

    /// Drops the data of entries up to `to`; their terms stay. Returns the last index whose data is dropped.
    pub(crate) fn compact(&mut self, to: RaftIndex) -> RaftIndex {
        if to > self.compacted {
            assert!(to <= self.last(), "only entries that exist are compacted");
            self.entries.drain(..to.place_from(self.compacted));
            self.compacted = to;
        }
        self.compacted
    }

    /// Notes that entries up to `to` are deleted, and drops the terms below `to`.
    pub(crate) fn trim(&mut self, to: RaftIndex) {
        assert!(to <= self.compacted, "entries that raft-rs may need are not trimmed");
        let gone = self.gone.as_mut().expect("a log that is in memory only is compacted, not trimmed");
        *gone = to.max(*gone);
        let to = *gone;
        let keep = self.terms.partition_point(|run| run.first_index <= to).saturating_sub(1);
        self.terms.drain(..keep);
    }

    /// Holds the fetched entries while raft-rs sends them. An empty list releases them.
    pub(crate) fn hold_fetched(&mut self, entries: Vec<Entry>) {
        self.fetched = entries;
    }

    /// As many of `entries` as fit into `bytes`, together with what travels beside them, but at least one.
    fn limited<'e>(&self, entries: impl Iterator<Item = &'e Entry>, bytes: Option<u64>) -> Vec<Entry> {
        const ENTRY: u64 = 32;
        let mut left = bytes.unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for entry in entries {
            let weight = ENTRY + entry.data.len() as u64 + (self.beside)(&entry.data);
            if weight > left && !found.is_empty() {
                break;
            }
            left = left.saturating_sub(weight);
            found.push(entry.clone());
        }
        found
    }
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let (low, high) = (RaftIndex::new(low), RaftIndex::new(high));
        assert!(high <= self.last().next(), "entries below {high} were requested, the last is {}", self.last());
        if low > self.compacted {
            let places = low.place_from(self.first())..high.place_from(self.first());
            return Ok(self.limited(self.entries.range(places), max_size.into()));
        }
        if self.gone.is_none_or(|gone| low <= gone) {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(context.can_async(), "entry {low} is applied, so it is read only to be sent");
        let below = high.min(self.first());
        if let Some(first) = self.fetched.first().map(|first| RaftIndex::new(first.index))
            && let Some(from) = low.try_place_from(first).filter(|from| *from < self.fetched.len())
        {
            let to = self.fetched.len().min(below.place_from(first));
            return Ok(self.limited(self.fetched[from..to].iter(), max_size.into()));
        }
        self.lacking.borrow_mut().get_or_insert(Lacking { from: low, below, context });
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> Result<u64> {
        let index = RaftIndex::new(index);
        self.term_of(index).map(|term| term.0).ok_or(Error::Store(if index > self.last() {
            StorageError::Unavailable
        } else {
            StorageError::Compacted
        }))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.gone.unwrap_or(self.compacted).next().get())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last().get())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        // A snapshot below the first available entry would leave a hole behind it.
        let is_member = |members: &ConfState| members.voters.contains(&to) || members.learners.contains(&to);
        let usable = |(at, members): &(Position, ConfState)| {
            // An outgoing voter of a joint configuration can't be a learner of it.
            let may_be_taken_in = is_member(members) || !members.voters_outgoing.contains(&to);
            at.index >= RaftIndex::new(request_index)
                && at.index >= self.gone.unwrap_or(self.compacted)
                && may_be_taken_in
        };
        let Some((at, mut conf_state)) = self.snapshot.clone().filter(usable) else {
            self.snapshot_wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = at.index.get();
        metadata.term = at.term.0;
        // A peer refuses a snapshot whose configuration does not contain it. If the peer joined after the snapshot,
        // add it as a learner now. The entry that makes it a learner follows, and then changes nothing.
        if !is_member(&conf_state) {
            conf_state.learners.push(to);
        }
        metadata.set_conf_state(conf_state);
        Ok(snapshot)
    }
}
