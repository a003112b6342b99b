//! One segment of a partition: its marks and its sparse index; writing and reading frames.
//! Lives on: the owning core only.
//!
//! Invariants: bytes below `len` are whole frames and padding, with no gaps in the indices. Bytes beyond `len` are
//! never read.

pub mod files;
pub mod format;
pub(crate) mod lru;

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::File,
    errors::ReadError,
    record::{Entry, Held},
    segment::format::{FRAME_ALIGN, FRAME_HEADER, FrameHeader, IndexEntry, SegmentId, frame_len},
};
use bytes::Bytes;
use std::rc::Rc;
use types::RaftIndex;

/// How far ahead of the clock a timestamp may be and still give a batch's age, in ms: Kafka's default of
/// `message.timestamp.after.max.ms`.
pub const AHEAD_MAX_MS: i64 = 3_600_000;

/// Whether a timestamp gives a batch's age. -1 does not, nor does a value far ahead of the clock, such as
/// microseconds.
pub fn tells_age(timestamp: i64, now_ms: i64) -> bool {
    (0..=now_ms.saturating_add(AHEAD_MAX_MS)).contains(&timestamp)
}

/// The state of a segment in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub serial: u64,
    pub base_offset: u64,
    /// One past the last offset inside.
    pub end_offset: u64,
    pub first_index: RaftIndex,
    pub last_index: RaftIndex,
    /// Bytes that count. A whole number of blocks, unless the segment was cut.
    pub len: u64,
    /// The first batch's timestamp, or the time of its flush if that timestamp does not give its age ([`tells_age`]).
    /// The second field is the largest timestamp inside. Each is -1 if there is none.
    pub first_timestamp: i64,
    pub max_timestamp: i64,
    /// Nothing is added any more.
    pub sealed: bool,
}

impl Segment {
    pub fn new(serial: u64, base_offset: u64, first_index: RaftIndex) -> Self {
        Self {
            serial,
            base_offset,
            end_offset: base_offset,
            first_index,
            last_index: first_index.prev(),
            len: 0,
            first_timestamp: -1,
            max_timestamp: -1,
            sealed: false,
        }
    }

    /// Counts a frame that now ends the segment. [`FrameWriter::finish`] sets the length later.
    fn note(&mut self, header: &FrameHeader, now_ms: i64) {
        assert_eq!(header.index, self.last_index.next(), "a segment's indices have no holes");
        assert_eq!(header.base_offset, self.end_offset, "a segment's offsets have no holes");
        self.last_index = header.index;
        self.end_offset = header.end_offset();
        if header.has_payload && self.first_timestamp < 0 {
            let tells = tells_age(header.max_timestamp, now_ms);
            self.first_timestamp = if tells { header.max_timestamp } else { now_ms };
        }
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
    }

    pub fn check(&self) {
        assert!(self.base_offset <= self.end_offset && self.first_index <= self.last_index.next());
        assert!(self.len.is_multiple_of(FRAME_ALIGN as u64));
        assert!(self.sealed || self.len.is_multiple_of(BLOCK as u64), "only a cut segment ends within a block");
    }
}

/// Where frames begin: one entry per configured number of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseIndex {
    /// The index covers the frames that begin below this position.
    pub covered: u64,
    /// The index of the next frame to be covered; 0 before the first.
    pub next_index: RaftIndex,
    pub entries: Vec<IndexEntry>,
}

impl SparseIndex {
    /// Adds the frame at `position`, which must be the next one.
    pub fn note(&mut self, header: &FrameHeader, position: u64, interval: u32) {
        assert!(position >= self.covered && self.goes_on_at(header.index), "frames come in order, without holes");
        match self.entries.last_mut() {
            Some(last) if position - last.position < u64::from(interval) => {
                last.max_timestamp = last.max_timestamp.max(header.max_timestamp);
            }
            _ => self.entries.push(IndexEntry {
                position,
                index: header.index,
                base_offset: header.base_offset,
                max_timestamp: header.max_timestamp,
            }),
        }
        self.covered = position + header.frame_len() as u64;
        self.next_index = header.index.next();
    }

    /// Whether the frame of `index` is the next one.
    pub fn goes_on_at(&self, index: RaftIndex) -> bool {
        self.entries.is_empty() || self.next_index == index
    }

    /// Removes the entries for frames at or above `len`, where the segment was cut.
    pub fn clip(&mut self, len: u64) {
        if self.covered <= len {
            return;
        }
        self.entries.retain(|entry| entry.position < len);
        // The positions of the frames behind the last entry are unknown, so these frames are to be covered again.
        let last = self.entries.pop();
        (self.covered, self.next_index) = last.map_or((0, RaftIndex::ZERO), |last| (last.position, last.index));
    }

    /// A position at or below the frame that holds `offset`.
    pub fn at_offset(&self, offset: u64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.base_offset <= offset);
        after.checked_sub(1).map_or(0, |at| self.entries[at].position)
    }

    /// A position at or below the frame of `index`.
    pub fn at_index(&self, index: RaftIndex) -> u64 {
        let after = self.entries.partition_point(|entry| entry.index <= index);
        after.checked_sub(1).map_or(0, |at| self.entries[at].position)
    }

    /// A position at or below the first frame from position `from` on whose timestamp is at least `timestamp`; never
    /// below `from`.
    pub fn at_timestamp(&self, timestamp: i64, from: u64) -> Option<u64> {
        let first = self.entries.partition_point(|entry| entry.position <= from).saturating_sub(1);
        let found = self.entries[first..].iter().find(|entry| entry.max_timestamp >= timestamp);
        found.map(|entry| entry.position.max(from))
    }

    pub fn cost(&self) -> u64 {
        (size_of::<Self>() + self.entries.capacity() * size_of::<IndexEntry>()) as u64
    }
}

/// Encodes entries into aligned writes for the end of a segment.
pub struct FrameWriter {
    id: SegmentId,
    seed: u32,
    /// The segment as it will be once the writes are synced.
    pub segment: Segment,
    /// The frames written so far, for the sparse index.
    pub frames: Vec<(FrameHeader, u64)>,
    now_ms: i64,
    chunk: Chunk,
    write_bytes: usize,
    /// Where `chunk` begins in the file.
    start: u64,
}

impl FrameWriter {
    /// Continues at the end of `segment`, in writes of about `write_bytes` (whole blocks).
    pub fn new(id: SegmentId, segment: Segment, write_bytes: usize, now_ms: i64) -> Self {
        assert!(!segment.sealed && id.serial == segment.serial, "only the active segment grows");
        segment.check();
        let write_bytes = block_ceil(write_bytes.max(BLOCK));
        Self {
            seed: id.seed(),
            id,
            segment,
            frames: Vec::new(),
            now_ms,
            chunk: Chunk::new(BLOCK),
            write_bytes,
            start: segment.len,
        }
    }

    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Where the next frame begins.
    pub fn position(&self) -> u64 {
        self.start + self.chunk.len() as u64
    }

    /// Adds an entry. `more` is the number of bytes known to follow, which sizes the memory. Hands full writes to
    /// `write`.
    pub fn push(&mut self, held: &Held, more: usize, mut write: impl FnMut(u64, Bytes)) {
        let Held { base_offset, ref entry, payload_crc, .. } = *held;
        let header = FrameHeader::of(entry, payload_crc, base_offset, self.seed);
        self.frames.push((header, self.position()));
        self.segment.note(&header, self.now_ms);
        let payload = entry.payload.as_ref().map_or(&[][..], |(_, payload)| &payload[..]);
        let padding = header.frame_len() - FRAME_HEADER - entry.data.len() - payload.len();
        let mut follows = header.frame_len() + more;
        for part in [&header.encode(self.seed)[..], &entry.data, payload, &[0; FRAME_ALIGN][..padding]] {
            let mut part = part;
            while !part.is_empty() {
                if self.chunk.remaining() == 0 {
                    self.next_chunk(follows, &mut write);
                }
                let now = part.len().min(self.chunk.remaining());
                self.chunk.push(&part[..now]);
                follows = follows.saturating_sub(now);
                part = &part[now..];
            }
        }
    }

    /// Pads to a block and hands out the rest. The segment's length is then that of the file's contents.
    pub fn finish(&mut self, write: impl FnMut(u64, Bytes)) {
        self.chunk.pad_to_block();
        self.next_chunk(BLOCK, write);
        self.segment.len = self.start;
    }

    fn next_chunk(&mut self, follows: usize, mut write: impl FnMut(u64, Bytes)) {
        let capacity = block_ceil(follows.clamp(1, self.write_bytes));
        let full = std::mem::replace(&mut self.chunk, Chunk::new(capacity));
        if !full.is_empty() {
            write(self.start, full.frozen(0, full.len()));
            self.start += full.len() as u64;
        }
    }
}

/// Bytes that an entry takes in a segment.
pub fn entry_frame_len(entry: &Entry) -> usize {
    frame_len(entry.data.len(), entry.payload.as_ref().map_or(0, |(_, payload)| payload.len()))
}

/// A frame that was read.
pub struct Frame {
    pub header: FrameHeader,
    pub position: u64,
    pub body: Bytes,
}

/// Reads frames in order.
pub struct Scanner<F> {
    file: Rc<F>,
    id: SegmentId,
    seed: u32,
    /// The segment's length when the scan began.
    len: u64,
    position: u64,
    /// The index that the next frame must have, once one was read.
    expect: Option<RaftIndex>,
    /// Padding may precede the next frame.
    may_skip: bool,
    /// The bytes of the last read, and where they begin.
    pub buffer: Bytes,
    pub buffer_start: u64,
    /// Bytes per read, unless one frame needs more.
    pub read_bytes: usize,
    /// Bytes that came from the disk.
    pub bytes_read: u64,
}

/// The bytes that tell padding from a frame. The last frame in a block may leave no more than these.
const WORD: usize = 8;

/// A frame begins with its magic number.
fn is_padding(word: &[u8]) -> bool {
    word[..4] == [0; 4]
}

impl<F: File> Scanner<F> {
    /// Starts where a frame ended, so padding may follow.
    pub fn behind(file: Rc<F>, id: SegmentId, len: u64, position: u64, read_bytes: usize) -> Self {
        Self { may_skip: true, ..Self::new(file, id, len, position, read_bytes) }
    }

    /// Starts where a frame begins.
    pub fn new(file: Rc<F>, id: SegmentId, len: u64, position: u64, read_bytes: usize) -> Self {
        Self {
            file,
            id,
            seed: id.seed(),
            len,
            position,
            expect: None,
            may_skip: false,
            buffer: Bytes::new(),
            buffer_start: 0,
            read_bytes: block_ceil(read_bytes.max(BLOCK)),
            bytes_read: 0,
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// The next frame, with its header checked. [`FrameHeader::entry`] checks its body. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if self.position >= self.len {
                return Ok(None);
            }
            if self.may_skip && !self.position.is_multiple_of(BLOCK as u64) {
                // Padding up to the block's end can be shorter than a header, so only the first word is read.
                if is_padding(&self.bytes(WORD).await?) {
                    self.position = self.position.next_multiple_of(BLOCK as u64);
                    continue;
                }
            }
            let position = self.position;
            let head: [u8; FRAME_HEADER] = self.bytes(FRAME_HEADER).await?[..].try_into().expect("a header's length");
            let header = FrameHeader::decode(&head, self.seed).map_err(|why| self.damaged(why))?;
            if self.expect.is_some_and(|index| index != header.index) {
                return Err(self.damaged("the frame's index is not the next one"));
            }
            if position + header.frame_len() as u64 > self.len {
                return Err(self.damaged("the frame reaches beyond the segment's end"));
            }
            let body = self.bytes(header.frame_len()).await?.slice(FRAME_HEADER..);
            self.expect = Some(header.index.next());
            self.may_skip = true;
            self.position += header.frame_len() as u64;
            return Ok(Some(Frame { header, position, body }));
        }
    }

    /// Whether [`Scanner::next`] can return without reading from the disk.
    pub fn holds_next(&self) -> bool {
        let block = self.position.next_multiple_of(BLOCK as u64);
        let skips = block != self.position
            && self.may_skip
            && self.held_at(self.position, WORD).is_some_and(|word| is_padding(&word));
        let position = if skips { block } else { self.position };
        if position >= self.len {
            return true;
        }
        let Some(head) = self.held_at(position, FRAME_HEADER) else { return false };
        let head = head[..].try_into().expect("a header's length");
        // `next` reports damage.
        FrameHeader::decode(&head, self.seed)
            .map_or(true, |header| self.held_at(position, header.frame_len()).is_some())
    }

    /// The entry of a frame, with its body checked.
    pub fn entry(&self, frame: &Frame) -> Result<Entry, ReadError> {
        frame.header.entry(&frame.body, self.seed).map_err(|why| self.damaged_at(frame.position, why))
    }

    pub fn damaged(&self, why: &str) -> ReadError {
        self.damaged_at(self.position, why)
    }

    fn damaged_at(&self, position: u64, why: &str) -> ReadError {
        let SegmentId { group, serial } = self.id;
        ReadError::Damaged(format!("segment {serial} of group {} at byte {position}: {why}", group.0))
    }

    /// `want` bytes from the current position, from the buffer if it holds them.
    async fn bytes(&mut self, want: usize) -> Result<Bytes, ReadError> {
        if let Some(held) = self.held(want) {
            return Ok(held);
        }
        if self.position + want as u64 > self.len {
            return Err(self.damaged("the segment ends within a frame"));
        }
        let start = self.position / BLOCK as u64 * BLOCK as u64;
        let needed = (self.position - start) as usize + want;
        let most = block_ceil((self.len - start) as usize);
        let read = self.file.read(start, block_ceil(needed).max(self.read_bytes).min(most)).await;
        self.buffer = read.map_err(|source| ReadError::Io {
            what: format!("segment {} of group {}", self.id.serial, self.id.group.0),
            source,
        })?;
        self.buffer_start = start;
        self.bytes_read += self.buffer.len() as u64;
        self.held(want).ok_or_else(|| self.damaged("the file is shorter than its checkpoint says"))
    }

    fn held(&self, want: usize) -> Option<Bytes> {
        self.held_at(self.position, want)
    }

    fn held_at(&self, position: u64, want: usize) -> Option<Bytes> {
        let from = usize::try_from(position.checked_sub(self.buffer_start)?).ok()?;
        (from.checked_add(want)? <= self.buffer.len()).then(|| self.buffer.slice(from..from + want))
    }
}
