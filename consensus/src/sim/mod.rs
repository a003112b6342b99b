//! Many nodes in one thread, in virtual time, on a network and disks that fail as a seed says: the same seed, the same run.
//!
//! | module | is |
//! |---|---|
//! | `clock` | [`SimClock`]: drifting, stepping clocks on one virtual time |
//! | `net` | [`SimNet`]: drops, delays, doubles, reorders, cuts one way |
//! | `disk` | [`SimDisk`]: a journal that loses what was not synced, and tears it between records |
//! | `node`, `node_meta` | one broker's groups, driven as a core drives them |
//! | `oracle` | what must hold whatever happens, checked after every event |
//! | `clients` | who writes and reads the metadata, and what they may believe |
//! | `promises` | what clients were told, by key, and what each strength promises |
//! | `linear` | whether one copy of a key could have told them all that |
//! | `model` | that copy: a topic, the producer ids |
//! | `cluster` | nodes, clients and faults, one event after the other |
//! | `faults` | what goes wrong, and its end |
//! | `summary`, `bug` | what a run did; mistakes that it must be able to see |

mod bug;
mod clients;
mod clock;
mod cluster;
mod disk;
mod faults;
mod linear;
mod model;
mod net;
mod node;
mod node_meta;
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
