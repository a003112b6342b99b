//! Simulates whole clusters in one thread and virtual time, from a seed. Runs the broker's own code, from its start to
//! the handlers of Kafka's APIs, on simulated disks, queues and a simulated network. The clients remember every answer.
//!
//! | module | contents |
//! |---|---|
//! | `options`, `seeds` | the command line; running many seeds, with progress |
//! | `exec` | virtual time; processes and their tasks |
//! | `running` | a simulation that runs: the backend of [`runtime`], and the machine of `engine::host` |
//! | `net` | connections between brokers: late, stalled, broken |
//! | `queue` | queues between the cores of a broker: late |
//! | `node` | one broker: start, stop, kill, power cut, lost disk |
//! | `clients` | producers, consumers, operators, members of consumer groups |
//! | `crowd` | clients that overload brokers, give up and vanish |
//! | `topics::remade` | a topic that is deleted and created again, and its committed offsets |
//! | `ledger` | what clients know, and the invariants that must hold |
//! | `ledger::commits` | the same for members of groups |
//! | `cluster`, `logs` | faults, and the checks after every step and at the end |
//! | `summary` | the counts of what runs did |
//!
//! Tests on quiet clusters, each with one broker's cost or answer as its subject:
//!
//! | module | contents |
//! |---|---|
//! | `allocations`, `counts` | what requests cost brokers without faults: writes, syncs, copies, allocations |
//! | `topics::churn` | topics that are created and deleted again and again |
//! | `turns` | how much work large requests do between two yields, and what the answers to small ones may take |
//! | `producing` | what producers are told when a leader can't take their batches |
//! | `fenced` | what a broker that was cut off may still answer |
//! | `stopped` | a committed entry that cannot be applied, and what is told when something fails |
//! | `tests` | some seeds, and each planted bug |
//!
//! The simulation runs the real ring, segments, checkpoints and recovery of `wal` on
//! [`SimDisk`](wal::disk::sim::SimDisk), and the real Raft groups and metadata plane of `consensus`. Of `engine` it
//! runs everything except sockets and the admin pages. A broker has one to four cores, which take turns in one thread.
//! `consensus` has a simulation of its own: the metadata plane on a network that also drops, duplicates and reorders
//! messages.

mod allocations;
mod clients;
mod cluster;
#[cfg(test)]
mod counts;
mod crowd;
mod exec;
#[cfg(test)]
mod fenced;
mod ledger;
mod logs;
mod net;
mod node;
mod options;
#[cfg(test)]
mod producing;
mod queue;
mod running;
mod seeds;
#[cfg(test)]
mod stopped;
mod summary;
#[cfg(test)]
mod tests;
mod topics;
#[cfg(test)]
mod turns;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = options::Options::parse();
    seeds::log(options.log.as_deref());
    seeds::run_many(&options)
}
