//! Simulates whole clusters in one thread and virtual time, from a seed. Runs the broker's own code, from its start to
//! the handlers of Kafka's APIs, on simulated disks and a simulated network. The clients remember every answer.
//!
//! | module | contents |
//! |---|---|
//! | `exec` | virtual time; processes and their tasks, which [`crate::rt`] and [`crate::clock`] use |
//! | `net` | connections between brokers: late, stalled, broken |
//! | `queue` | queues between the cores of a broker: late |
//! | `node` | one broker: start, stop, kill, power cut, lost disk |
//! | `clients` | producers, consumers, operators, members of consumer groups |
//! | `crowd` | clients that overload brokers, give up and vanish |
//! | `remade` | a topic that is deleted and created again, and its committed offsets |
//! | `churn` | topics that are created and deleted again and again |
//! | `ledger` | what clients know, and the invariants that must hold |
//! | `ledger::commits` | the same for members of groups |
//! | `cluster`, `logs` | faults, and the checks after every step and at the end |
//! | `allocations`, `counts` | what requests cost brokers without faults: writes, syncs, copies, allocations |
//! | `turns` | how much work large requests do between two yields, and what the answers to small ones may take |
//! | `producing` | what producers are told when a leader can't take their batches |
//! | `fenced` | what a broker that was cut off may still answer |
//! | `stopped` | a committed entry that cannot be applied, and what is told when something fails |
//! | `summary`, `tests` | the counts of what runs did; the seeds |
//!
//! The simulation runs the real ring, segments, checkpoints and recovery of `wal` on
//! [`SimDisk`](wal::disk::sim::SimDisk), and the real Raft groups and metadata plane of `consensus`. Of this crate it
//! runs everything except sockets and the admin pages. A broker has one to four cores, which take turns in one thread.
//! `consensus` has a simulation of its own: the metadata plane on a network that also drops, duplicates and reorders
//! messages.

mod allocations;
mod churn;
mod clients;
mod cluster;
mod counts;
mod crowd;
mod exec;
mod fenced;
mod ledger;
mod logs;
mod net;
mod node;
mod producing;
mod queue;
mod remade;
mod stopped;
mod summary;
mod tests;

mod turns;

pub(crate) use exec::disk;
pub(crate) use net::Outgoing;
pub(crate) use runtime::planted::Bug;
