//! Why a core, or the work before the cores, does not start.

use crate::{config::ring_bytes_for, host::data_dir::DataDirError};
use consensus::{
    group,
    metadata::{self, Rejection},
};
use std::path::PathBuf;
use wal::store::OpenError;

/// Tells an operator what to do about a damaged data directory.
const REMEDY: &str = "the broker does not start with this data directory, now or later; if other brokers hold what it \
                      holds, move it away and start with an empty one; see \"A data directory is damaged\" in \
                      deploy/docs/operating.md";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A manifest, ring, checkpoint or snapshot cannot be opened.
    #[error("{0}{remedy}", remedy = if matches!(.0, OpenError::Damaged(_)) { format!("; {REMEDY}") } else { String::new() })]
    Open(#[from] OpenError),
    /// Nothing else holds what the snapshot covers, so this broker would know no topics.
    #[error("damaged: the metadata's snapshot {}: {why}; {REMEDY}", path.display())]
    DamagedSnapshot { path: PathBuf, why: metadata::RestoreError },
    #[error("the metadata's snapshot {}: {why}; run the newer version", path.display())]
    NewerSnapshot { path: PathBuf, why: metadata::RestoreError },
    #[error(transparent)]
    OtherBroker(DataDirError),
    #[error(transparent)]
    Group(#[from] group::RestoreError),
    #[error(
        "wal.ring.bytes = {rings}: with {cores} cores, each core's ring takes batches of at most {takes} bytes, but \
         partitions of this cluster may hold batches of {largest} bytes; set wal.ring.bytes to at least {}, or use \
         fewer cores",
        ring_bytes_for(*largest as usize, *cores)
    )]
    SmallRings { rings: u64, cores: usize, takes: u64, largest: u64 },
    /// Another broker of the cluster is alive with this one's node id.
    #[error(transparent)]
    NodeIdTaken(Rejection),
    #[error("the broker's start was abandoned")]
    Abandoned,
}

impl StartError {
    /// The metadata's snapshot at `path` cannot be read.
    pub fn snapshot(path: PathBuf, why: metadata::RestoreError) -> Self {
        match why {
            metadata::RestoreError::Answer { .. } => Self::NewerSnapshot { path, why },
            _ => Self::DamagedSnapshot { path, why },
        }
    }

    /// The disk holds something else than was written to it. No restart helps.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Open(OpenError::Damaged(_)) | Self::DamagedSnapshot { .. })
    }

    /// Another version wrote what is on the disk.
    pub fn is_other_version(&self) -> bool {
        matches!(self, Self::Open(OpenError::Newer { .. } | OpenError::Older { .. }) | Self::NewerSnapshot { .. })
    }
}
