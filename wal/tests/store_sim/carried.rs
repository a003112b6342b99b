//! Batches that checkpoints carry, of logs with few new bytes, until it is their turn to be written to files.

use crate::{
    harness::{META, block_on, config, dirs, fresh_disk},
    kept::{RING_BLOCKS, begun, durable, elections, logs, make_missing, power_cut_anywhere, run, truncate},
    model::Shared,
    verify::{only_segments, read_everything, recover},
};
use bytes::Bytes;
use std::rc::Rc;
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    disk::sim::{Fate, Kind, SimDisk},
    record::{Entry, Span},
    ring::RingConfig,
    store::read::Read,
    store::{LogPos, Store, StoreConfig},
};

/// The batches' timestamps.
const LONG_AGO: i64 = 1_000;

/// Appends a batch of `bytes` bytes. Does nothing once the disk has stopped.
pub async fn append(store: &Store<SimDisk>, model: &Shared, group: u64, bytes: usize) {
    if let Some(at) = stage(store, model, group, bytes) {
        durable(store, at).await;
    }
}

/// Stages a batch of `bytes` bytes. `None` once the disk has stopped.
pub fn stage(store: &Store<SimDisk>, model: &Shared, group: u64, bytes: usize) -> Option<LogPos> {
    let group = GroupId(group);
    let (entry, hard_state) = {
        let model = &model.borrow().groups[&group];
        let index = model.entries.len() as u64 + 1;
        let hard_state = HardState { term: model.hard_state.term.max(Term(1)), ..model.hard_state };
        let span = Span { base_offset: model.next_offset(), count: 1, max_timestamp: LONG_AGO };
        let batch: Bytes = vec![index as u8 ^ group.0 as u8; bytes].into();
        let data = vec![index as u8; 20].into();
        (
            Entry {
                index: RaftIndex::new(index),
                term: hard_state.term,
                entry_type: 0,
                data,
                payload: Some((span, batch)),
            },
            hard_state,
        )
    };
    model.borrow_mut().groups.get_mut(&group).expect("a group").hard_state = hard_state;
    let staged = store.append(group, hard_state, &entry).ok()?;
    model.borrow_mut().appended(group, entry, staged.pos);
    Some(staged.pos)
}

/// Appends a batch to each of `logs` logs, then flushes.
async fn append_to_all(store: &Store<SimDisk>, model: &Shared, logs: u64, bytes: usize) {
    for group in 1..=logs {
        append(store, model, group, bytes).await;
    }
    store.flush_now().await.expect("flushed");
}

fn crashed(disk: &SimDisk, store: Store<SimDisk>, model: &Shared) -> (SimDisk, Store<SimDisk>) {
    store.check();
    let at = store.durable();
    drop(store);
    let disk = disk.crash();
    let store = recover(&disk, model, at, false).expect("recovered");
    block_on(read_everything(&store, model)).expect("all of it");
    (disk, store)
}

#[test]
fn many_logs_with_a_batch_each_get_their_files_by_turns() {
    const LOGS: u64 = 40;
    let disk = fresh_disk(1);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, LOGS);
    run(1, &disk, &store, &model, async {
        append_to_all(&store, &model, LOGS, 60).await;
    });
    // All of them fit into a checkpoint. The ring's use has triggered a flush before.
    assert!(logs(&disk) <= 2, "{} files", logs(&disk));
    let (disk, store) = crashed(&disk, store, &model);
    let carried = store.stats().carried_bytes;
    assert!(carried >= LOGS * 150 && carried <= config().carried_bytes, "{carried} bytes are carried");
    assert_eq!(store.stats().cached_bytes, 0, "what checkpoints carry is not counted");
    run(2, &disk, &store, &model, async {
        let mut before = 0;
        for _ in 0..40 {
            store.flush_now().await.expect("flushed");
            let files = store.stats().flushed_files;
            assert!(files - before <= LOGS / 16, "{} files in one flush", files - before);
            before = files;
        }
    });
    // Some batches may stay carried for good.
    assert_eq!(logs(&disk) as u64, LOGS - 15);
    assert!(store.stats().carried_bytes < carried / 2);
    let (disk, store) = crashed(&disk, store, &model);
    only_segments(&disk, &store).expect("no other files");
}

#[test]
fn the_longest_carried_go_where_all_together_are_too_many() {
    const LOGS: u64 = 12;
    let disk = fresh_disk(2);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, LOGS);
    run(2, &disk, &store, &model, async {
        for round in 1..=10 {
            append_to_all(&store, &model, LOGS, 300).await;
            let stats = store.stats();
            assert!(stats.carried_bytes <= config().carried_bytes, "{} bytes are carried", stats.carried_bytes);
            let many = round < 3 || stats.carried_bytes > config().carried_bytes / 2;
            assert!(many, "{} bytes are carried", stats.carried_bytes);
            assert!(stats.flushed_files < round * LOGS / 2, "{} files in {round} rounds", stats.flushed_files);
        }
    });
    assert!(store.stats().flushed_files >= LOGS, "each had its turn");
    let (disk, store) = crashed(&disk, store, &model);
    only_segments(&disk, &store).expect("no other files");
}

#[test]
fn no_checkpoint_outgrows_the_space_that_is_kept_for_one() {
    const LOGS: u64 = 100;
    let disk = fresh_disk(9);
    let model: Shared = Rc::default();
    // More than the least size of the reserve.
    let ring = Some(RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(4 << 20) });
    let config =
        StoreConfig { carried_bytes: 1 << 20, ring_bytes: 4 << 20, ring, flush_trigger_bytes: 3 << 20, ..config() };
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config)).expect("opened");
    make_missing(&store, &model, LOGS);
    let length = |name: &str| disk.bytes(&dirs().core.join(name)).len();
    run(0, &disk, &store, &model, async { store.flush_now().await.expect("flushed") });
    let least = length("checkpoint.reserve");
    let carried_after = |rounds: u64| {
        for round in 0..rounds {
            run(round, &disk, &store, &model, async {
                append_to_all(&store, &model, LOGS, 3_000).await;
            });
            let (bytes, kept) = (length("checkpoint"), length("checkpoint.reserve"));
            assert!(bytes <= kept, "{bytes} bytes, and space for {kept}");
        }
        store.stats().carried_bytes
    };
    disk.fates(|op| match op.kind == Kind::Write && op.path.ends_with("checkpoint.reserve") {
        true => Fate::Fail(28),
        false => Fate::Go,
    });
    let few = carried_after(3);
    assert!(few > 100 << 10 && few < least as u64, "there is space for {least} bytes, and {few} are carried");
    assert_eq!(length("checkpoint.reserve"), least, "what there was stays");
    disk.no_fates();
    // Growing is retried later.
    run(9, &disk, &store, &model, async {
        for _ in 0..16 {
            store.flush_now().await.expect("flushed");
        }
    });
    let many = carried_after(3);
    assert!(many > 700 << 10, "{many} bytes are carried");
    crashed(&disk, store, &model);
}

#[test]
fn a_batch_that_a_checkpoint_carries_goes_when_it_is_too_old() {
    let disk = fresh_disk(3);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let group = GroupId(1);
    run(3, &disk, &store, &model, async {
        append(&store, &model, 1, 60).await;
        store.flush_now().await.expect("flushed");
        model.borrow_mut().groups.get_mut(&group).expect("a group").commit = 1;
    });
    assert_eq!(logs(&disk), 0);
    run(4, &disk, &store, &model, async {
        let asked = || store.retention(group, LONG_AGO + 11, Some(10), None, 1);
        assert_eq!(asked(), None, "no segment holds it yet");
        // The first retention request already asked for the flush.
        store.flush_now().await.expect("flushed");
        assert_eq!(asked(), Some(1));
        store.set_log_start(group, 1);
        model.borrow_mut().groups.get_mut(&group).expect("a group").log_start = 1;
        store.flush_now().await.expect("flushed");
    });
    assert_eq!(logs(&disk), 0, "its segment is gone");
    run(5, &disk, &store, &model, async {
        append(&store, &model, 1, 60).await;
        store.flush_now().await.expect("flushed");
    });
    assert_eq!(logs(&disk), 0, "the next is carried again");
    assert!(matches!(store.read(group, 0, 1, 100, true), Read::OffsetOutOfRange { start: 1, end: 2 }));
}

/// Entries are carried, truncated within and before the carried part, carried again, and flushed, with laps of the
/// ring in between.
async fn ups_and_downs(store: &Store<SimDisk>, model: &Shared, _: &mut fastrand::Rng) {
    for group in [1, 2, 3, 1, 2, 1] {
        append(store, model, group, 200).await;
    }
    elections(store, model, META, RING_BLOCKS / 2).await;
    truncate(store, model, GroupId(1), 3).await;
    append(store, model, 1, 250).await;
    let _ = store.flush_now().await;
    truncate(store, model, GroupId(2), 1).await;
    elections(store, model, META, RING_BLOCKS / 2).await;
    // Too many for one checkpoint, so the first ones are flushed.
    for group in [2, 3, 3, 2, 3] {
        append(store, model, group, 3_000).await;
    }
    let _ = store.flush_now().await;
    truncate(store, model, GroupId(1), 2).await;
    truncate(store, model, GroupId(3), 2).await;
    append(store, model, 3, 100).await;
    append(store, model, 1, 9_000).await;
    elections(store, model, META, RING_BLOCKS / 2).await;
    append(store, model, 2, 100).await;
    let _ = store.flush_now().await;
}

#[test]
fn a_power_cut_at_any_operation_finds_what_checkpoints_carry() {
    let stats = power_cut_anywhere(5, 3, ups_and_downs, async |disk, store, model| {
        append(store, model, 2, 11_000).await;
        elections(store, model, META, RING_BLOCKS / 2).await;
        store.flush_now().await.expect("flushed");
        only_segments(disk, store)
    });
    assert!(stats.carried_bytes > 0 && stats.flushed_files >= 2, "{stats:?}");
}

#[test]
fn a_store_that_carries_nothing_any_more_flushes_what_was_carried() {
    let disk = fresh_disk(7);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 3);
    run(7, &disk, &store, &model, async {
        append_to_all(&store, &model, 3, 60).await;
    });
    let at = store.durable();
    drop(store);
    let disk = disk.crash();
    recover(&disk, &model, at, false).expect("recovered");
    let none = StoreConfig { carried_bytes: 0, ..config() };
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, none)).expect("opened");
    run(8, &disk, &store, &model, async { store.flush_now().await.expect("flushed") });
    assert_eq!((logs(&disk), store.stats().carried_bytes), (3, 0));
    crashed(&disk, store, &model);
}
