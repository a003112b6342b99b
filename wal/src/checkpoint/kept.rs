//! The encoding of the entries that a checkpoint carries itself; `store::kept` selects them.
//!
//! ```text
//! kept entries: count u64, then each, all u64 unless said:
//!      | its record in the ring: start, end | index | term | type | base offset
//!      | data: length, bytes
//!      | batch: 0, or 1 and: base offset, count, max timestamp, length, bytes
//! ```

use crate::{
    checkpoint::{GroupState, Reader, Writer},
    record::{Entry, Held, LogPos, Span},
};
use types::{RaftIndex, Term};

impl GroupState {
    /// Whether there are batches among the kept entries.
    pub(crate) fn keeps_batches(&self) -> bool {
        !self.by_snapshot && self.kept.iter().any(|held| held.entry.payload.is_some())
    }
}

pub(crate) fn encode<'a>(kept: impl Iterator<Item = &'a Held> + Clone, to: &mut Writer) {
    to.words(&[kept.clone().count() as u64]);
    for Held { start, end, base_offset, entry, .. } in kept {
        to.words(&[start.0, end.0, entry.index.get(), entry.term.0, u64::from(entry.entry_type), *base_offset]);
        to.bytes(&entry.data);
        match &entry.payload {
            Some((span, batch)) => {
                to.words(&[1, span.base_offset, u64::from(span.count), span.max_timestamp as u64]);
                to.bytes(batch);
            }
            None => to.words(&[0]),
        }
    }
}

pub(crate) fn decode(from: &mut Reader) -> Option<Vec<Held>> {
    from.each(|from| {
        let [start, end, index, term, entry_type, base_offset] = from.words()?;
        let data = from.bytes()?;
        let payload = match from.words()? {
            [0] => None,
            [1] => {
                let [base_offset, count, max_timestamp] = from.words()?;
                let span = Span { base_offset, count: count.try_into().ok()?, max_timestamp: max_timestamp as i64 };
                Some((span, from.bytes()?))
            }
            _ => return None,
        };
        let (index, term, entry_type) = (RaftIndex::new(index), Term(term), entry_type.try_into().ok()?);
        let entry = Entry { index, term, entry_type, data, payload };
        let payload_crc = entry.payload_crc();
        Some(Held { start: LogPos(start), end: LogPos(end), base_offset, entry, payload_crc })
    })
}

/// Checks the kept entries of a group.
pub(crate) fn check<'a>(group: &GroupState, kept: impl Iterator<Item = &'a Held>) -> Result<(), &'static str> {
    let (mut last, mut end) = (group.flushed, LogPos::default());
    for held in kept {
        let entry = &held.entry;
        let offset = entry.payload.as_ref().map_or(held.base_offset, |(span, _)| span.base_offset);
        let follows = entry.index == last.index.next() && entry.term >= last.term;
        if !follows || held.base_offset != last.offset || offset != last.offset {
            return Err("kept entries do not follow the flushed entry");
        }
        if held.start < end || held.end < held.start {
            return Err("kept entries' positions do not ascend");
        }
        last.index = entry.index;
        last.term = entry.term;
        last.offset = held.end_offset();
        end = held.end;
    }
    if end > group.replay_from {
        return Err("a kept entry would also be replayed");
    }
    Ok(())
}
