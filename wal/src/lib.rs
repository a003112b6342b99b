//! The write-ahead ring, the partition segments and the checkpoints of one core.
//!
//! Each layer uses only the layers above it in this table:
//!
//! | module | is |
//! |---|---|
//! | [`buf`] (`buf::pool`), `crc`, [`disk`] | aligned, pooled memory; combined CRCs; the seam to storage |
//! | [`record`], [`errors`] | entries and their positions; why something failed |
//! | [`disk::uring`]; [`disk::glommio`], `disk::rio` | the disk of a broker; others to compare it with |
//! | [`ring::format`], [`ring`], [`ring::recovery`] | the ring as a pure state machine |
//! | [`ring::journal`] | the ring's I/O: one write and one sync for all records that arrived during the last one |
//! | [`segment::format`], [`segment`], [`segment::files`] | frames in segment files, sparse indexes, open descriptors |
//! | [`log`] | a partition's batches: a tail in memory above segments |
//! | [`checkpoint`] | the encoding of state that need not be read from the ring any more |
//! | [`store`] | one core's ring, logs, checkpoints and snapshots, recovered as a unit; reads, flushes |
//! | [`manifest`] | the data directory, and changing the number of cores |
//! | [`disk::sim`], [`sim_exec`] | for tests: a disk that loses unsynced data, a seeded executor |
//!
//! The crate knows nothing of Kafka, Raft's rules or sockets: group, index and term are plain numbers here.

pub mod buf;
pub mod checkpoint;
mod crc;
pub mod disk;
pub mod errors;
pub mod log;
pub mod manifest;
pub mod record;
pub mod ring;
pub mod segment;
pub mod sim_exec;
pub mod store;
