//! Batches in memory have a bound: unflushed batches make appends wait long before the ring is full.

use crate::{
    carried::{append, stage},
    harness::{block_on, config, dirs, fresh_disk},
    kept::{make_missing, run},
    model::Shared,
    verify::read_everything,
};
use wal::{
    disk::sim::SimDisk,
    ring::RingConfig,
    store::{Admission, Store, StoreConfig},
};

const BATCH: usize = 8 << 10;
const RING_BYTES: u64 = 4 << 20;

fn opened(disk: &SimDisk, model: &Shared) -> Store<SimDisk> {
    let ring = Some(RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(RING_BYTES) });
    // No flush starts by itself.
    let config = StoreConfig {
        ring_bytes: RING_BYTES,
        ring,
        flush_trigger_bytes: 3 << 20,
        carried_bytes: 0,
        cache_bytes: 160 << 10,
        ..config()
    };
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config)).expect("opened");
    make_missing(&store, model, 2);
    store
}

#[test]
fn appends_wait_for_a_flush_when_memory_is_full() {
    let (disk, model) = (fresh_disk(1), Shared::default());
    let store = opened(&disk, &model);
    run(1, &disk, &store, &model, async {
        let mut appended = 0;
        while store.admit(BATCH) == Admission::Ok {
            append(&store, &model, 1 + appended % 2, BATCH).await;
            appended += 1;
        }
        // 256 KiB hold 32 batches; ring blocks and the cost per entry count too.
        assert!((16..=32).contains(&appended), "{appended} batches in memory");
        assert!(store.room(BATCH) < BATCH, "nor do other leaders' entries find room");
        // The request itself triggers a flush, which then wakes the waiting task.
        store.space_freed().await;
        assert_eq!(store.admit(BATCH), Admission::Ok);
        assert_eq!(store.stats().flushes, 1);
        for _ in 0..200 {
            while store.admit(BATCH) == Admission::Wait {
                store.space_freed().await;
            }
            append(&store, &model, 1, BATCH).await;
        }
    });
    store.check();
    block_on(read_everything(&store, &model)).expect("all of it");
}

/// More than a cache that is full leaves of the memory, and more than all of the memory.
const LARGE: usize = 240 << 10;
const HUGE: usize = 400 << 10;

/// Fills the cache, with batches that are flushed.
async fn warm_up(store: &Store<SimDisk>, model: &Shared, bytes: usize) {
    for _ in 0..(192 << 10) / bytes {
        append(store, model, 1, bytes).await;
    }
    store.flush_now().await.expect("flushed");
    let cached = store.stats().cached_bytes;
    assert!((128 << 10..=160 << 10).contains(&cached), "{cached} bytes are cached");
}

#[test]
fn a_cache_that_is_full_makes_room_for_a_batch_of_any_size() {
    for (large, small) in [(LARGE, BATCH), (HUGE, BATCH), (LARGE, 200)] {
        let (disk, model) = (fresh_disk(2), Shared::default());
        let store = opened(&disk, &model);
        run(2, &disk, &store, &model, async {
            warm_up(&store, &model, small).await;
            assert_eq!(store.admit(large), Admission::Ok, "{large} bytes behind batches of {small}");
            append(&store, &model, 2, large).await;
            store.flush_now().await.expect("flushed");
            // Another leader's entry.
            warm_up(&store, &model, small).await;
            assert!(store.room(large) >= large, "{large} bytes behind batches of {small}");
            append(&store, &model, 2, large).await;
        });
        store.check();
        block_on(read_everything(&store, &model)).expect("all of it");
    }
}

#[test]
fn the_cache_gives_up_no_more_than_a_batch_needs() {
    let (disk, model) = (fresh_disk(3), Shared::default());
    let store = opened(&disk, &model);
    run(3, &disk, &store, &model, async {
        warm_up(&store, &model, BATCH).await;
        let before = store.stats().cached_bytes;
        assert_eq!(store.admit(64 << 10), Admission::Ok);
        assert_eq!(store.stats().cached_bytes, before, "there was room");
        assert_eq!(store.admit(160 << 10), Admission::Ok);
        let left = store.stats().cached_bytes;
        assert!((80 << 10..=96 << 10).contains(&left), "{left} of {before} bytes are left");
    });
}

#[test]
fn an_append_that_waits_for_what_is_not_durable_yet_is_woken() {
    let (disk, model) = (fresh_disk(4), Shared::default());
    let store = opened(&disk, &model);
    run(4, &disk, &store, &model, async {
        store.flush_now().await.expect("flushed");
        // Staged, and not written while nothing is awaited. No flush is due for so little.
        for _ in 0..12 {
            stage(&store, &model, 1, BATCH);
        }
        let wanted = LARGE;
        assert_eq!(store.admit(wanted), Admission::Wait);
        while store.admit(wanted) == Admission::Wait {
            store.space_freed().await;
        }
        append(&store, &model, 2, wanted).await;
    });
    store.check();
    block_on(read_everything(&store, &model)).expect("all of it");
}

/// The ring has room for small entries, and none of the batches in it is to be flushed yet.
#[test]
fn an_entry_that_finds_too_little_room_in_the_ring_causes_a_flush() {
    const ENTRY: usize = 56 << 10;
    let (disk, model) = (fresh_disk(5), Shared::default());
    let ring = RingConfig { ring_id: Some(7), ..RingConfig::of_bytes_for(256 << 10, ENTRY) };
    let config = StoreConfig {
        ring: Some(ring),
        flush_trigger_bytes: 200 << 10,
        memory_bytes: 4 << 20,
        carried_bytes: 0,
        ..config()
    };
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config)).expect("opened");
    make_missing(&store, &model, 2);
    run(5, &disk, &store, &model, async {
        for _ in 0..3 {
            append(&store, &model, 1, 24 << 10).await;
        }
        let room = store.room(ENTRY);
        assert!((BATCH..ENTRY).contains(&room), "{room} bytes");
        assert_eq!(store.admit(BATCH), Admission::Ok);
        store.space_freed().await;
        assert!(store.room(ENTRY) >= ENTRY);
        append(&store, &model, 2, ENTRY).await;
    });
    store.check();
    block_on(read_everything(&store, &model)).expect("all of it");
}
