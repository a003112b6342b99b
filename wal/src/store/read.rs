//! Reads a log: from memory at once and without copying, from segments by aligned reads with read-ahead.
//! Lives on: the owning core only.
//!
//! Cold reads have a memory bound of their own, so they do not evict the tail that memory serves.
//!
//! Invariant: bytes that fail a CRC, or frames out of sequence, are reported and never served.

use crate::{
    buf::{BLOCK, block_ceil},
    disk::Disk,
    log::{FromMemory, ReadLimit},
    record::Entry,
    segment::{
        Scanner, Segment, SparseIndex,
        format::{SegmentId, decode_index},
    },
    store::{
        ahead::{Ahead, Next, begin},
        state::Shared,
    },
};
pub use crate::{errors::ReadError, record::Batch};
use bytes::Bytes;
use std::{cell::Cell, ops::Range, pin::Pin, rc::Rc};
use types::{GroupId, RaftIndex};

/// Bytes per read for a consumer that continues where it stopped.
pub const READ_AHEAD: usize = 1 << 20;
/// The least number of bytes per read for a consumer that does not.
const READ_LEAST: usize = 64 << 10;

/// The rest of a read that needs the disk.
pub type ColdRead = Pin<Box<dyn Future<Output = Result<Vec<Batch>, ReadError>>>>;

/// The answer to a read.
pub enum Read {
    /// Served from memory. Empty at the end of what may be read.
    Memory(Vec<Batch>),
    /// Needs the disk. The log may change before the future completes.
    Cold(ColdRead),
    OffsetOutOfRange {
        start: u64,
        end: u64,
    },
    UnknownGroup,
}

/// How far an index must reach.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Offset(u64),
    Index(RaftIndex),
    Timestamp(i64),
}

/// Returns batches from segments, or from memory where the segments end.
pub(crate) async fn read_cold<D: Disk>(
    shared: Rc<Shared<D>>,
    group: GroupId,
    from: u64,
    below: u64,
    max_bytes: usize,
    at_least_one: bool,
) -> Result<Vec<Batch>, ReadError> {
    let mut limit = ReadLimit::new(below, max_bytes, at_least_one);
    let mut from = from;
    loop {
        let segment = {
            let state = shared.state.borrow();
            let log = state.groups.get(&group).ok_or(ReadError::Changed)?;
            match log.read_memory(from, below, max_bytes, at_least_one) {
                FromMemory::Batches(batches) => return Ok(batches),
                FromMemory::Colder if from < log.log_start => return Err(ReadError::Changed),
                FromMemory::Colder => log.segment_of(from).ok_or(ReadError::Changed)?,
            }
        };
        let mut batches = Vec::new();
        let read = read_segment(&shared, group, &segment, from, max_bytes, |batch| {
            let admits = limit.admits(&batch);
            if admits {
                batches.push(batch);
            }
            admits
        });
        match read.await {
            Ok(true) => return Ok(batches),
            Ok(false) if !batches.is_empty() => return Ok(batches),
            Ok(false) => from = segment.end_offset,
            Err(error) => return Err(shared.unless_changed(group, &segment, error)),
        }
    }
}

/// Passes the batches from `from` on to `take`. Returns `true` once `take` rejects one or the bytes read so far end,
/// and `false` at the end of the segment.
async fn read_segment<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    segment: &Segment,
    from: u64,
    max_bytes: usize,
    mut take: impl FnMut(Batch) -> bool,
) -> Result<bool, ReadError> {
    let id = SegmentId { group, serial: segment.serial };
    let file = shared.open_segment(id, segment).await?;
    let (mut scanner, goes_on) = scanner_at(shared, id, segment, file.clone(), from, max_bytes).await?;
    let (mut stopped, mut next, mut position) = (false, from, scanner.position());
    while let Some(frame) = scanner.next().await? {
        if frame.header.index > segment.last_index {
            break;
        }
        if frame.header.end_offset() > from && frame.header.has_payload {
            let batch = Batch::of(&scanner.entry(&frame)?).expect("the header says there is a batch");
            if batch.base_offset > next {
                return Err(scanner.damaged("the frame's offset is not the next one"));
            }
            let end = batch.end_offset();
            if !take(batch) {
                stopped = true;
                break;
            }
            next = end;
        }
        position = scanner.position();
        if next > from && !scanner.holds_next() {
            // Serves what was read at once; the rest is requested below.
            stopped = true;
            break;
        }
    }
    shared.count_cold(scanner.bytes_read);
    if next > from && position < segment.len {
        if goes_on && !scanner.holds_next() {
            // The next request would wait for the disk, so the read begins now.
            let buffer_start = position / BLOCK as u64 * BLOCK as u64;
            let len = scanner.read_bytes.min(block_ceil((segment.len - buffer_start) as usize));
            let coming = Some(Rc::new(Cell::new(Some(begin(file, buffer_start, len).await))));
            let ahead = Ahead { id, position, buffer: Bytes::new(), buffer_start, coming };
            shared.ahead.borrow_mut().insert((group, Next::Offset(next)), ahead, len as u64);
        } else {
            shared.keep_ahead(id, Next::Offset(next), position, &scanner);
        }
    }
    Ok(stopped)
}

/// A scan of the segment from `from` on, and whether a reader goes on where it stopped.
async fn scanner_at<D: Disk>(
    shared: &Rc<Shared<D>>,
    id: SegmentId,
    segment: &Segment,
    file: Rc<D::File>,
    from: u64,
    max_bytes: usize,
) -> Result<(Scanner<D::File>, bool), ReadError> {
    let ahead = shared.ahead_of(id, Next::Offset(from));
    let goes_on = ahead.is_some();
    let scanner = match ahead {
        Some(ahead) => {
            let read_bytes = READ_AHEAD.max(max_bytes.min(4 << 20));
            let mut scanner = ahead.scanner(file, segment.len, read_bytes);
            if let Some(coming) = ahead.coming.and_then(|coming| coming.take())
                // A read that fails here fails again below, and is reported there.
                && let Ok(buffer) = coming.await
            {
                scanner.bytes_read += buffer.len() as u64;
                scanner.buffer = buffer;
            }
            scanner
        }
        None => {
            let index = index_until(shared, id, segment, Until::Offset(from)).await?;
            Scanner::new(file, id, segment.len, index.at_offset(from), max_bytes.clamp(READ_LEAST, READ_AHEAD))
        }
    };
    Ok((scanner, goes_on))
}

/// The first batch at or above the log start, and with a record in `offsets`, whose largest timestamp is at least
/// `timestamp`, from 0 on. `None` if that batch ends behind `offsets`. A batch without timestamps (-1) is never found.
pub(crate) async fn find_timestamp<D: Disk>(
    shared: Rc<Shared<D>>,
    group: GroupId,
    timestamp: i64,
    offsets: Range<u64>,
) -> Result<Option<Batch>, ReadError> {
    let timestamp = timestamp.max(0);
    let bounded = |batch: Option<Batch>| batch.filter(|batch| batch.end_offset() <= offsets.end);
    let mut from = offsets.start;
    loop {
        let segment = {
            let state = shared.state.borrow();
            let log = state.groups.get(&group).ok_or(ReadError::Changed)?;
            from = from.max(log.log_start);
            let colder = log.memory_from();
            let next = log.segments().find(|segment| {
                segment.end_offset > from && segment.base_offset < colder && segment.max_timestamp >= timestamp
            });
            match next {
                Some(segment) => segment,
                None => return Ok(bounded(log.find_timestamp(timestamp, from))),
            }
        };
        match find_in_segment(&shared, group, &segment, timestamp, from).await {
            Ok(Some(batch)) => return Ok(bounded(Some(batch))),
            Ok(None) => from = segment.end_offset,
            Err(error) => return Err(shared.unless_changed(group, &segment, error)),
        }
    }
}

async fn find_in_segment<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    segment: &Segment,
    timestamp: i64,
    from: u64,
) -> Result<Option<Batch>, ReadError> {
    let id = SegmentId { group, serial: segment.serial };
    let file = shared.open_segment(id, segment).await?;
    let start = if from > segment.base_offset {
        index_until(shared, id, segment, Until::Offset(from)).await?.at_offset(from)
    } else {
        0
    };
    let index = index_until(shared, id, segment, Until::Timestamp(timestamp)).await?;
    let position = index.at_timestamp(timestamp, start).unwrap_or(index.covered.max(start));
    let mut scanner = Scanner::behind(file, id, segment.len, position, READ_LEAST);
    let mut found = None;
    while let Some(frame) = scanner.next().await? {
        let header = &frame.header;
        if header.index > segment.last_index {
            break;
        }
        if header.has_payload && header.max_timestamp >= timestamp && header.end_offset() > from {
            found = Batch::of(&scanner.entry(&frame)?);
            break;
        }
    }
    shared.count_cold(scanner.bytes_read);
    Ok(found)
}

/// The segment's index, complete at least up to `until` or to where the frames end. It comes from memory, else from
/// its file beside the segment, else it is rebuilt from the frames.
pub(crate) async fn index_until<D: Disk>(
    shared: &Rc<Shared<D>>,
    id: SegmentId,
    segment: &Segment,
    until: Until,
) -> Result<Rc<SparseIndex>, ReadError> {
    let known = shared.indexes.borrow_mut().get(&id);
    let known = match known {
        // A reader that began before the segment was cut may have kept entries that the segment no longer holds.
        Some(mut longer) if segment.sealed && longer.covered > segment.len => {
            Rc::make_mut(&mut longer).clip(segment.len);
            longer
        }
        Some(known) => known,
        None => Rc::new(load_index(shared, id, segment).await),
    };
    let enough = |index: &SparseIndex| {
        index.covered >= segment.len
            || match until {
                Until::Offset(offset) => index.entries.last().is_some_and(|last| last.base_offset > offset),
                Until::Index(at) => index.entries.last().is_some_and(|last| last.index > at),
                Until::Timestamp(at) => index.at_timestamp(at, 0).is_some(),
            }
    };
    if enough(&known) {
        shared.keep_index(id, &known);
        return Ok(known);
    }
    let interval = shared.state.borrow().groups.get(&id.group).ok_or(ReadError::Changed)?.options.index_interval_bytes;
    let mut index = SparseIndex::clone(&known);
    let file = shared.open_segment(id, segment).await?;
    let mut scanner = Scanner::behind(file, id, segment.len, index.covered, READ_AHEAD);
    while !enough(&index) {
        match scanner.next().await {
            Ok(Some(frame)) => index.note(&frame.header, frame.position, interval),
            Ok(None) => break,
            // A reader that needs the frames behind the damage reports it; those before it stay readable.
            Err(ReadError::Damaged(_)) => break,
            Err(other) => return Err(other),
        }
    }
    shared.count_cold(scanner.bytes_read);
    let index = Rc::new(index);
    shared.keep_index(id, &index);
    Ok(index)
}

/// The index from its file, clipped to the segment. Empty if the file is missing or invalid.
async fn load_index<D: Disk>(shared: &Rc<Shared<D>>, id: SegmentId, segment: &Segment) -> SparseIndex {
    let path = shared.files.index(id, segment.base_offset);
    let bytes = crate::segment::files::read_file(&shared.disk, &path).await.ok().flatten();
    let mut index = match bytes.and_then(|bytes| decode_index(&bytes, id.seed())) {
        Some((covered, next_index, entries)) => SparseIndex { covered, next_index, entries },
        None => SparseIndex::default(),
    };
    index.clip(segment.len);
    index
}

/// The entries `first ..= last`, all of which must be in `segments`.
pub(crate) async fn read_entries<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    segments: &[Segment],
    first: RaftIndex,
    last: RaftIndex,
) -> Result<Vec<Entry>, ReadError> {
    let mut entries = Vec::new();
    for segment in segments.iter().filter(|segment| segment.last_index >= first && segment.first_index <= last) {
        let id = SegmentId { group, serial: segment.serial };
        let index = index_until(shared, id, segment, Until::Index(first)).await?;
        let file = shared.open_segment(id, segment).await?;
        let mut scanner = Scanner::new(file, id, segment.len, index.at_index(first), READ_AHEAD);
        while let Some(frame) = scanner.next().await? {
            if frame.header.index > last {
                break;
            }
            if frame.header.index >= first {
                entries.push(scanner.entry(&frame)?);
            }
        }
    }
    let whole =
        entries.first().is_some_and(|entry| entry.index == first) && entries.len() == last.next().place_from(first);
    if !whole {
        return Err(ReadError::Damaged(format!("the segments of group {} do not hold {first}..={last}", group.0)));
    }
    Ok(entries)
}

/// Where the frame of `index` begins, within `segment`.
pub(crate) async fn find_index<D: Disk>(
    shared: &Rc<Shared<D>>,
    group: GroupId,
    segment: &Segment,
    index: RaftIndex,
) -> Result<u64, ReadError> {
    let id = SegmentId { group, serial: segment.serial };
    let known = index_until(shared, id, segment, Until::Index(index)).await?;
    let file = shared.open_segment(id, segment).await?;
    let mut scanner = Scanner::new(file, id, segment.len, known.at_index(index), READ_AHEAD);
    while let Some(frame) = scanner.next().await? {
        if frame.header.index == index {
            return Ok(frame.position);
        }
    }
    Err(ReadError::Damaged(format!("segment {} of group {} does not hold index {index}", id.serial, group.0)))
}
