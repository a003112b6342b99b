//! Takes a checkpoint of a store. Once the checkpoint is durable, releases the ring's space and removes files that it
//! no longer names.
//! Lives on: the owning core, within a round of the flusher (`store::flush`).
//!
//! There may be a hundred thousand groups, so the checkpoint encodes them in turns and yields in between. Each group
//! is encoded as it is at its turn, once settled. Settled means that its truncation, if any, is durable in the ring
//! and its segments are cut. Changes after a group's turn, or after the checkpoint's cut, are in the ring above what
//! the checkpoint needs of it. That holds after any checkpoint:
//!
//! - The cut is the ring's durable position at the beginning. A group's replay never begins above the durable
//!   position at its turn.
//! - A group that is created meanwhile has its records above the cut.
//! - A group that is removed after its turn is removed again by its record. One that is removed before its turn is
//!   listed as removed, once that record is durable.
//! - Only this task takes segments out of the lists, but others write snapshots at any time. Old snapshots are
//!   therefore listed as garbage only if they were garbage at the beginning. No group still to be encoded then names
//!   them.
//!
//! Invariant: nothing is released or removed before a durable checkpoint makes it obsolete.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    checkpoint::{CHECKPOINT_FILE, Encoder, Garbage, GroupState, RemovedGroup},
    disk::{Disk, Durability, File, OpenMode},
    errors::{FlushError, is_full, lacks_room},
    log::Log,
    segment::{
        SparseIndex,
        files::{remove_if_there, replace_file},
        format::{SegmentId, encode_index},
    },
    store::{
        cuts::{cut_segments, discard},
        interface::{FlushHost, LogPos},
        reserve,
        state::{Shared, State},
    },
};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};
use types::{GroupId, planted};

/// Writes a checkpoint of everything, then does what it allows: frees the ring and removes files.
pub(crate) async fn checkpoint<D: Disk>(shared: &Rc<Shared<D>>, host: &dyn FlushHost) -> Result<(), FlushError> {
    let cut = cut_checkpoint(shared, host).await?;
    let path = shared.dirs.core.join(CHECKPOINT_FILE);
    let mut written = replace_file(&shared.disk, &path, &[&cut.bytes], async || shared.breathe().await).await;
    let no_room = written.as_ref().is_err_and(is_full);
    match no_room {
        true => written = reserve::overwrite(shared, &path, &cut.bytes).await,
        false => shared.checkpoint_file.set(block_ceil(cut.bytes.len()) as u64),
    }
    written.map_err(|error| FlushError::of(path.display(), error))?;
    shared.state.borrow_mut().number += 1;
    shared.count(|stats| stats.checkpoints += 1);
    shared.besides.set((cut.bytes.len() as u64).saturating_sub(shared.state.borrow().carried_bytes));
    let mut needed = cut.needs_ring_from;
    if planted!(RingRecycledTooEarly) {
        needed = shared.journal.durable();
    }
    shared.journal.release_below(needed);
    if !no_room {
        write_indexes(shared, cut.indexes_due).await;
    }
    let collected = collect(shared, &cut.garbage, &cut.removed, cut.needs_ring_from).await;
    // Before anything else takes the space.
    reserve::keep(shared).await?;
    collected
}

/// How many bytes of a checkpoint are encoded before it yields to other tasks of the core.
const TURN_BYTES: usize = 64 << 10;

/// An encoded checkpoint, and the parts of it that are needed after it is written.
struct Cut {
    bytes: Vec<u8>,
    needs_ring_from: LogPos,
    removed: Vec<RemovedGroup>,
    garbage: Vec<Garbage>,
    indexes_due: Vec<IndexDue>,
}

/// Trims the logs and encodes their state.
async fn cut_checkpoint<D: Disk>(shared: &Rc<Shared<D>>, host: &dyn FlushHost) -> Result<Cut, FlushError> {
    let (mut to, snapshots) = {
        let state = shared.state.borrow();
        let snapshots: Vec<Garbage> = state.garbage.iter().copied().filter(Garbage::is_snapshot).collect();
        let bytes = (shared.besides.get() + state.carried_bytes) as usize;
        (Encoder::new(shared.epoch, state.number + 1, shared.journal.durable(), bytes), snapshots)
    };
    let mut indexes_due = Vec::new();
    let mut next = GroupId(0);
    loop {
        let turn: Vec<GroupId> = {
            let state = shared.state.borrow();
            state.groups.range(next..).take(shared.config.checkpoint_turn_groups).map(|(group, _)| *group).collect()
        };
        let Some(last) = turn.last() else { break };
        next = GroupId(last.0 + 1);
        let mut turn_ends = to.len() + TURN_BYTES;
        for group in turn {
            cut_group(shared, host, group, &mut to, &mut indexes_due).await?;
            if to.len() >= turn_ends {
                turn_ends = to.len() + TURN_BYTES;
                shared.give_way().await;
            }
        }
        shared.give_way().await;
    }
    let removed = removed_besides(shared, &to).await?;
    let state = shared.state.borrow();
    let garbage = state.garbage.iter().filter(|garbage| !garbage.is_snapshot() || snapshots.contains(garbage));
    let garbage: Vec<Garbage> = garbage.copied().collect();
    let needs_ring_from = to.needs_ring_from();
    Ok(Cut { bytes: to.finish(&removed, &garbage), needs_ring_from, removed, garbage, indexes_due })
}

/// Encodes a group once it is settled. Does nothing if the group is gone.
async fn cut_group<D: Disk>(
    shared: &Rc<Shared<D>>,
    host: &dyn FlushHost,
    group: GroupId,
    to: &mut Encoder,
    indexes_due: &mut Vec<IndexDue>,
) -> Result<(), FlushError> {
    loop {
        let behind = shared.state.borrow().groups.get(&group).is_some_and(|log| log.app_is_behind());
        let app = if behind { host.app_state(group) } else { None };
        let durable = shared.journal.durable();
        let unsettled = {
            let mut state = shared.state.borrow_mut();
            let State { groups, garbage, .. } = &mut *state;
            let Some(log) = groups.get_mut(&group) else { return Ok(()) };
            if let Some(app) = app {
                log.take_app(app);
            }
            if log.truncated_at <= durable && log.pending_cut.is_none() {
                let settled = settled_state(shared, log, garbage);
                to.group(&settled, log.kept());
                indexes_due.extend(take_indexes_due(log));
                return Ok(());
            }
            log.truncated_at
        };
        if unsettled > durable {
            wait_until_durable(shared, unsettled).await?;
        } else {
            cut_segments(shared, group).await?;
        }
    }
}

/// The removed groups, except those that `taken` has encoded. Their removals are durable.
async fn removed_besides<D: Disk>(shared: &Rc<Shared<D>>, taken: &Encoder) -> Result<Vec<RemovedGroup>, FlushError> {
    let removed: Vec<RemovedGroup> = {
        let state = shared.state.borrow();
        let removed = state.removed.values().map(|removed| removed.group);
        removed.filter(|removed| !taken.has(removed.id)).collect()
    };
    let latest = removed.iter().map(|removed| removed.at).max().unwrap_or_default();
    wait_until_durable(shared, latest).await?;
    Ok(removed)
}

async fn wait_until_durable<D: Disk>(shared: &Shared<D>, position: LogPos) -> Result<(), FlushError> {
    loop {
        let durable = shared.journal.durable();
        if durable >= position {
            return Ok(());
        }
        let waited = shared.journal.durable_past(durable).await;
        waited.map_err(|poisoned| FlushError::Fatal(poisoned.into()))?;
    }
}

/// A group's state for a checkpoint, after the trims that are due. No cut of its segments may be pending.
pub(crate) fn settled_state<D: Disk>(shared: &Shared<D>, log: &mut Log, garbage: &mut Vec<Garbage>) -> GroupState {
    let durable = shared.journal.durable();
    let trimmed = log.trim();
    discard(shared, log.id, garbage, trimmed);
    log.check(durable);
    group_state(log, durable, shared.config.kept_bytes)
}

fn group_state(log: &mut Log, durable: LogPos, kept_bytes: usize) -> GroupState {
    assert!(log.pending_cut.is_none(), "cuts are settled before a checkpoint");
    let mut hard_state = log.hard_state;
    // The commit may be ahead of this disk, but the stored commit must not be ahead of what recovery will find.
    hard_state.commit = hard_state.commit.min(log.stable(durable).index).max(log.app.index);
    if log.by_snapshot {
        log.keep_by_snapshot(durable, kept_bytes);
    }
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
        kept: Vec::new(),
    }
}

/// Removes the files that a durable checkpoint lists as `garbage`, and those of groups that it lists as `removed`.
/// The checkpoint needs the ring from `freed` on. Whatever cannot be removed now stays listed, so the next flush and
/// the next start try again. Only a full disk is an error: nothing depends on a file that no checkpoint names.
pub(crate) async fn collect<D: Disk>(
    shared: &Rc<Shared<D>>,
    garbage: &[Garbage],
    removed: &[RemovedGroup],
    freed: LogPos,
) -> Result<(), FlushError> {
    let mut removal = Removal::default();
    let mut collected = BTreeSet::new();
    for listed in garbage {
        let mut is_gone = true;
        for path in paths_of(shared, *listed) {
            is_gone &= removal.remove(&shared.disk, &path).await?;
        }
        if is_gone {
            collected.insert(*listed);
        }
    }
    let listed: Vec<GroupId> = {
        let state = shared.state.borrow();
        let listed = removed.iter().map(|removed| removed.id);
        listed.filter(|id| state.removed.get(id).is_some_and(|now| !now.files_gone)).collect()
    };
    let mut gone = Vec::new();
    for group in listed {
        if removal.remove_dir(&shared.disk, &shared.files.group_dir(group)).await? {
            gone.push(group);
        }
    }
    removal.sync(&shared.disk).await?;
    removal.tell(shared);
    let mut state = shared.state.borrow_mut();
    state.garbage.retain(|listed| !collected.contains(listed));
    for group in &gone {
        if let Some(removed) = state.removed.get_mut(group) {
            removed.files_gone = true;
        }
    }
    // The removal's own record disappears with the ring's space. Until then the removal stays listed, so that
    // recovery ignores the group's earlier records.
    state.removed.retain(|_, removed| !removed.files_gone || removed.group.at > freed);
    Ok(())
}

fn paths_of<D: Disk>(shared: &Shared<D>, garbage: Garbage) -> Vec<PathBuf> {
    match garbage {
        Garbage::Segment { id, base_offset } => {
            vec![shared.files.segment(id, base_offset), shared.files.index(id, base_offset)]
        }
        Garbage::Snapshot { group, index, term } => {
            vec![crate::store::snapshot::path(&shared.dirs, group, index, term)]
        }
    }
}

/// The outcome of one collection: removed files, and files that could not be removed.
#[derive(Default)]
struct Removal {
    /// Directories in which names are gone.
    dirs: BTreeSet<PathBuf>,
    left: u64,
    /// Why the first of them is left.
    why: Option<String>,
}

impl Removal {
    /// Removes a file or an empty directory. Returns whether it is gone.
    async fn remove<D: Disk>(&mut self, disk: &D, path: &Path) -> Result<bool, FlushError> {
        match remove_if_there(disk, path).await {
            Ok(was_there) => {
                if was_there {
                    self.dirs.insert(path.parent().expect("a file has a directory").to_path_buf());
                }
                Ok(true)
            }
            Err(error) => self.leave(path, error),
        }
    }

    /// Removes a directory and everything in it. Returns whether it is gone.
    async fn remove_dir<D: Disk>(&mut self, disk: &D, dir: &Path) -> Result<bool, FlushError> {
        let paths = match disk.list(dir).await {
            Ok(paths) => paths,
            Err(error) => return self.leave(dir, error),
        };
        let mut is_empty = true;
        for path in paths {
            is_empty &= self.remove(disk, &path).await?;
        }
        if !is_empty || !self.remove(disk, dir).await? {
            return Ok(false);
        }
        self.dirs.remove(dir);
        Ok(true)
    }

    fn leave(&mut self, path: &Path, error: io::Error) -> Result<bool, FlushError> {
        if lacks_room(&error) {
            return Err(FlushError::of(path.display(), error));
        }
        self.left += 1;
        self.why.get_or_insert_with(|| format!("{}: {error}", path.display()));
        Ok(false)
    }

    /// Makes the removals durable.
    async fn sync<D: Disk>(&self, disk: &D) -> Result<(), FlushError> {
        for dir in &self.dirs {
            match disk.sync_dir(dir).await {
                // The group's directory was removed with its group.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                synced => synced.map_err(|error| FlushError::of(dir.display(), error))?,
            }
        }
        Ok(())
    }

    /// Counts what is left, and logs it when that has changed.
    fn tell<D: Disk>(&self, shared: &Shared<D>) {
        let mut before = 0;
        shared.count(|stats| before = std::mem::replace(&mut stats.unremoved_files, self.left));
        match &self.why {
            Some(why) if self.left != before => {
                tracing::warn!(files = self.left, why, "cannot remove files that are no longer needed; retrying");
            }
            None if before > 0 => tracing::info!("all files that were no longer needed are removed now"),
            _ => {}
        }
    }
}

/// A segment whose sparse index is to be written out, its base offset and its length.
type IndexDue = (SegmentId, u64, u64);

fn take_indexes_due(log: &mut Log) -> impl Iterator<Item = IndexDue> + '_ {
    let serials = std::mem::take(&mut log.index_due);
    let due = log.segments.iter().filter(move |segment| serials.contains(&segment.serial));
    due.map(|segment| (SegmentId { group: log.id, serial: segment.serial }, segment.base_offset, segment.len))
}

/// Writes the sparse indexes of segments that were sealed or grew much. They are hints, so they are not synced, and a
/// failure is only logged.
async fn write_indexes<D: Disk>(shared: &Rc<Shared<D>>, due: Vec<IndexDue>) {
    for (id, base_offset, len) in due {
        let index: Option<Rc<SparseIndex>> = shared.indexes.borrow_mut().get(&id);
        let Some(index) = index.filter(|index| index.covered <= len && len - index.covered < BLOCK as u64) else {
            continue;
        };
        let bytes = encode_index(index.covered, index.next_index, &index.entries, id.seed());
        if let Err(error) = write_hint(shared, id, base_offset, &bytes).await {
            tracing::debug!(group = id.group.0, serial = id.serial, %error, "cannot write a segment's index");
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
