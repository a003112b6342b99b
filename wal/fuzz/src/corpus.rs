//! Valid inputs, as the crate's own encoders make them.

use bytes::Bytes;
use types::{GroupId, HardState, RaftIndex, Term, TermRun};
use wal::checkpoint::{Checkpoint, Garbage, GroupState, RemovedGroup};
use wal::log::{Held, Mark};
use wal::record::{Entry, Span};
use wal::ring::format::{Record, WriteHeader, body_crc};
use wal::segment::Segment;
use wal::segment::format::{FrameHeader, IndexEntry, SegmentId, encode_index};
use wal::store::{AppState, LogPos};

use crate::segments::SEGMENT;

const HARD_STATE: HardState = HardState { term: Term(3), vote: 2, commit: RaftIndex::new(6) };

fn entry(index: u64, data: &'static [u8], batch: Option<&'static [u8]>) -> Entry {
    let span = Span { base_offset: 40, count: 2, max_timestamp: 1_000 };
    let payload = batch.map(|batch| (span, Bytes::from_static(batch)));
    Entry { index: RaftIndex::new(index), term: Term(3), entry_type: 1, data: Bytes::from_static(data), payload }
}

/// A write with a record of every kind.
pub fn writes() -> Vec<Vec<u8>> {
    let (bare, whole) = (entry(6, b"", None), entry(7, b"data", Some(b"batch bytes")));
    let (conf_state, blob) = (Bytes::from_static(b"members"), Bytes::from_static(b"state"));
    let records = [
        Record::Entry { entry: &bare },
        Record::Entry { entry: &whole },
        Record::HardState,
        Record::Truncate { from_index: RaftIndex::new(7), from_offset: 40 },
        Record::Restart { index: RaftIndex::new(9), term: Term(3) },
        Record::RestartAt { index: RaftIndex::new(9), term: Term(3), offset: 42, conf_state: &conf_state, blob: &blob },
        Record::Removed,
    ];
    vec![write(&records), write(&records[1..2]), write(&records[4..6]), write(&[])]
}

fn write(records: &[Record<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records {
        let begin = body.len();
        body.resize(begin + record.bytes(), 0);
        record.encode(&mut body[begin..], GroupId(4), HARD_STATE);
    }
    let header = WriteHeader {
        ring_id: 77,
        segment: 2,
        pos: LogPos(8192),
        length: body.len() as u32,
        count: records.len() as u32,
        body_crc: body_crc(2, &body),
        ..WriteHeader::default()
    };
    [&header.encode()[..], &body].concat()
}

/// Frames of segments with their entries.
pub fn frames() -> Vec<Vec<u8>> {
    let frame = |entry: Entry| {
        let header = FrameHeader::of(&entry, entry.payload_crc(), 40, SEGMENT.seed());
        let payload = entry.payload.as_ref().map_or(&[][..], |(_, payload)| payload);
        [&header.encode(SEGMENT.seed())[..], &entry.data, payload].concat()
    };
    [entry(7, b"abc", Some(b"batch bytes")), entry(8, b"", None), entry(9, b"", Some(b""))].map(frame).to_vec()
}

pub fn indexes() -> Vec<Vec<u8>> {
    let at = |n: u64| IndexEntry {
        position: 4096 * n,
        index: RaftIndex::new(5 * n),
        base_offset: 10 * n,
        max_timestamp: n as i64 - 1,
    };
    let index = |count: u64| {
        encode_index(4096 * count, RaftIndex::new(5 * count), &(0..count).map(at).collect::<Vec<_>>(), SEGMENT.seed())
    };
    vec![index(0), index(1), index(20)]
}

/// Checkpoints without groups, and with a group of each kind.
pub fn checkpoints() -> Vec<Vec<u8>> {
    let checkpoint = |groups: Vec<GroupState>| Checkpoint {
        epoch: 2,
        number: 9,
        cut: LogPos(1000),
        groups,
        removed: vec![RemovedGroup { id: GroupId(8), at: LogPos(950) }],
        garbage: vec![
            Garbage::Segment { id: SegmentId { group: GroupId(7), serial: 1 }, base_offset: 50 },
            Garbage::Snapshot { group: GroupId(0), index: RaftIndex::new(4), term: Term(1) },
        ],
    };
    let checkpoints = [checkpoint(vec![]), checkpoint(vec![by_snapshot(), with_segments()])];
    checkpoints.iter().map(Checkpoint::encode).collect()
}

fn by_snapshot() -> GroupState {
    let at = Mark { index: RaftIndex::new(4), term: Term(2), offset: 0 };
    GroupState {
        id: GroupId(0),
        by_snapshot: true,
        dir_made: false,
        hard_state: HARD_STATE,
        log_start: 0,
        replay_from: LogPos(940),
        next_serial: 0,
        before_first: at,
        flushed: at,
        app: AppState { index: RaftIndex::new(4), blob: Bytes::new(), conf_state: Bytes::from_static(b"members") },
        segments: Vec::new(),
        terms: Vec::new(),
        kept: vec![held(entry(5, b"first", None), 100, 0), held(entry(6, b"second", None), 160, 0)],
    }
}

fn held(entry: Entry, start: u64, base_offset: u64) -> Held {
    let payload_crc = entry.payload_crc();
    Held { start: LogPos(start), end: LogPos(start + 60), base_offset, entry, payload_crc }
}

fn with_segments() -> GroupState {
    let segment = |serial: u64, first_index: u64, base_offset: u64| Segment {
        serial,
        base_offset,
        end_offset: base_offset + 10,
        first_index: RaftIndex::new(first_index),
        last_index: RaftIndex::new(first_index + 4),
        len: 8192,
        first_timestamp: -1,
        max_timestamp: 5,
        sealed: serial == 2,
    };
    GroupState {
        id: GroupId(7),
        by_snapshot: false,
        dir_made: true,
        log_start: 25,
        next_serial: 4,
        before_first: Mark { index: RaftIndex::new(10), term: Term(2), offset: 20 },
        flushed: Mark { index: RaftIndex::new(20), term: Term(3), offset: 40 },
        app: AppState {
            index: RaftIndex::new(19),
            blob: Bytes::from_static(b"state"),
            conf_state: Bytes::from_static(b"members"),
        },
        segments: vec![segment(2, 11, 20), segment(3, 16, 30)],
        terms: vec![
            TermRun { first_index: RaftIndex::new(11), term: Term(2), base_offset: 20 },
            TermRun { first_index: RaftIndex::new(15), term: Term(3), base_offset: 28 },
        ],
        kept: vec![held(entry(21, b"", Some(b"carried batch")), 100, 40)],
        ..by_snapshot()
    }
}
