//! A partition's state, made from the log that the store has recovered.

use super::producers::{Producers, RestoreError};
use consensus::group;
use net::records::batch::{BatchError, BatchHeader};
use types::{GroupId, RaftIndex};
use wal::store::RecoveredGroup;

/// Why a partition can't be brought back. It stays without a leader.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Group(#[from] group::RestoreError),
    #[error("group {group}: {cause}")]
    Producers { group: GroupId, cause: RestoreError },
    #[error("group {group}, entry {index}: {cause}")]
    Batch { group: GroupId, index: RaftIndex, cause: BatchError },
}

/// Restores the producers of the last checkpoint, then replays the batch headers after it up to the log's end.
pub(super) fn producers(recovered: &RecoveredGroup) -> Result<Producers, RecoverError> {
    let group = recovered.id;
    let mut producers = match &recovered.app.blob {
        blob if blob.is_empty() => Producers::default(),
        blob => Producers::restore(blob).map_err(|cause| RecoverError::Producers { group, cause })?,
    };
    for entry in recovered.tail.iter().filter(|entry| entry.index > recovered.app.index) {
        if let Some((span, payload)) = &entry.payload {
            let unreadable = |cause| RecoverError::Batch { group, index: entry.index, cause };
            let info = BatchHeader::read(payload).map_err(unreadable)?;
            if info.is_idempotent() {
                producers.append(entry.index, &info, span.base_offset, span.max_timestamp);
            }
        }
    }
    Ok(producers)
}
