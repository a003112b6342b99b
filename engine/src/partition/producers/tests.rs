use std::collections::BTreeMap;

use fastrand::Rng;
use net::records::batch::BatchHeader;

use crate::partition::{
    errors::PartitionError,
    producers::{Producers, RestoreError, Verdict},
};
use types::RaftIndex;

fn header(producer_id: i64, epoch: i16, sequence: i32, count: i32) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        byte_count: 100,
        partition_leader_epoch: -1,
        crc: 0,
        attributes: 0,
        last_offset_delta: count - 1,
        base_timestamp: 0,
        max_timestamp: 0,
        producer_id,
        producer_epoch: epoch,
        base_sequence: sequence,
        record_count: count,
    }
}

/// Producers of a log whose entry `n` has timestamp `n` and whose records have rising offsets.
#[derive(Default)]
struct Log {
    producers: Producers,
    index: RaftIndex,
    end: u64,
}

impl Log {
    fn write(&mut self, id: i64, epoch: i16, sequence: i32, count: i32) -> RaftIndex {
        self.index = self.index.next();
        self.producers.append(self.index, &header(id, epoch, sequence, count), self.end, self.index.get() as i64);
        self.end += count as u64;
        self.producers.check_invariants();
        self.index
    }
}

/// Epoch, sequence, count.
type Batch = (i16, i32, i32);
/// Name, earlier batches, the batch, the verdict.
type Row = (&'static str, &'static [Batch], Batch, &'static str);

#[test]
fn verdicts() {
    const MAX: i32 = i32::MAX;
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("unknown, from 0",                 &[],                        (0, 0, 1),       "new"),
        ("unknown, from anywhere: KIP-360", &[],                        (3, 77, 1),      "new"),
        ("next",                            &[(0, 0, 3)],               (0, 3, 1),       "new"),
        ("gap",                             &[(0, 0, 3)],               (0, 4, 1),       "out of order: 3"),
        ("again",                           &[(0, 0, 3)],               (0, 0, 3),       "duplicate of 0"),
        ("again, cut otherwise",            &[(0, 0, 3)],               (0, 0, 2),       "out of order: 3"),
        ("again, the one before the last",  &[(0, 0, 3), (0, 3, 1)],    (0, 0, 3),       "duplicate of 0"),
        ("older epoch",                     &[(5, 0, 3)],               (4, 3, 1),       "fenced by 5"),
        ("older epoch, same sequences",     &[(5, 0, 3)],               (4, 0, 3),       "fenced by 5"),
        ("new epoch from 0",                &[(5, 0, 3)],               (6, 0, 1),       "new"),
        ("new epoch, much newer",           &[(5, 0, 3)],               (600, 0, 1),     "new"),
        ("new epoch goes on",               &[(5, 0, 3)],               (6, 3, 1),       "out of order: 0"),
        ("new epoch forgets the old",       &[(5, 0, 3), (6, 0, 1)],    (6, 3, 1),       "out of order: 1"),
        ("same sequences in a new epoch",   &[(5, 0, 3), (6, 0, 3)],    (6, 0, 3),       "duplicate of 1"),
        ("wraps between batches",           &[(0, MAX, 1)],             (0, 0, 1),       "new"),
        ("wraps, gap",                      &[(0, MAX, 1)],             (0, 1, 1),       "out of order: 0"),
        ("wraps within a batch",            &[(0, MAX - 1, 3)],         (0, 1, 1),       "new"),
        ("wrapped, again",                  &[(0, MAX - 1, 3)],         (0, MAX - 1, 3), "duplicate of 0"),
        ("fifth last, again",               &[(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1)],
                                                                        (0, 0, 1),       "duplicate of 0"),
        ("sixth last, again",               &[(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (0, 5, 1)],
                                                                        (0, 0, 1),       "out of order: 6"),
    ];
    for (name, written, (epoch, sequence, count), want) in rows {
        // The verdict must not depend on how much is committed.
        for committed in 0..=written.len() as u64 {
            let mut log = Log::default();
            for &(epoch, sequence, count) in *written {
                log.write(7, epoch, sequence, count);
            }
            log.producers.commit_to(RaftIndex::new(committed));
            log.producers.check_invariants();
            let got = match log.producers.check(7, *epoch, *sequence, *count) {
                Verdict::New => "new".to_owned(),
                Verdict::Duplicate(original) => format!("duplicate of {}", original.index.prev()),
                Verdict::OutOfOrder { expected, got } => {
                    assert_eq!(got, *sequence);
                    format!("out of order: {expected}")
                }
                Verdict::Fenced { current_epoch } => format!("fenced by {current_epoch}"),
            };
            assert_eq!(got, *want, "{name}, {committed} committed");
            assert_eq!(log.producers.check(8, *epoch, *sequence, *count), Verdict::New, "another producer");
        }
    }
}

#[test]
fn a_duplicate_names_its_original_until_it_is_truncated() {
    let mut log = Log::default();
    log.write(1, 0, 0, 10);
    let index = log.write(1, 0, 10, 5);
    log.producers.commit_to(RaftIndex::new(1));
    let Verdict::Duplicate(original) = log.producers.check(1, 0, 10, 5) else { panic!("it was written") };
    assert_eq!((original.base_offset, original.last_offset, original.timestamp, original.index), (10, 14, 2, index));
    log.producers.truncate_from(index);
    assert_eq!(log.producers.check(1, 0, 10, 5), Verdict::New);
    assert!(matches!(log.producers.check(1, 0, 0, 10), Verdict::Duplicate(_)));
}

#[test]
fn a_truncation_brings_back_the_old_epoch() {
    let mut log = Log::default();
    log.write(1, 0, 0, 1);
    log.producers.commit_to(RaftIndex::new(1));
    log.write(1, 1, 0, 1);
    assert_eq!(log.producers.check(1, 0, 1, 1), Verdict::Fenced { current_epoch: 1 });
    log.producers.truncate_from(RaftIndex::new(2));
    log.producers.check_invariants();
    assert_eq!(log.producers.check(1, 0, 1, 1), Verdict::New);
}

#[test]
#[should_panic(expected = "what is committed is never truncated")]
fn committed_batches_are_not_truncated() {
    let mut log = Log::default();
    log.write(1, 0, 0, 1);
    log.producers.commit_to(RaftIndex::new(1));
    log.producers.truncate_from(RaftIndex::new(1));
}

#[test]
fn a_verdict_that_rejects_has_an_error() {
    assert_eq!(Verdict::New.refusal(), None);
    assert_eq!(Verdict::OutOfOrder { expected: 1, got: 2 }.refusal(), Some(PartitionError::OutOfSequence));
    assert_eq!(Verdict::Fenced { current_epoch: 1 }.refusal(), Some(PartitionError::ProducerFenced));
}

#[test]
fn batches_without_a_producer_leave_no_trace() {
    let mut log = Log::default();
    log.write(-1, -1, -1, 3);
    assert!(log.producers.is_empty());
}

#[test]
fn expiry_counts_from_the_last_batch_and_spares_the_uncommitted() {
    let mut log = Log::default();
    log.write(1, 0, 0, 1); // timestamp 1
    log.write(2, 0, 0, 1);
    log.write(3, 0, 0, 1);
    log.producers.commit_to(RaftIndex::new(2));
    assert_eq!(log.producers.expire(10, 10), 0);
    assert_eq!(log.producers.expire(11, 10), 1);
    assert_eq!(log.producers.len(), 2);
    assert_eq!(log.producers.expire(1000, 10), 1, "the third is not committed");
    assert!(matches!(log.producers.check(3, 0, 0, 1), Verdict::Duplicate(_)));
    assert_eq!(log.producers.check(1, 0, 5, 1), Verdict::New, "it goes on as if unknown");
    log.producers.check_invariants();
}

#[test]
fn a_full_partition_forgets_who_wrote_least_recently() {
    let mut log = Log { producers: Producers::with_max(32), ..Log::default() };
    for id in 0..32 {
        log.write(id, 0, 0, 1);
    }
    log.write(0, 0, 1, 1);
    log.producers.commit_to(log.index);
    assert_eq!(log.producers.len(), 32);
    let index = log.write(99, 0, 0, 1);
    log.producers.commit_to(RaftIndex::new(index.get()));
    log.producers.check_invariants();
    let forgotten: Vec<i64> = (0..32).filter(|&id| log.producers.check(id, 0, 9, 1) == Verdict::New).collect();
    assert_eq!(forgotten, [1, 2, 3], "one too many, and a sixteenth of 32 for room");
    assert!(matches!(log.producers.check(99, 0, 0, 1), Verdict::Duplicate(_)));
}

#[test]
fn golden_bytes() {
    let mut log = Log::default();
    log.write(0x0102, 3, i32::MAX, 2);
    log.producers.commit_to(RaftIndex::new(9));
    log.index = RaftIndex::new(9);
    log.write(5, 0, 0, 1);
    let (index, blob) = log.producers.snapshot_at_commit();
    assert_eq!(index, RaftIndex::new(9));
    #[rustfmt::skip]
    let golden: &[u8] = &[
        0xf3, 0x34, 0x0c, 0x47, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
        2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0,
        0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(&blob[..], golden);
    let restored = Producers::restore(golden).unwrap();
    assert_eq!(restored.snapshot_at_commit(), (RaftIndex::new(9), blob));
    assert!(
        matches!(restored.check(0x0102, 3, i32::MAX, 2), Verdict::Duplicate(original) if original.last_offset == 1)
    );
}

#[test]
fn damaged_blobs_are_refused() {
    let mut log = Log::default();
    for sequence in 0..4 {
        log.write(1, 0, sequence, 1);
        log.write(2, 0, sequence, 1);
    }
    log.producers.commit_to(RaftIndex::new(8));
    let (_, blob) = log.producers.snapshot_at_commit();
    for at in 0..blob.len() {
        let mut bad = blob.to_vec();
        bad[at] ^= 0x10;
        assert!(matches!(Producers::restore(&bad), Err(RestoreError::Crc { .. })), "byte {at}");
    }
    // With a correct CRC, the other checks must still reject the bytes.
    let resealed = |bad: &mut [u8]| {
        let crc = crc32c::crc32c(&bad[4..]).to_le_bytes();
        bad[..4].copy_from_slice(&crc);
    };
    for cut in 0..blob.len() {
        let mut bad = blob[..cut].to_vec();
        if cut >= 4 {
            resealed(&mut bad);
        }
        assert_eq!(Producers::restore(&bad).unwrap_err(), RestoreError::Short { bytes: cut });
    }
    let with = |at: usize, byte: u8| {
        let mut bad = blob.to_vec();
        bad[at] = byte;
        resealed(&mut bad);
        Producers::restore(&bad).unwrap_err()
    };
    assert_eq!(with(4, 2), RestoreError::Version { version: 2 });
    assert_eq!(with(30, 0), RestoreError::Producer { producer_id: 1 });
    assert_eq!(with(30, 6), RestoreError::Producer { producer_id: 1 });
    assert_eq!(with(8, 3), RestoreError::Producer { producer_id: 1 }, "a batch above the committed index");
    assert_eq!(with(19, 0xff), RestoreError::Short { bytes: blob.len() });
    let mut long = blob.to_vec();
    long.push(0);
    resealed(&mut long);
    assert_eq!(Producers::restore(&long).unwrap_err(), RestoreError::Trailing { bytes: 1 });
}

/// Index, producer id, epoch, first sequence, number of records.
type Logged = (u64, i64, i16, i32, i32);

/// A second implementation of the rules, over the plain list of everything written.
#[derive(Default)]
struct Model {
    log: Vec<Logged>,
    committed: u64,
}

impl Model {
    fn check(&self, id: i64, epoch: i16, sequence: i32, count: i32) -> &'static str {
        let mine: Vec<_> = self.log.iter().filter(|entry| entry.1 == id).collect();
        let Some(last) = mine.last() else { return "new" };
        if epoch < last.2 {
            return "fenced";
        }
        if epoch > last.2 {
            return if sequence == 0 { "new" } else { "out of order" };
        }
        let recent = mine.iter().rev().take_while(|entry| entry.2 == epoch).take(5);
        if recent.into_iter().any(|entry| (entry.3, entry.4) == (sequence, count)) {
            return "duplicate";
        }
        let next = (i64::from(last.3) + i64::from(last.4)) % (1 << 31);
        if i64::from(sequence) == next { "new" } else { "out of order" }
    }
}

/// Both implementations, with the same log.
#[derive(Default)]
struct Both {
    producers: Producers,
    model: Model,
    /// The last entry's.
    index: u64,
    seen: BTreeMap<&'static str, u32>,
}

impl Both {
    /// Checks a batch of a random producer, which often goes on where it stopped or repeats itself, and appends it if
    /// it is new.
    fn write(&mut self, rng: &mut Rng, step: &str) {
        let Self { producers, model, index, seen } = self;
        let id = rng.i64(0..4);
        let known = model.log.iter().rev().filter(|entry| entry.1 == id).collect::<Vec<_>>();
        let epoch = known.first().map_or(0, |last| last.2) + if rng.u32(..12) == 0 { rng.i16(-1..=1) } else { 0 };
        let near_wrap = i32::MAX - rng.i32(0..10);
        let (sequence, count) = match (rng.u32(..4), known.is_empty()) {
            (_, true) => ([0, near_wrap][rng.usize(..2)], rng.i32(1..4)),
            (0, false) => (rng.i32(0..8), rng.i32(1..4)),
            (1, false) => {
                let old = known[rng.usize(..known.len().min(7))];
                (old.3, old.4)
            }
            (_, false) => (known[0].3.wrapping_add(known[0].4) & i32::MAX, rng.i32(1..4)),
        };
        if epoch < 0 {
            return;
        }
        let verdict = match producers.check(id, epoch, sequence, count) {
            Verdict::New => "new",
            Verdict::Duplicate(original) => {
                let same = |row: &&Logged| (row.1, row.2, row.3, row.4) == (id, epoch, sequence, count);
                let entry = model.log.iter().rfind(same).map(|entry| entry.0);
                assert_eq!(entry, Some(original.index.get()), "{step}");
                "duplicate"
            }
            Verdict::OutOfOrder { .. } => "out of order",
            Verdict::Fenced { .. } => "fenced",
        };
        assert_eq!(verdict, model.check(id, epoch, sequence, count), "{step}");
        *seen.entry(verdict).or_default() += 1;
        if verdict == "new" {
            *index += rng.u64(1..3);
            producers.append(RaftIndex::new(*index), &header(id, epoch, sequence, count), *index * 10, 0);
            model.log.push((*index, id, epoch, sequence, count));
        }
    }

    /// A restart: the checkpoint, then the log from anywhere at or before it.
    fn restart(&mut self, rng: &mut Rng, step: &str) {
        let (at, blob) = self.producers.snapshot_at_commit();
        self.producers = Producers::restore(&blob).unwrap();
        assert_eq!(self.producers.snapshot_at_commit(), (at, blob), "{step}");
        let from = rng.u64(0..=at.get());
        for &(index, id, epoch, sequence, count) in self.model.log.iter().filter(|entry| entry.0 > from) {
            self.producers.append(RaftIndex::new(index), &header(id, epoch, sequence, count), index * 10, 0);
        }
    }
}

#[test]
fn agrees_with_the_plain_model() {
    for seed in 0..300 {
        let (mut rng, mut both) = (Rng::with_seed(seed), Both::default());
        for step in 0..300 {
            let step = format!("seed {seed} step {step}");
            match rng.u32(..100) {
                0..80 => both.write(&mut rng, &step),
                80..90 => {
                    both.model.committed = rng.u64(both.model.committed..=both.index);
                    both.producers.commit_to(RaftIndex::new(both.model.committed));
                }
                90..95 => {
                    let from = rng.u64(both.model.committed + 1..=both.index + 1);
                    both.producers.truncate_from(RaftIndex::new(from));
                    both.model.log.retain(|entry| entry.0 < from);
                    both.index = from - 1;
                }
                _ => both.restart(&mut rng, &step),
            }
            both.producers.check_invariants();
        }
        assert!(both.seen.get("new") > Some(&20), "seed {seed}: {:?}", both.seen);
    }
}

#[test]
fn a_state_as_of_an_entry_and_what_follows_it_make_the_whole_state() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let mut log = Log::default();
        let mut written = Vec::new();
        let mut last: BTreeMap<i64, (i16, i32)> = BTreeMap::new();
        for _ in 0..rng.usize(1..60) {
            let id = rng.i64(0..6);
            let (epoch, next) = last.get(&id).copied().unwrap_or((0, 0));
            let (epoch, next) = if rng.u32(..8) == 0 { (epoch + 1, 0) } else { (epoch, next) };
            let count = rng.i32(1..4);
            let base_offset = log.end;
            let index = log.write(id, epoch, next, count);
            written.push((index, header(id, epoch, next, count), base_offset));
            last.insert(id, (epoch, next + count));
        }
        log.producers.commit_to(log.index);
        let at = RaftIndex::new(rng.u64(0..=log.index.get()));
        let mut other = Producers::restore(&log.producers.snapshot_at(at, usize::MAX)).unwrap();
        assert_eq!(other.committed_index(), at);
        for (index, header, base_offset) in &written {
            other.append(*index, header, *base_offset, index.get() as i64);
        }
        other.commit_to(log.index);
        assert_eq!(other.snapshot_at_commit(), log.producers.snapshot_at_commit(), "seed {seed}, as of {at}");
    }
}

#[test]
fn a_state_with_little_room_leaves_out_who_wrote_least_recently() {
    let mut log = Log::default();
    for id in 0..10 {
        log.write(id, 0, 0, 1);
    }
    log.producers.commit_to(log.index);
    let whole = log.producers.snapshot_at(log.index, usize::MAX);
    let few = log.producers.snapshot_at(log.index, whole.len() - 1);
    let restored = Producers::restore(&few).unwrap();
    assert_eq!(restored.len(), 9);
    assert_eq!(restored.check(0, 0, 7, 1), Verdict::New, "it is not known any more");
    assert!(matches!(restored.check(9, 0, 0, 1), Verdict::Duplicate(_)));
    assert_eq!(Producers::restore(&log.producers.snapshot_at(log.index, 0)).unwrap().len(), 0);
}
