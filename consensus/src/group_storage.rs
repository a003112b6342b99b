//! What raft-rs reads of a group's log: the small data of recent entries, and the terms of all.
//! Owned by: the group's `RawNode`; changed only between its steps.
//!
//! Invariants: `entries` has no holes and begins right above `compacted`; `terms` ascends strictly in index and term and covers
//! everything from its first run to the last index.

use crate::group::{Position, TermRun};
use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
    util::limit_size,
};
use std::{cell::Cell, collections::VecDeque};

pub(crate) struct GroupStorage {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    /// What a peer that lacks compacted entries gets.
    pub(crate) snapshot: Option<(Position, ConfState)>,
    /// Somebody needs one, and that would not do.
    pub(crate) snapshot_wanted: Cell<bool>,
    /// The last index that is not in `entries` any more.
    compacted: u64,
    entries: VecDeque<Entry>,
    terms: Vec<TermRun>,
}

impl GroupStorage {
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        before: Option<Position>,
        entries: VecDeque<Entry>,
        mut terms: Vec<TermRun>,
    ) -> Self {
        let compacted = before.map_or(0, |before| before.index);
        if let Some(before) = before {
            // The retained log may begin right above; raft-rs asks for that term too.
            match terms.first_mut() {
                Some(run) if run.first_index <= before.index => {}
                Some(run) if run.term == before.term => run.first_index = before.index,
                _ => terms.insert(0, TermRun { first_index: before.index, term: before.term }),
            }
        }
        let storage = Self {
            hard_state,
            conf_state,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
            compacted,
            entries,
            terms,
        };
        storage.check();
        assert!(
            before.is_none_or(|before| storage.term_of(before.index) == Some(before.term)),
            "{before:?} is not what the terms {:?} say",
            storage.terms
        );
        storage
    }

    pub(crate) fn check(&self) {
        let first = self.compacted + 1;
        for (offset, entry) in self.entries.iter().enumerate() {
            assert_eq!(entry.index, first + offset as u64, "entries have no holes");
            assert_eq!(Some(entry.term), self.term_of(entry.index), "the runs of terms are those of the entries");
        }
        for pair in self.terms.windows(2) {
            assert!(pair[0].first_index < pair[1].first_index && pair[0].term < pair[1].term, "runs of terms ascend");
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.compacted + self.entries.len() as u64
    }

    pub(crate) fn terms(&self) -> &[TermRun] {
        &self.terms
    }

    /// The term of any index that the log retains.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == 0 {
            return Some(0);
        }
        if index > self.last() {
            return None;
        }
        let after = self.terms.partition_point(|run| run.first_index <= index);
        self.terms[..after].last().map(|run| run.term)
    }

    /// Takes over entries that raft-rs wants persisted: they replace what stands at and above the first of them.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.compacted, "entry {} is compacted already", first.index);
        assert!(first.index <= self.last() + 1, "entry {} leaves a hole above {}", first.index, self.last());
        self.entries.truncate((first.index - self.compacted - 1) as usize);
        while self.terms.last().is_some_and(|run| run.first_index >= first.index) {
            self.terms.pop();
        }
        for entry in entries {
            if self.terms.last().is_none_or(|run| run.term != entry.term) {
                self.terms.push(TermRun { first_index: entry.index, term: entry.term });
            }
            self.entries.push_back(entry.clone());
        }
    }

    /// Begins anew behind a snapshot.
    pub(crate) fn restart(&mut self, at: Position, conf_state: ConfState) {
        self.conf_state = conf_state;
        self.snapshot = None;
        self.compacted = at.index;
        self.entries.clear();
        self.terms = vec![TermRun { first_index: at.index, term: at.term }];
    }

    /// Forgets the data of entries up to `to`; their terms stay. Returns up to where data is forgotten now.
    pub(crate) fn compact(&mut self, to: u64) -> u64 {
        if to > self.compacted {
            assert!(to <= self.last(), "only entries that exist are compacted");
            self.entries.drain(..(to - self.compacted) as usize);
            self.compacted = to;
        }
        self.compacted
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
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.compacted {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} were asked for, the last is {}", self.last());
        let from = (low - self.compacted - 1) as usize;
        let to = (high - self.compacted - 1) as usize;
        let mut found: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        limit_size(&mut found, max_size.into());
        Ok(found)
    }

    fn term(&self, index: u64) -> Result<u64> {
        self.term_of(index).ok_or(Error::Store(if index > self.last() {
            StorageError::Unavailable
        } else {
            StorageError::Compacted
        }))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.compacted + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        // One below what is compacted would leave a hole behind it, and a peer takes none from before it was a member.
        let usable = |(at, members): &&(Position, ConfState)| {
            let is_member = members.voters.contains(&to) || members.learners.contains(&to);
            at.index >= request_index && at.index >= self.compacted && is_member
        };
        let Some((at, conf_state)) = self.snapshot.as_ref().filter(usable) else {
            self.snapshot_wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = at.index;
        metadata.term = at.term;
        metadata.set_conf_state(conf_state.clone());
        Ok(snapshot)
    }
}
