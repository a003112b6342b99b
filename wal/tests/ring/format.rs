//! The ring's exact bytes, and reading them back as they were written.

use crate::harness::{any, entry, said};
use bytes::Bytes;
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    ring::format::{RingBody, SeenHeader, WriteHeader, body_crc, decode_body},
    store::LogPos,
};

fn hex(bytes: &[u8]) -> String {
    let rows = bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    rows.collect::<Vec<_>>().join("\n")
}

fn encoded(group: GroupId, hard_state: HardState, body: &RingBody) -> Vec<u8> {
    let record = body.record();
    let mut bytes = vec![0xff; record.bytes()];
    record.encode(&mut bytes, group, hard_state);
    bytes
}

fn header() -> WriteHeader {
    WriteHeader {
        ring_id: 0x0123_4567_89ab_cdef,
        epoch: 3,
        segment: 5,
        pos: LogPos(0x2_8000),
        previous_end: LogPos(0x2_7000),
        durable: LogPos(0x2_6000),
        freed: LogPos(0x1_0000),
        length: 64,
        count: 1,
        body_crc: body_crc(5, &[1; 64]),
        clean: true,
    }
}

/// If this fails, disks in use cannot be read any more: increase the version instead.
#[test]
fn the_bytes_stay_as_they_are() {
    let expected = "\
6d722d72696e670a010001005d673a85
efcdab89674523010300000000000000
05000000000000000080020000000000
00700200000000000060020000000000
00000100000000004000000001000000
ae0ab1e9000000000000000000000000";
    let bytes = hex(&header().encode());
    assert_eq!(bytes, expected);

    let (group, hard_state, body) = entry(2, &b"batch"[..]);
    let expected = "\
70000000010001000700000000000000
02000000000000000100000000000000
01000000000000000200000000000000
02000000000000000c00000005000000
14000000000000000068e5cf8b010000
0a000000000000006465736372697074
6f722032626174636800000000000000";
    let bytes = hex(&encoded(group, hard_state, &body));
    assert_eq!(bytes, expected);

    let truncate = RingBody::Truncate { from_index: RaftIndex::new(9), from_offset: 90 };
    let bytes = hex(&encoded(GroupId(1), HardState { term: Term(2), vote: 3, commit: RaftIndex::new(4) }, &truncate));
    let expected = "\
38000000030000000100000000000000
02000000000000000300000000000000
04000000000000000900000000000000
5a00000000000000";
    assert_eq!(bytes, expected);
}

#[test]
fn records_come_back_as_they_were() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..200 {
        let all: Vec<_> = (0..rng.usize(..9)).map(|_| any(&mut rng, 500)).collect();
        let body: Vec<u8> =
            all.iter().flat_map(|(group, hard_state, body)| encoded(*group, *hard_state, body)).collect();
        let body = Bytes::from(body);
        let records = decode_body(&body, LogPos(1000), all.len() as u32).expect("they were written so");
        assert_eq!(records.iter().map(said).collect::<Vec<_>>(), all);
        let end = records.last().map_or(1000, |record| record.end.0);
        assert_eq!(end, 1000 + body.len() as u64);
        assert_eq!(decode_body(&body, LogPos(1000), all.len() as u32 + 1), None);
    }
}

#[test]
fn any_bytes_are_looked_at_without_harm() {
    let mut rng = fastrand::Rng::with_seed(12);
    for _ in 0..2_000 {
        let (group, hard_state, body) = any(&mut rng, 100);
        let mut bytes = encoded(group, hard_state, &body);
        for _ in 0..=rng.usize(..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        // Whatever the result, decoding does not panic and returns no more bytes than there are.
        if let Some(records) = decode_body(&Bytes::from(bytes.clone()), LogPos(0), 1) {
            assert_eq!(records[0].end.0, bytes.len() as u64);
        }
    }
}

#[test]
fn a_header_with_any_bit_changed_is_no_header() {
    let bytes = header().encode();
    assert_eq!(WriteHeader::look(&bytes), SeenHeader::Header(header()));
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(WriteHeader::look(&changed), SeenHeader::Garbage, "bit {bit}");
    }
    assert_eq!(WriteHeader::look(&[0; 96]), SeenHeader::Zero);
    assert_ne!(body_crc(5, &[1; 64]), body_crc(9, &[1; 64]), "another lap's bytes have another sum");
}
