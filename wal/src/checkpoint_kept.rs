//! Entries that a checkpoint carries itself: those of the group by snapshot that no snapshot covers, and a few small ones of other groups.
//! Lives on: the owning core only. Encoding, and which entries they are.
//!
//! A group that has no batch yet, or whose log ends with a few entries without one, needs no segment for them: a directory, a file and
//! its syncs would cost far more than the bytes here, and there may be thousands of such groups.
//!
//! A snapshot holds only what is decided. Without a quorum nothing is, and what is not decided would hold the ring until somebody's
//! hard states had filled it; then nobody could store any more what would decide it. So every checkpoint carries these entries, up
//! to [`StoreConfig::kept_bytes`](crate::store::StoreConfig::kept_bytes), and the ring is free of them.
//!
//! ```text
//! kept entries: count u64, then each, all u64 unless said:
//!      | its record in the ring: start, end | index | term | type | base offset
//!      | data: length, bytes
//!      | batch: 0, or 1 and: base offset, count, max timestamp, length, bytes
//! ```
//!
//! Invariants: the entries follow the snapshot, or the last segment, without holes, and their records end where replay begins, or before.
//! What one checkpoint carries, each later one does, until it is truncated or flushed: the ring may be without it. A file is written only
//! of a group that has something in the ring besides, so that recovery knows where an unfinished flush may have left one.

use crate::{
    checkpoint::{GroupState, Reader, Writer},
    log::{Held, Log},
    record::{Entry, Span},
    store_types::LogPos,
};
use bytes::Bytes;

/// Of a group with segments so much at most is carried.
const TAIL_BYTES: usize = 1 << 10;

/// What an entry takes beside its data and its batch.
const ENTRY_BYTES: usize = 12 * 8;

fn encoded_len(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.data.len() + entry.payload.as_ref().map_or(0, |(_, batch)| batch.len())
}

impl Log {
    /// The entries for a checkpoint at `durable`; from now on, [`Log::replay_from`] is behind them.
    pub(crate) fn keep(&mut self, durable: LogPos, bytes_max: usize) -> Vec<Held> {
        let (first, by_snapshot, carried) = (self.first_unflushed(), self.by_snapshot, self.kept_index);
        let bytes_max = if by_snapshot { bytes_max } else { TAIL_BYTES };
        let mut bytes = 0;
        let fits = |held: &&mut Held| {
            bytes += encoded_len(&held.entry);
            let may_be = by_snapshot || held.entry.payload.is_none();
            // What was carried once is, whatever the bound is now.
            held.entry.index <= carried || may_be && held.end <= durable && bytes <= bytes_max
        };
        let mut kept = Vec::new();
        for held in self.held.range_mut(first..).take_while(fits) {
            if !by_snapshot && held.entry.index > carried {
                // It may stay for long, and must not hold the memory of what it came with.
                held.entry.data = Bytes::copy_from_slice(&held.entry.data);
            }
            kept.push(held.clone());
        }
        if let Some(last) = kept.last() {
            assert!(self.kept_index <= last.entry.index, "group {}: what was kept is in the log", self.id.0);
            self.kept_index = last.entry.index;
        }
        kept
    }

    /// Whether all of `entries`, which could be flushed, are rather carried by the next checkpoint.
    pub(crate) fn rather_keeps(&self, entries: &[Held]) -> bool {
        let bytes: usize = entries.iter().map(|held| encoded_len(&held.entry)).sum();
        bytes <= TAIL_BYTES && entries.iter().all(|held| held.entry.payload.is_none())
    }

    /// Lets go of entries that checkpoints carried until they were flushed: the cache may not count them any more. Those behind others
    /// that it counts go with these.
    pub(crate) fn let_go_of_kept(&mut self) {
        let needless = self.kept_index.min(self.flushed.index);
        while self.held.pop_front_if(|held| held.entry.index <= needless && held.entry.payload.is_none()).is_some() {}
    }
}

pub(crate) fn encode(kept: &[Held], to: &mut Writer) {
    to.words(&[kept.len() as u64]);
    for Held { start, end, base_offset, entry, .. } in kept {
        to.words(&[start.0, end.0, entry.index, entry.term, u64::from(entry.entry_type), *base_offset]);
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
        let entry = Entry { index, term, entry_type: entry_type.try_into().ok()?, data, payload };
        let payload_crc = entry.payload_crc();
        Some(Held { start: LogPos(start), end: LogPos(end), base_offset, entry, payload_crc })
    })
}

/// What holds for the kept entries of every group.
pub(crate) fn check(group: &GroupState) -> Result<(), &'static str> {
    let (mut last, mut end) = (group.flushed, LogPos::default());
    for held in &group.kept {
        let entry = &held.entry;
        let offset = entry.payload.as_ref().map_or(held.base_offset, |(span, _)| span.base_offset);
        let follows = entry.index == last.index + 1 && entry.term >= last.term;
        if !follows || held.base_offset != last.offset || offset != last.offset {
            return Err("kept entries do not follow what is flushed");
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
        return Err("a kept entry is read from the ring again");
    }
    Ok(())
}
