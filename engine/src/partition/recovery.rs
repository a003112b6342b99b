//! A partition's state, made from the log that the store has recovered.

use super::producers::{Producers, RestoreError};
use consensus::group::{self, Entry, Restored};
use net::records::batch::{BatchError, BatchHeader};
use types::{GroupId, Position, RaftIndex};
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

/// Converts a recovered log into the state from which the group continues.
pub fn restored(recovered: &RecoveredGroup) -> Restored {
    let state = recovered.hard_state;
    // The tail begins above the flushed or the applied index, whichever is lower. Below it, Raft needs only the
    // terms.
    let first = recovered.tail.first().map_or(recovered.flushed_index.next(), |entry| entry.index);
    let before = first.prev();
    let runs = &recovered.terms;
    let term = runs[..runs.partition_point(|run| run.first_index <= before)]
        .last()
        .map_or(recovered.first_prev_term, |run| run.term);
    Restored {
        hard_state: state,
        conf_state: recovered.app.conf_state.clone(),
        terms: runs.clone(),
        gone: None,
        before: (before > RaftIndex::ZERO).then_some(Position { index: before, term }),
        applied: recovered.app.index,
        entries: recovered
            .tail
            .iter()
            .map(|entry| Entry {
                index: entry.index,
                term: entry.term,
                entry_type: entry.entry_type,
                data: entry.data.clone(),
            })
            .collect(),
    }
}
