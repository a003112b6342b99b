//! The terms of a log's entries, run by run.
//! Lives on: the owning core only.
//!
//! Invariants: runs begin at ascending indices with ascending terms; the first begins where the log does.

use types::{RaftIndex, Term, TermRun};

/// All runs of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermRuns(Vec<TermRun>);

impl TermRuns {
    pub fn new(runs: Vec<TermRun>) -> Self {
        let runs = Self(runs);
        runs.check();
        runs
    }

    pub fn runs(&self) -> &[TermRun] {
        &self.0
    }

    /// The term of `index`, if a run covers it. The caller knows where the log ends.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        let after = self.0.partition_point(|run| run.first_index <= index);
        after.checked_sub(1).map(|at| self.0[at].term)
    }

    /// Adds the entry behind the last.
    pub fn push(&mut self, index: RaftIndex, term: Term, base_offset: u64) {
        match self.0.last() {
            Some(last) if last.term == term => {}
            last => {
                assert!(last.is_none_or(|last| last.term < term && last.first_index < index), "terms never go back");
                self.0.push(TermRun { first_index: index, term, base_offset });
            }
        }
    }

    /// Forgets the entries at and above `index`.
    pub fn cut_from(&mut self, index: RaftIndex) {
        self.0.truncate(self.0.partition_point(|run| run.first_index < index));
    }

    /// Forgets the entries below `index`, where the offset is `base_offset`. `end_index` is one past the log's last
    /// entry.
    pub fn trim_below(&mut self, index: RaftIndex, base_offset: u64, end_index: RaftIndex) {
        if index >= end_index {
            self.0.clear();
            return;
        }
        let after = self.0.partition_point(|run| run.first_index <= index);
        if after > 0 {
            self.0.drain(..after - 1);
            if self.0[0].first_index < index {
                self.0[0].first_index = index;
                self.0[0].base_offset = base_offset;
            }
        }
    }

    /// The runs of entries up to `index`.
    pub fn up_to(&self, index: RaftIndex) -> &[TermRun] {
        &self.0[..self.0.partition_point(|run| run.first_index <= index)]
    }

    pub fn check(&self) {
        for pair in self.0.windows(2) {
            assert!(
                pair[0].first_index < pair[1].first_index
                    && pair[0].term < pair[1].term
                    && pair[0].base_offset <= pair[1].base_offset,
                "term runs ascend: {pair:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_index: u64, term: Term, base_offset: u64) -> TermRun {
        TermRun { first_index: RaftIndex::new(first_index), term, base_offset }
    }

    /// Terms 1 1 2 2 2 5 at indices 1 to 6, ten offsets each.
    fn six() -> TermRuns {
        let mut terms = TermRuns::default();
        for (at, term) in [1, 1, 2, 2, 2, 5].into_iter().enumerate() {
            terms.push(RaftIndex::FIRST.at_place(at), Term(term), at as u64 * 10);
        }
        terms
    }

    #[test]
    fn runs_are_maximal_and_answer_for_each_index() {
        let terms = six();
        assert_eq!(terms.runs(), [run(1, Term(1), 0), run(3, Term(2), 20), run(6, Term(5), 50)]);
        let each: Vec<_> = (0..8).map(|index| terms.term_of(RaftIndex::new(index))).collect();
        assert_eq!(each, [0, 1, 1, 2, 2, 2, 5, 5].map(|term| (term > 0).then_some(Term(term))));
        assert_eq!(terms.up_to(RaftIndex::new(5)), [run(1, Term(1), 0), run(3, Term(2), 20)]);
    }

    #[test]
    fn cuts_and_trims_keep_what_remains() {
        for (from, left) in [(7, 3), (6, 2), (4, 2), (3, 1), (2, 1), (1, 0)] {
            let mut terms = six();
            terms.cut_from(RaftIndex::new(from));
            assert_eq!(terms.runs().len(), left, "cut from {from}");
        }
        let mut terms = six();
        terms.trim_below(RaftIndex::new(4), 30, RaftIndex::new(7));
        assert_eq!(terms.runs(), [run(4, Term(2), 30), run(6, Term(5), 50)]);
        terms.trim_below(RaftIndex::new(6), 50, RaftIndex::new(7));
        assert_eq!(terms.runs(), [run(6, Term(5), 50)]);
        terms.trim_below(RaftIndex::new(7), 60, RaftIndex::new(7));
        assert_eq!(terms.runs(), []);
    }
}
