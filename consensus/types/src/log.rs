//! Values of a Raft log.

use std::{
    fmt,
    ops::{Add, AddAssign},
};

/// A term of a Raft group. 0 comes before the first election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl Term {
    /// Kafka's leader epoch: the term of the partition's Raft group, in the 31 bits that the protocol has for it.
    pub fn leader_epoch(self) -> i32 {
        self.0 as i32
    }

    pub fn of_leader_epoch(epoch: i32) -> Self {
        Self(epoch as u64)
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

/// The state that a Raft group must never lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: Term,
    pub vote: u64,
    pub commit: u64,
}

/// An entry's position in a Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: Term,
}

/// A maximal run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    pub first_index: u64,
    pub term: Term,
    /// The offset at which the run begins (KIP-101's start offset of the leader epoch). 0 where only terms matter.
    pub base_offset: u64,
}
