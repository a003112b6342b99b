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

/// The metadata's Raft group.
pub const META_GROUP: GroupId = GroupId(0);
/// The core on which it runs.
pub const META_CORE: CoreId = CoreId(0);

/// The number of slices that the metadata's keyspace is divided into. It never changes in a cluster.
pub const SLICES: usize = 256;

/// The core that owns a group, and so its partition. Groups are spread evenly, and the id alone decides.
pub fn core_of(group: GroupId, cores: usize) -> CoreId {
    CoreId((group.0 % cores as u64) as usize)
}

/// The core that owns a slice of the metadata.
pub fn core_of_slice(slice: SliceId, cores: usize) -> CoreId {
    CoreId(usize::from(slice.0) % cores)
}

/// One of the [`SLICES`] parts of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u16);

impl SliceId {
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLICES as u16).map(Self)
    }
}

/// A peer's id in every Raft group: the broker's node id, and a number that its disk drew when it was set up. A
/// broker that returns with an empty disk is another peer. An id is never reused.
pub fn peer_id(node: i32, disk: u32) -> u64 {
    (u64::from(node as u32) << 32) | u64::from(disk.max(1))
}

/// The broker that a peer belongs to.
pub fn node_of(peer: u64) -> i32 {
    (peer >> 32) as i32
}
