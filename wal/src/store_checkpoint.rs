//! Taking a checkpoint of a store, and what a durable one allows: the ring's space is given back, files that it no longer names go.
//! Lives on: the owning core, within a round of the flusher (`store_flush`).
//!
//! Invariant: nothing is given back or removed before the checkpoint that makes it needless is durable.

use crate::{
    buf::{BLOCK, Chunk},
    checkpoint::{CHECKPOINT_FILE, Checkpoint, Garbage, GroupState},
    checkpoint_reserve,
    disk::{Disk, Durability, File, OpenMode},
    files::{remove_if_there, replace_file},
    log::Log,
    planted::{self, Mistake},
    record::GroupId,
    segment::{Segment, SparseIndex},
    segment_format::{SegmentId, encode_index},
    store_flush::{FlushError, is_full},
    store_state::{Shared, State},
    store_types::LogPos,
};
use std::{collections::BTreeSet, io, rc::Rc};

/// Writes a checkpoint of everything, then does what it allows: the ring is freed, files are removed.
pub(crate) async fn checkpoint<D: Disk>(shared: &Rc<Shared<D>>) -> Result<(), FlushError> {
    let checkpoint = cut_checkpoint(shared);
    let path = shared.dirs.core.join(CHECKPOINT_FILE);
    let bytes = checkpoint.encode();
    let mut written = replace_file(&shared.disk, &path, &bytes).await;
    let no_room = written.as_ref().is_err_and(is_full);
    if no_room && checkpoint_reserve::give(shared).await? {
        written = replace_file(&shared.disk, &path, &bytes).await;
    }
    written.map_err(|error| FlushError::of(path.display(), error))?;
    shared.state.borrow_mut().number = checkpoint.number;
    shared.count(|stats| stats.checkpoints += 1);
    let mut needed = checkpoint.needs_ring_from();
    if planted::is(Mistake::RecycledTooEarly) {
        needed = shared.journal.durable();
    }
    shared.journal.release_below(needed);
    if !no_room {
        write_due_indexes(shared).await;
    }
    let collected = collect(shared, &checkpoint).await;
    // Before anything else takes the space.
    checkpoint_reserve::keep(shared, bytes.len()).await?;
    collected
}

/// Trims the logs and takes down what they are, in one synchronous step.
fn cut_checkpoint<D: Disk>(shared: &Shared<D>) -> Checkpoint {
    let groups = group_states(shared);
    let state = shared.state.borrow();
    Checkpoint {
        epoch: shared.epoch,
        number: state.number + 1,
        cut: shared.journal.durable(),
        groups,
        removed: state.removed.iter().map(|removed| removed.group).collect(),
        garbage: state.garbage.clone(),
    }
}

/// Every group as a checkpoint has it, ascending, after the trims that are due.
pub(crate) fn group_states<D: Disk>(shared: &Shared<D>) -> Vec<GroupState> {
    let mut state = shared.state.borrow_mut();
    let State { groups, garbage, .. } = &mut *state;
    let durable = shared.journal.durable();
    let mut states = Vec::with_capacity(groups.len());
    for log in groups.values_mut() {
        let trimmed = log.trim();
        discard(shared, log.id, garbage, trimmed);
        log.check(durable);
        states.push(group_state(log, durable, shared.config.kept_bytes));
    }
    states.sort_unstable_by_key(|group| group.id);
    states
}

fn group_state(log: &mut Log, durable: LogPos, kept_bytes: usize) -> GroupState {
    assert!(log.pending_cut.is_none(), "cuts are settled before a checkpoint");
    let mut hard_state = log.hard_state;
    // A commit may run ahead of this disk, never of what recovery will find.
    hard_state.commit = hard_state.commit.min(log.stable(durable).index).max(log.app.index);
    let kept = log.keep(durable, kept_bytes);
    GroupState {
        id: log.id,
        by_snapshot: log.by_snapshot,
        dir_made: log.dir_made,
        hard_state,
        log_start: log.app_log_start,
        replay_from: log.replay_from(durable),
        next_serial: log.next_serial,
        before_first: log.before_first,
        flushed: log.flushed,
        app: log.app.clone(),
        segments: log.segments.clone(),
        terms: log.terms.up_to(log.flushed.index).to_vec(),
        kept,
    }
}

/// Removes the files that `checkpoint`, which is durable, no longer names. What can't be removed now stays listed.
pub(crate) async fn collect<D: Disk>(shared: &Rc<Shared<D>>, checkpoint: &Checkpoint) -> Result<(), FlushError> {
    let mut dirs = BTreeSet::new();
    for garbage in &checkpoint.garbage {
        let paths = match *garbage {
            Garbage::Segment { id, base_offset } => {
                vec![shared.files.segment(id, base_offset), shared.files.index(id, base_offset)]
            }
            Garbage::Snapshot { group, index, term } => vec![crate::snapshot::path(&shared.dirs, group, index, term)],
        };
        for path in paths {
            let removed = remove_if_there(&shared.disk, &path).await;
            if removed.map_err(|error| FlushError::of(path.display(), error))? {
                dirs.insert(path.parent().expect("a file has a directory").to_path_buf());
            }
        }
    }
    let gone: Vec<GroupId> = {
        let state = shared.state.borrow();
        let listed = checkpoint.removed.iter().map(|removed| removed.id);
        listed.filter(|id| state.removed.iter().any(|now| now.group.id == *id && !now.files_gone)).collect()
    };
    for group in &gone {
        if remove_dir(shared, *group).await? {
            dirs.insert(shared.files.logs().to_path_buf());
            dirs.remove(&shared.files.group_dir(*group));
        }
    }
    for dir in dirs {
        match shared.disk.sync_dir(&dir).await {
            // A group's directory that went with its group.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            synced => synced.map_err(|error| FlushError::of(dir.display(), error))?,
        }
    }
    let mut state = shared.state.borrow_mut();
    state.garbage.retain(|garbage| !checkpoint.garbage.contains(garbage));
    for removed in &mut state.removed {
        removed.files_gone |= gone.contains(&removed.group.id);
    }
    // The removal's own record goes with the ring's space; until then it is listed, so that nothing before it counts.
    let freed = checkpoint.needs_ring_from();
    state.removed.retain(|removed| !removed.files_gone || removed.group.at > freed);
    Ok(())
}

/// Removes a group's directory with all that is in it; `false` if there is none.
async fn remove_dir<D: Disk>(shared: &Rc<Shared<D>>, group: GroupId) -> Result<bool, FlushError> {
    let dir = shared.files.group_dir(group);
    let named = |error| FlushError::of(dir.display(), error);
    for path in shared.disk.list(&dir).await.map_err(named)? {
        remove_if_there(&shared.disk, &path).await.map_err(named)?;
    }
    remove_if_there(&shared.disk, &dir).await.map_err(named)
}

/// Writes the sparse indexes of segments that were sealed or grew much: hints, so they are neither synced nor missed.
async fn write_due_indexes<D: Disk>(shared: &Rc<Shared<D>>) {
    let due: Vec<(SegmentId, u64, u64)> = {
        let mut state = shared.state.borrow_mut();
        let mut due = Vec::new();
        for log in state.groups.values_mut().filter(|log| !log.index_due.is_empty()) {
            let serials = std::mem::take(&mut log.index_due);
            for segment in log.segments.iter().filter(|segment| serials.contains(&segment.serial)) {
                due.push((SegmentId { group: log.id, serial: segment.serial }, segment.base_offset, segment.len));
            }
        }
        due
    };
    for (id, base_offset, len) in due {
        let index: Option<Rc<SparseIndex>> = shared.indexes.borrow_mut().get(&id);
        let Some(index) = index.filter(|index| index.covered <= len && len - index.covered < BLOCK as u64) else {
            continue;
        };
        let bytes = encode_index(index.covered, index.next_index, &index.entries, id.seed());
        if let Err(error) = write_hint(shared, id, base_offset, &bytes).await {
            tracing::debug!(group = id.group.0, serial = id.serial, %error, "an index was not written");
        }
    }
}

async fn write_hint<D: Disk>(shared: &Shared<D>, id: SegmentId, base_offset: u64, bytes: &[u8]) -> io::Result<()> {
    let path = shared.files.index(id, base_offset);
    remove_if_there(&shared.disk, &path).await?;
    let file = shared.disk.open(&path, OpenMode::CreateNew).await?;
    let mut chunk = Chunk::of(bytes);
    chunk.pad_to_block();
    file.write(0, chunk.frozen(0, chunk.len()), Durability::Cached).await
}

/// Lists segments as garbage for the next checkpoint.
pub(crate) fn discard<D: Disk>(shared: &Shared<D>, group: GroupId, garbage: &mut Vec<Garbage>, segments: Vec<Segment>) {
    for segment in segments {
        let id = SegmentId { group, serial: segment.serial };
        shared.files.forget(id);
        shared.indexes.borrow_mut().remove(&id);
        garbage.push(Garbage::Segment { id, base_offset: segment.base_offset });
    }
}
