//! The flusher: writes durable batches from memory to segment files, then a checkpoint; then the ring's space is
//! free.
//! Lives on: the owning core; one task. Only this task changes the list of a log's segments.
//!
//! A round takes these steps in order. Each step's syncs complete before the next step begins.
//!
//! 1. For every dirty group: apply pending cuts, then write its durable entries unless the checkpoint shall carry them.
//!    Sync the files, then the directories of new ones. Then do the same for groups whose batches checkpoints have
//!    carried long enough.
//! 2. Write the checkpoint (`store::checkpoint`). Wait until the truncations and removals that it shows are durable in
//!    the ring. For each group, drop segments below the log start from the list and encode the rest.
//! 3. Release the ring's space, and remove the files that the checkpoint no longer names.
//!
//! A full disk ends step 1 early. Whatever was written is still checkpointed, since trims may free space, and the
//! rest is retried. So is the removal of a file, whatever prevents it. Any other error poisons the store: a failed sync
//! is never retried.
//!
//! Invariant: a file that a durable checkpoint names is never removed, or written below its checkpointed length.

use crate::{
    disk::{Disk, Durability, File},
    errors::FlushError,
    log::{Log, LogOptions},
    record::{Held, LogMark as Mark},
    segment::{
        FrameWriter, Segment, entry_frame_len,
        format::{FrameHeader, SegmentId},
        tells_age,
    },
    store::{
        checkpoint::checkpoint,
        cuts::cut_segments,
        interface::{FlushHost, LogPos, Poisoned},
        reserve,
        state::Shared,
    },
};
use bytes::Bytes;
use runtime::sync::all;
use std::{cell::RefCell, collections::VecDeque, io, pin::Pin, rc::Rc};
use types::GroupId;

/// A sparse index is written out when its segment is sealed, and each time the segment has grown by this many bytes.
const INDEX_EVERY: u64 = 64 << 20;

/// How many groups each worker examines without writing anything before it yields to other tasks of the core.
const UNTOUCHED_A_TURN: usize = 8;

/// Flushes on request, until the store closes or stops.
pub(crate) async fn run<D: Disk>(shared: &Rc<Shared<D>>, host: &dyn FlushHost) -> Result<(), Poisoned> {
    let mut attempt = 0;
    loop {
        let seen = shared.wanted.version();
        if let Some(poisoned) = shared.poisoned() {
            shared.rounds.notify();
            return Err(poisoned);
        }
        let (asked, done, closing) = {
            let state = shared.state.borrow();
            (state.asked, state.done, state.closing)
        };
        if asked == done {
            if closing {
                return Ok(());
            }
            shared.wanted.past(seen).await;
            continue;
        }
        if until_durable(shared).await.is_err() {
            continue;
        }
        match round(shared, host).await {
            Ok(()) => {
                attempt = 0;
                host.flushed();
                shared.state.borrow_mut().done = asked;
                // The ring may have filled up meanwhile, with no further append that would request a flush.
                shared.flush_if_due();
            }
            Err(FlushError::Full(why)) => {
                attempt += 1;
                shared.count(|stats| stats.flush_failures += 1);
                host.flush_failed(&why);
                host.back_off(attempt).await;
            }
            Err(FlushError::Fatal(why)) => return Err(shared.poison(why.to_string())),
        }
        shared.rounds.notify();
    }
}

/// Waits until there is something to flush, if it is being written to the ring. Otherwise a flush that an append
/// requested for lack of room would find nothing, and nobody would request the next one.
async fn until_durable<D: Disk>(shared: &Shared<D>) -> Result<(), Poisoned> {
    let cut = shared.state.borrow().cut;
    if shared.journal.staged() > cut {
        shared.journal.durable_past(cut).await?;
    }
    Ok(())
}

/// Runs one round, see the module's documentation.
pub(crate) async fn round<D: Disk>(shared: &Rc<Shared<D>>, host: &dyn FlushHost) -> Result<(), FlushError> {
    reserve::grow(shared).await?;
    let cut = shared.journal.durable();
    let dirty = {
        let mut state = shared.state.borrow_mut();
        state.cut = cut;
        state.flush_ms = host.wall_ms();
        let dirty = std::mem::take(&mut state.dirty);
        for group in &dirty {
            if let Some(log) = state.groups.get_mut(group) {
                log.dirty = false;
            }
        }
        dirty
    };
    let full = match flush_all(shared, dirty, cut).await {
        Err(fatal @ FlushError::Fatal(_)) => return Err(fatal),
        Err(full) => Some(full),
        Ok(()) => None,
    };
    sync_logs_dir(shared).await?;
    checkpoint(shared, host).await?;
    let end = shared.journal.staged();
    while shared.state.borrow_mut().evict(end, shared.config.cache_bytes, shared.config.flush_turn_entries) {
        shared.give_way().await;
    }
    shared.journal.notify_freed();
    shared.count(|stats| stats.flushes += 1);
    shared.snapshot.notify();
    full.map_or(Ok(()), Err)
}

/// Flushes the groups that have new entries, then those whose batches checkpoints have carried long enough.
async fn flush_all<D: Disk>(shared: &Rc<Shared<D>>, dirty: Vec<GroupId>, cut: LogPos) -> Result<(), FlushError> {
    let turns = shared.state.borrow().turns();
    flush_groups(shared, dirty, cut, true).await?;
    let carried = shared.state.borrow_mut().carried_enough(turns, shared.config.carried_bytes);
    flush_groups(shared, carried, cut, false).await
}

/// Flushes the groups, a few concurrently. With `carry`, checkpoints may carry their entries instead. Groups that
/// were not flushed stay dirty.
async fn flush_groups<D: Disk>(
    shared: &Rc<Shared<D>>,
    groups: Vec<GroupId>,
    cut: LogPos,
    carry: bool,
) -> Result<(), FlushError> {
    let workers = shared.config.flush_in_flight.clamp(1, groups.len().max(1));
    let left = RefCell::new(VecDeque::from(groups));
    let failure = RefCell::new(None);
    let work = (0..workers).map(|_| {
        let (left, failure) = (&left, &failure);
        let worker = async move {
            let mut untouched = 0;
            while failure.borrow().is_none() {
                let Some(group) = left.borrow_mut().pop_front() else { return };
                match flush_group(shared, group, cut, carry).await {
                    Ok(wrote) => {
                        shared.state.borrow_mut().mark_if_unflushed(group);
                        untouched += usize::from(!wrote);
                    }
                    Err(error) => {
                        shared.state.borrow_mut().mark_dirty(group);
                        let mut failure = failure.borrow_mut();
                        if !matches!(*failure, Some(FlushError::Fatal(_))) {
                            *failure = Some(error);
                        }
                    }
                }
                if untouched == UNTOUCHED_A_TURN {
                    untouched = 0;
                    shared.give_way().await;
                }
            }
        };
        Box::pin(worker) as Pin<Box<dyn Future<Output = ()> + '_>>
    });
    all(work.collect()).await;
    let mut state = shared.state.borrow_mut();
    for group in left.into_inner() {
        state.mark_dirty(group);
    }
    failure.into_inner().map_or(Ok(()), Err)
}

/// A segment as a flush leaves it.
struct Finished {
    segment: Segment,
    frames: Vec<(FrameHeader, u64)>,
    created: bool,
}

/// A group's log when its flush began. A copy, so that no borrow is held across an await.
struct Found {
    group: GroupId,
    /// The last segment, if it takes more entries.
    active: Option<Segment>,
    next_serial: u64,
    options: LogOptions,
    log_start: u64,
    /// In ms since the epoch.
    now_ms: i64,
}

/// Flushes one group. Returns whether it wrote anything.
async fn flush_group<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    cut: LogPos,
    carry: bool,
) -> Result<bool, FlushError> {
    let pending = shared.state.borrow().groups.get(&group).and_then(|log| log.pending_cut);
    if let Some(pending) = pending {
        if pending.after > cut {
            return Ok(false);
        }
        cut_segments(shared, group).await?;
    }
    let carried_max = if carry { shared.config.carried_bytes } else { 0 };
    let room = reserve::room(shared);
    if shared.state.borrow_mut().should_carry(group, cut, carried_max, room) {
        return Ok(false);
    }
    let mut entries = entries_to_flush(shared, group, cut).await;
    let (found, has_dir) = {
        let mut state = shared.state.borrow_mut();
        let now_ms = state.flush_ms;
        // A truncation may have come while the segments were cut or the entries collected.
        let settled = state.groups.get_mut(&group).filter(|log| !log.by_snapshot && log.pending_cut.is_none());
        let (Some(log), Some(last)) = (settled, entries.last()) else { return Ok(false) };
        log.written_index = last.entry.index;
        let active = log.segments.last().copied().filter(|segment| !segment.sealed);
        let Log { next_serial, options, log_start, dir_made, .. } = **log;
        (Found { group, active, next_serial, options, log_start, now_ms }, dir_made)
    };
    if !has_dir {
        let dir = shared.files.group_dir(group);
        shared.disk.create_dir(&dir).await.map_err(|error| FlushError::of(dir.display(), error))?;
        let mut state = shared.state.borrow_mut();
        state.logs_dir_changed = true;
        if let Some(log) = state.groups.get_mut(&group) {
            log.dir_made = true;
        }
    }
    let mut finished = Vec::new();
    if let Err(error) = write_entries(shared, &found, &entries, &mut finished).await {
        // No checkpoint names the created files, and their space is needed. Their removal must be durable before
        // another place may hold the group's entries, since recovery does not look for these files after that.
        let mut removed = false;
        for Finished { segment, .. } in finished.iter().filter(|finished| finished.created) {
            let id = SegmentId { group, serial: segment.serial };
            shared.files.forget(id);
            removed |= shared.disk.remove(&shared.files.segment(id, segment.base_offset)).await.is_ok();
        }
        if removed {
            let dir = shared.files.group_dir(group);
            shared.disk.sync_dir(&dir).await.map_err(|error| FlushError::of(dir.display(), error))?;
        }
        return Err(error);
    }
    took(shared, group, &entries, finished);
    while entries.len() > shared.config.flush_turn_entries {
        entries.truncate(entries.len() - shared.config.flush_turn_entries);
        shared.give_way().await;
    }
    Ok(true)
}

/// The group's entries that are durable up to `cut` and in no segment. Empty if a truncation interferes.
async fn entries_to_flush<D: Disk>(shared: &Shared<D>, group: GroupId, cut: LogPos) -> Vec<Held> {
    let mut entries = Vec::new();
    let mut truncated_at = None;
    loop {
        let before = entries.len();
        {
            let state = shared.state.borrow();
            let Some(log) = state.groups.get(&group) else { return Vec::new() };
            if *truncated_at.get_or_insert(log.truncated_at) != log.truncated_at {
                return Vec::new();
            }
            let rest = log.unflushed().skip(before).take_while(|held| held.end <= cut);
            entries.extend(rest.take(shared.config.flush_turn_entries).cloned());
        }
        if entries.len() < before + shared.config.flush_turn_entries {
            return entries;
        }
        shared.give_way().await;
    }
}

/// Writes and syncs `entries` behind the active segment, in new segments where they do not fit. `finished` lists the
/// segments, including, after an error, the one that was begun.
async fn write_entries<D: Disk>(
    shared: &Rc<Shared<D>>,
    found: &Found,
    entries: &[Held],
    finished: &mut Vec<Finished>,
) -> Result<(), FlushError> {
    let Found { mut active, next_serial: mut serial, .. } = *found;
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let (segment, created) = match active.take() {
            Some(mut full)
                if should_roll(&full, full.len, first, &found.options, found.now_ms)
                    || full.end_offset <= found.log_start =>
            {
                full.sealed = true;
                finished.push(Finished { segment: full, frames: Vec::new(), created: false });
                continue;
            }
            Some(segment) => (segment, false),
            None => {
                serial += 1;
                (Segment::new(serial - 1, first.base_offset, first.entry.index), true)
            }
        };
        if created {
            finished.push(Finished { segment, frames: Vec::new(), created });
        }
        let (mut written, count) = write_segment(shared, found, segment, created, rest).await?;
        rest = &rest[count..];
        written.segment.sealed = !rest.is_empty();
        if created {
            finished.pop();
        }
        finished.push(written);
    }
    Ok(())
}

/// Writes the first of `entries`, as many as belong into the segment, and syncs its file. Returns the segment, and how
/// many entries it took.
async fn write_segment<D: Disk>(
    shared: &Rc<Shared<D>>,
    found: &Found,
    segment: Segment,
    created: bool,
    entries: &[Held],
) -> Result<(Finished, usize), FlushError> {
    let id = SegmentId { group: found.group, serial: segment.serial };
    let failed = |error| FlushError::of(shared.files.segment(id, segment.base_offset).display(), error);
    let file = match created {
        true => shared.files.create(id, segment.base_offset).await,
        false => shared.files.open(id, segment.base_offset).await,
    };
    let file = file.map_err(failed)?;
    let mut writer = FrameWriter::new(id, segment, shared.config.flush_write_bytes, found.now_ms);
    let mut writes: VecDeque<(u64, Bytes)> = VecDeque::new();
    let mut left: usize = entries.iter().map(|held| entry_frame_len(&held.entry)).sum();
    let mut count = 0usize;
    for held in entries {
        if !writer.frames.is_empty()
            && should_roll(&writer.segment, writer.position(), held, &found.options, found.now_ms)
        {
            break;
        }
        left -= entry_frame_len(&held.entry);
        writer.push(held, left, |position, data| writes.push_back((position, data)));
        count += 1;
        if count.is_multiple_of(shared.config.flush_turn_entries) {
            shared.give_way().await;
        }
        while let Some((position, data)) = writes.pop_front() {
            write(shared, &*file, position, data).await.map_err(failed)?;
        }
    }
    writer.finish(|position, data| writes.push_back((position, data)));
    while let Some((position, data)) = writes.pop_front() {
        write(shared, &*file, position, data).await.map_err(failed)?;
    }
    file.sync().await.map_err(failed)?;
    if created {
        let dir = shared.files.group_dir(found.group);
        shared.disk.sync_dir(&dir).await.map_err(|error| FlushError::of(dir.display(), error))?;
    }
    shared.count(|stats| stats.flushed_files += 1);
    Ok((Finished { segment: writer.segment, frames: writer.frames, created }, count))
}

async fn write<D: Disk>(shared: &Shared<D>, file: &D::File, position: u64, data: Bytes) -> io::Result<()> {
    let bytes = data.len();
    file.write(position, data, Durability::Cached).await?;
    shared.count(|stats| stats.flushed_bytes += bytes as u64);
    if bytes >= shared.config.flush_write_bytes / 2 {
        shared.breathe().await;
    }
    Ok(())
}

/// Whether `next` belongs into a new segment. A batch whose timestamp does not give its age counts as written now. A
/// segment whose first timestamp does not give its age ends too; such segments come from older versions.
fn should_roll(segment: &Segment, position: u64, next: &Held, options: &LogOptions, now_ms: i64) -> bool {
    if segment.last_index < segment.first_index {
        return false;
    }
    if position + entry_frame_len(&next.entry) as u64 > options.segment_bytes {
        return true;
    }
    let (Some((span, _)), Some(limit)) = (&next.entry.payload, options.segment_ms) else { return false };
    let timestamp = if tells_age(span.max_timestamp, now_ms) { span.max_timestamp } else { now_ms };
    let spans = timestamp.saturating_sub(segment.first_timestamp);
    let begins_absurdly = segment.first_timestamp >= 0 && !tells_age(segment.first_timestamp, now_ms);
    begins_absurdly || (segment.first_timestamp >= 0 && spans >= 0 && spans as u64 > limit)
}

/// Adopts the written and synced segments into the log.
fn took<D: Disk>(shared: &Shared<D>, group: GroupId, entries: &[Held], finished: Vec<Finished>) {
    let mut state = shared.state.borrow_mut();
    state.uncount_carried(group);
    let oldest = state.cache.front().map(|(oldest, _)| *oldest);
    // If the group was removed meanwhile, this round removes its whole directory later.
    let Some(log) = state.groups.get_mut(&group) else { return };
    let last = entries.last().expect("a flush writes something");
    let written = Mark { index: last.entry.index, term: last.entry.term, offset: last.end_offset() };
    log.flushed = match log.pending_cut {
        _ if log.has_old_segments() => log.flushed,
        Some(pending) if pending.from.index < written.index => pending.from,
        _ => written,
    };
    log.flush_wanted = false;
    log.let_go_of_kept(oldest);
    for Finished { segment, frames, created } in finished {
        log.next_serial = log.next_serial.max(segment.serial + 1);
        let before = match log.segments.last_mut().filter(|last| last.serial == segment.serial) {
            Some(last) => std::mem::replace(last, segment).len,
            None => {
                log.segments.push(segment);
                0
            }
        };
        let id = SegmentId { group, serial: segment.serial };
        shared.file_times.borrow_mut().remove(&id);
        note_frames(shared, id, &frames, created, log.options.index_interval_bytes);
        if segment.sealed || before / INDEX_EVERY != segment.len / INDEX_EVERY {
            log.index_due.push(segment.serial);
        }
    }
}

/// Extends the segment's index if it is in memory and complete so far.
fn note_frames<D: Disk>(
    shared: &Shared<D>,
    id: SegmentId,
    frames: &[(FrameHeader, u64)],
    created: bool,
    interval: u32,
) {
    let Some((first, _)) = frames.first() else { return };
    let mut indexes = shared.indexes.borrow_mut();
    let known = match created {
        true => Some(Rc::default()),
        false => indexes.remove(&id),
    };
    let Some(mut index) = known else { return };
    if !created && (index.entries.is_empty() || !index.goes_on_at(first.index)) {
        return;
    }
    let to = Rc::make_mut(&mut index);
    for (header, position) in frames {
        to.note(header, *position, interval);
    }
    let cost = index.cost();
    indexes.insert(id, index, cost);
}

/// Makes new groups' directories durable.
async fn sync_logs_dir<D: Disk>(shared: &Rc<Shared<D>>) -> Result<(), FlushError> {
    if !std::mem::take(&mut shared.state.borrow_mut().logs_dir_changed) {
        return Ok(());
    }
    let synced = shared.disk.sync_dir(shared.files.logs()).await;
    synced.map_err(|error| {
        shared.state.borrow_mut().logs_dir_changed = true;
        FlushError::of(shared.files.logs().display(), error)
    })
}
