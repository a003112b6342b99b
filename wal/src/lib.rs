//! The write-ahead ring, the partition segments and the checkpoints of one core.
//!
//! Layers, each knowing only those above it in this list:
//!
//! | module | is |
//! |---|---|
//! | [`buf`] (`buf_pool`), `crc`, [`disk`] | aligned memory, used again; sums of sums; the seam to storage ([`disk::Disk`]) |
//! | [`disk_uring`]; [`disk_glommio`], `disk_rio` | the disk of a broker; others to measure it against |
//! | [`ring_format`], [`ring`], [`ring_recovery`] | the ring as a pure state machine |
//! | [`journal`] | the ring's shell: one write and one sync for all that arrived during the last |
//! | [`segment_format`], [`segment`], [`files`] | frames in segment files, sparse indexes, open descriptors |
//! | [`log`], [`log_read`] | a partition's batches: memory tail over segments; reads from both |
//! | [`checkpoint`], [`snapshot`] | what need not be read from the ring any more |
//! | [`store`] (`store_recovery`, `store_flush`, `store_checkpoint`, `checkpoint_kept`, `checkpoint_reserve`) | one core's ring, logs and checkpoints as one thing that recovers |
//! | [`manifest`] | the data directory, and another number of cores |
//! | [`disk_sim`], [`sim_exec`], [`planted`] | a disk that loses and tears what was not synced, an executor in a seeded order, and mistakes, for tests |
//!
//! Knows nothing of Kafka, of Raft's rules or of sockets: group, index and term are numbers here.

mod app_state;
pub mod buf;
mod buf_pool;
pub mod checkpoint;
mod checkpoint_kept;
mod checkpoint_reserve;
mod crc;
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
mod log_entries;
pub mod log_read;
mod lru;
pub mod manifest;
pub mod planted;
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
