//! Reading a log: from memory at once and without copying, from segments by aligned reads with read-ahead.
//! Lives on: the owning core only.

use bytes::Bytes;
use std::{io, pin::Pin};

/// One batch as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub base_offset: u64,
    pub count: u32,
    pub max_timestamp: i64,
    pub index: u64,
    pub term: u64,
    pub bytes: Bytes,
}

/// The rest of a read that needs the disk.
pub type ColdRead = Pin<Box<dyn Future<Output = Result<Vec<Batch>, ReadError>>>>;

/// The answer to a read.
pub enum Read {
    /// Served from memory; empty at the end of what may be read.
    Memory(Vec<Batch>),
    /// Await it; the log may change meanwhile.
    Cold(ColdRead),
    OffsetOutOfRange {
        start: u64,
        end: u64,
    },
    UnknownGroup,
}

/// Why a cold read failed. None of these poisons the store.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The segment's bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Trimmed, truncated or removed while the read was under way: look at the log again.
    #[error("the log changed during the read")]
    Changed,
}
