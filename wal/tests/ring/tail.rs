//! The ring's end after a crash: torn anywhere, zeroed, or over an earlier lap. Damage must never be mistaken for it.

use crate::harness::{DIR, SEGMENT, Said, close, disk, entry, file, open, opened, opened_from, refused, said, write};
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    buf::BLOCK,
    disk::sim::{SECTOR, SimDisk},
    record::{Entry, Span},
    store::{LogPos, OpenError},
};

/// A payload whose write covers all sectors of exactly one block.
const FILLS_A_BLOCK: usize = BLOCK - 96 - 88 - 16;

fn found(disk: &SimDisk) -> Vec<Said> {
    opened(disk).1.records.iter().map(said).collect()
}

/// A disk with two acknowledged records and a third whose write, of one block, is in flight; and the three records.
fn write_under_way(laps: u64) -> (SimDisk, Vec<Said>) {
    let disk = disk(9);
    let (journal, _) = opened(&disk);
    // Bytes of earlier laps, below everything that follows.
    for index in 0..laps * 32 {
        write(index, &journal, &[vec![entry(index, vec![0xee; FILLS_A_BLOCK])]]);
        journal.release_below(journal.durable());
    }
    let first = 1_000;
    let records: Vec<Said> = (first..first + 3).map(|index| entry(index, vec![index as u8; FILLS_A_BLOCK])).collect();
    write(1, &journal, &[vec![records[0].clone()], vec![records[1].clone()]]);
    assert!(journal.poisoned().is_none());
    disk.stop_after(2);
    write(2, &journal, &[vec![records[2].clone()]]);
    (disk, records)
}

/// The third record's bytes on the disk, their place, and a disk without them.
fn under_way(disk: &SimDisk) -> (u32, usize, Vec<u8>, SimDisk) {
    let slot = (0..4).find(|slot| !disk.unsynced_sectors(&file(*slot)).is_empty()).expect("a write is under way");
    let sectors = disk.unsynced_sectors(&file(slot));
    let at = sectors[0] as usize * SECTOR;
    assert_eq!(sectors.len() * SECTOR, BLOCK);
    let bytes = disk.crash_with(|_, _, versions| versions, |_| true).bytes(&file(slot))[at..at + BLOCK].to_vec();
    (slot, at, bytes, disk.crash_with(|_, _, _| 0, |_| true))
}

fn ends_with(found: &[Said], records: &[Said]) -> bool {
    found.len() >= records.len() && found[found.len() - records.len()..] == *records
}

#[test]
fn a_crash_at_any_byte_of_a_write_loses_that_write_at_most() {
    for laps in [0, 2] {
        let (disk, records) = write_under_way(laps);
        let (slot, at, bytes, before) = under_way(&disk);
        let old = before.bytes(&file(slot))[at..at + BLOCK].to_vec();
        let content = 96 + 88 + 15 + FILLS_A_BLOCK;
        let whole = (0..=content).find(|end| bytes[*end..content] == old[*end..content]).expect("the end at last");
        for end in 0..=BLOCK {
            if end > 0 {
                before.patch(&file(slot), at + end - 1, &bytes[end - 1..end]);
            }
            let found = found(&before);
            let expected = if end >= whole { &records[..] } else { &records[..2] };
            assert!(ends_with(&found, expected), "after {laps} laps, {end} bytes of the write");
            assert!(laps > 0 || found.len() == expected.len());
        }
    }
}

#[test]
fn a_write_of_which_any_sectors_are_there_is_whole_or_cut() {
    for laps in [0, 2] {
        let (disk, records) = write_under_way(laps);
        let (slot, ..) = under_way(&disk);
        let sectors = disk.unsynced_sectors(&file(slot));
        for kept in 0u32..256 {
            let kept_at =
                |sector: u64| kept & (1 << sectors.iter().position(|at| *at == sector).expect("of the write")) != 0;
            let crashed = disk.crash_with(|_, sector, versions| if kept_at(sector) { versions } else { 0 }, |_| true);
            let found = found(&crashed);
            let expected = if kept == 255 { &records[..] } else { &records[..2] };
            assert!(ends_with(&found, expected), "after {laps} laps, sectors {kept:08b}");
        }
    }
}

#[test]
fn the_ring_goes_on_behind_a_torn_write() {
    let (disk, records) = write_under_way(0);
    let (slot, at, bytes, torn) = under_way(&disk);
    torn.patch(&file(slot), at, &bytes[..BLOCK / 2]);
    let (journal, recovered) = opened(&torn);
    assert_eq!((recovered.records.len(), recovered.torn_bytes, recovered.clean), (2, BLOCK as u64, false));
    let next = entry(1_002, &b"instead"[..]);
    write(1, &journal, &[vec![next.clone()]]);
    drop(journal);
    assert_eq!(found(&torn.crash()), [records[0].clone(), records[1].clone(), next]);
}

/// The ring was full to its end, and one segment was released. The next write lands on the formerly oldest segment,
/// and nothing else on the disk records its release yet.
#[test]
fn a_write_torn_over_a_segment_that_was_just_released_is_cut() {
    let disk = disk(11);
    let (journal, _) = opened(&disk);
    let mut records = Vec::new();
    for index in 1..=31 {
        records.push(entry(index, vec![index as u8; FILLS_A_BLOCK]));
        write(index, &journal, &[vec![records[index as usize - 1].clone()]]);
    }
    assert!(journal.append(GroupId(7), HardState::default(), &large()).is_err(), "the ring is full");
    let released = LogPos(SEGMENT);
    journal.release_below(released);
    // One record goes into the last block, which need not be reserved for the clean mark any more.
    records.push(entry(32, vec![32; FILLS_A_BLOCK]));
    records.push(entry(33, vec![33; FILLS_A_BLOCK]));
    disk.stop_after(4);
    write(32, &journal, &[records[31..].to_vec()]);
    let mut ambiguous = false;
    for kept in 0u32..1 << 8 {
        let mut nth = 0;
        let crashed = disk.crash_with(
            |_, _, versions| {
                nth += 1;
                if kept & (1 << ((nth - 1) % 8)) != 0 { versions } else { 0 }
            },
            |_| true,
        );
        ambiguous |= open(&crashed).is_err();
        let (_, found) = opened_from(&crashed, released);
        let found: Vec<Said> = found.records.iter().map(said).collect();
        let expected = if kept == 255 { &records[8..] } else { &records[8..32] };
        assert!(found == expected, "sectors {kept:08b}: {} records", found.len());
    }
    assert!(ambiguous, "the ring alone can't tell this from damage");
}

fn large() -> Entry {
    let span = Span { base_offset: 0, count: 1, max_timestamp: 0 };
    Entry {
        index: RaftIndex::new(1),
        term: Term(1),
        entry_type: 0,
        data: Default::default(),
        payload: Some((span, vec![1; BLOCK].into())),
    }
}

#[test]
fn a_zeroed_tail_is_cut() {
    let (disk, records) = write_under_way(0);
    let (slot, at, _, _) = under_way(&disk);
    for sector in 0..BLOCK / SECTOR {
        let crashed = disk.crash_with(|_, _, versions| versions, |_| true);
        assert_eq!(found(&crashed), records);
        crashed.patch(&file(slot), at + sector * SECTOR, &vec![0; BLOCK - sector * SECTOR]);
        assert_eq!(found(&crashed), records[..2]);
    }
}

#[test]
fn bytes_of_an_earlier_lap_are_never_taken() {
    let disk = disk(3);
    let (journal, _) = opened(&disk);
    let mut earlier = None;
    for index in 0..100u64 {
        write(index, &journal, &[vec![entry(index, vec![index as u8; FILLS_A_BLOCK])]]);
        journal.release_below(journal.durable());
        if index == 40 {
            earlier = Some((0..4).map(|slot| disk.bytes(&file(slot))).collect::<Vec<_>>());
        }
        let found = found(&disk.crash());
        let last = found.len() as u64;
        let expected: Vec<Said> =
            (index + 1 - last..=index).map(|index| entry(index, vec![index as u8; FILLS_A_BLOCK])).collect();
        assert!(last > 0 && found == expected, "after record {index}");
    }
    drop(journal);
    // If the disk loses a write although it was synced, an earlier lap's bytes reappear, and that is damage.
    let earlier = earlier.expect("taken");
    let live = opened(&disk).1.records;
    let (first, second) = (&live[0], &live[1]);
    for record in [first, second] {
        let copy = disk.crash();
        let place = (record.start.0 % SEGMENT) as usize / BLOCK * BLOCK;
        let number = record.start.0 / SEGMENT;
        let header = |bytes: &[u8]| u64::from_le_bytes(bytes[32..40].try_into().expect("eight bytes"));
        let slot = (0..4u32).find(|slot| header(&copy.bytes(&file(*slot))) == number).expect("it is live");
        copy.patch(&file(slot), place, &earlier[slot as usize][place..place + BLOCK]);
        assert!(matches!(refused(&copy), OpenError::Damaged(_)));
    }
}

#[test]
fn a_flipped_bit_below_the_durable_mark_is_damage() {
    let disk = disk(4);
    let (journal, _) = opened(&disk);
    let records: Vec<Said> = (1..=3).map(|index| entry(index, vec![index as u8; 40])).collect();
    let batches: Vec<Vec<Said>> = records.iter().map(|record| vec![record.clone()]).collect();
    write(1, &journal, &batches);
    drop(journal);
    let bytes = 96 + 88 + 12 + 40;
    for at in (0..2 * BLOCK).filter(|at| at % BLOCK < bytes) {
        let copy = disk.crash();
        copy.flip(&file(0), 8 * at + at % 8);
        match refused(&copy) {
            OpenError::Damaged(what) => assert!(what.contains(DIR) && what.contains("ring-0000.seg"), "{what}"),
            other => panic!("byte {at}: {other}"),
        }
    }
    // Nothing on the disk proves that the last write was durable, until a clean shutdown does.
    for at in (2 * BLOCK..3 * BLOCK).filter(|at| at % BLOCK < bytes) {
        let copy = disk.crash();
        copy.flip(&file(0), 8 * at);
        let (_, recovered) = opened(&copy);
        assert_eq!((recovered.records.len(), recovered.torn_bytes > 0), (2, true), "byte {at}");
    }
    let (journal, _) = opened(&disk);
    close(&journal);
    drop(journal);
    assert!(opened(&disk.crash()).1.clean);
    for at in (0..3 * BLOCK).filter(|at| at % BLOCK < bytes) {
        let copy = disk.crash();
        copy.flip(&file(0), 8 * at + 3);
        assert!(matches!(refused(&copy), OpenError::Damaged(_)), "byte {at}");
    }
}

#[test]
fn files_that_are_missing_or_of_another_length_are_named() {
    let disk = disk(4);
    let (journal, _) = opened(&disk);
    write(1, &journal, &[vec![entry(1, &b"one"[..])]]);
    drop(journal);
    let gone = disk.crash();
    remove(&gone, 1);
    assert!(refused(&gone).to_string().contains("ring-0001.seg is missing"));
    let cut = disk.crash();
    truncate(&cut, 2, SEGMENT - BLOCK as u64);
    assert!(refused(&cut).to_string().contains("ring-0002.seg has 28672 bytes"));
    // The last file may never have been created.
    let last = disk.crash();
    remove(&last, 3);
    assert_eq!(open(&last).expect("it is made again").1.records.len(), 1);
}

fn remove(disk: &SimDisk, slot: u32) {
    use wal::disk::Disk;
    wal::sim_exec::block_on(1, disk.remove(&file(slot))).expect("the disk answers").expect("removed");
}

fn truncate(disk: &SimDisk, slot: u32, len: u64) {
    use wal::disk::{Disk, File, OpenMode};
    let truncated =
        wal::sim_exec::block_on(1, async { disk.open(&file(slot), OpenMode::Write).await?.truncate(len).await });
    truncated.expect("the disk answers").expect("truncated");
}
