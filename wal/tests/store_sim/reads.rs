//! Compares reads with a plain vector: from memory, from segments, and across both. Damage is reported, never served.

use crate::{
    harness::{block_on, config, fresh_disk, options, pause, with_loops},
    life::flush,
    model::{GroupModel, Host, Shared, append},
    verify::{only_segments, read_everything, read_once},
};
use std::rc::Rc;
use types::{GroupId, RaftIndex};
use wal::{
    disk::sim::{Fate, Kind, SimDisk},
    log::LogOptions,
    store::{
        Entries, Store, StoreConfig, StoreDirs,
        read::{Read, ReadError},
    },
};

const GROUP: GroupId = GroupId(1);

struct World {
    disk: SimDisk,
    store: Store<SimDisk>,
    model: Shared,
    seed: u64,
}

fn world(seed: u64, config: StoreConfig, options: LogOptions) -> World {
    let disk = fresh_disk(seed);
    let dirs = StoreDirs::new("/data", 1, 0);
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs, 1, config)).expect("opened");
    let model: Shared = Rc::default();
    store.create_group(GROUP, options);
    model.borrow_mut().groups.insert(GROUP, GroupModel::default());
    World { disk, store, model, seed }
}

impl World {
    /// Appends, makes durable and commits `count` entries.
    fn append(&self, count: usize) {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let host = Rc::new(Host(self.model.clone()));
        with_loops(self.seed, &self.store, host, async {
            for _ in 0..count {
                let pos = append(&self.store, &self.model, &mut rng, GROUP).expect("room");
                while self.store.durable() < pos {
                    self.store.durable_past(self.store.durable()).await.expect("the ring works");
                }
                self.model.borrow_mut().groups.get_mut(&GROUP).expect("the group").commit += 1;
            }
        });
    }

    fn flush(&self) {
        let host = Rc::new(Host(self.model.clone()));
        with_loops(self.seed, &self.store, host, flush(&self.store, &self.model));
    }

    fn high(&self) -> u64 {
        self.model.borrow().groups[&GROUP].high_watermark()
    }
}

#[test]
fn memory_segments_and_both_serve_every_offset_alike() {
    for seed in 0..4 {
        // Everything in memory; nothing that is flushed; a part of it.
        for cache_bytes in [1 << 20, 0, 40 << 10] {
            let world = world(seed, StoreConfig { cache_bytes, ..config() }, options());
            world.append(60);
            world.flush();
            world.append(20);
            let high = world.high();
            for from in 0..high {
                for max_bytes in [0, 3_000, 1 << 20] {
                    let next = block_on(read_once(&world.store, &world.model, GROUP, from, high, max_bytes));
                    next.unwrap_or_else(|wrong| panic!("seed {seed}, cache {cache_bytes}, offset {from}: {wrong}"));
                }
            }
            block_on(read_everything(&world.store, &world.model)).expect("all of it");
            let [hot, cold] = world.model.borrow().reads;
            assert!(hot > 0, "cache {cache_bytes}: nothing came from memory");
            assert_eq!(cold > 0, cache_bytes < 1 << 20, "cache {cache_bytes}: {cold} cold reads");
        }
    }
}

#[test]
fn batches_in_memory_are_served_without_copying() {
    let world = world(1, StoreConfig { cache_bytes: 1 << 20, ..config() }, options());
    world.append(10);
    let pick = || match world.store.read(GROUP, 0, world.high(), 1, true) {
        Read::Memory(batches) => batches[0].bytes.clone(),
        _ => panic!("it is in memory"),
    };
    assert_eq!(pick().as_ptr(), pick().as_ptr());
}

#[test]
fn memory_for_what_is_flushed_is_bounded() {
    for cache_bytes in [0, 10_000, 40 << 10, 200 << 10] {
        let world = world(3, StoreConfig { cache_bytes, ..config() }, options());
        for _ in 0..4 {
            world.append(40);
            world.flush();
            let cached = world.store.stats().cached_bytes;
            assert!(cached <= cache_bytes, "{cached} bytes are held, {cache_bytes} allowed");
        }
        assert!(world.store.stats().open_files <= config().open_files_max);
    }
}

#[test]
fn limits_and_ends_are_kept() {
    let world = world(1, config(), options());
    world.append(30);
    world.flush();
    let (store, high) = (&world.store, world.high());
    assert!(matches!(store.read(GROUP, high, high, 1, true), Read::Memory(batches) if batches.is_empty()));
    assert!(matches!(store.read(GROUP, 0, 0, 1, true), Read::Memory(batches) if batches.is_empty()));
    assert!(
        matches!(store.read(GROUP, high + 1, high, 1, true), Read::OffsetOutOfRange { start: 0, end } if end == high)
    );
    assert!(matches!(store.read(GroupId(9), 0, high, 1, true), Read::UnknownGroup));
    store.set_log_start(GROUP, 5);
    assert!(matches!(store.read(GROUP, 4, high, 1, true), Read::OffsetOutOfRange { start: 5, .. }));
    let few = match store.read(GROUP, high - 1, high, 0, false) {
        Read::Memory(batches) => batches,
        Read::Cold(read) => block_on(read).expect("readable"),
        _ => panic!("it is in the log"),
    };
    assert_eq!(few, [], "not even one batch fits");
}

#[test]
fn cold_reads_go_on_where_they_stopped_without_reading_twice() {
    let world = world(1, StoreConfig { cache_bytes: 0, read_ahead_bytes: 4 << 20, ..config() }, LogOptions::default());
    world.append(100);
    world.flush();
    let size: u64 = world.store.segment_files(GROUP).iter().map(|(_, len)| len).sum();
    let before = world.store.stats().cold_read_bytes;
    let (mut from, high) = (0, world.high());
    while let Some(next) = block_on(read_once(&world.store, &world.model, GROUP, from, high, 2_000)).expect("readable")
    {
        from = next;
    }
    let read = world.store.stats().cold_read_bytes - before;
    assert!(read <= 2 * size, "{read} bytes were read of {size}");
}

#[test]
fn a_consumer_that_goes_on_finds_its_next_read_under_way() {
    let world = world(2, StoreConfig { cache_bytes: 0, read_ahead_bytes: 8 << 20, ..config() }, LogOptions::default());
    for _ in 0..40 {
        world.append(100);
        world.flush();
    }
    let size: u64 = world.store.segment_files(GROUP).iter().map(|(_, len)| len).sum();
    let (high, max_bytes, before) = (world.high(), 1 << 20, world.store.stats().cold_read_bytes);
    let read_on = |from: u64| block_on(read_once(&world.store, &world.model, GROUP, from, high, max_bytes));
    let mut from = read_on(0).expect("readable").expect("there is more");
    let mut requests = 1;
    loop {
        // The second request of each turn submits only its read-ahead, which fails. The request after it reads by
        // itself.
        world.disk.no_fates();
        let Some(next) = read_on(from).expect("readable") else { break };
        world.disk.fates(|op| if op.kind == Kind::Read { Fate::Fail(5) } else { Fate::Go });
        let Some(next) = read_on(next).expect("it was under way") else { break };
        (from, requests) = (next, requests + 2);
    }
    assert!(requests > 4, "all was read in {requests} requests and one or two");
    let read = world.store.stats().cold_read_bytes - before;
    assert!(read <= size * 5 / 4, "{read} bytes were read of {size}");
}

#[test]
fn entries_for_a_laggard_are_read_once() {
    let world = world(4, StoreConfig { cache_bytes: 0, read_ahead_bytes: 4 << 20, ..config() }, LogOptions::default());
    for _ in 0..5 {
        world.append(200);
        world.flush();
    }
    let size: u64 = world.store.segment_files(GROUP).iter().map(|(_, len)| len).sum();
    let before = world.store.stats().cold_read_bytes;
    let (mut next, last) = (RaftIndex::FIRST, world.store.log(GROUP).expect("there is a log").last_index);
    while next <= last {
        let Entries::Cold(read) = world.store.entries(GROUP, next, last.next(), 3_000) else {
            panic!("nothing is in memory")
        };
        let entries = block_on(read).expect("readable");
        let model = world.model.borrow();
        assert_eq!(entries[..], model.groups[&GROUP].entries[next.place_from(RaftIndex::FIRST)..][..entries.len()]);
        next = next.at_place(entries.len());
    }
    let read = world.store.stats().cold_read_bytes - before;
    assert!(read <= size * 5 / 4, "{read} bytes were read of {size}");
}

#[test]
fn every_flipped_bit_in_a_segment_is_reported_or_does_not_matter() {
    let world = world(5, StoreConfig { cache_bytes: 0, read_ahead_bytes: 0, index_bytes: 0, ..config() }, options());
    world.append(25);
    world.flush();
    let (path, len) = world.store.segment_files(GROUP)[0].clone();
    let (mut reported, mut rng) = (0, fastrand::Rng::with_seed(5));
    let high = world.high();
    for _ in 0..400 {
        let bit = rng.usize(..len as usize * 8);
        world.disk.flip(&path, bit);
        // Whatever is served must be what was appended.
        let mut from = 0;
        while from < high {
            let Read::Cold(read) = world.store.read(GROUP, from, high, 4_000, true) else {
                panic!("nothing is in memory")
            };
            match block_on(read) {
                Ok(batches) => {
                    let model = world.model.borrow();
                    for batch in &batches {
                        let entry = &model.groups[&GROUP].entries[batch.index.place_from(RaftIndex::FIRST)];
                        let (span, bytes) = entry.payload.as_ref().expect("a batch");
                        assert_eq!((span.base_offset, bytes), (batch.base_offset, &batch.bytes), "bit {bit}");
                    }
                    let next = batches.last().expect("at least one").end_offset();
                    assert!(batches[0].base_offset <= from && next > from, "bit {bit}: a hole at {from}");
                    from = next;
                }
                Err(ReadError::Damaged(what)) => {
                    assert!(what.contains("group 1 at byte"), "{what}");
                    reported += 1;
                    break;
                }
                Err(other) => panic!("bit {bit}: {other}"),
            }
        }
        world.disk.flip(&path, bit);
    }
    assert!(reported > 200, "only padding may be flipped unnoticed, {reported} of 400 were reported");
}

#[test]
fn retention_drops_whole_old_segments_below_the_high_watermark() {
    let world = world(2, config(), options());
    world.append(120);
    world.flush();
    let (store, high) = (&world.store, world.high());
    let before = store.segment_files(GROUP);
    assert!(before.len() > 3, "{} segments", before.len());
    let total: u64 = before.iter().map(|(_, len)| len).sum();
    assert_eq!(store.retention(GROUP, 0, None, None, high), None);
    assert_eq!(store.retention(GROUP, 0, None, Some(total), high), None);
    let first = before[0].1;
    let start = store.retention(GROUP, 0, None, Some(total - first), high).expect("the first may go");
    assert!(before[1].0.to_string_lossy().contains(&format!("/{start:020}-")));
    assert_eq!(store.retention(GROUP, 0, None, Some(0), start - 1), None, "never above the high watermark");
    let everything = store.retention(GROUP, i64::MAX, Some(1), None, high).expect("all is old");
    assert_eq!(everything, high);
    store.set_log_start(GROUP, start);
    world.model.borrow_mut().groups.get_mut(&GROUP).expect("the group").log_start = start;
    world.flush();
    assert_eq!(store.segment_files(GROUP), before[1..]);
    only_segments(&world.disk, store).expect("the file is gone");
    block_on(read_everything(store, &world.model)).expect("the rest is there");
    let view = store.log(GROUP).expect("the group");
    assert_eq!((view.start_offset, view.next_offset), (start, high));
    // When retention asks, old entries that are still in memory are flushed first.
    world.append(1);
    assert_eq!(store.retention(GROUP, i64::MAX, Some(1), None, world.high()), Some(high));
    let flushes = store.stats().flushes;
    with_loops(9, store, Rc::new(Host(world.model.clone())), async {
        while store.log(GROUP).expect("the group").flushed_offset < world.high() {
            pause().await;
        }
    });
    assert!(store.stats().flushes <= flushes + 1);
    assert_eq!(store.retention(GROUP, i64::MAX, Some(1), None, world.high()), Some(world.high()));
    assert!(view.first_index > RaftIndex::new(1));
}

/// A caller that replays the log that created a group asks the reopened store, which has already removed the group.
#[test]
fn a_removed_group_is_remembered_after_a_restart() {
    let world = world(5, config(), options());
    world.append(3);
    assert!(!world.store.was_removed(GROUP));
    let host = Rc::new(Host(world.model.clone()));
    with_loops(world.seed, &world.store, host, async {
        let pos = world.store.remove_group(GROUP).expect("room");
        while world.store.durable() < pos {
            world.store.durable_past(world.store.durable()).await.expect("the ring works");
        }
    });
    assert!(world.store.was_removed(GROUP));
    let World { disk, store, .. } = world;
    drop(store);
    let opened = block_on(Store::open(disk, &StoreDirs::new("/data", 1, 0), 1, config()));
    let (store, groups, _) = opened.expect("opened again");
    assert!(groups.is_empty() && store.was_removed(GROUP));
}
