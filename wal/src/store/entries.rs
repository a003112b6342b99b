//! A log's entries by index, for the leader that sends them to followers: from memory without copying, else from
//! segments.
//! Lives on: the owning core only.

use crate::{
    disk::Disk,
    errors::ReadError,
    log::Log,
    record::Entry,
    segment::{Scanner, format::SegmentId},
    store::{
        ahead::Next,
        read::{READ_AHEAD, Until, index_until},
        state::Shared,
    },
};
use bytes::Bytes;
use std::{pin::Pin, rc::Rc};
use types::{GroupId, RaftIndex};

/// Entries in order, without gaps.
pub type ColdEntries = Pin<Box<dyn Future<Output = Result<Vec<Entry>, ReadError>>>>;

/// The answer to [`Store::entries`](crate::store::Store::entries).
pub enum Entries {
    Memory(Vec<Entry>),
    /// The entries come from segments. The log may change before the future completes.
    Cold(ColdEntries),
    /// The entries are trimmed or do not exist yet, or there is no such group.
    Gone,
}

/// Bytes per read: the largest usual batch and the header behind it, so that the header needs no read of its own.
const READ_BYTES: usize = READ_AHEAD + (64 << 10);

/// How many bytes of data and batches are still wanted. The first entry is always admitted.
struct Budget {
    left: usize,
    first: bool,
}

impl Budget {
    fn admits(&mut self, entry: &Entry) -> bool {
        let bytes = entry.data.len() + entry.payload.as_ref().map_or(0, |(_, batch)| batch.len());
        let admits = std::mem::take(&mut self.first) || bytes <= self.left;
        self.left = self.left.saturating_sub(bytes);
        admits
    }
}

impl Log {
    /// The position in memory of an entry.
    fn held_at(&self, index: RaftIndex) -> Option<usize> {
        let first = self.held.front()?.entry.index;
        index.try_place_from(first).filter(|at| *at < self.held.len())
    }

    /// The batch of an entry that is in memory.
    pub(crate) fn payload(&self, index: RaftIndex) -> Option<Bytes> {
        let held = &self.held[self.held_at(index)?];
        held.entry.payload.as_ref().map(|(_, batch)| batch.clone())
    }

    fn entries_in_memory(&self, from: RaftIndex, below: RaftIndex, bytes_max: usize) -> Option<Vec<Entry>> {
        let at = self.held_at(from)?;
        let mut budget = Budget { left: bytes_max, first: true };
        let wanted = self.held.range(at..).map(|held| &held.entry);
        Some(wanted.take_while(|entry| entry.index < below && budget.admits(entry)).cloned().collect())
    }
}

pub(crate) fn entries<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    from: RaftIndex,
    below: RaftIndex,
    bytes_max: usize,
) -> Entries {
    let state = shared.state.borrow();
    let Some(log) = state.groups.get(&group).filter(|log| from >= log.first_index() && from <= log.end.index) else {
        return Entries::Gone;
    };
    match log.entries_in_memory(from, below, bytes_max) {
        Some(entries) => Entries::Memory(entries),
        None => Entries::Cold(Box::pin(cold(shared.clone(), group, from, below, bytes_max))),
    }
}

/// Reads entries from the one segment that holds the first; the caller asks again for entries behind it.
async fn cold<D: Disk>(
    shared: Rc<Shared<D>>,
    group: GroupId,
    from: RaftIndex,
    below: RaftIndex,
    bytes_max: usize,
) -> Result<Vec<Entry>, ReadError> {
    let segment = {
        let state = shared.state.borrow();
        let log = state.groups.get(&group).ok_or(ReadError::Changed)?;
        if let Some(entries) = log.entries_in_memory(from, below, bytes_max) {
            return Ok(entries);
        }
        let holds = |segment: &crate::segment::Segment| segment.first_index <= from && from <= segment.last_index;
        log.segments().find(holds).ok_or(ReadError::Changed)?
    };
    let read = async {
        let id = SegmentId { group, serial: segment.serial };
        let file = shared.open_segment(id, &segment).await?;
        let mut scanner = match shared.ahead_of(id, Next::Index(from)) {
            Some(ahead) => ahead.scanner(file, segment.len, READ_BYTES),
            None => {
                let index = index_until(&shared, id, &segment, Until::Index(from)).await?;
                Scanner::new(file, id, segment.len, index.at_index(from), READ_BYTES)
            }
        };
        let (mut entries, mut budget) = (Vec::new(), Budget { left: bytes_max, first: true });
        let mut position = scanner.position();
        while let Some(frame) = scanner.next().await? {
            let index = frame.header.index;
            if index >= below || index > segment.last_index {
                break;
            }
            if index < from {
                continue;
            }
            let entry = scanner.entry(&frame)?;
            if entry.index != from.at_place(entries.len()) {
                return Err(scanner.damaged("the frame's index is not the next one"));
            }
            if !budget.admits(&entry) {
                break;
            }
            entries.push(entry);
            position = scanner.position();
        }
        shared.count_cold(scanner.bytes_read);
        if !entries.is_empty() && position < segment.len {
            shared.keep_ahead(id, Next::Index(from.at_place(entries.len())), position, &scanner);
        }
        match entries.is_empty() {
            true => Err(scanner.damaged("the segment does not hold an index that it should hold")),
            false => Ok(entries),
        }
    };
    let read: Result<Vec<Entry>, ReadError> = read.await;
    read.map_err(|error| shared.unless_changed(group, &segment, error))
}
