//! Batches in memory have a bound: unflushed batches make appends wait long before the ring is full.

use crate::{
    carried::append,
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
    let config =
        StoreConfig { ring_bytes: RING_BYTES, ring, flush_trigger_bytes: 3 << 20, carried_bytes: 0, ..config() };
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
        assert!(store.room() < BATCH, "nor do other leaders' entries find room");
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
