//! Ids.

use std::fmt;

/// A Raft group: the metadata, or one partition. An id is never reused after its group is gone, so it also names a
/// generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// A core of this broker, counted from 0; not a CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub usize);

/// The number of slices that the metadata's keyspace is divided into. It never changes in a cluster.
pub const SLICES: usize = 256;

/// One of the [`SLICES`] parts of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u16);

impl SliceId {
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLICES as u16).map(Self)
    }
}
