//! Opens a store: reads the checkpoint, then the ring in order, then removes what an unfinished flush left.
//! Lives on: the owning core only, before it serves.
//!
//! The checkpoint restores its groups with the entries that it carries itself; the ring's records are replayed behind
//! them.
//!
//! | record at or above where its group's replay begins | effect |
//! |---|---|
//! | of a removed group (in the checkpoint, or by an earlier record) | none |
//! | of an unknown group | creates the group |
//! | entry with index = last + 1, the next offset, and no lower term | is added |
//! | any other entry | damage: the ring or the checkpoint lost something |
//! | hard state, also that of any other record | adopted where it is newer |
//! | truncation above the last index | none |
//! | truncation of trimmed entries | damage |
//! | any other truncation | drops entries; the segments are cut before the store opens |
//! | restart | the log restarts behind an entry; damage if it does not suit the kind of group |
//! | removal | removes the group |
//!
//! Invariant: recovery removes only files that no checkpoint names, and it can be interrupted and repeated at any
//! point.

use crate::{
    checkpoint::{CHECKPOINT_FILE, Checkpoint, DecodeError, Garbage, GroupState, RemovedGroup},
    disk::Disk,
    errors::ReadError,
    log::{Log, LogOptions},
    record::{Entry, Held, LogMark as Mark},
    ring::{
        RingConfig,
        journal::{Journal, RingBody, RingRecord},
    },
    segment::{
        files::{Files, read_file, remove_if_there, segment_name},
        lru::Lru,
    },
    store::{
        AppState, LogPos, OpenError, RecoveredGroup, RecoveryReport, Store, StoreConfig, StoreDirs, StoreStats,
        checkpoint::collect,
        cuts::cut_segments,
        read::read_entries,
        state::{Removed, Shared, State},
    },
};
use types::{GroupId, RaftIndex};

use bytes::Bytes;
use runtime::sync::Notify;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

/// The entries that count towards the cache, in the order of their arrival.
fn arrivals<'a>(logs: impl Iterator<Item = &'a Log>) -> Vec<(LogPos, GroupId)> {
    let mut arrivals: Vec<(LogPos, GroupId)> = Vec::new();
    for log in logs.filter(|log| !log.by_snapshot) {
        let counted = log.held.iter().filter(|held| held.entry.index > log.kept_index);
        arrivals.extend(counted.map(|held| (held.end, log.id)));
    }
    arrivals.sort_unstable();
    arrivals
}

/// See [`Store::open`].
pub(crate) async fn open<D: Disk>(
    disk: D,
    dirs: &StoreDirs,
    epoch: u64,
    mut config: StoreConfig,
) -> Result<(Store<D>, Vec<RecoveredGroup>, RecoveryReport), OpenError> {
    if config.flush_trigger_bytes == 0 {
        config.flush_trigger_bytes = config.ring_bytes / 4;
    }
    let ring_config = RingConfig::from(&config);
    make_dirs(&disk, dirs).await?;
    let (checkpoint, checkpoint_bytes, checkpoint_file) = load_checkpoint(&disk, dirs, epoch).await?;
    let needs = checkpoint.needs_ring_from();
    let (journal, ring) = Journal::open_from(disk.clone(), &dirs.core, epoch, ring_config, needs).await?;
    let mut report = RecoveryReport {
        ring_records: ring.records.len() as u64,
        ring_bytes: journal.used(),
        clean: ring.clean,
        torn_bytes: ring.torn_bytes,
        ..RecoveryReport::default()
    };
    if needs < ring.first || checkpoint.cut > journal.staged() {
        return Err(OpenError::Damaged(format!(
            "{}: the checkpoint needs the ring from position {} to {}, but the ring holds {} to {}",
            dirs.core.display(),
            needs.0,
            checkpoint.cut.0,
            ring.first.0,
            journal.staged().0
        )));
    }
    let (state, touched) = replay(&disk, dirs, &checkpoint, &config, ring.records).await?;
    let besides = checkpoint_bytes.saturating_sub(state.carried_bytes);
    let shared = Rc::new(Shared {
        files: Files::new(disk.clone(), dirs.logs.clone(), config.open_files_max),
        disk,
        dirs: dirs.clone(),
        epoch,
        state: RefCell::new(state),
        indexes: RefCell::new(Lru::new(config.index_bytes)),
        file_times: RefCell::default(),
        ahead: RefCell::new(Lru::new(config.read_ahead_bytes)),
        journal,
        config,
        wanted: Notify::default(),
        rounds: Notify::default(),
        snapshot: Notify::default(),
        stats: Cell::new(StoreStats::default()),
        host: RefCell::new(None),
        besides: Cell::new(besides),
        reserved: Cell::new(0),
        checkpoint_file: Cell::new(checkpoint_file),
        grows_after: Cell::new(0),
    });
    finish_truncations(&shared).await?;
    report.orphans = clear_away(&shared, &checkpoint, &touched).await?;
    let recovered = recovered_groups(&shared).await?;
    report.groups = recovered.len();
    shared.check();
    if shared.flush_due() || !shared.state.borrow().garbage.is_empty() {
        shared.ask_flush();
    }
    Ok((Store { shared }, recovered, report))
}

/// The state as of the checkpoint and the ring's records behind it. Also returns the groups that a flush may have been
/// writing when the store stopped.
async fn replay<D: Disk>(
    disk: &D,
    dirs: &StoreDirs,
    checkpoint: &Checkpoint,
    config: &StoreConfig,
    records: Vec<RingRecord>,
) -> Result<(State, BTreeSet<GroupId>), OpenError> {
    let mut replay = Replay::new(checkpoint, config);
    for record in records {
        replay.apply(record)?;
    }
    let Replay { mut groups, removed, touched, .. } = replay;
    for log in groups.values_mut().filter(|log| log.by_snapshot && log.flushed.index > RaftIndex::ZERO) {
        log.app = crate::store::snapshot::load(disk, dirs, log.id, log.flushed).await?;
    }
    let mut state = State {
        removed: removed.iter().map(|group| (group.id, Removed { group: *group, files_gone: false })).collect(),
        garbage: checkpoint.garbage.clone(),
        number: checkpoint.number,
        // Everything that the last flush could not write counts as staged since. A full disk may have left the whole
        // ring to this process.
        cut: checkpoint.needs_ring_from(),
        ..State::default()
    };
    state.cache = arrivals(groups.values().map(AsRef::as_ref)).into();
    state.groups = groups;
    state.recount_carried();
    let dirty: Vec<GroupId> = state.groups.values().filter(|log| log.is_only_in_ring()).map(|log| log.id).collect();
    for group in dirty {
        state.mark_dirty(group);
    }
    Ok((state, touched))
}

fn named(path: &Path) -> impl Fn(std::io::Error) -> OpenError + '_ {
    move |source| OpenError::of(path.display(), source)
}

/// Creates the store's directories, durably.
pub(crate) async fn make_dirs<D: Disk>(disk: &D, dirs: &StoreDirs) -> Result<(), OpenError> {
    for dir in [&dirs.core, &dirs.logs, &dirs.snapshots] {
        disk.create_dir(dir).await.map_err(named(dir))?;
    }
    let epoch = dirs.core.parent().expect("a core's directory has a parent");
    for dir in [epoch, &dirs.data] {
        disk.sync_dir(dir).await.map_err(named(dir))?;
    }
    Ok(())
}

/// The core's checkpoint, its size in bytes, and that of its file. Empty if there is none yet.
async fn load_checkpoint<D: Disk>(disk: &D, dirs: &StoreDirs, epoch: u64) -> Result<(Checkpoint, u64, u64), OpenError> {
    let path = dirs.core.join(CHECKPOINT_FILE);
    let Some(bytes) = read_file(disk, &path).await.map_err(named(&path))? else {
        return Ok((Checkpoint { epoch, ..Checkpoint::default() }, 0, 0));
    };
    let what = path.display().to_string();
    match Checkpoint::decode(&bytes) {
        Ok(checkpoint) if checkpoint.epoch == epoch => Ok((checkpoint, Checkpoint::len(&bytes), bytes.len() as u64)),
        Ok(checkpoint) => Err(OpenError::Damaged(format!("{what} has epoch {}, expected {epoch}", checkpoint.epoch))),
        Err(DecodeError::Damaged(why)) => Err(OpenError::Damaged(format!("{what}: {why}"))),
        Err(DecodeError::Newer(found)) => {
            Err(OpenError::Newer { path: what, found, newest: crate::checkpoint::CHECKPOINT_VERSION })
        }
    }
}

/// The groups while the ring is replayed.
struct Replay<'a> {
    config: &'a StoreConfig,
    /// Where the ring's records begin to count, for groups that the checkpoint does not know.
    cut: LogPos,
    replay_from: BTreeMap<GroupId, LogPos>,
    groups: BTreeMap<GroupId, Box<Log>>,
    removed: Vec<RemovedGroup>,
    gone: BTreeSet<GroupId>,
    /// Groups that a flush may have been writing when the store stopped: the checkpoint carries batches of them, or
    /// the ring holds records of them.
    touched: BTreeSet<GroupId>,
}

impl<'a> Replay<'a> {
    fn new(checkpoint: &Checkpoint, config: &'a StoreConfig) -> Self {
        Self {
            config,
            cut: checkpoint.cut,
            replay_from: checkpoint.groups.iter().map(|group| (group.id, group.replay_from)).collect(),
            groups: checkpoint.groups.iter().map(|group| (group.id, Box::new(log_of(group)))).collect(),
            removed: checkpoint.removed.clone(),
            gone: checkpoint.removed.iter().map(|removed| removed.id).collect(),
            touched: checkpoint.groups.iter().filter(|group| group.keeps_batches()).map(|group| group.id).collect(),
        }
    }

    fn apply(&mut self, record: RingRecord) -> Result<(), OpenError> {
        let RingRecord { start, end, group, hard_state, body } = record;
        if self.gone.contains(&group) || start < *self.replay_from.get(&group).unwrap_or(&self.cut) {
            return Ok(());
        }
        self.touched.insert(group);
        if let RingBody::Removed = body {
            self.groups.remove(&group);
            self.gone.insert(group);
            self.removed.push(RemovedGroup { id: group, at: end });
            return Ok(());
        }
        let by_snapshot = self.config.snapshot_group == Some(group);
        let log =
            self.groups.entry(group).or_insert_with(|| Box::new(Log::new(group, LogOptions::default(), by_snapshot)));
        log.merge_hard_state(hard_state);
        match body {
            RingBody::Entry(entry) => {
                let offset = entry.payload.as_ref().map_or(log.end.offset, |(span, _)| span.base_offset);
                if entry.index != log.end.index.next() || offset != log.end.offset || entry.term < log.end.term {
                    return Err(OpenError::Damaged(format!(
                        "the ring has entry {} (offset {offset}) of group {} after entry {} (end offset {})",
                        entry.index, group.0, log.end.index, log.end.offset
                    )));
                }
                let crc = entry.payload_crc();
                log.append(entry, crc, start, end);
            }
            RingBody::Truncate { from_index, from_offset } => {
                // The applied index may be above: entries appended after the truncation may have been applied before
                // they were flushed.
                if from_index <= log.before_first.index {
                    return Err(OpenError::Damaged(format!(
                        "the ring truncates group {} from entry {from_index}, which is trimmed already",
                        group.0
                    )));
                }
                log.truncate(from_index, from_offset, end);
            }
            // The snapshot was durable before this record was staged.
            RingBody::Restart { index, term } if by_snapshot => {
                log.restart(Mark { index, term, offset: log.end.offset }, end);
            }
            RingBody::RestartAt { index, term, offset, conf_state, blob } if !by_snapshot => {
                log.restart(Mark { index, term, offset }, end);
                log.app = AppState { index, blob, conf_state };
            }
            RingBody::Restart { .. } | RingBody::RestartAt { .. } => {
                return Err(OpenError::Damaged(format!(
                    "the ring restarts group {} with a record for the other kind of group",
                    group.0
                )));
            }
            RingBody::HardState | RingBody::Removed => {}
        }
        Ok(())
    }
}

/// A log as the checkpoint stores it.
fn log_of(group: &GroupState) -> Log {
    let mut log = Log::new(group.id, LogOptions::default(), group.by_snapshot);
    log.hard_state = group.hard_state;
    log.app = group.app.clone();
    log.log_start = group.log_start;
    log.app_log_start = group.log_start;
    log.before_first = group.before_first;
    log.flushed = group.flushed;
    log.written_index = group.flushed.index;
    log.end = group.flushed;
    log.terms = group.term_runs();
    log.segments = group.segments.clone();
    log.next_serial = group.next_serial;
    log.dir_made = group.dir_made;
    for Held { start, end, entry, payload_crc, .. } in &group.kept {
        log.append(entry.clone(), *payload_crc, *start, *end);
    }
    log.kept_index = group.kept.last().map_or(RaftIndex::ZERO, |held| held.entry.index);
    log
}

/// Cuts segments at the ring's truncations. Their records were read back, so they are durable.
async fn finish_truncations<D: Disk>(shared: &Rc<Shared<D>>) -> Result<(), OpenError> {
    let pending: Vec<GroupId> = {
        let state = shared.state.borrow();
        state.groups.values().filter(|log| log.pending_cut.is_some()).map(|log| log.id).collect()
    };
    for group in pending {
        cut_segments(shared, group).await?;
    }
    Ok(())
}

/// Removes the files that the checkpoint lists as garbage, the directories of removed groups, and files that an
/// unfinished flush or snapshot created. A flush only touches groups with records in the ring or with batches in the
/// checkpoint, so only their directories are searched.
async fn clear_away<D: Disk>(
    shared: &Rc<Shared<D>>,
    checkpoint: &Checkpoint,
    touched: &BTreeSet<GroupId>,
) -> Result<usize, OpenError> {
    let removed: Vec<RemovedGroup> = shared.state.borrow().removed.values().map(|removed| removed.group).collect();
    // Removals that no checkpoint lists yet stay listed until one does.
    let keep = shared.state.borrow().removed.clone();
    collect(shared, &checkpoint.garbage, &removed, checkpoint.cut).await?;
    shared.state.borrow_mut().removed = keep;
    let mut orphans = 0;
    for group in touched {
        let Some(names) = shared.state.borrow().groups.get(group).map(|log| segment_names(log)) else { continue };
        let dir = shared.files.group_dir(*group);
        let before = orphans;
        for path in shared.disk.list(&dir).await.map_err(named(&dir))? {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            // A cut may have moved a segment to the garbage list while the checkpoint on disk still names it.
            if !names.iter().any(|name| name == stem) && !in_garbage(shared, *group, stem) {
                orphans += usize::from(remove_if_there(&shared.disk, &path).await.map_err(named(&path))?);
            }
        }
        // The group may have nothing in the ring the next time, and then recovery no longer searches here.
        if orphans > before {
            shared.disk.sync_dir(&dir).await.map_err(named(&dir))?;
        }
    }
    Ok(orphans + clear_snapshots(shared).await?)
}

/// The names, without extension, of a log's segments.
fn segment_names(log: &Log) -> Vec<String> {
    let names = log.segments.iter().map(|segment| segment_name(segment.base_offset, segment.serial));
    names.map(|name| name.trim_end_matches(".log").to_owned()).collect()
}

fn in_garbage<D: Disk>(shared: &Shared<D>, group: GroupId, stem: &str) -> bool {
    shared.state.borrow().garbage.iter().any(|garbage| match garbage {
        Garbage::Segment { id, base_offset } if id.group == group => {
            segment_name(*base_offset, id.serial).trim_end_matches(".log") == stem
        }
        _ => false,
    })
}

/// Removes snapshots of this core's groups, except the one in the checkpoint.
async fn clear_snapshots<D: Disk>(shared: &Rc<Shared<D>>) -> Result<usize, OpenError> {
    let kept: Vec<(GroupId, PathBuf)> = {
        let state = shared.state.borrow();
        let logs = state.groups.values().filter(|log| log.by_snapshot);
        let path = |log: &Log| crate::store::snapshot::path(&shared.dirs, log.id, log.flushed.index, log.flushed.term);
        logs.map(|log| (log.id, path(log))).collect()
    };
    let dir = &shared.dirs.snapshots;
    let mut orphans = 0;
    for path in shared.disk.list(dir).await.map_err(named(dir))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if kept.iter().any(|(group, kept)| name.starts_with(&format!("{}-", group.0)) && path != *kept) {
            orphans += usize::from(remove_if_there(&shared.disk, &path).await.map_err(named(&path))?);
        }
    }
    Ok(orphans)
}

/// The recovered state of every group, ascending.
async fn recovered_groups<D: Disk>(shared: &Rc<Shared<D>>) -> Result<Vec<RecoveredGroup>, OpenError> {
    let mut ids: Vec<GroupId> = shared.state.borrow().groups.keys().copied().collect();
    ids.sort_unstable();
    let mut recovered = Vec::with_capacity(ids.len());
    for id in ids {
        let (mut group, segments) = {
            let mut state = shared.state.borrow_mut();
            let log = state.groups.get_mut(&id).expect("listed just now");
            (recovered_group(log)?, log.segments.clone())
        };
        if group.app.index < group.flushed_index {
            let (first, last) = (group.app.index.next(), group.flushed_index);
            let mut entries = read_entries(shared, id, &segments, first, last).await.map_err(of_read)?;
            entries.append(&mut group.tail);
            group.tail = entries;
        }
        recovered.push(group);
    }
    Ok(recovered)
}

fn recovered_group(log: &mut Log) -> Result<RecoveredGroup, OpenError> {
    if log.app.index > log.end.index {
        return Err(OpenError::Damaged(format!(
            "group {} applied entry {}, but its log ends at {}",
            log.id.0, log.app.index, log.end.index
        )));
    }
    log.hard_state.commit = log.hard_state.commit.min(log.end.index).max(log.app.index);
    Ok(RecoveredGroup {
        id: log.id,
        hard_state: log.hard_state,
        flushed_index: log.flushed.index,
        flushed_term: log.flushed.term,
        first_index: log.first_index(),
        first_prev_term: log.before_first.term,
        terms: log.terms.runs().to_vec(),
        tail: log.held.iter().map(|held| held.entry.clone()).collect::<Vec<Entry>>(),
        // The snapshot's blob is handed over, not kept.
        app: if log.by_snapshot {
            let app = log.app.clone();
            log.app.blob = Bytes::new();
            app
        } else {
            log.app.clone()
        },
        log_start: log.log_start,
        next_offset: log.end.offset,
    })
}

fn of_read(error: ReadError) -> OpenError {
    match error {
        ReadError::Io { what, source } => OpenError::of(what, source),
        other => OpenError::Damaged(other.to_string()),
    }
}
