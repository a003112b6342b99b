//! Raft groups and the metadata state machine, free of I/O.
//!
//! The code never reads a clock, a file, a socket or a random number. Time, randomness, disk and network come in as
//! arguments and go out as values, so a simulation can replay any run from its seed.
//!
//! | module | is |
//! |---|---|
//! | [`group`] | one replica of one Raft group, on raft-rs |
//! | [`group::descriptor`] | the data of a partition's entries in Raft; their batches travel beside it |
//! | [`metadata`] | commands, slices, snapshots and views |
//! | [`plane`] | the metadata group's leader or follower, forwarding, leases and the fast path |
//! | [`wire`] | the encoding of messages between brokers, and between brokers and tools |
//! | `sim` | clocks, disks and a network with faults, and clusters of nodes on them (in tests) |

pub mod group;
pub mod metadata;
pub mod plane;
#[cfg(test)]
pub mod sim;
pub mod wire;

/// Generated from `schema/*.fbs` by `schema/regenerate.sh`.
#[rustfmt::skip]
#[allow(warnings, clippy::all, clippy::undocumented_unsafe_blocks)]
mod generated {
    pub mod metadata;
    pub mod peer;
}
