//! The ring as a pure state machine: which bytes go where, in which order, and what may be overwritten.
//! Lives on: one core, inside [`journal`], which does its I/O. Verbs: [`Ring::append`] stages a record,
//! [`Ring::next_write`] hands out a write, [`Ring::written`] confirms that it is durable, [`Ring::release_below`]
//! recycles segments.
//!
//! Positions count bytes through all laps; segment `n` holds the positions from `n` times its size on. A segment's
//! number says nothing about its file (its slot): the next number takes whichever slot is free.
//!
//! Invariants: freed <= durable <= staged. Live segments have consecutive numbers and distinct slots. A block is
//! written once per lap. At most one write is handed out at a time, so each write's header names the end of the
//! previous one as durable.

pub mod format;
pub mod journal;
pub mod recovery;

use crate::{
    buf::{BLOCK, Chunk, block_ceil, pool},
    crc,
    record::LogPos,
    ring::format::{ENTRY_BYTES, HEADER_BYTES, Record, WriteHeader, body_crc_seed},
};
use bytes::Bytes;
use std::collections::VecDeque;
use types::{GroupId, HardState};

/// The size of a write, unless the configuration or a larger entry requires another.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// How many of the largest writes fit into a chunk.
const WRITES_A_CHUNK: usize = 2;
/// The minimum number of segments: one being written, one being flushed, and two free ones. The largest record can
/// then always be staged once a flush is done.
pub const SEGMENTS_MIN: u32 = 4;

/// The number of segments, unless they would be too small.
const SEGMENTS: u64 = 8;

/// Bytes that records leave free at the ring's very end, for the mark of a clean shutdown.
const MARK_BYTES: u64 = BLOCK as u64;

/// Sizes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Bytes of a segment, in whole blocks. An entry must fit into one. An existing ring keeps the size that it was
    /// created with.
    pub segment_bytes: u64,
    /// The number of segments; at least [`SEGMENTS_MIN`]. An existing ring grows at open, and shrinks by its free
    /// segments.
    pub segments: u32,
    /// Bytes of a write at most, unless one entry alone is larger.
    pub write_bytes_max: usize,
    /// Reserved for what cannot wait: hard states, truncations, removals, the snapshot group. At most one segment.
    pub reserve_bytes: u64,
    /// The id of the ring if it is created; random if absent.
    pub ring_id: Option<u64>,
}

impl RingConfig {
    /// A ring of about `bytes`: eight segments, fewer if they would be too small.
    pub fn of_bytes(bytes: u64) -> Self {
        let block = BLOCK as u64;
        let segment_bytes = (bytes / SEGMENTS / block * block).max(16 * block);
        let segments = u32::try_from(bytes / segment_bytes).unwrap_or(u32::MAX).max(SEGMENTS_MIN);
        Self {
            segment_bytes,
            segments,
            write_bytes_max: WRITE_BYTES_MAX.min(segment_bytes as usize),
            reserve_bytes: segment_bytes,
            ring_id: None,
        }
    }

    /// Like [`RingConfig::of_bytes`], for entries with up to `entry_bytes` of data and payload. Uses larger and fewer
    /// segments if such an entry needs that.
    pub fn of_bytes_for(bytes: u64, entry_bytes: usize) -> Self {
        let plain = Self::of_bytes(bytes);
        let segment_bytes = plain.segment_bytes.max(segment_bytes_for(entry_bytes));
        let segments = u32::try_from(bytes / segment_bytes).unwrap_or(u32::MAX).max(SEGMENTS_MIN);
        let write_bytes_max = WRITE_BYTES_MAX.min(segment_bytes as usize);
        Self { segment_bytes, segments, write_bytes_max, reserve_bytes: segment_bytes, ..plain }
    }

    /// The ring size at which [`RingConfig::of_bytes`] already makes segments that hold such entries.
    pub fn bytes_for(entry_bytes: usize) -> u64 {
        SEGMENTS * segment_bytes_for(entry_bytes)
    }

    /// The size of the smallest ring that holds such entries, if it is made [for them](RingConfig::of_bytes_for).
    pub fn least_bytes_for(entry_bytes: usize) -> u64 {
        u64::from(SEGMENTS_MIN) * segment_bytes_for(entry_bytes)
    }

    /// The configuration for a ring whose segments on the disk have `segment_bytes`.
    pub fn with_segments_of(self, segment_bytes: u64) -> Self {
        let total = self.segment_bytes * u64::from(self.segments);
        Self {
            segment_bytes,
            segments: u32::try_from(total / segment_bytes).unwrap_or(u32::MAX).max(SEGMENTS_MIN),
            write_bytes_max: self.write_bytes_max.min(segment_bytes as usize),
            reserve_bytes: self.reserve_bytes.min(segment_bytes),
            ..self
        }
    }

    /// Bytes of a chunk of memory for staging writes, unless one write is larger.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.write_bytes_max * WRITES_A_CHUNK
    }

    pub(crate) fn check(&self) {
        assert!(
            self.segment_bytes.is_multiple_of(BLOCK as u64) && self.segment_bytes >= 2 * BLOCK as u64,
            "segments are whole blocks, not {} bytes",
            self.segment_bytes
        );
        assert!(self.segment_bytes < u64::from(u32::MAX), "a segment is shorter than 4 GiB");
        assert!(self.segments >= SEGMENTS_MIN, "a ring has at least {SEGMENTS_MIN} segments");
        assert!(
            self.write_bytes_max.is_multiple_of(BLOCK)
                && (BLOCK..=self.segment_bytes as usize).contains(&self.write_bytes_max),
            "a write is whole blocks and fits into a segment"
        );
        assert!(self.reserve_bytes <= self.segment_bytes, "the reserve is at most one segment");
    }
}

/// Bytes of the smallest segment that holds entries with up to `entry_bytes` of data and payload.
fn segment_bytes_for(entry_bytes: usize) -> u64 {
    // Data and payload are each padded to eight bytes.
    block_ceil(HEADER_BYTES + ENTRY_BYTES + entry_bytes + 16) as u64 + MARK_BYTES
}

/// The most that a record adds to the ring: its bytes, and its share of its write's header and padding. A write that
/// small records share is more than half full, but for the last one.
fn record_share(bytes: usize) -> u64 {
    let record = ENTRY_BYTES + bytes + 8;
    (2 * record).min(block_ceil(HEADER_BYTES + record)) as u64
}

/// Why a record cannot be staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No room until segments are released.
    Full,
    /// The record never fits into a segment.
    TooLarge,
}

/// Room for payloads, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity: u64,
    /// Positions that are not released yet.
    pub used: u64,
    /// Free bytes, including the reserve.
    pub free: u64,
    pub reserve: u64,
    /// Bytes kept for a record that waits for room.
    pub claimed: u64,
}

/// The place of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u32,
    segment: u64,
    pos: LogPos,
    previous_end: LogPos,
}

/// A write that is still open for records, or that waits for its turn.
struct Open {
    chunk: Chunk,
    place: Place,
    /// The largest size of the write: as much as its chunk and its segment have room for.
    bytes_max: usize,
    count: u32,
    /// Covers the records so far.
    body_crc: u32,
    clean: bool,
}

impl Open {
    fn len(&self) -> usize {
        self.chunk.len()
    }

    /// The end of its last record.
    fn end(&self) -> LogPos {
        LogPos(self.place.pos.0 + self.len() as u64)
    }

    fn padded_end(&self) -> LogPos {
        LogPos(self.place.pos.0 + block_ceil(self.len()) as u64)
    }
}

/// A staged payload, in the ring's memory.
#[derive(Clone, Debug)]
pub struct Payload {
    pub bytes: Bytes,
    pub crc: u32,
}

/// A record that is staged for the ring.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The record is durable once [`Store::durable`](crate::store::Store::durable) has reached this position.
    pub pos: LogPos,
    /// The payload in the ring's memory.
    pub payload: Option<Payload>,
}

/// Whether there is room for more. Callers ask before they propose an entry, since a staged entry cannot be rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Ok,
    /// The ring is down to its reserve, or memory is full. Await
    /// [`Store::space_freed`](crate::store::Store::space_freed), or answer with a retriable error.
    Wait,
    /// The entry is larger than [`Store::entry_bytes_max`](crate::store::Store::entry_bytes_max), so it never fits
    /// this ring.
    TooLarge,
}

/// A write for the disk.
#[derive(Clone, Debug)]
pub struct Write {
    pub slot: u32,
    /// The offset in the slot's file.
    pub offset: u64,
    /// Whole blocks, block-aligned.
    pub data: Bytes,
    pub end: LogPos,
    pub records: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Live {
    number: u64,
    slot: u32,
}

/// Where a ring continues: found by recovery, or the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingStart {
    pub ring_id: u64,
    /// Number and slot of the segments whose records count, ascending. Empty in a new ring.
    pub live: Vec<(u64, u32)>,
    /// The end of the last write.
    pub end: LogPos,
    /// Where the next write may begin: `end`, or the beginning of a segment that holds nothing yet.
    pub next: LogPos,
}

pub struct Ring {
    config: RingConfig,
    ring_id: u64,
    epoch: u64,
    /// Oldest first. The last one is being written.
    live: VecDeque<Live>,
    free: VecDeque<u32>,
    end: LogPos,
    next: LogPos,
    durable: LogPos,
    /// Full writes that wait for their turn.
    queue: VecDeque<Open>,
    open: Option<Open>,
    /// The unused rest of the chunk of the last closed write.
    spare: Option<Chunk>,
    /// How many chunks were begun, and how many of them found no memory in the thread's pool.
    chunks: u64,
    cold_chunks: u64,
    /// Bytes kept for a record that waits for room.
    claimed: u64,
    /// The end of the write that is handed out.
    in_flight: Option<LogPos>,
}

impl Ring {
    /// `slots` is the number of existing files: at least as many as the configuration wants.
    pub fn new(config: RingConfig, epoch: u64, slots: u32, start: RingStart) -> Self {
        config.check();
        let live: VecDeque<Live> = start.live.iter().map(|&(number, slot)| Live { number, slot }).collect();
        let free = (0..slots).filter(|slot| live.iter().all(|live| live.slot != *slot)).collect();
        let ring = Self {
            config,
            ring_id: start.ring_id,
            epoch,
            live,
            free,
            end: start.end,
            next: start.next,
            durable: start.next,
            queue: VecDeque::new(),
            open: None,
            spare: None,
            chunks: 0,
            cold_chunks: 0,
            claimed: 0,
            in_flight: None,
        };
        ring.check();
        ring
    }

    /// Stages a record. It is durable once [`Ring::durable`] has reached the returned position. The returned payload
    /// is the copy in the ring's memory.
    pub fn append(
        &mut self,
        group: GroupId,
        hard_state: HardState,
        record: Record<'_>,
    ) -> Result<(LogPos, Option<Payload>), Refused> {
        self.append_with_head(group, hard_state, record, &[])
    }

    /// Like [`Ring::append`], but `head` replaces the first bytes of the payload. A caller that must change these
    /// bytes need not copy the payload first.
    pub fn append_with_head(
        &mut self,
        group: GroupId,
        hard_state: HardState,
        record: Record<'_>,
        head: &[u8],
    ) -> Result<(LogPos, Option<Payload>), Refused> {
        let bytes = record.bytes();
        let fits = self.open.as_ref().is_some_and(|open| open.len() + bytes <= open.bytes_max);
        let open = if fits { self.open.as_mut().expect("looked just now") } else { self.begin(bytes, MARK_BYTES)? };
        let at = open.chunk.len();
        let space = open.chunk.space(bytes);
        record.encode(space, group, hard_state);
        let Some((from, len)) = record.payload_place() else {
            assert!(head.is_empty(), "only a payload has a head");
            open.body_crc = crc32c::crc32c_append(open.body_crc, space);
            open.chunk.advance(bytes);
            open.count += 1;
            return Ok((open.end(), None));
        };
        let (before, rest) = space.split_at_mut(from);
        let (payload, padding) = rest.split_at_mut(len);
        payload[..head.len()].copy_from_slice(head);
        // Computed while the copy is in the CPU's cache.
        let crc = crc32c::crc32c(payload);
        open.body_crc = crc::append_known(crc32c::crc32c_append(open.body_crc, before), payload, crc);
        open.body_crc = crc32c::crc32c_append(open.body_crc, padding);
        open.chunk.advance(bytes);
        open.count += 1;
        Ok((open.end(), Some(Payload { bytes: open.chunk.frozen(at + from, len), crc })))
    }

    /// Stages the mark of a clean shutdown, which also raises the durable mark on the disk to the end.
    pub fn append_clean_mark(&mut self) -> Result<LogPos, Refused> {
        self.begin(0, 0)?.clean = true;
        let open = self.open.take().expect("just begun");
        let end = open.padded_end();
        self.enqueue(open);
        Ok(end)
    }

    /// Begins a write with room for `bytes` of records, and leaves `spared` bytes free at the ring's very end.
    fn begin(&mut self, bytes: usize, spared: u64) -> Result<&mut Open, Refused> {
        let need = block_ceil(HEADER_BYTES + bytes);
        if need as u64 > self.config.segment_bytes - MARK_BYTES {
            return Err(Refused::TooLarge);
        }
        if self.free.is_empty() && self.room_behind() < need as u64 + spared {
            return Err(Refused::Full);
        }
        if let Some(full) = self.open.take() {
            self.enqueue(full);
        }
        if self.segment_room() < need as u64 {
            let number = self.live.back().map_or(0, |live| live.number + 1);
            let slot = self.free.pop_front().expect("looked just now");
            self.live.push_back(Live { number, slot });
            self.next = LogPos(number * self.config.segment_bytes);
        }
        let current = self.live.back().expect("a segment was begun");
        let place = Place { slot: current.slot, segment: current.number, pos: self.next, previous_end: self.end };
        let chunk = match self.spare.take() {
            Some(chunk) if chunk.remaining() >= need.max(self.config.write_bytes_max / 16) => chunk,
            _ => {
                let bytes = need.max(self.config.chunk_bytes());
                self.chunks += 1;
                self.cold_chunks += u64::from(pool::kept(bytes) == 0);
                Chunk::new(bytes)
            }
        };
        let room = self.segment_room() - if self.free.is_empty() { spared } else { 0 };
        let most = chunk.remaining().min(need.max(self.config.write_bytes_max));
        let bytes_max = most.min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut open = Open { chunk, place, bytes_max, count: 0, body_crc: body_crc_seed(place.segment), clean: false };
        open.chunk.push(&[0; HEADER_BYTES]);
        Ok(self.open.insert(open))
    }

    fn enqueue(&mut self, mut full: Open) {
        self.spare = full.chunk.split_rest();
        self.end = full.padded_end();
        self.next = self.end;
        self.queue.push_back(full);
    }

    pub fn chunk_bytes(&self) -> usize {
        self.config.chunk_bytes()
    }

    /// How many chunks of memory were begun, and how many of them had to be mapped first.
    pub fn chunks(&self) -> (u64, u64) {
        (self.chunks, self.cold_chunks)
    }

    /// The next write, if there is one and none is in flight.
    pub fn next_write(&mut self) -> Option<Write> {
        if self.in_flight.is_some() {
            return None;
        }
        if self.queue.is_empty()
            && let Some(open) = self.open.take()
        {
            self.enqueue(open);
        }
        let mut full = self.queue.pop_front()?;
        let Open { place, count, body_crc, clean, .. } = full;
        let header = WriteHeader {
            ring_id: self.ring_id,
            epoch: self.epoch,
            segment: place.segment,
            pos: place.pos,
            previous_end: place.previous_end,
            durable: self.durable.min(place.previous_end),
            freed: self.freed(),
            length: u32::try_from(full.len() - HEADER_BYTES).expect("a segment is shorter than 4 GiB"),
            count,
            body_crc,
            clean,
        };
        // SAFETY: `Bytes` were only made of the records behind the header.
        unsafe { full.chunk.patch(0, &header.encode()) };
        full.chunk.pad_to_block();
        let data = full.chunk.frozen(0, full.len());
        assert_eq!(data.len() as u64, header.write_bytes(), "a write is as long as its header says");
        self.in_flight = Some(header.end());
        let offset = place.pos.0 - place.segment * self.config.segment_bytes;
        Some(Write { slot: place.slot, offset, data, end: header.end(), records: count })
    }

    /// Records that the write that was handed out is durable.
    pub fn written(&mut self) {
        self.durable = self.in_flight.take().expect("a write was handed out");
    }

    /// Releases the segments that lie wholly below `pos`. Returns whether there were any.
    pub fn release_below(&mut self, pos: LogPos) -> bool {
        let pos = pos.min(self.durable);
        let before = self.live.len();
        while self.live.len() > 1
            && let Some(first) = self.live.front().copied()
            && (first.number + 1) * self.config.segment_bytes <= pos.0
        {
            self.live.pop_front();
            self.free.push_back(first.slot);
        }
        self.live.len() < before
    }

    pub fn durable(&self) -> LogPos {
        self.durable
    }

    /// The end of the staged records. Nothing staged later begins below it.
    pub fn staged(&self) -> LogPos {
        self.open.as_ref().map_or(self.next, Open::end)
    }

    /// Whether there is something to write.
    pub fn has_work(&self) -> bool {
        self.open.is_some() || !self.queue.is_empty()
    }

    /// Everything below this position is released.
    pub fn freed(&self) -> LogPos {
        LogPos(self.live.front().map_or(self.next.0, |live| live.number * self.config.segment_bytes))
    }

    /// Bytes left in the current segment from `next` on.
    fn segment_room(&self) -> u64 {
        self.live.back().map_or(0, |live| (live.number + 1) * self.config.segment_bytes - self.next.0)
    }

    /// Bytes left in the current segment behind the open write.
    fn room_behind(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| block_ceil(open.len()) as u64);
        self.segment_room() - open
    }

    /// Sets how many bytes, besides the reserve, are kept for a record that waits. Returns whether they are fewer now.
    pub fn claim(&mut self, bytes: usize) -> bool {
        std::mem::replace(&mut self.claimed, bytes as u64) > self.claimed
    }

    /// Whether a record with `bytes` of payload and data can be staged without touching the reserve and what is
    /// claimed. `None`: it never fits.
    pub fn admits(&self, bytes: usize) -> Option<bool> {
        let need = block_ceil(HEADER_BYTES + ENTRY_BYTES + bytes + 8) as u64;
        if need > self.config.segment_bytes - MARK_BYTES {
            return None;
        }
        let free = self.free.len() as u64 * self.config.segment_bytes;
        let room = self.room_behind();
        // The rest of the current segment is lost if the record does not fit there.
        let usable = if need <= room { room + free } else { free };
        Some(usable >= need + self.claimed + self.config.reserve_bytes + MARK_BYTES)
    }

    /// How many records with these bytes of data can be staged, in this order, and leave `spared` bytes free.
    pub fn takes(&self, sizes: &[usize], spared: u64) -> usize {
        let segment = self.config.segment_bytes;
        let (mut room, mut free) = (self.room_behind(), self.free.len() as u64 * segment);
        let fits = |bytes: &&usize| {
            let need = record_share(**bytes);
            if need > room {
                // The rest of the current segment is lost.
                if free == 0 || need > segment - MARK_BYTES {
                    return false;
                }
                (room, free) = (segment, free - segment);
            }
            room -= need;
            room + free >= spared + MARK_BYTES
        };
        sizes.iter().take_while(fits).count()
    }

    pub fn space(&self) -> Space {
        let segment = self.config.segment_bytes;
        Space {
            capacity: (self.live.len() + self.free.len()) as u64 * segment,
            used: self.staged().0 - self.freed().0,
            free: self.room_behind() + self.free.len() as u64 * segment,
            reserve: self.config.reserve_bytes,
            claimed: self.claimed,
        }
    }

    /// The largest sum of an entry's data and payload.
    pub fn entry_bytes_max(&self) -> usize {
        (self.config.segment_bytes - MARK_BYTES) as usize - HEADER_BYTES - ENTRY_BYTES
    }

    /// Asserts the invariants.
    pub fn check(&self) {
        assert!(self.freed() <= self.durable && self.durable <= self.staged(), "freed <= durable <= staged");
        assert!(self.end <= self.next, "the next write begins after the last");
        for (first, second) in self.live.iter().zip(self.live.iter().skip(1)) {
            assert_eq!(first.number + 1, second.number, "live segments are consecutive");
        }
        let mut slots: Vec<u32> = self.live.iter().map(|live| live.slot).chain(self.free.iter().copied()).collect();
        slots.sort_unstable();
        assert!(slots.iter().enumerate().all(|(at, slot)| at as u32 == *slot), "each slot is live or free, once");
        if let Some(live) = self.live.back() {
            let segment = self.config.segment_bytes;
            let room = live.number * segment..=(live.number + 1) * segment;
            assert!(room.contains(&self.next.0), "the next write begins in the current segment or at its end");
        }
    }
}
