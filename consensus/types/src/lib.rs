//! Ids and small values that several crates share. This crate depends on no other.
//!
//! | module | contents |
//! |---|---|
//! | `ids` | what a Raft group, a core and a slice of the metadata are called |
//! | `log` | positions in a Raft log, terms, and the state that a group must never lose |
//! | [`planted`](mod@planted) | bugs that a simulation plants, to show that it detects them |

mod ids;
mod log;
pub mod planted;

pub use ids::{CoreId, GroupId, META_CORE, META_GROUP, SLICES, SliceId, core_of, core_of_slice, node_of, peer_id};
pub use log::{HardState, LeaderEpoch, Position, RaftIndex, Term, TermRun};
