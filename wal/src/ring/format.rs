//! The ring's bytes: the layout of a write on the disk, and the records in it. All numbers are little-endian. Pure:
//! knows neither files nor time.
//!
//! A segment is a file of fixed size, zeroed once. A write is a header, its records, and zeros up to the next block.
//! It never straddles two segments, and none of its blocks is written again in the same lap.
//!
//! ```text
//! write     0       8  10  12     16        24      32        40    48          56      64      72      76      80
//!           | magic |ver|flg| crc | ring id | epoch | segment | pos | prev. end | durable | freed | length | count |
//!           80         84          96
//!           | body crc | 0 … 0     | records (length bytes) … 0 up to the block |
//!
//! record    0        4      5      6     7   8       16     24     32       40
//!           | length | kind | type | flg | 0 | group | term | vote | commit | fields of the kind, 0 up to 8 bytes |
//! entry     40      48           56          60             64            72              80      84  88
//!           | index | entry term | data size | payload size | base offset | max timestamp | count | 0 | data, payload
//! truncate  40           48            56
//!           | from index | from offset |
//! restart   40      48     56
//!           | index | term |
//! restart   40      48     56       64           68         72
//!    at     | index | term | offset | members u32 | state u32 | members | state |
//! ```
//!
//! `crc` is CRC-32C over the header without itself; `body crc` covers the segment's number and the records. The
//! header lies in one sector, so it is there whole or not at all. The ring id is random and secret, so no client can
//! send a payload that looks like a write of this ring. Every later version keeps magic, version, and the place and
//! extent of `crc`. A newer ring can therefore be told from a damaged one.

use crate::{
    buf::BLOCK,
    record::{Entry, LogPos, Span},
};
use bytes::Bytes;
use types::{GroupId, HardState, RaftIndex, Term};

/// The first bytes of every write.
pub const MAGIC: [u8; 8] = *b"mr-ring\n";
/// The newest format that this version reads, and the one that it writes.
pub const RING_VERSION: u16 = 1;
/// Bytes before a write's records.
pub const HEADER_BYTES: usize = 96;
/// Bytes of a record without any fields of its kind.
pub const RECORD_BYTES: usize = 40;
/// Bytes of an entry before its data.
pub const ENTRY_BYTES: usize = 88;
/// Bytes of a truncation.
pub const TRUNCATE_BYTES: usize = 56;
/// Bytes before the members; the state follows them. Rings written before the state existed have 0 as its size.
pub const RESTART_AT_BYTES: usize = 72;
/// Records begin at multiples of this.
const ALIGN: usize = 8;

/// Set in the last write of a clean shutdown.
const FLAG_CLEAN: u16 = 1;
/// Flag of a record: the entry has a payload, which may be empty.
const HAS_PAYLOAD: u8 = 1;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_REMOVED: u8 = 4;
const KIND_RESTART: u8 = 5;
const KIND_RESTART_AT: u8 = 6;

const AT_VERSION: usize = 8;
const AT_FLAGS: usize = 10;
const AT_CRC: usize = 12;
const AT_RING: usize = 16;
const AT_EPOCH: usize = 24;
const AT_SEGMENT: usize = 32;
const AT_POS: usize = 40;
const AT_PREVIOUS_END: usize = 48;
const AT_DURABLE: usize = 56;
const AT_FREED: usize = 64;
const AT_LENGTH: usize = 72;
const AT_COUNT: usize = 76;
const AT_BODY_CRC: usize = 80;
const AT_ZERO: usize = 84;

const _: () = assert!(HEADER_BYTES <= 512, "a header lies in one sector");
const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN) && BLOCK.is_multiple_of(ALIGN));
const _: () = assert!(AT_BODY_CRC + 4 == AT_ZERO && AT_ZERO < HEADER_BYTES);
const _: () = assert!(TRUNCATE_BYTES.is_multiple_of(ALIGN) && ENTRY_BYTES.is_multiple_of(ALIGN));
const _: () = assert!(RECORD_BYTES.is_multiple_of(ALIGN) && RECORD_BYTES < TRUNCATE_BYTES);

/// The header of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteHeader {
    /// Drawn at random when the ring is created.
    pub ring_id: u64,
    /// The placement of partitions on cores that this ring belongs to.
    pub epoch: u64,
    /// The segment's number. It grows by one with each new segment, through all laps.
    pub segment: u64,
    pub pos: LogPos,
    /// Where the write before this one ended. It is below `pos` if the previous segment was left with room at its
    /// end.
    pub previous_end: LogPos,
    /// Everything below was durable when this write was submitted.
    pub durable: LogPos,
    /// Everything below had been released when this write was sealed.
    pub freed: LogPos,
    /// Bytes of records.
    pub length: u32,
    pub count: u32,
    pub body_crc: u32,
    /// The last write of a clean shutdown.
    pub clean: bool,
}

/// How the first bytes of a block look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenHeader {
    /// Zeros, as the file was created.
    Zero,
    /// Nothing that a ring writes.
    Garbage,
    Newer(u16),
    Header(WriteHeader),
}

impl WriteHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut to = [0; HEADER_BYTES];
        to[..8].copy_from_slice(&MAGIC);
        put(&mut to, AT_VERSION, RING_VERSION.to_le_bytes());
        put(&mut to, AT_FLAGS, (if self.clean { FLAG_CLEAN } else { 0 }).to_le_bytes());
        put(&mut to, AT_RING, self.ring_id.to_le_bytes());
        put(&mut to, AT_EPOCH, self.epoch.to_le_bytes());
        put(&mut to, AT_SEGMENT, self.segment.to_le_bytes());
        put(&mut to, AT_POS, self.pos.0.to_le_bytes());
        put(&mut to, AT_PREVIOUS_END, self.previous_end.0.to_le_bytes());
        put(&mut to, AT_DURABLE, self.durable.0.to_le_bytes());
        put(&mut to, AT_FREED, self.freed.0.to_le_bytes());
        put(&mut to, AT_LENGTH, self.length.to_le_bytes());
        put(&mut to, AT_COUNT, self.count.to_le_bytes());
        put(&mut to, AT_BODY_CRC, self.body_crc.to_le_bytes());
        let crc = header_crc(&to);
        put(&mut to, AT_CRC, crc.to_le_bytes());
        to
    }

    /// Classifies the first bytes of a block (at least [`HEADER_BYTES`]).
    pub fn look(block: &[u8]) -> SeenHeader {
        let from: &[u8; HEADER_BYTES] = block[..HEADER_BYTES].try_into().expect("a block is longer than a header");
        if from[..8] != MAGIC {
            return if from.iter().all(|byte| *byte == 0) { SeenHeader::Zero } else { SeenHeader::Garbage };
        }
        if get_u32(from, AT_CRC) != header_crc(from) {
            return SeenHeader::Garbage;
        }
        let version = get_u16(from, AT_VERSION);
        if version > RING_VERSION {
            return SeenHeader::Newer(version);
        }
        SeenHeader::Header(Self {
            ring_id: get_u64(from, AT_RING),
            epoch: get_u64(from, AT_EPOCH),
            segment: get_u64(from, AT_SEGMENT),
            pos: LogPos(get_u64(from, AT_POS)),
            previous_end: LogPos(get_u64(from, AT_PREVIOUS_END)),
            durable: LogPos(get_u64(from, AT_DURABLE)),
            freed: LogPos(get_u64(from, AT_FREED)),
            length: get_u32(from, AT_LENGTH),
            count: get_u32(from, AT_COUNT),
            body_crc: get_u32(from, AT_BODY_CRC),
            clean: get_u16(from, AT_FLAGS) & FLAG_CLEAN != 0,
        })
    }

    /// Bytes of the whole write on the disk.
    pub fn write_bytes(&self) -> u64 {
        (HEADER_BYTES as u64 + u64::from(self.length)).next_multiple_of(BLOCK as u64)
    }

    pub fn end(&self) -> LogPos {
        LogPos(self.pos.0 + self.write_bytes())
    }
}

fn header_crc(header: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..AT_CRC]), &header[AT_CRC + 4..])
}

/// Covers the segment's number and the records, so bytes of another lap do not match.
pub fn body_crc(segment: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(body_crc_seed(segment), body)
}

/// The seed of the CRC of a body in this segment.
pub fn body_crc_seed(segment: u64) -> u32 {
    crc32c::crc32c(&segment.to_le_bytes())
}

/// A record to be staged.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    Entry {
        entry: &'a Entry,
    },
    HardState,
    /// Removes the entries at and above `from_index`, the first of which has `from_offset`.
    Truncate {
        from_index: RaftIndex,
        from_offset: u64,
    },
    /// Removes the group for good.
    Removed,
    /// Restarts the group's log behind this entry, whose snapshot is durable.
    Restart {
        index: RaftIndex,
        term: Term,
    },
    /// Like `Restart`, for a group without snapshots: also gives the offset, the members and the state.
    RestartAt {
        index: RaftIndex,
        term: Term,
        offset: u64,
        conf_state: &'a Bytes,
        blob: &'a Bytes,
    },
}

/// The contents of a record that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingBody {
    Entry(Entry),
    HardState,
    Truncate { from_index: RaftIndex, from_offset: u64 },
    Removed,
    Restart { index: RaftIndex, term: Term },
    RestartAt { index: RaftIndex, term: Term, offset: u64, conf_state: Bytes, blob: Bytes },
}

impl RingBody {
    /// The record that these are the contents of.
    pub fn record(&self) -> Record<'_> {
        match self {
            Self::Entry(entry) => Record::Entry { entry },
            Self::HardState => Record::HardState,
            Self::Truncate { from_index, from_offset } => {
                Record::Truncate { from_index: *from_index, from_offset: *from_offset }
            }
            Self::Removed => Record::Removed,
            Self::Restart { index, term } => Record::Restart { index: *index, term: *term },
            Self::RestartAt { index, term, offset, conf_state, blob } => {
                Record::RestartAt { index: *index, term: *term, offset: *offset, conf_state, blob }
            }
        }
    }
}

/// A record that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingRecord {
    pub start: LogPos,
    pub end: LogPos,
    pub group: GroupId,
    pub hard_state: HardState,
    pub body: RingBody,
}

impl Record<'_> {
    /// Bytes of the record in a write.
    pub fn bytes(&self) -> usize {
        match self {
            Record::Entry { entry } => {
                let payload = entry.payload.as_ref().map_or(0, |(_, payload)| payload.len());
                (ENTRY_BYTES + entry.data.len() + payload).next_multiple_of(ALIGN)
            }
            Record::HardState | Record::Removed => RECORD_BYTES,
            Record::Truncate { .. } | Record::Restart { .. } => TRUNCATE_BYTES,
            Record::RestartAt { conf_state, blob, .. } => {
                (RESTART_AT_BYTES + conf_state.len() + blob.len()).next_multiple_of(ALIGN)
            }
        }
    }

    /// The place of the payload in the record, and its length.
    pub fn payload_place(&self) -> Option<(usize, usize)> {
        match self {
            Record::Entry { entry } => {
                entry.payload.as_ref().map(|(_, payload)| (ENTRY_BYTES + entry.data.len(), payload.len()))
            }
            _ => None,
        }
    }

    /// Fills `to`, which is [`Record::bytes`] long.
    pub fn encode(&self, to: &mut [u8], group: GroupId, hard_state: HardState) {
        let length = to.len();
        assert_eq!(length, self.bytes(), "a record fills its place");
        let (kind, entry_type, flags) = match self {
            Record::Entry { entry } => {
                (KIND_ENTRY, entry.entry_type, if entry.payload.is_some() { HAS_PAYLOAD } else { 0 })
            }
            Record::HardState => (KIND_HARD_STATE, 0, 0),
            Record::Truncate { .. } => (KIND_TRUNCATE, 0, 0),
            Record::Removed => (KIND_REMOVED, 0, 0),
            Record::Restart { .. } => (KIND_RESTART, 0, 0),
            Record::RestartAt { .. } => (KIND_RESTART_AT, 0, 0),
        };
        put(to, 0, u32::try_from(length).expect("bounded by the segment's size").to_le_bytes());
        put(to, 4, [kind, entry_type, flags, 0]);
        put(to, 8, group.0.to_le_bytes());
        put(to, 16, hard_state.term.0.to_le_bytes());
        put(to, 24, hard_state.vote.to_le_bytes());
        put(to, 32, hard_state.commit.get().to_le_bytes());
        match self {
            Record::Entry { entry } => {
                let none = Span { base_offset: 0, count: 0, max_timestamp: 0 };
                let (span, payload) =
                    entry.payload.as_ref().map_or((none, &[][..]), |(span, bytes)| (*span, &bytes[..]));
                let data_end = ENTRY_BYTES + entry.data.len();
                put(to, 40, entry.index.get().to_le_bytes());
                put(to, 48, entry.term.0.to_le_bytes());
                put(to, 56, (entry.data.len() as u32).to_le_bytes());
                put(to, 60, (payload.len() as u32).to_le_bytes());
                put(to, 64, span.base_offset.to_le_bytes());
                put(to, 72, span.max_timestamp.to_le_bytes());
                put(to, 80, span.count.to_le_bytes());
                put(to, 84, [0; 4]);
                to[ENTRY_BYTES..data_end].copy_from_slice(&entry.data);
                to[data_end..data_end + payload.len()].copy_from_slice(payload);
                to[data_end + payload.len()..].fill(0);
            }
            Record::Truncate { from_index, from_offset } => {
                put(to, 40, from_index.get().to_le_bytes());
                put(to, 48, from_offset.to_le_bytes());
            }
            Record::Restart { index, term } => {
                put(to, 40, index.get().to_le_bytes());
                put(to, 48, term.0.to_le_bytes());
            }
            Record::RestartAt { index, term, offset, conf_state, blob } => {
                let blob_begin = RESTART_AT_BYTES + conf_state.len();
                let end = blob_begin + blob.len();
                put(to, 40, index.get().to_le_bytes());
                put(to, 48, term.0.to_le_bytes());
                put(to, 56, offset.to_le_bytes());
                put(to, 64, (conf_state.len() as u32).to_le_bytes());
                put(to, 68, (blob.len() as u32).to_le_bytes());
                to[RESTART_AT_BYTES..blob_begin].copy_from_slice(conf_state);
                to[blob_begin..end].copy_from_slice(blob);
                to[end..].fill(0);
            }
            Record::HardState | Record::Removed => {}
        }
    }
}

/// Reads the records of a write's body, which begins at `pos`. Returns `None` if they are not valid ring records.
pub fn decode_body(body: &Bytes, pos: LogPos, count: u32) -> Option<Vec<RingRecord>> {
    let mut records = Vec::with_capacity((count as usize).min(body.len() / RECORD_BYTES));
    let mut at = 0;
    while at < body.len() {
        let rest = body.slice(at..);
        if rest.len() < RECORD_BYTES {
            return None;
        }
        let length = get_u32(&rest, 0) as usize;
        if length < RECORD_BYTES || length > rest.len() || !length.is_multiple_of(ALIGN) {
            return None;
        }
        let start = LogPos(pos.0 + at as u64);
        records.push(decode_record(&rest.slice(..length), start)?);
        at += length;
    }
    (records.len() == count as usize).then_some(records)
}

fn decode_record(from: &Bytes, start: LogPos) -> Option<RingRecord> {
    let (kind, entry_type, flags) = (from[4], from[5], from[6]);
    let body = match kind {
        KIND_ENTRY if from.len() >= ENTRY_BYTES => {
            let (data, payload) = (get_u32(from, 56) as usize, get_u32(from, 60) as usize);
            let data_end = ENTRY_BYTES.checked_add(data)?;
            let end = data_end.checked_add(payload)?;
            if end.next_multiple_of(ALIGN) != from.len() {
                return None;
            }
            let span = Span {
                base_offset: get_u64(from, 64),
                count: get_u32(from, 80),
                max_timestamp: get_u64(from, 72).cast_signed(),
            };
            RingBody::Entry(Entry {
                index: RaftIndex::new(get_u64(from, 40)),
                term: Term(get_u64(from, 48)),
                entry_type,
                data: from.slice(ENTRY_BYTES..data_end),
                payload: (flags & HAS_PAYLOAD != 0).then(|| (span, from.slice(data_end..end))),
            })
        }
        KIND_HARD_STATE if from.len() == RECORD_BYTES => RingBody::HardState,
        KIND_TRUNCATE if from.len() == TRUNCATE_BYTES => {
            RingBody::Truncate { from_index: RaftIndex::new(get_u64(from, 40)), from_offset: get_u64(from, 48) }
        }
        KIND_REMOVED if from.len() == RECORD_BYTES => RingBody::Removed,
        KIND_RESTART if from.len() == TRUNCATE_BYTES => {
            RingBody::Restart { index: RaftIndex::new(get_u64(from, 40)), term: Term(get_u64(from, 48)) }
        }
        KIND_RESTART_AT if from.len() >= RESTART_AT_BYTES => {
            let blob_begin = RESTART_AT_BYTES.checked_add(get_u32(from, 64) as usize)?;
            let end = blob_begin.checked_add(get_u32(from, 68) as usize)?;
            if end.checked_next_multiple_of(ALIGN)? != from.len() {
                return None;
            }
            RingBody::RestartAt {
                index: RaftIndex::new(get_u64(from, 40)),
                term: Term(get_u64(from, 48)),
                offset: get_u64(from, 56),
                conf_state: from.slice(RESTART_AT_BYTES..blob_begin),
                blob: from.slice(blob_begin..end),
            }
        }
        _ => return None,
    };
    Some(RingRecord {
        start,
        end: LogPos(start.0 + from.len() as u64),
        group: GroupId(get_u64(from, 8)),
        hard_state: HardState {
            term: Term(get_u64(from, 16)),
            vote: get_u64(from, 24),
            commit: RaftIndex::new(get_u64(from, 32)),
        },
        body,
    })
}

fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    to[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    from[at..at + N].try_into().expect("the length is N")
}

fn get_u16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(from, at))
}

fn get_u32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(from, at))
}

fn get_u64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(from, at))
}
