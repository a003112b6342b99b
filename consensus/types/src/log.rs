//! Values of a Raft log.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// A term of a Raft group. 0 comes before the first election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl Term {
    /// The leader epoch of a partition whose group has this term.
    #[inline]
    pub const fn leader_epoch(self) -> LeaderEpoch {
        LeaderEpoch(self.0 as i32)
    }
}

impl Add<u64> for Term {
    type Output = Self;

    fn add(self, more: u64) -> Self {
        Self(self.0 + more)
    }
}

impl AddAssign<u64> for Term {
    fn add_assign(&mut self, more: u64) {
        self.0 += more;
    }
}

impl fmt::Display for Term {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Kafka's leader epoch: the term of the partition's Raft group, in the 31 bits that the protocol has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct LeaderEpoch(i32);

impl LeaderEpoch {
    /// No epoch is known or asked for. It comes before all others.
    pub const NONE: Self = Self(-1);

    /// The epoch with this number, as in Kafka's protocol and records. All numbers below 0 stand for none.
    #[inline]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// Its number, as [`LeaderEpoch::new`] takes it.
    #[inline]
    pub const fn get(self) -> i32 {
        self.0
    }

    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 < 0
    }

    /// The term of the partition's Raft group in this epoch, which is not [`LeaderEpoch::NONE`].
    #[inline]
    pub const fn term(self) -> Term {
        Term(self.0 as u64)
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// An entry's place in its Raft group's log, counted from 1. [`RaftIndex::ZERO`] comes before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RaftIndex(u64);

impl RaftIndex {
    /// The place before the first entry.
    pub const ZERO: Self = Self(0);
    /// The first entry.
    pub const FIRST: Self = Self(1);
    pub const MAX: Self = Self(u64::MAX);

    /// The index with this number, as in the formats on disk, the messages of peers, and raft-rs.
    #[inline]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number, as [`RaftIndex::new`] takes it.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    #[inline]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one, which is not [`RaftIndex::ZERO`].
    #[inline]
    pub const fn prev(self) -> Self {
        Self(self.0 - 1)
    }

    /// The index that is `entries` further on.
    #[inline]
    pub const fn plus(self, entries: u64) -> Self {
        Self(self.0 + entries)
    }

    /// The index that is `entries` earlier, but not before [`RaftIndex::ZERO`].
    #[inline]
    pub const fn back(self, entries: u64) -> Self {
        Self(self.0.saturating_sub(entries))
    }

    /// The number of entries behind `earlier`, up to this one.
    #[inline]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }

    /// The place of this index in a list whose first element has the index `first`, which is not above this one.
    #[inline]
    pub const fn place_from(self, first: Self) -> usize {
        self.since(first) as usize
    }

    /// Like [`RaftIndex::place_from`], or `None` if this index is below `first`.
    #[inline]
    pub fn try_place_from(self, first: Self) -> Option<usize> {
        (self >= first).then(|| self.place_from(first))
    }

    /// The index of the element at `place` in a list whose first element has this index.
    #[inline]
    pub const fn at_place(self, place: usize) -> Self {
        Self(self.0 + place as u64)
    }
}

impl fmt::Display for RaftIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// The state that a Raft group must never lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    pub vote: u64,
    pub commit: RaftIndex,
}

/// An entry's position in a Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: RaftIndex,
    pub term: Term,
}

/// A maximal run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    pub first_index: RaftIndex,
    pub term: Term,
    /// The offset at which the run begins (KIP-101's start offset of the leader epoch). 0 where only terms matter.
    pub base_offset: u64,
}
