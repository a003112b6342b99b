//! The metadata plane of one broker: the metadata group's leader or follower, forwarding, leases and the fast path.
//!
//! | module | is |
//! |---|---|
//! | `message` | what planes say to each other |

mod message;

pub use message::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused};

/// A peer's id in every Raft group: the broker's node id, and a number that its disk drew when it was set up. A broker that
/// returns with an emptied disk is another peer; an id is never used again.
pub fn peer_id(node: i32, disk: u32) -> u64 {
    (u64::from(node as u32) << 32) | u64::from(disk.max(1))
}

/// The broker that a peer belongs to.
pub fn node_of(peer: u64) -> i32 {
    (peer >> 32) as i32
}
