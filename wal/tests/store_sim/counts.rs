//! The store's costs in numbers that do not depend on the machine: writes and syncs of the ring, copies of a payload.
//! The figures are in ARCHITECTURE.md, "Counts".

use crate::{
    harness::{block_on, config, fresh_disk, options, with_loops},
    life::flush,
    model::{GroupModel, Host, Shared, append},
};
use bytes::Bytes;
use std::{cell::Cell, path::Path, rc::Rc};
use types::GroupId;
use wal::{
    buf::BLOCK,
    disk::sim::{Kind, SimDisk},
    ring::RingConfig,
    store::read::Read,
    store::{LogPos, Store, StoreConfig, StoreDirs},
};

/// The most bytes that a segment's frame adds to a batch.
const FRAME_BYTES: usize = 64;

const RING_BYTES: u64 = 16 << 20;

struct World {
    disk: SimDisk,
    store: Store<SimDisk>,
    model: Shared,
    seed: u64,
    /// The end of the last staged record.
    staged: Cell<LogPos>,
}

/// A store with `logs` empty logs, groups 1, 2, …. Writes and operations are recorded from now on.
fn world(seed: u64, logs: u64) -> World {
    let disk = fresh_disk(seed);
    // One write has room for everything that is staged together here.
    let ring = RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(RING_BYTES) };
    let config = StoreConfig {
        cache_bytes: 1 << 20,
        ring_bytes: RING_BYTES,
        ring: Some(ring),
        // Flushes run only when a test asks for one.
        flush_trigger_bytes: RING_BYTES,
        ..config()
    };
    let (store, ..) = block_on(Store::open(disk.clone(), &StoreDirs::new("/data", 1, 0), 1, config)).expect("opened");
    let model: Shared = Rc::default();
    for group in (1..=logs).map(GroupId) {
        store.create_group(group, options());
        model.borrow_mut().groups.insert(group, GroupModel::default());
    }
    drop((disk.trace(), disk.writes()));
    World { disk, store, model, seed, staged: Cell::default() }
}

impl World {
    fn stage(&self, rng: &mut fastrand::Rng, group: u64) {
        self.staged.set(append(&self.store, &self.model, rng, GroupId(group)).expect("room"));
    }

    /// Runs the store's loops until everything staged is durable.
    fn make_durable(&self) {
        let host = Rc::new(Host(self.model.clone()));
        with_loops(self.seed, &self.store, host, async {
            while self.store.durable() < self.staged.get() {
                self.store.durable_past(self.store.durable()).await.expect("the ring works");
            }
        });
        self.model.borrow_mut().groups.values_mut().for_each(|model| model.commit = model.entries.len() as u64);
    }

    /// Writes and syncs of the ring, and those of everything else, since the last call.
    fn cost(&self) -> [(usize, usize); 2] {
        let mut cost = [(0, 0); 2];
        for (kind, path) in self.disk.trace() {
            let of = &mut cost[usize::from(!is_ring(&path))];
            of.0 += usize::from(kind == Kind::Write);
            of.1 += usize::from(matches!(kind, Kind::Sync | Kind::SyncDir));
        }
        cost
    }

    fn read(&self, group: u64) -> Vec<Bytes> {
        let high = self.model.borrow().groups[&GroupId(group)].high_watermark();
        match self.store.read(GroupId(group), 0, high, usize::MAX, true) {
            Read::Memory(batches) => batches.into_iter().map(|batch| batch.bytes).collect(),
            _ => panic!("it is in memory"),
        }
    }
}

fn is_ring(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ring-"))
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

fn lies_in(part: &Bytes, whole: &Bytes) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

#[test]
fn records_of_many_logs_staged_together_cost_one_ring_write_with_one_sync() {
    for seed in 0..10 {
        let world = world(seed, 20);
        let mut rng = fastrand::Rng::with_seed(seed);
        (1..=20).for_each(|group| world.stage(&mut rng, group));
        world.make_durable();
        assert_eq!(world.cost(), [(1, 1), (0, 0)], "seed {seed}");
    }
}

#[test]
fn a_batch_is_read_from_the_memory_that_the_ring_was_written_from_before_and_after_its_flush() {
    for seed in 0..10 {
        let world = world(seed, 1);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..30 {
            world.stage(&mut rng, 1);
        }
        world.make_durable();
        let written: Vec<Bytes> = world.disk.writes().into_iter().map(|(_, data)| data).collect();
        let before = world.read(1);
        assert!(before.len() > 10, "seed {seed}: {} batches", before.len());
        for batch in &before {
            assert!(written.iter().any(|write| lies_in(batch, write)), "seed {seed}: a batch is a copy");
        }
        with_loops(seed, &world.store, Rc::new(Host(world.model.clone())), flush(&world.store, &world.model));
        let place = |batch: &Bytes| batch.as_ptr_range();
        let (before, after): (Vec<_>, Vec<_>) =
            (before.iter().map(place).collect(), world.read(1).iter().map(place).collect());
        assert_eq!(before, after, "seed {seed}");
    }
}

#[test]
fn a_flush_writes_each_batch_once_from_one_more_copy() {
    for seed in 0..10 {
        let world = world(seed, 4);
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..80).for_each(|at| world.stage(&mut rng, at % 4 + 1));
        world.make_durable();
        let of_ring: Vec<Bytes> = world.disk.writes().into_iter().map(|(_, data)| data).collect();
        with_loops(seed, &world.store, Rc::new(Host(world.model.clone())), flush(&world.store, &world.model));
        let batches: Vec<Bytes> = (1..=4).flat_map(|group| world.read(group)).collect();
        let payload: usize = batches.iter().map(Bytes::len).sum();
        let writes: Vec<Bytes> =
            world.disk.writes().into_iter().filter(|(path, _)| is_segment(path)).map(|(_, data)| data).collect();
        let written: usize = writes.iter().map(Bytes::len).sum();
        // Each write is padded to whole blocks.
        let most = payload + batches.len() * FRAME_BYTES + writes.len() * BLOCK;
        assert!((payload..=most).contains(&written), "seed {seed}: {written} bytes for {payload}");
        for write in &writes {
            assert!(of_ring.iter().all(|ring| !lies_in(write, ring)), "seed {seed}: a segment from the ring's memory");
        }
    }
}
