//! Walks the recovery table: builds a ring on the disk for each row, and checks what recovery makes of it.

use crate::harness::{EPOCH, SEGMENT, disk, entry, file};
use std::collections::BTreeSet;
use wal::{
    buf::{BLOCK, Chunk},
    disk::{
        Disk, Durability, File, OpenMode,
        sim::{SimDisk, SimFile},
    },
    ring::{
        format::{Record, WriteHeader, body_crc},
        journal::RingBody,
        recovery::{Beyond, BodyCase, HeaderCase, RecoveryError, TABLE, Verdict, recover_with},
    },
    sim_exec::block_on,
    store::LogPos,
};

const RING: u64 = 77;
/// Segments in a lap.
const LAP: u64 = 4;
const B: u64 = BLOCK as u64;

/// Four segments of eight blocks, all zero.
struct Fixture {
    disk: SimDisk,
    files: Vec<SimFile>,
}

impl Fixture {
    fn new() -> Self {
        let disk = disk(1);
        let files = block_on(1, async {
            let mut files = Vec::new();
            for slot in 0..4 {
                let file = disk.open(&file(slot), OpenMode::CreateNew).await.expect("a file");
                file.allocate(SEGMENT).await.expect("allocated");
                files.push(file);
            }
            files
        });
        Self { disk, files: files.expect("the disk answers") }
    }

    /// Writes `blocks` blocks at block `at` of the segment. The header says that everything up to block `previous` is
    /// durable. Segments and blocks count from the beginning of the second lap; segment -4 is the first segment of
    /// the first lap.
    fn write(&self, slot: u32, segment: i64, at: u64, blocks: u64, previous: u64) {
        let segment = (LAP as i64 + segment) as u64;
        let previous = LAP * 8 + previous;
        let (group, hard_state, RingBody::Entry(mut one)) = entry(segment * 8 + at, &b""[..]) else { unreachable!() };
        let fill = blocks as usize * BLOCK - 96 - 88;
        one.data = Default::default();
        one.payload.as_mut().expect("a payload").1 = vec![7; fill].into();
        let record = Record::Entry { entry: &one };
        let mut body = vec![0; record.bytes()];
        record.encode(&mut body, group, hard_state);
        let header = WriteHeader {
            ring_id: RING,
            epoch: EPOCH,
            segment,
            pos: LogPos(segment * SEGMENT + at * B),
            previous_end: LogPos(previous * B),
            durable: LogPos(previous * B),
            freed: LogPos(LAP * SEGMENT),
            length: body.len() as u32,
            count: 1,
            body_crc: body_crc(segment, &body),
            clean: false,
        };
        assert_eq!(header.write_bytes(), blocks * B);
        let mut chunk = Chunk::of(&[&header.encode()[..], &body].concat());
        chunk.pad_to_block();
        let data = chunk.frozen(0, chunk.len());
        let written = self.files[slot as usize].write(at * B, data, Durability::Synced);
        block_on(1, written).expect("the disk answers").expect("written");
    }

    fn break_body(&self, slot: u32, at: u64) {
        self.disk.patch(&file(slot), (at * B) as usize + 300, &[1]);
    }

    fn garbage(&self, slot: u32, at: u64) {
        self.disk.patch(&file(slot), (at * B) as usize, &[0xaa; BLOCK]);
    }

    fn newer(&self, slot: u32, at: u64) {
        self.write(slot, 0, at, 1, at);
        let mut header = self.disk.bytes(&file(slot))[(at * B) as usize..][..96].to_vec();
        header[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        self.disk.patch(&file(slot), (at * B) as usize, &header);
    }
}

/// Builds a ring with this case at block 1 of the second lap, or at the end of its first segment. Also returns how
/// many records recovery finds in it.
fn fixture(header: HeaderCase, body: BodyCase, beyond: Beyond) -> (Fixture, LogPos, usize) {
    let ring = Fixture::new();
    let at = match header {
        HeaderCase::NoRoom => 8,
        _ => 1,
    };
    ring.write(0, 0, 0, at, 0);
    match (header, body) {
        (HeaderCase::Ours, BodyCase::Whole) => ring.write(0, 0, 1, 1, 1),
        (HeaderCase::Ours, _) => {
            ring.write(0, 0, 1, 2, 1);
            ring.break_body(0, 1);
        }
        (HeaderCase::Zero | HeaderCase::NoRoom, _) => {}
        (HeaderCase::Other, _) => ring.write(0, -4, 1, 1, 1),
        (HeaderCase::Garbage, _) => ring.garbage(0, 1),
        (HeaderCase::Newer, _) => ring.newer(0, 1),
    }
    let (taken, body_taken) = (1, usize::from(body == BodyCase::Whole));
    let records = match beyond {
        Beyond::Nothing => taken + body_taken,
        // The next segment begins where this one ended.
        Beyond::NextBegins => {
            ring.write(2, 1, 0, 1, at);
            taken + 1
        }
        Beyond::Durable if header == HeaderCase::NoRoom => {
            ring.write(3, 2, 0, 1, 12);
            taken
        }
        Beyond::Durable if body == BodyCase::Whole => {
            ring.write(0, 0, 2, 1, 2);
            ring.write(2, 1, 0, 1, 3);
            taken + 3
        }
        Beyond::Durable => {
            ring.write(0, 0, 5, 1, 5);
            taken
        }
    };
    (ring, LogPos(LAP * SEGMENT + at * B), records)
}

#[test]
fn every_row_is_met_on_a_disk() {
    let mut names = BTreeSet::new();
    for row in &TABLE {
        let (ring, at, records) = fixture(row.header, row.body, row.beyond);
        let mut rows = Vec::new();
        let recovered =
            block_on(1, recover_with(&ring.files, SEGMENT, EPOCH, LogPos(0), |at, row| rows.push((at, row))));
        let met = rows.iter().find(|(pos, _)| *pos == at).map(|(_, row)| *row);
        assert_eq!(met, Some(row), "the fixture of {row:?}; all rows: {rows:?}");
        match (row.verdict, recovered.expect("the disk answers")) {
            (Verdict::Damaged, Err(RecoveryError::Damaged { slot, pos, what })) => {
                assert_eq!((slot, pos, what.as_str()), (0, at, row.name));
            }
            (Verdict::Newer, Err(RecoveryError::Newer { slot, found })) => assert_eq!((slot, found), (0, 2)),
            (Verdict::Damaged | Verdict::Newer, other) => panic!("{}: {other:?}", row.name),
            (verdict, Ok(found)) => {
                assert_eq!(found.records.len(), records, "{}", row.name);
                assert_eq!(found.torn_bytes > 0, verdict == Verdict::Torn, "{}", row.name);
                let last = rows.last().map(|(_, row)| *row);
                assert_eq!(last, Some(found.last), "{}", row.name);
            }
            (_, Err(error)) => panic!("{}: {error}", row.name),
        }
        assert!(names.insert(row.name), "names are told apart");
    }
}

#[test]
fn a_ring_that_never_was_is_empty() {
    let ring = Fixture::new();
    let recovered =
        block_on(1, recover_with(&ring.files, SEGMENT, EPOCH, LogPos(0), |_, _| {})).expect("the disk answers");
    let found = recovered.expect("an empty ring");
    assert!(found.records.is_empty() && found.start.live.is_empty() && found.start.next == LogPos(0));
}

fn refused(ring: &Fixture) -> String {
    let recovered =
        block_on(1, recover_with(&ring.files, SEGMENT, EPOCH, LogPos(0), |_, _| {})).expect("the disk answers");
    recovered.expect_err("damaged").to_string()
}

#[test]
fn segments_that_do_not_belong_together_are_damage() {
    let ring = Fixture::new();
    ring.write(0, 5, 0, 1, 39);
    ring.write(1, 5, 0, 1, 39);
    assert!(refused(&ring).contains("segment file 0 has the same segment number 9"));

    let ring = Fixture::new();
    ring.write(0, 1, 0, 1, 8);
    assert!(refused(&ring).contains("the beginning of segment 4 is missing"));

    let ring = Fixture::new();
    ring.write(0, 0, 0, 1, 0);
    ring.write(0, 0, 1, 1, 1);
    ring.garbage(0, 0);
    assert!(refused(&ring).contains("is missing"), "the rest of the segment is evidence");

    let ring = Fixture::new();
    ring.write(0, 0, 0, 3, 0);
    ring.write(1, 1, 0, 1, 2);
    assert!(refused(&ring).contains("segment 5 claims that the last one ends at 139264"));

    let ring = Fixture::new();
    ring.write(0, 0, 0, 1, 0);
    let recovered =
        block_on(1, recover_with(&ring.files, SEGMENT, EPOCH + 1, LogPos(0), |_, _| {})).expect("the disk answers");
    assert!(recovered.expect_err("another ring").to_string().contains("belongs to another ring"));
}
