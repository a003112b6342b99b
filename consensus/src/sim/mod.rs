//! Simulates many nodes in one thread, in virtual time. A seed decides how the network and the disks fail. The same
//! seed gives the same run.
//!
//! | module | contents |
//! |---|---|
//! | `bug` | the planted bugs that the simulation must detect |
//! | `clock` | [`SimClock`]: clocks that drift and jump, on one virtual time |
//! | `net` | [`SimNet`]: drops, delays, duplicates and reorders messages, and can be cut in one direction |
//! | `disk` | [`SimDisk`]: a journal that loses unsynced records in a crash, and is torn only between records |
//! | `node` | the groups of one broker, driven as a core drives them |
//! | `oracle` | invariants that must always hold, checked after every event |
//! | `promises` | the answers of clients, by key, and what each consistency level promises |
//! | `linear` | whether a single copy of a key could have given these answers |
//! | `model` | that single copy: a topic, the producer ids, the cluster's settings |
//! | `cluster` | nodes, faults, and clients that read and write metadata, one event after the other |
//! | `faults` | the faults of a run, and healing at its end |
//! | `summary` | counts of what a run did |

mod bug;
mod clock;
mod cluster;
mod disk;
mod faults;
mod linear;
mod model;
mod net;
mod node;
mod oracle;
mod promises;
mod summary;

pub use bug::Bug;
pub use clock::SimClock;
pub use cluster::run;
pub use disk::{Checkpoint, Image, Record, SimDisk};
pub use net::{Envelope, NetFaults, SimNet, SimTransport};
pub use oracle::Violation;
pub use summary::Summary;

#[cfg(test)]
mod tests;
