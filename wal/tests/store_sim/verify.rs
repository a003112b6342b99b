//! Compares a store with the model: what it recovers, what it serves, what it leaves on the disk.

use crate::{
    harness::{META, block_on, config, dirs, options},
    model::{GroupModel, Shared, app_of, end_offset},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use types::{GroupId, HardState, RaftIndex, Term, TermRun};
use wal::{
    disk::sim::SimDisk,
    record::Entry,
    store::read::{Batch, Read, ReadError},
    store::{LogPos, OpenError, RecoveredGroup, Store},
};

/// Reads and compares. Returns the next offset, or `None` at the end or when the log changed.
pub async fn read_once(
    store: &Store<SimDisk>,
    model: &Shared,
    group: GroupId,
    from: u64,
    high: u64,
    max_bytes: usize,
) -> Result<Option<u64>, String> {
    let (batches, cold) = match store.read(group, from, high, max_bytes, true) {
        Read::Memory(batches) => (batches, 0),
        Read::Cold(read) => match read.await {
            Ok(batches) => (batches, 1),
            Err(ReadError::Changed) => {
                let model = model.borrow();
                let group = &model.groups[&group];
                return match group.removed || group.log_start > from {
                    true => Ok(None),
                    false => Err("a log that did not change is said to have".to_owned()),
                };
            }
            Err(error) => return Err(error.to_string()),
        },
        Read::OffsetOutOfRange { start, .. } if from < start => return Ok(None),
        Read::UnknownGroup if model.borrow().groups[&group].removed => return Ok(None),
        Read::OffsetOutOfRange { start, end } => return Err(format!("{from} is not in {start}..{end}")),
        Read::UnknownGroup => return Err(format!("group {} is not known", group.0)),
    };
    let mut model = model.borrow_mut();
    model.reads[cold] += 1;
    let log_start = model.groups[&group].log_start;
    let Some(first) = batches.first() else {
        return match from >= high || log_start > from {
            true => Ok(None),
            false => Err(format!("group {}: nothing at {from}, below {high}", group.0)),
        };
    };
    if !(first.base_offset <= from && from < first.end_offset()) {
        return Err(format!("group {}: {} was read at {from}", group.0, first.base_offset));
    }
    let total: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
    if batches.len() > 1 && total > max_bytes {
        return Err(format!("{total} bytes were read, {max_bytes} allowed"));
    }
    let mut next = first.base_offset;
    for batch in &batches {
        if batch.base_offset != next || batch.end_offset() > high {
            return Err(format!("group {}: batch {} at {next}, below {high}", group.0, batch.base_offset));
        }
        next = batch.end_offset();
        compare(batch, &model.groups[&group].entries, group)?;
    }
    Ok((next < high).then_some(next))
}

fn compare(batch: &Batch, entries: &[Entry], group: GroupId) -> Result<(), String> {
    let place = batch.index.place_from(RaftIndex::FIRST);
    let entry = entries.get(place).ok_or_else(|| format!("index {} is beyond the end", batch.index))?;
    let same = entry.term == batch.term
        && entry.payload.as_ref().is_some_and(|(span, bytes)| {
            span.base_offset == batch.base_offset
                && span.count == batch.count
                && span.max_timestamp == batch.max_timestamp
                && *bytes == batch.bytes
        });
    same.then_some(()).ok_or_else(|| format!("group {}: another batch at index {}", group.0, batch.index))
}

pub async fn find(
    store: &Store<SimDisk>,
    model: &Shared,
    group: GroupId,
    rng: &mut fastrand::Rng,
) -> Result<(), String> {
    let (timestamp, from, high, start) = {
        let model = model.borrow();
        let group = &model.groups[&group];
        let high = group.high_watermark();
        let from = if rng.bool() { 0 } else { rng.u64(0..=high) };
        (rng.i64(0..=model.clock + 10), from, high, group.log_start.max(from))
    };
    let found = match store.find_timestamp(group, timestamp, from..high).await {
        Ok(found) => found,
        Err(ReadError::Changed) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let model = model.borrow();
    let model = &model.groups[&group];
    let batches = model.entries.iter().filter_map(|entry| entry.payload.as_ref().map(|(span, _)| (entry.index, span)));
    let mut matching = batches
        .filter(|(_, span)| span.max_timestamp >= timestamp && span.base_offset + u64::from(span.count) <= high)
        .filter(|(_, span)| span.base_offset + u64::from(span.count) > start);
    match found {
        Some(batch) => {
            compare(&batch, &model.entries, group)?;
            if batch.end_offset() <= from {
                return Err(format!("group {}: timestamp {timestamp} was found before {from}", group.0));
            }
            let first = matching.find(|(_, span)| span.base_offset + u64::from(span.count) > model.log_start);
            let expected = first.is_none_or(|(index, _)| index >= batch.index);
            // The log start may have moved during the search. A batch between the two starts is then also correct.
            expected.then_some(()).ok_or_else(|| format!("group {}: timestamp {timestamp} was found late", group.0))
        }
        None if matching.next().is_none() || model.log_start > start || model.removed => Ok(()),
        None => Err(format!("group {}: timestamp {timestamp} was not found", group.0)),
    }
}

/// Opens the store and compares what it recovered with what was acknowledged.
pub fn recover(disk: &SimDisk, model: &Shared, durable: LogPos, clean: bool) -> Result<Store<SimDisk>, String> {
    let opened = block_on(Store::open(disk.clone(), &dirs(), 1, config()));
    let (store, groups, report) = opened.map_err(|error: OpenError| error.to_string())?;
    if report.groups != groups.len() {
        return Err("the report counts other groups".to_owned());
    }
    let mut found: BTreeMap<GroupId, RecoveredGroup> = groups.into_iter().map(|group| (group.id, group)).collect();
    let ids: Vec<GroupId> = model.borrow().groups.keys().copied().collect();
    for id in ids {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&id).expect("listed");
        let acked = group.events.partition_point(|(pos, ..)| clean || *pos <= durable);
        match found.remove(&id) {
            None => {
                let may_be_gone = group.removed || (!group.known && acked == 0);
                // An unacknowledged removal may have happened. Everything else that was acknowledged must be there.
                if !may_be_gone && (acked > 0 || group.base_known()) {
                    return Err(format!("group {} is gone, {acked} of {} records acked", id.0, group.events.len()));
                }
                model.groups.remove(&id);
            }
            Some(recovered) => {
                let at = matching_image(group, acked, &recovered).map_err(|why| format!("group {}: {why}", id.0))?;
                let hard_states: Vec<HardState> =
                    group.events[acked.saturating_sub(1)..].iter().map(|(_, hard_state, _)| *hard_state).collect();
                let image = group.image(at).expect("it matched");
                if end_offset(&image[..recovered.app.index.place_from(RaftIndex::ZERO)]) < recovered.log_start {
                    return Err(format!("group {}: the log start is ahead of the applied index", id.0));
                }
                check_group(group, &recovered, &hard_states).map_err(|why| format!("group {}: {why}", id.0))?;
                group.entries = image;
                group.base = group.entries.clone();
                group.events.clear();
                group.removed = false;
                group.known = true;
                group.hard_state = recovered.hard_state;
                group.base_hard_state = recovered.hard_state;
                group.commit = recovered.app.index.get();
                group.log_start = recovered.log_start;
                group.floor_start = recovered.log_start;
                group.floor_app = recovered.app.index.get();
                store.set_options(id, options());
            }
        }
    }
    if let Some(id) = found.keys().next() {
        return Err(format!("group {} came from nowhere, or back from the dead", id.0));
    }
    store.check();
    no_strangers(disk, &store)?;
    Ok(store)
}

/// How many of the events happened, at least the acknowledged ones. Returns an error if no number fits.
fn matching_image(group: &GroupModel, acked: usize, recovered: &RecoveredGroup) -> Result<usize, String> {
    let last = recovered.terms.last().map_or(recovered.first_prev_term, |run| run.term);
    for at in (acked..=group.events.len()).rev() {
        let Some(image) = group.image(at) else { continue };
        let ends = (end_offset(&image), image.last().map_or(Term(0), |entry| entry.term));
        if ends != (recovered.next_offset, last) || terms_of(&image, recovered.first_index) != recovered.terms {
            continue;
        }
        let tail = &recovered.tail;
        let from = recovered.flushed_index.min(recovered.app.index).place_from(RaftIndex::ZERO);
        if image.len() == from + tail.len() && image[from..] == tail[..] {
            return Ok(at);
        }
    }
    Err(format!(
        "{} of {} records were acked, found offset {}, flushed {}, terms {:?}, {} in the tail",
        acked,
        group.events.len(),
        recovered.next_offset,
        recovered.flushed_index,
        recovered.terms,
        recovered.tail.len()
    ))
}

fn terms_of(entries: &[Entry], first: RaftIndex) -> Vec<TermRun> {
    let mut runs: Vec<TermRun> = Vec::new();
    for entry in entries.iter().skip(first.place_from(RaftIndex::FIRST)) {
        if runs.last().is_none_or(|run| run.term != entry.term) {
            let base_offset = end_offset(&entries[..entry.index.place_from(RaftIndex::FIRST)]);
            runs.push(TermRun { first_index: entry.index, term: entry.term, base_offset });
        }
    }
    runs
}

fn check_group(group: &GroupModel, recovered: &RecoveredGroup, hard_states: &[HardState]) -> Result<(), String> {
    let found = recovered.hard_state;
    let base = std::iter::once(&group.base_hard_state).filter(|_| hard_states.len() == group.events.len());
    if !hard_states.iter().chain(base).any(|one| (one.term, one.vote) == (found.term, found.vote)) {
        return Err(format!("hard state {found:?} is none of {hard_states:?}"));
    }
    let last = recovered.tail.last().map_or(recovered.flushed_index, |entry| entry.index);
    if found.commit < recovered.app.index || found.commit > last {
        return Err(format!("commit {} is not in {}..={last}", found.commit, recovered.app.index));
    }
    if !(group.floor_app..=group.commit).contains(&recovered.app.index.get()) {
        return Err(format!("applied {} is not in {}..={}", recovered.app.index, group.floor_app, group.commit));
    }
    if recovered.app != app_of(recovered.id, recovered.app.index.get()) {
        return Err(format!("the state at {} is another one", recovered.app.index));
    }
    if recovered.log_start < group.floor_start || recovered.log_start > group.log_start {
        return Err(format!("log start {} is not in {}..={}", recovered.log_start, group.floor_start, group.log_start));
    }
    Ok(())
}

/// Checks that every file below the logs' directory belongs to a known group.
fn no_strangers(disk: &SimDisk, store: &Store<SimDisk>) -> Result<(), String> {
    let known: BTreeSet<String> = store.groups().iter().map(|group| group.0.to_string()).collect();
    for path in disk.files() {
        if let Ok(name) = path.strip_prefix("/data/logs") {
            let group = name.iter().next().and_then(|name| name.to_str()).unwrap_or_default();
            if !known.contains(group) {
                return Err(format!("{} belongs to no group", path.display()));
            }
        }
    }
    Ok(())
}

/// After a flush, exactly the segments of the logs are on the disk.
pub fn only_segments(disk: &SimDisk, store: &Store<SimDisk>) -> Result<(), String> {
    let listed: BTreeSet<PathBuf> =
        store.groups().into_iter().flat_map(|group| store.segment_files(group)).map(|(path, _)| path).collect();
    let there: BTreeSet<PathBuf> =
        disk.files().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
    let hint = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "idx");
    if let Some(lone) =
        disk.files().iter().filter(|path| hint(path)).find(|path| !listed.contains(&path.with_extension("log")))
    {
        return Err(format!("{} is the index of no segment", lone.display()));
    }
    if listed != there {
        let missing: Vec<_> = listed.difference(&there).collect();
        let extra: Vec<_> = there.difference(&listed).collect();
        return Err(format!("missing {missing:?}, extra {extra:?}"));
    }
    Ok(())
}

/// Reads every group from its start to its end and compares.
pub async fn read_everything(store: &Store<SimDisk>, model: &Shared) -> Result<(), String> {
    let live = model.borrow().live();
    for group in live.into_iter().filter(|group| *group != META) {
        let (mut from, end) = {
            let model = model.borrow();
            (model.groups[&group].log_start, model.groups[&group].next_offset())
        };
        while let Some(next) = read_once(store, model, group, from, end, 30_000).await? {
            from = next;
        }
    }
    Ok(())
}
