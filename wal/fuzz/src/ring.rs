//! Writes of the ring.

use bytes::Bytes;
use testkit::allocations;
use wal::ring::format::{HEADER_BYTES, MAGIC, RingRecord, SeenHeader, WriteHeader, decode_body};
use wal::store::LogPos;

const CRC_AT: usize = 12;
const COUNT_AT: usize = 76;
const POS: LogPos = LogPos(8192);

/// A write: a header and its records.
pub fn ring(data: &[u8]) {
    let mut header = [0; HEADER_BYTES];
    let length = data.len().min(HEADER_BYTES);
    header[..length].copy_from_slice(&data[..length]);
    look(&header);
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..CRC_AT]), &header[CRC_AT + 4..]);
    header[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    look(&header);
    let count = u32::from_le_bytes(header[COUNT_AT..COUNT_AT + 4].try_into().expect("four bytes"));
    body(&Bytes::copy_from_slice(&data[length..]), count);
}

/// A header comes back as it was written.
fn look(block: &[u8; HEADER_BYTES]) {
    if let SeenHeader::Header(header) = WriteHeader::look(block) {
        assert_eq!(WriteHeader::look(&header.encode()), SeenHeader::Header(header));
        assert!(header.write_bytes() >= HEADER_BYTES as u64 + u64::from(header.length));
    }
}

/// The records fill the body without gaps, and each comes back as it was written. Memory is bounded by the body.
fn body(body: &Bytes, count: u32) {
    let (records, allocated) = allocations::during(|| decode_body(body, POS, count));
    assert!(allocated <= 1024 + 16 * body.len(), "{allocated} bytes for a body of {}", body.len());
    let Some(records) = records else { return };
    assert_eq!(records.len(), count as usize);
    let mut end = POS;
    for record in &records {
        assert_eq!(record.start, end);
        end = record.end;
        let again = decode_body(&written(record), record.start, 1).expect("what was written can be read");
        let [again] = &again[..] else { panic!("one record came back as {}", again.len()) };
        assert_eq!(again.body, record.body);
        assert_eq!((again.group, again.hard_state), (record.group, record.hard_state));
    }
    assert_eq!(end.0 - POS.0, body.len() as u64);
}

fn written(record: &RingRecord) -> Bytes {
    let to_write = record.body.record();
    let mut bytes = vec![0; to_write.bytes()];
    to_write.encode(&mut bytes, record.group, record.hard_state);
    bytes.into()
}
