//! Values of a Raft log.

/// The state that a Raft group must never lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// An entry's position in a Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// A maximal run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    pub first_index: u64,
    pub term: u64,
    /// The offset at which the run begins (KIP-101's start offset of the leader epoch). 0 where only terms matter.
    pub base_offset: u64,
}
