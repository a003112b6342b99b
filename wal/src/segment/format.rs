//! Segment files on disk, byte by byte. All numbers are little-endian.
//!
//! A segment is a stream of frames, one per entry, each at a multiple of 8. A flush ends in zeros up to the next
//! block, so that a synced block is never written again. The next frame starts at that block.
//!
//! ```text
//!          0        1        2        3        4        5        6        7
//!      +--------+--------+--------+--------+--------+--------+--------+--------+
//!    0 | magic "MLF1"                      | header crc: 8..64, after the seed |
//!    8 | index                                                                 |
//!   16 | term                                                                  |
//!   24 | base offset                                                           |
//!   32 | max timestamp, ms since the epoch, -1 if none                         |
//!   40 | count                             | data length                       |
//!   48 | payload length                    | body crc: data, then payload      |
//!   56 | type   | flags  | 0                                                   |
//!      +--------+--------+-----------------------------------------------------+
//!   64 | data (the entry's own), payload (the batch), zeros up to a multiple of 8
//! ```
//!
//! Both CRCs are CRC-32C, seeded with group and segment, so that a frame of another file never passes.
//! Flag 1: the entry has a payload. Without it, count and payload length are 0 and the base offset is the log's next
//! one.
//!
//! The sparse index (`.idx`) is a hint beside a segment: it can be rebuilt from the frames.
//!
//! ```text
//!      +--------+--------+--------+--------+--------+--------+--------+--------+
//!    0 | magic "MLX1"                      | crc: 8..end, after the seed       |
//!    8 | bytes of the segment covered                                          |
//!   16 | index of the next frame                                               |
//!   24 | number of entries                                                     |
//!      +-----------------------------------------------------------------------+
//!   32 | per entry: position, index, base offset, max timestamp of the frames  |
//!      | from here to the next entry: 8 bytes each                             |
//! ```

use crate::{
    crc,
    record::{Entry, Span},
};
use bytes::Bytes;
use types::{GroupId, RaftIndex, Term};

pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"MLF1");
pub const INDEX_MAGIC: u32 = u32::from_le_bytes(*b"MLX1");
pub const FRAME_HEADER: usize = 64;
pub const FRAME_ALIGN: usize = 8;
pub const INDEX_HEADER: usize = 32;
pub const INDEX_ENTRY: usize = 32;
/// The longest data and the longest payload that a frame may claim. A larger claim is damage, and nothing is
/// allocated.
pub const BODY_PART_MAX: u32 = 1 << 30;

const FLAG_PAYLOAD: u8 = 1;

const _: () = assert!(FRAME_HEADER.is_multiple_of(FRAME_ALIGN) && crate::buf::BLOCK.is_multiple_of(FRAME_ALIGN));
const _: () = assert!(INDEX_HEADER == 4 + 4 + 8 + 8 + 8 && INDEX_ENTRY == 4 * 8);

/// Identifies one segment of one group for ever. A serial that a checkpoint has named is never reused for another
/// file of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    pub group: GroupId,
    pub serial: u64,
}

impl SegmentId {
    /// The seed of the segment's CRCs.
    pub fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.group.0.to_le_bytes()), &self.serial.to_le_bytes())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub index: RaftIndex,
    pub term: Term,
    pub base_offset: u64,
    pub max_timestamp: i64,
    pub count: u32,
    pub data_len: u32,
    pub payload_len: u32,
    pub body_crc: u32,
    pub entry_type: u8,
    pub has_payload: bool,
}

impl FrameHeader {
    /// The header of `entry`, given its payload's CRC and its base offset.
    pub fn of(entry: &Entry, payload_crc: u32, base_offset: u64, seed: u32) -> Self {
        let (span, payload) = match &entry.payload {
            Some((span, payload)) => (*span, &payload[..]),
            None => (Span { base_offset, count: 0, max_timestamp: -1 }, &[][..]),
        };
        Self {
            index: entry.index,
            term: entry.term,
            base_offset: span.base_offset,
            max_timestamp: span.max_timestamp,
            count: span.count,
            data_len: u32::try_from(entry.data.len()).expect("an entry's data fits a frame"),
            payload_len: u32::try_from(payload.len()).expect("a batch fits a frame"),
            body_crc: crc::append_known(crc32c::crc32c_append(seed, &entry.data), payload, payload_crc),
            entry_type: entry.entry_type,
            has_payload: entry.payload.is_some(),
        }
    }

    /// Bytes of header, data and payload, including the zeros behind them.
    pub fn frame_len(&self) -> usize {
        frame_len(self.data_len as usize, self.payload_len as usize)
    }

    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    pub fn encode(&self, seed: u32) -> [u8; FRAME_HEADER] {
        let mut to = [0; FRAME_HEADER];
        to[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        to[8..16].copy_from_slice(&self.index.get().to_le_bytes());
        to[16..24].copy_from_slice(&self.term.0.to_le_bytes());
        to[24..32].copy_from_slice(&self.base_offset.to_le_bytes());
        to[32..40].copy_from_slice(&self.max_timestamp.to_le_bytes());
        to[40..44].copy_from_slice(&self.count.to_le_bytes());
        to[44..48].copy_from_slice(&self.data_len.to_le_bytes());
        to[48..52].copy_from_slice(&self.payload_len.to_le_bytes());
        to[52..56].copy_from_slice(&self.body_crc.to_le_bytes());
        to[56] = self.entry_type;
        to[57] = if self.has_payload { FLAG_PAYLOAD } else { 0 };
        let crc = crc32c::crc32c_append(seed, &to[8..]);
        to[4..8].copy_from_slice(&crc.to_le_bytes());
        to
    }

    pub fn decode(from: &[u8; FRAME_HEADER], seed: u32) -> Result<Self, &'static str> {
        if u32_at(from, 0) != FRAME_MAGIC {
            return Err("no frame begins here");
        }
        if u32_at(from, 4) != crc32c::crc32c_append(seed, &from[8..]) {
            return Err("the frame's header fails its CRC");
        }
        let header = Self {
            index: RaftIndex::new(u64_at(from, 8)),
            term: Term(u64_at(from, 16)),
            base_offset: u64_at(from, 24),
            max_timestamp: u64_at(from, 32) as i64,
            count: u32_at(from, 40),
            data_len: u32_at(from, 44),
            payload_len: u32_at(from, 48),
            body_crc: u32_at(from, 52),
            entry_type: from[56],
            has_payload: from[57] & FLAG_PAYLOAD != 0,
        };
        if header.data_len > BODY_PART_MAX || header.payload_len > BODY_PART_MAX {
            return Err("the frame claims an invalid length");
        }
        if header.base_offset.checked_add(u64::from(header.count)).is_none() {
            return Err("the frame claims offsets beyond the last");
        }
        Ok(header)
    }

    /// Decodes the entry from the bytes behind the header.
    pub fn entry(&self, body: &Bytes, seed: u32) -> Result<Entry, &'static str> {
        let (data_len, payload_len) = (self.data_len as usize, self.payload_len as usize);
        if crc32c::crc32c_append(seed, &body[..data_len + payload_len]) != self.body_crc {
            return Err("the frame's data or batch fails its CRC");
        }
        let span = Span { base_offset: self.base_offset, count: self.count, max_timestamp: self.max_timestamp };
        Ok(Entry {
            index: self.index,
            term: self.term,
            entry_type: self.entry_type,
            data: body.slice(..data_len),
            payload: self.has_payload.then(|| (span, body.slice(data_len..data_len + payload_len))),
        })
    }
}

/// Bytes that a frame with these parts takes in its segment.
pub const fn frame_len(data_len: usize, payload_len: usize) -> usize {
    (FRAME_HEADER + data_len + payload_len).next_multiple_of(FRAME_ALIGN)
}

/// One entry of a sparse index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub position: u64,
    pub index: RaftIndex,
    pub base_offset: u64,
    /// The maximum over the frames from here to the next entry.
    pub max_timestamp: i64,
}

pub fn encode_index(covered: u64, next_index: RaftIndex, entries: &[IndexEntry], seed: u32) -> Vec<u8> {
    let mut to = Vec::with_capacity(INDEX_HEADER + entries.len() * INDEX_ENTRY);
    to.extend_from_slice(&INDEX_MAGIC.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    to.extend_from_slice(&covered.to_le_bytes());
    to.extend_from_slice(&next_index.get().to_le_bytes());
    to.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        to.extend_from_slice(&entry.position.to_le_bytes());
        to.extend_from_slice(&entry.index.get().to_le_bytes());
        to.extend_from_slice(&entry.base_offset.to_le_bytes());
        to.extend_from_slice(&entry.max_timestamp.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(seed, &to[8..]);
    to[4..8].copy_from_slice(&crc.to_le_bytes());
    to
}

/// Bytes covered, index of the next frame, and entries. Returns `None` if anything is wrong: the index is only a
/// hint.
pub fn decode_index(from: &[u8], seed: u32) -> Option<(u64, RaftIndex, Vec<IndexEntry>)> {
    if from.len() < INDEX_HEADER || u32_at(from, 0) != INDEX_MAGIC {
        return None;
    }
    let count = usize::try_from(u64_at(from, 24)).ok()?;
    let end = count.checked_mul(INDEX_ENTRY)?.checked_add(INDEX_HEADER)?;
    if end > from.len() || u32_at(from, 4) != crc32c::crc32c_append(seed, &from[8..end]) {
        return None;
    }
    let entries = from[INDEX_HEADER..end]
        .chunks_exact(INDEX_ENTRY)
        .map(|at| IndexEntry {
            position: u64_at(at, 0),
            index: RaftIndex::new(u64_at(at, 8)),
            base_offset: u64_at(at, 16),
            max_timestamp: u64_at(at, 24) as i64,
        })
        .collect();
    Some((u64_at(from, 8), RaftIndex::new(u64_at(from, 16)), entries))
}

pub(crate) fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(from[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(from[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            index: RaftIndex::new(7),
            term: Term(3),
            entry_type: 1,
            data: Bytes::from_static(b"abc"),
            payload: Some((
                Span { base_offset: 40, count: 2, max_timestamp: 1_000 },
                Bytes::from_static(b"batch bytes"),
            )),
        }
    }

    fn golden() -> Vec<u8> {
        let mut golden = Vec::new();
        golden.extend_from_slice(b"MLF1");
        golden.extend_from_slice(&[0x86, 0xd5, 0x33, 0x6c]); // header crc
        golden.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[40, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[2, 0, 0, 0, 3, 0, 0, 0, 11, 0, 0, 0]);
        golden.extend_from_slice(&[0xbc, 0xbf, 0xb3, 0x81]); // body crc
        golden.extend_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0]);
        golden
    }

    #[test]
    fn a_frame_is_these_bytes() {
        let seed = SegmentId { group: GroupId(5), serial: 9 }.seed();
        let header = FrameHeader::of(&entry(), entry().payload_crc(), 40, seed);
        let bytes = header.encode(seed);
        assert_eq!(bytes[..], golden());
        assert_eq!(header.frame_len(), 80);
        assert_eq!(FrameHeader::decode(&bytes, seed), Ok(header));
        assert_eq!(header.entry(&Bytes::from_static(b"abcbatch bytes\0\0"), seed), Ok(entry()));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen() {
        let seed = SegmentId { group: GroupId(5), serial: 9 }.seed();
        let header = FrameHeader::of(&entry(), entry().payload_crc(), 40, seed);
        let mut bytes = header.encode(seed).to_vec();
        bytes.extend_from_slice(b"abcbatch bytes");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let head: [u8; FRAME_HEADER] = flipped[..FRAME_HEADER].try_into().expect("a header");
            let read = FrameHeader::decode(&head, seed)
                .and_then(|header| header.entry(&Bytes::copy_from_slice(&flipped[FRAME_HEADER..]), seed));
            assert!(read.is_err(), "bit {bit} was flipped unseen");
        }
    }

    #[test]
    fn a_frame_of_another_segment_does_not_pass() {
        let here = SegmentId { group: GroupId(5), serial: 9 }.seed();
        let bytes = FrameHeader::of(&entry(), entry().payload_crc(), 40, here).encode(here);
        for other in [SegmentId { group: GroupId(5), serial: 8 }, SegmentId { group: GroupId(6), serial: 9 }] {
            assert!(FrameHeader::decode(&bytes, other.seed()).is_err());
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let header =
            FrameHeader { payload_len: BODY_PART_MAX + 1, ..FrameHeader::of(&entry(), entry().payload_crc(), 40, 1) };
        assert_eq!(FrameHeader::decode(&header.encode(1), 1), Err("the frame claims an invalid length"));
    }

    #[test]
    fn offsets_beyond_the_last_are_refused() {
        let header = FrameHeader { base_offset: u64::MAX, ..FrameHeader::of(&entry(), entry().payload_crc(), 40, 1) };
        assert_eq!(FrameHeader::decode(&header.encode(1), 1), Err("the frame claims offsets beyond the last"));
    }

    const ENTRIES: [IndexEntry; 2] = [
        IndexEntry { position: 0, index: RaftIndex::new(1), base_offset: 0, max_timestamp: -1 },
        IndexEntry { position: 8192, index: RaftIndex::new(5), base_offset: 17, max_timestamp: 99 },
    ];

    #[test]
    fn an_index_is_these_bytes() {
        let mut golden = b"MLX1".to_vec();
        golden.extend_from_slice(&[0x08, 0x88, 0x94, 0xf4]); // crc
        for word in [12288, 9, 2, 0, 1, 0, u64::MAX, 8192, 5, 17, 99] {
            golden.extend_from_slice(&word.to_le_bytes());
        }
        assert_eq!(encode_index(12288, RaftIndex::new(9), &ENTRIES, 77), golden);
        assert_eq!(decode_index(&golden, 77), Some((12288, RaftIndex::new(9), ENTRIES.to_vec())));
    }

    #[test]
    fn an_index_comes_back_or_not_at_all() {
        let bytes = encode_index(12288, RaftIndex::new(9), &ENTRIES, 77);
        assert_eq!(decode_index(&bytes, 77), Some((12288, RaftIndex::new(9), ENTRIES.to_vec())));
        assert_eq!(decode_index(&bytes, 78), None);
        for len in 0..bytes.len() {
            assert_eq!(decode_index(&bytes[..len], 77), None);
        }
        let mut absurd = bytes.clone();
        absurd[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(decode_index(&absurd, 77), None);
    }
}
