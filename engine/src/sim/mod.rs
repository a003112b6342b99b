//! Whole clusters in one thread and virtual time, from a seed: the broker's own code, from its start to the handlers of Kafka's APIs, on
//! simulated disks and a simulated network, under clients that remember what they were told.
//!
//! | module | is |
//! |---|---|
//! | `exec` | virtual time; processes and their tasks, which [`crate::rt`] and [`crate::clock`] ask for |
//! | `net` | connections between brokers: late, stalled, broken |
//! | `node` | one broker: start, stop, kill, power cut, lost disk |
//! | `clients` | producers, consumers, operators |
//! | `clients_group` | members of consumer groups |
//! | `crowd` | clients that overload brokers, give up and vanish |
//! | `remade` | a topic that is deleted and made again, and its offsets |
//! | `ledger` | what clients know, and what must hold of it |
//! | `ledger_commits` | what members of groups know, likewise |
//! | `cluster`, `logs` | faults, and the checks after every step and at the end |
//! | `allocations`, `counts` | what requests cost brokers without faults: writes, syncs, copies |
//! | `turns` | what requests with much work do between two turns |
//! | `fenced` | what a broker that was cut off may still answer |
//! | `stopped` | a committed entry that can't be read |
//!
//! Real are the ring, segments, checkpoints and recovery of `wal` on its [`SimDisk`](wal::disk::sim::SimDisk), Raft groups and the metadata plane of
//! `consensus`, and everything of this crate but sockets, the mesh between cores (each broker has one core here) and the admin pages.
//! `consensus` has a simulation of its own, of the metadata plane on a network that also drops, doubles and reorders.

mod allocations;
mod churn;
mod clients;
mod clients_group;
mod cluster;
mod counts;
mod crowd;
mod exec;
mod fenced;
mod handed_over;
mod ledger;
mod ledger_commits;
mod logs;
mod net;
mod node;
mod remade;
mod stopped;
mod summary;
mod tests;
mod turns;

pub(crate) use exec::{disk, is_running, now, planted, spawn};
pub(crate) use net::Outgoing;

/// A mistake that can be planted, to show that the simulation would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Entries are sent, and taken, without the batches that belong to them.
    AppendWithoutPayload,
    /// One entry more than is to be replaced is cut off a follower's log.
    TruncatedTooFar,
    /// Partitions at rest are not told that their leader's core is silent.
    QuietGroupSleepsOn,
    /// What idempotent producers wrote is remembered although it was truncated.
    ProducersKeptOnTruncation,
    /// A producer is told at once of a batch that is missing before its next.
    GapsGivenNoTime,
    /// A producer that is not known may begin behind a batch of its own that was refused just now.
    BegunBehindRefused,
    /// A produce request that gives up while it waits for room in the ring stays in the line.
    AbandonedTurnStays,
    /// A commit of offsets is acknowledged before it is committed.
    CommitAcknowledgedTooEarly,
    /// A static member whose instance another has taken over goes on to commit.
    FencedMemberCommits,
    /// In `wal`.
    RingRecycledTooEarly,
    /// In `wal`.
    StaleLapAccepted,
}
