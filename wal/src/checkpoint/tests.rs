//! Checkpoints are decoded as they were encoded, and damage is refused.

use super::*;
use crate::record::{Entry, Span};

/// A group with a snapshot at 4, two kept entries, and others in the ring.
fn by_snapshot() -> GroupState {
    let at = Mark { index: RaftIndex::new(4), term: Term(2), offset: 0 };
    let entry = |index, term, data| Entry { index: RaftIndex::new(index), term, entry_type: 1, data, payload: None };
    let span = Span { base_offset: 0, count: 3, max_timestamp: -1 };
    let second = Entry { payload: Some((span, "batch".into())), ..entry(6, Term(3), "second".into()) };
    let held = |start, end, entry: Entry| {
        let payload_crc = entry.payload_crc();
        Held { start: LogPos(start), end: LogPos(end), base_offset: 0, entry, payload_crc }
    };
    GroupState {
        id: GroupId(0),
        by_snapshot: true,
        dir_made: false,
        hard_state: HardState { term: Term(5), vote: 2, commit: RaftIndex::new(4) },
        log_start: 0,
        replay_from: LogPos(940),
        next_serial: 0,
        before_first: at,
        flushed: at,
        app: AppState { index: RaftIndex::new(4), blob: Bytes::new(), conf_state: Bytes::from_static(b"conf") },
        segments: Vec::new(),
        terms: Vec::new(),
        kept: vec![held(100, 160, entry(5, Term(2), Bytes::new())), held(160, 240, second)],
    }
}

fn checkpoint() -> Checkpoint {
    let segment = Segment {
        serial: 3,
        base_offset: 100,
        end_offset: 120,
        first_index: RaftIndex::new(11),
        last_index: RaftIndex::new(20),
        len: 8192,
        first_timestamp: -1,
        max_timestamp: 5,
        sealed: false,
    };
    let group = GroupState {
        id: GroupId(7),
        by_snapshot: false,
        dir_made: true,
        hard_state: HardState { term: Term(4), vote: 1, commit: RaftIndex::new(20) },
        log_start: 105,
        replay_from: LogPos(900),
        next_serial: 4,
        before_first: Mark { index: RaftIndex::new(10), term: Term(2), offset: 100 },
        flushed: Mark { index: RaftIndex::new(20), term: Term(4), offset: 120 },
        app: AppState { index: RaftIndex::new(19), blob: "blob".into(), conf_state: "conf".into() },
        segments: vec![segment],
        terms: vec![
            TermRun { first_index: RaftIndex::new(11), term: Term(2), base_offset: 100 },
            TermRun { first_index: RaftIndex::new(15), term: Term(4), base_offset: 110 },
        ],
        kept: Vec::new(),
    };
    Checkpoint {
        epoch: 2,
        number: 9,
        cut: LogPos(1000),
        groups: vec![by_snapshot(), group],
        removed: vec![RemovedGroup { id: GroupId(8), at: LogPos(950) }],
        garbage: vec![
            Garbage::Segment { id: SegmentId { group: GroupId(7), serial: 1 }, base_offset: 50 },
            Garbage::Snapshot { group: GroupId(0), index: RaftIndex::new(4), term: Term(1) },
        ],
    }
}

#[test]
fn a_checkpoint_comes_back_whole() {
    let checkpoint = checkpoint();
    let mut bytes = checkpoint.encode();
    assert_eq!((bytes.len(), crc32c::crc32c(&bytes[8..])), (775, 1_972_266_728), "disks in use hold these bytes");
    assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint.clone()));
    bytes.extend_from_slice(&[0; 100]);
    assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint.clone()), "padding is no part of it");
    assert_eq!(checkpoint.needs_ring_from(), LogPos(900));
}

#[test]
fn its_first_bytes_are_these() {
    let bytes = Checkpoint { epoch: 2, number: 3, cut: LogPos(4), ..Checkpoint::default() }.encode();
    let mut golden = b"MLC1".to_vec();
    golden.extend_from_slice(&bytes[4..8]);
    for word in [3u64, 72, 2, 3, 4, 0, 0, 0] {
        golden.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(bytes, golden);
}

#[test]
fn every_flipped_bit_and_every_missing_byte_is_seen() {
    let bytes = checkpoint().encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Checkpoint::decode(&flipped).is_err(), "bit {bit} was flipped unseen");
    }
    for len in 0..bytes.len() {
        assert!(Checkpoint::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn a_newer_version_is_named() {
    let mut bytes = checkpoint().encode();
    bytes[8] = 4;
    assert_eq!(Checkpoint::decode(&bytes), Err(DecodeError::Newer(4)));
}

/// A checkpoint of one group without kept entries, as an older version wrote it, without their count for this
/// group.
fn of_version(version: u8, group: GroupState) -> (Vec<u8>, Checkpoint) {
    let checkpoint =
        Checkpoint { epoch: 2, number: 9, cut: LogPos(1000), groups: vec![group], ..Checkpoint::default() };
    let mut bytes = checkpoint.encode();
    // It ends with the counts of kept entries, removed groups, and files to be removed.
    bytes.truncate(bytes.len() - 8);
    bytes[8] = version;
    let len = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    (bytes, checkpoint)
}

#[test]
fn older_versions_are_read() {
    let no_kept = GroupState { kept: Vec::new(), ..by_snapshot() };
    let with_segments = checkpoint().groups.swap_remove(1);
    for (version, group) in [(1, no_kept), (1, with_segments.clone()), (2, with_segments)] {
        let (bytes, checkpoint) = of_version(version, group);
        assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
    }
}

#[test]
fn a_checkpoint_that_does_not_add_up_is_not_written() {
    let mut hole = checkpoint();
    hole.groups[1].segments[0].first_index = RaftIndex::new(12);
    assert_eq!(hole.check(), Err("segments do not follow one another"));
    let mut short = checkpoint();
    short.groups[1].flushed.index = RaftIndex::new(21);
    assert_eq!(short.check(), Err("segments do not reach the flushed entry"));
    let mut endless = checkpoint();
    endless.groups[1].segments[0].last_index = RaftIndex::MAX;
    assert_eq!(endless.check(), Err("segments go beyond the flushed entry"));
    endless.groups[1].flushed.index = RaftIndex::MAX;
    assert_eq!(endless.check(), Err("the flushed entry is beyond the last index or offset"));
    let mut twice = checkpoint();
    twice.removed[0].id = GroupId(7);
    assert_eq!(twice.check(), Err("a group is both present and removed"));
}

#[test]
fn kept_entries_that_do_not_add_up_are_not_written() {
    let wrong = |change: fn(&mut GroupState)| {
        let mut group = by_snapshot();
        change(&mut group);
        group.check(group.kept.iter())
    };
    assert_eq!(wrong(|_| {}), Ok(()));
    let hole = wrong(|group| group.kept[1].entry.index = RaftIndex::new(7));
    assert_eq!(hole, Err("kept entries do not follow the flushed entry"));
    assert_eq!(wrong(|group| group.kept[1].entry.term = Term(1)), Err("kept entries do not follow the flushed entry"));
    assert_eq!(wrong(|group| group.kept[1].base_offset = 1), Err("kept entries do not follow the flushed entry"));
    assert_eq!(wrong(|group| group.kept[1].start = LogPos(150)), Err("kept entries' positions do not ascend"));
    assert_eq!(wrong(|group| group.replay_from = LogPos(200)), Err("a kept entry would also be replayed"));
    let mut other = checkpoint();
    other.groups[1].kept = by_snapshot().kept;
    assert_eq!(other.check(), Err("kept entries do not follow the flushed entry"));
}
