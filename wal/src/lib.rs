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

pub mod buf;
pub mod checkpoint;
mod crc;
pub mod disk;
pub mod log;
pub mod manifest;
pub mod planted;
pub mod record;
pub mod ring;
mod rt;
pub mod segment;
pub mod signal;
pub mod sim_exec;
pub mod store;
