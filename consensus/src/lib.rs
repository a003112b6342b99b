//! Raft groups and the metadata state machine, free of I/O.
//!
//! Never reads a clock, a file, a socket or a random number: time, randomness, disk and network come in as arguments and go
//! out as values. That is what lets a simulation replay any run from its seed.
//!
//! | module | is |
//! |---|---|
//! | [`group`] | one replica of one Raft group, on raft-rs |
//! | [`descriptor`] | what a partition's entries carry through Raft, while their batches travel beside it |
//! | [`metadata`] | commands, slices, snapshots and views |
//! | [`plane`] | the metadata group's leader or follower, forwarding, leases and the fast path |
//! | [`wire`] | what brokers say to each other and to tools, as bytes |
//! | [`seam`] | clock and transport, as those who drive all this have them |
//! | `sim` | their fault-injecting twins, and many nodes on them (feature `sim`, and in tests) |

pub mod group;
pub mod metadata;
pub mod plane;
pub mod seam;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod wire;

/// Generated from `schema/*.fbs` by `schema/regenerate.sh`.
#[rustfmt::skip]
#[allow(warnings, clippy::all, clippy::undocumented_unsafe_blocks)]
mod generated {
    pub mod metadata;
    pub mod peer;
}
