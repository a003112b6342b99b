//! The write-ahead ring, the partition segments and the checkpoints of one core.
//!
//! Layers, each knowing only those above it in this list:
//!
//! | module | is |
//! |---|---|
//! | [`buf`], [`disk`] | aligned memory; the seam to storage ([`disk::Disk`]) and its backends |
//! | `ring_format`, `ring`, `ring_recovery` | the ring as a pure state machine |
//! | `journal` | the ring's shell: one write and one sync for all that arrived during the last |
//! | `segment*`, `log` | a partition's batches: memory tail, segment files, indexes |
//! | `checkpoint`, `store` | one core's ring, logs and checkpoints as one thing that recovers |
//!
//! Knows nothing of Kafka, of Raft's rules or of sockets: group, index and term are numbers here.

pub mod buf;
pub mod checkpoint;
pub mod disk;
pub mod disk_glommio;
#[cfg(feature = "rio")]
pub mod disk_rio;
pub mod disk_sim;
#[cfg(test)]
mod disk_tests;
pub mod disk_uring;
pub mod files;
pub mod journal;
pub mod log;
pub mod log_read;
mod lru;
pub mod manifest;
pub mod record;
pub mod ring;
pub mod ring_format;
pub mod ring_recovery;
mod rt;
pub mod segment;
pub mod segment_format;
pub mod signal;
pub mod sim_exec;
pub mod snapshot;
pub mod store;
mod store_checkpoint;
mod store_flush;
mod store_recovery;
mod store_state;
mod store_types;
mod terms;
