//! Cuts a log's segments: at a truncation, and at the start that retention moves.
//! Lives on: the owning core, within a round of the flusher or within recovery.

use crate::{
    checkpoint::Garbage,
    disk::Disk,
    errors::{Fatal, FlushError, ReadError},
    segment::{Segment, format::SegmentId},
    store::{
        read::find_index,
        state::{Shared, State},
    },
};
use std::rc::Rc;
use types::GroupId;

/// Cuts a log's segments at its durable truncation, until no cut is pending. The cut segment is sealed, so that no
/// synced block is written again.
pub(crate) async fn cut_segments<D: Disk>(shared: &Rc<Shared<D>>, group: GroupId) -> Result<(), FlushError> {
    loop {
        let (pending, segment) = {
            let mut state = shared.state.borrow_mut();
            let Some(log) = state.groups.get_mut(&group) else { return Ok(()) };
            let Some(pending) = log.pending_cut else { return Ok(()) };
            match log.segments.iter().find(|segment| segment.last_index > pending.from.index) {
                Some(segment) => (pending, *segment),
                None => {
                    log.cut_done();
                    return Ok(());
                }
            }
        };
        let from = pending.from;
        let position = match segment.first_index > from.index {
            true => 0,
            false => match find_index(shared, group, &segment, from.index.next()).await {
                Ok(position) => position,
                Err(ReadError::Io { what, source }) => {
                    return Err(FlushError::of(format_args!("cannot truncate: {what}"), source));
                }
                Err(error) => {
                    return Err(FlushError::Fatal(Fatal::Damaged(format!("cannot truncate: {error}"))));
                }
            },
        };
        let mut state = shared.state.borrow_mut();
        let State { groups, garbage, .. } = &mut *state;
        let Some(log) = groups.get_mut(&group) else { return Ok(()) };
        if log.pending_cut != Some(pending) {
            continue;
        }
        let at = log.segments.iter().position(|listed| listed.serial == segment.serial);
        let mut keep = at.expect("only the flusher changes the list");
        if position > 0 {
            let cut = &mut log.segments[keep];
            cut.len = position;
            cut.end_offset = from.offset;
            cut.last_index = from.index;
            cut.sealed = true;
            keep += 1;
            shared.indexes.borrow_mut().remove(&SegmentId { group, serial: cut.serial });
        }
        discard(shared, group, garbage, log.segments.split_off(keep));
        shared.ahead.borrow_mut().remove_where(|(of, _)| *of == group);
        log.cut_done();
        return Ok(());
    }
}

/// Lists segments as garbage for the next checkpoint.
pub(crate) fn discard<D: Disk>(shared: &Shared<D>, group: GroupId, garbage: &mut Vec<Garbage>, segments: Vec<Segment>) {
    for segment in segments {
        let id = SegmentId { group, serial: segment.serial };
        shared.files.forget(id);
        shared.indexes.borrow_mut().remove(&id);
        shared.file_times.borrow_mut().remove(&id);
        garbage.push(Garbage::Segment { id, base_offset: segment.base_offset });
    }
}
