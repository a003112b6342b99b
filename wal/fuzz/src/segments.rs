//! Segment files and their sparse indexes.

use bytes::Bytes;
use testkit::allocations;
use wal::segment::format::{
    FRAME_HEADER, FRAME_MAGIC, FrameHeader, INDEX_HEADER, INDEX_MAGIC, SegmentId, decode_index, encode_index,
};

/// The segment that the inputs belong to.
pub const SEGMENT: SegmentId = SegmentId { group: types::GroupId(5), serial: 9 };
const CRC_AT: usize = 4;
const CRC_END: usize = 8;

/// One frame: a header and the entry behind it.
pub fn segment(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<FRAME_HEADER>() else { return };
    frame(header, body);
    let mut sealed = *header;
    sealed[..CRC_AT].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    seal(&mut sealed);
    frame(&sealed, body);
}

fn seal(bytes: &mut [u8]) {
    let crc = crc32c::crc32c_append(SEGMENT.seed(), &bytes[CRC_END..]);
    bytes[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
}

/// The header and the entry come back as they were written.
fn frame(header: &[u8; FRAME_HEADER], body: &[u8]) {
    let seed = SEGMENT.seed();
    let Ok(header) = FrameHeader::decode(header, seed) else { return };
    assert_eq!(FrameHeader::decode(&header.encode(seed), seed), Ok(header));
    assert!(header.end_offset() >= header.base_offset);
    let length = header.data_len as usize + header.payload_len as usize;
    assert!(header.frame_len() >= FRAME_HEADER + length);
    let Some(body) = body.get(..length).map(Bytes::copy_from_slice) else { return };
    entry(&header, &body);
    entry(&FrameHeader { body_crc: crc32c::crc32c_append(seed, &body), ..header }, &body);
}

fn entry(header: &FrameHeader, body: &Bytes) {
    let seed = SEGMENT.seed();
    let Ok(entry) = header.entry(body, seed) else { return };
    let again = FrameHeader::of(&entry, entry.payload_crc(), header.base_offset, seed);
    let payload = entry.payload.as_ref().map_or(&[][..], |(_, payload)| payload);
    let body = Bytes::from([&entry.data[..], payload].concat());
    assert_eq!(again.entry(&body, seed), Ok(entry));
}

/// A sparse index that was read is, byte for byte, what would be written. Memory is bounded by its bytes.
pub fn index(data: &[u8]) {
    read_index(data);
    let mut sealed = data.to_vec();
    if let Some(entries) = data.get(INDEX_HEADER..) {
        let count = entries.len() / 32;
        sealed.truncate(INDEX_HEADER + count * 32);
        sealed[24..32].copy_from_slice(&(count as u64).to_le_bytes());
        sealed[..CRC_AT].copy_from_slice(&INDEX_MAGIC.to_le_bytes());
        seal(&mut sealed);
        read_index(&sealed);
    }
}

fn read_index(data: &[u8]) {
    let (read, allocated) = allocations::during(|| decode_index(data, SEGMENT.seed()));
    assert!(allocated <= data.len(), "{allocated} bytes for an index of {}", data.len());
    let Some((covered, next_index, entries)) = read else { return };
    let again = encode_index(covered, next_index, &entries, SEGMENT.seed());
    assert_eq!(again, data[..again.len()]);
}
