//! The data directory's MANIFEST: format version, cluster id, placement epoch and number of cores; and the change of that
//! number at start.
//! Lives on: the thread that starts the broker, before any core serves.
//!
//! Invariant: the manifest is replaced atomically, and only once everything that it names is durable.

use crate::{
    disk::Disk,
    record::GroupId,
    store::{OpenError, StoreConfig},
};
use std::path::Path;

/// The newest layout of the data directory that this version reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;

/// What a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub cluster_id: String,
    /// Names the directory of the rings and checkpoints; grows with each change of the number of cores.
    pub epoch: u64,
    pub cores: usize,
}

#[allow(unused_variables)]
impl Manifest {
    /// Reads `<data>/MANIFEST`; `None` if the directory was never set up. Refuses a newer format by name.
    pub async fn read<D: Disk>(disk: &D, data: &Path) -> Result<Option<Self>, OpenError> {
        unimplemented!()
    }

    /// Writes or replaces `<data>/MANIFEST` atomically and durably; creates the directory if it is missing.
    pub async fn write<D: Disk>(&self, disk: &D, data: &Path) -> Result<(), OpenError> {
        unimplemented!()
    }
}

/// Moves every group to the core that `place` names, for `cores` cores: replays, flushes and checkpoints all old rings, writes the new
/// cores' checkpoints and rings under a new epoch, then installs them by one manifest write. A crash at any point leaves either
/// the old or the new placement, whole. Returns the new manifest. Needs one thread and no running store.
#[allow(unused_variables)]
pub async fn change_cores<D: Disk>(
    disk: &D,
    data: &Path,
    old: &Manifest,
    cores: usize,
    config: &StoreConfig,
    place: impl Fn(GroupId) -> usize,
) -> Result<Manifest, OpenError> {
    unimplemented!()
}

/// Removes what an interrupted or finished change of cores left: every epoch's directory but the manifest's.
#[allow(unused_variables)]
pub async fn remove_stale_epochs<D: Disk>(disk: &D, data: &Path, current: &Manifest) -> Result<usize, OpenError> {
    unimplemented!()
}
