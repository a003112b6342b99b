//! Entries that checkpoints carry: undecided ones of the snapshot group, which no snapshot can cover, and a few
//! without a batch of other groups. The ring can recycle their space.

use crate::{
    harness::{META, Task, block_on, config, dirs, drive, fresh_disk, options, with_loops},
    model::{Event, GroupModel, Host, Shared, app_of, append, end_offset},
    verify::{read_everything, recover},
};
use std::{cell::Cell, rc::Rc};
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    disk::sim::{Fate, Kind, SimDisk},
    record::Entry,
    store::{Admission, LogPos, OpenError, Store, StoreConfig, StoreStats},
};

const GROUP: GroupId = GroupId(1);
/// How many blocks the ring of these tests has.
pub const RING_BLOCKS: u64 = 128;

/// A store with the snapshot group and `logs` others, [`GROUP`] first.
pub fn begun(disk: &SimDisk, model: &Shared, logs: u64) -> Store<SimDisk> {
    let store = recover(disk, model, LogPos::default(), false).expect("opened");
    make_missing(&store, model, logs);
    store
}

/// Creates the groups that are missing: groups without a record may be gone.
pub fn make_missing(store: &Store<SimDisk>, model: &Shared, logs: u64) {
    for group in (META.0..=logs).map(GroupId).filter(|group| store.log(*group).is_none()) {
        store.create_group(group, options());
        model.borrow_mut().groups.insert(group, GroupModel::default());
    }
}

pub async fn durable(store: &Store<SimDisk>, at: LogPos) {
    while store.durable() < at {
        if store.durable_past(store.durable()).await.is_err() {
            return;
        }
    }
}

pub fn note(model: &Shared, group: GroupId, at: LogPos, hard_state: HardState, event: Event) {
    let mut model = model.borrow_mut();
    let group = model.groups.get_mut(&group).expect("a group");
    group.hard_state = hard_state;
    group.known = true;
    group.events.push((at, hard_state, event));
}

/// Elections without a result. Each is one write.
pub async fn elections(store: &Store<SimDisk>, model: &Shared, group: GroupId, count: u64) {
    for _ in 0..count {
        let before = model.borrow().groups[&group].hard_state;
        let hard_state = HardState { term: before.term + 1, vote: 1, ..before };
        let Ok(staged) = store.append_hard_state(group, hard_state) else {
            assert!(store.poisoned().is_some(), "the ring is full");
            return;
        };
        note(model, group, staged.pos, hard_state, Event::HardState);
        durable(store, staged.pos).await;
    }
}

async fn append_some(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng, count: u64) {
    for _ in 0..count {
        let Some(at) = append(store, model, rng, META) else { return };
        durable(store, at).await;
    }
}

pub async fn truncate(store: &Store<SimDisk>, model: &Shared, group: GroupId, from: u64) {
    let before = model.borrow().groups[&group].hard_state;
    let hard_state = HardState { term: before.term + 1, vote: 2, ..before };
    let left = from as usize - 1;
    let offset = end_offset(&model.borrow().groups[&group].entries[..left]);
    let Ok(staged) = store.truncate(group, hard_state, RaftIndex::new(from), offset) else { return };
    note(model, group, staged.pos, hard_state, Event::Truncate(from));
    model.borrow_mut().groups.get_mut(&group).expect("a group").entries.truncate(left);
    durable(store, staged.pos).await;
}

pub fn run(seed: u64, disk: &SimDisk, store: &Store<SimDisk>, model: &Shared, work: impl Future<Output = ()>) {
    let finished = Cell::new(false);
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(Rc::new(Host(model.clone()))).await;
        }),
        Box::pin(async {
            work.await;
            finished.set(true);
        }),
    ];
    drive(&mut fastrand::Rng::with_seed(seed), tasks, || finished.get() || disk.stopped());
}

#[test]
fn elections_without_end_do_not_fill_a_ring_that_an_undecided_entry_would_hold() {
    let disk = fresh_disk(1);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(1);
    run(1, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 3).await;
        elections(&store, &model, META, 5 * RING_BLOCKS).await;
        elections(&store, &model, GROUP, 5 * RING_BLOCKS).await;
    });
    assert_eq!(store.admit(1000), Admission::Ok);
    assert!(store.stats().flushes > 10, "the ring's use alone asks for flushes");
    store.check();
    let at = store.durable();
    drop(store);
    // Repeatedly, since each checkpoint must carry what the ring no longer has.
    let (mut disk, mut at) = (disk.crash(), at);
    for life in 0..3 {
        let store = recover(&disk, &model, at, false).expect("recovered");
        run(life, &disk, &store, &model, async {
            elections(&store, &model, GROUP, 2 * RING_BLOCKS).await;
            append_some(&store, &model, &mut rng, 1).await;
        });
        at = store.durable();
        drop(store);
        disk = disk.crash();
    }
    let store = recover(&disk, &model, at, false).expect("recovered");
    assert_eq!(
        store.log(META).map(|log| (log.first_index, log.last_index)),
        Some((RaftIndex::new(1), RaftIndex::new(6)))
    );
    // A quorum is back: the decided entries are in a snapshot, and no longer in a checkpoint.
    let term = model.borrow().groups[&META].entries[5].term;
    with_loops(9, &store, Rc::new(Host(model.clone())), async {
        store.write_snapshot(META, term, app_of(META, 6)).await.expect("written");
        store.flush_now().await.expect("flushed");
    });
    model.borrow_mut().groups.get_mut(&META).expect("a group").commit = 6;
    let at = store.durable();
    drop(store);
    let store = recover(&disk.crash(), &model, at, false).expect("recovered");
    assert_eq!(
        store.log(META).map(|log| (log.first_index, log.last_index)),
        Some((RaftIndex::new(7), RaftIndex::new(6)))
    );
}

/// Entries are kept, cut off, kept again, cut off within the kept part, and partly decided, with laps of the ring in
/// between.
async fn ups_and_downs(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng) {
    append_some(store, model, rng, 4).await;
    elections(store, model, GROUP, RING_BLOCKS).await;
    truncate(store, model, META, 3).await;
    append_some(store, model, rng, 2).await;
    elections(store, model, META, RING_BLOCKS / 2).await;
    truncate(store, model, META, 4).await;
    elections(store, model, GROUP, RING_BLOCKS).await;
    append_some(store, model, rng, 3).await;
    let term = model.borrow().groups[&META].entries[1].term;
    model.borrow_mut().groups.get_mut(&META).expect("a group").commit = 2;
    if store.write_snapshot(META, term, app_of(META, 2)).await.is_ok() && store.flush_now().await.is_ok() {
        model.borrow_mut().groups.get_mut(&META).expect("a group").floor_app = 2;
    }
    elections(store, model, GROUP, RING_BLOCKS).await;
    truncate(store, model, META, 3).await;
    let _ = store.flush_now().await;
    append_some(store, model, rng, 1).await;
    elections(store, model, GROUP, RING_BLOCKS).await;
}

/// Runs `work` once without a power cut, and once with a power cut at each operation of the disk. After a cut, also
/// runs `later`. Compares the store with the model after each. Returns the statistics of the life without a cut.
pub fn power_cut_anywhere(
    seed: u64,
    logs: u64,
    work: impl AsyncFn(&Store<SimDisk>, &Shared, &mut fastrand::Rng),
    later: impl AsyncFn(&SimDisk, &Store<SimDisk>, &Shared) -> Result<(), String>,
) -> StoreStats {
    let life = |disk: &SimDisk, stop_after: u64| {
        let model: Shared = Rc::default();
        let store = begun(disk, &model, logs);
        disk.stop_after(stop_after);
        let mut rng = fastrand::Rng::with_seed(seed);
        run(seed, disk, &store, &model, work(&store, &model, &mut rng));
        (model, store.durable(), store.stats())
    };
    let whole = fresh_disk(seed);
    let (model, at, stats) = life(&whole, u64::MAX >> 1);
    let store = recover(&whole.crash(), &model, at, false).expect("recovered");
    block_on(read_everything(&store, &model)).expect("all of it");
    for cut_at in 1..whole.ops() {
        let disk = fresh_disk(seed);
        let (model, at, _) = life(&disk, cut_at);
        let disk = disk.crash();
        let store = recover(&disk, &model, at, false).unwrap_or_else(|why| panic!("cut at {cut_at}: {why}"));
        make_missing(&store, &model, logs);
        run(seed + 1, &disk, &store, &model, async {
            later(&disk, &store, &model).await.unwrap_or_else(|why| panic!("cut at {cut_at}: {why}"));
        });
        let at = store.durable();
        drop(store);
        recover(&disk.crash(), &model, at, false).unwrap_or_else(|why| panic!("cut at {cut_at}, later: {why}"));
    }
    stats
}

#[test]
fn a_power_cut_at_any_operation_finds_what_is_kept() {
    power_cut_anywhere(2, 1, ups_and_downs, async |_, store, model| {
        elections(store, model, GROUP, RING_BLOCKS).await;
        Ok(())
    });
}

#[test]
fn entries_beyond_the_bound_stay_in_the_ring() {
    let disk = fresh_disk(4);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(4);
    // Some of these fit.
    run(4, &disk, &store, &model, append_some(&store, &model, &mut rng, 60));
    run(5, &disk, &store, &model, async { store.flush_now().await.expect("flushed") });
    let at = store.durable();
    drop(store);
    let disk = disk.crash();
    let store = recover(&disk, &model, at, false).expect("recovered");
    let used = store.stats().ring_used_bytes;
    run(6, &disk, &store, &model, elections(&store, &model, GROUP, RING_BLOCKS / 2));
    assert!(store.stats().ring_used_bytes >= used + RING_BLOCKS / 2 * 4096, "the ring is held as it always was");
    let at = store.durable();
    drop(store);
    recover(&disk.crash(), &model, at, false).expect("recovered");
}

#[test]
fn a_smaller_bound_does_not_let_go_of_what_was_kept() {
    let disk = fresh_disk(7);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(7);
    run(7, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 3).await;
        elections(&store, &model, GROUP, 2 * RING_BLOCKS).await;
    });
    let at = store.durable();
    drop(store);
    let disk = disk.crash();
    recover(&disk, &model, at, false).expect("recovered");
    let smaller = StoreConfig { kept_bytes: 0, ..config() };
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, smaller)).expect("opened");
    run(8, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 1).await;
        store.flush_now().await.expect("flushed");
    });
    let at = store.durable();
    drop(store);
    recover(&disk.crash(), &model, at, false).expect("recovered");
}

#[test]
fn a_snapshot_from_elsewhere_takes_the_place_of_what_was_kept() {
    let disk = fresh_disk(8);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(8);
    let app = app_of(META, 3);
    run(8, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 8).await;
        store.flush_now().await.expect("flushed");
        // The entries 1 to 3 that were decided are not ours.
        let term = model.borrow().groups[&META].hard_state.term + 1;
        let hard_state = HardState { term, vote: 0, commit: RaftIndex::new(3) };
        store.stage_snapshot(META, term, &app).await.expect("staged");
        let at = store.install_snapshot(META, hard_state, term, app.clone()).expect("room");
        durable(&store, at).await;
        // In the ring only: no checkpoint carries any of these entries.
        let entry =
            Entry { index: RaftIndex::new(4), term, entry_type: 0, data: b"after it".as_slice().into(), payload: None };
        let staged = store.append(META, hard_state, &entry).expect("room");
        store.check();
        durable(&store, staged.pos).await;
    });
    let found = |disk: &SimDisk| {
        let (_, groups, _) = block_on(Store::open(disk.clone(), &dirs(), 1, config())).expect("opened");
        let meta = groups.into_iter().find(|group| group.id == META).expect("it is there");
        assert_eq!((meta.flushed_index, &meta.app), (RaftIndex::new(3), &app));
        let tail: Vec<(RaftIndex, usize)> = meta.tail.iter().map(|entry| (entry.index, entry.data.len())).collect();
        assert_eq!(tail, [(RaftIndex::new(4), 8)]);
    };
    drop(store);
    let disk = disk.crash();
    found(&disk);
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config())).expect("opened");
    run(9, &disk, &store, &model, elections(&store, &model, META, 2 * RING_BLOCKS));
    drop(store);
    found(&disk.crash());
}

#[test]
fn a_damaged_kept_entry_is_named() {
    let disk = fresh_disk(5);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(5);
    run(5, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 3).await;
        store.flush_now().await.expect("flushed");
    });
    drop(store);
    let disk = disk.crash();
    let path = dirs().core.join("checkpoint");
    let bytes = disk.bytes(&path);
    let data =
        model.borrow().groups[&META].entries.iter().map(|entry| entry.data.clone()).max_by_key(|data| data.len());
    let data = data.filter(|data| data.len() >= 8).expect("one is long");
    let at = bytes.windows(data.len()).position(|window| window == data).expect("the checkpoint has it");
    disk.patch(&path, at, &[!data[0]]);
    let error = block_on(Store::open(disk, &dirs(), 1, config())).err().expect("refused");
    assert!(matches!(&error, OpenError::Damaged(why) if why.contains("checkpoint") && why.contains("CRC")), "{error}");
}

#[test]
fn a_checkpoint_that_finds_no_room_is_written_later_with_what_came_since() {
    let disk = fresh_disk(6);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(6);
    run(6, &disk, &store, &model, async {
        append_some(&store, &model, &mut rng, 3).await;
        let refused = Cell::new(0);
        disk.fates(move |op| {
            let is = op.kind == Kind::Write && op.path.ends_with("checkpoint.tmp") && refused.get() < 3;
            refused.set(refused.get() + u32::from(is));
            if is { Fate::Fail(28) } else { Fate::Go }
        });
        elections(&store, &model, GROUP, RING_BLOCKS / 4).await;
        truncate(&store, &model, META, 2).await;
        elections(&store, &model, GROUP, 2 * RING_BLOCKS).await;
    });
    assert_eq!(store.poisoned(), None);
    let at = store.durable();
    drop(store);
    recover(&disk.crash(), &model, at, false).expect("recovered");
}

/// Appends an entry without a batch, such as the first of a term.
async fn append_bare(store: &Store<SimDisk>, model: &Shared, group: GroupId, bytes: usize) {
    let (index, hard_state) = {
        let model = &model.borrow().groups[&group];
        (model.entries.len() as u64 + 1, model.hard_state)
    };
    let term = hard_state.term.max(Term(1));
    let entry = Entry {
        index: RaftIndex::new(index),
        term,
        entry_type: 0,
        data: vec![index as u8; bytes].into(),
        payload: None,
    };
    let hard_state = HardState { term, ..hard_state };
    model.borrow_mut().groups.get_mut(&group).expect("a group").hard_state = hard_state;
    let Ok(staged) = store.append(group, hard_state, &entry) else { return };
    model.borrow_mut().appended(group, entry, staged.pos);
    durable(store, staged.pos).await;
}

pub fn logs(disk: &SimDisk) -> usize {
    disk.files().iter().filter(|path| path.starts_with(dirs().logs)).count()
}

#[test]
fn a_log_without_a_batch_has_no_file_until_it_gets_batches() {
    let disk = fresh_disk(10);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    let mut rng = fastrand::Rng::with_seed(10);
    run(10, &disk, &store, &model, async {
        append_bare(&store, &model, GROUP, 10).await;
        elections(&store, &model, META, 3 * RING_BLOCKS).await;
        append_bare(&store, &model, GROUP, 20).await;
        elections(&store, &model, META, 3 * RING_BLOCKS).await;
    });
    assert!(store.stats().flushes > 10, "the ring's use alone asks for flushes");
    assert_eq!(logs(&disk), 0);
    store.check();
    let at = store.durable();
    drop(store);
    let disk = disk.crash();
    let store = recover(&disk, &model, at, false).expect("recovered");
    assert_eq!(
        store.log(GROUP).map(|log| (log.first_index, log.last_index)),
        Some((RaftIndex::new(1), RaftIndex::new(2)))
    );
    assert_eq!(store.stats().cached_bytes, 0, "what checkpoints carry is not counted");
    run(11, &disk, &store, &model, async {
        elections(&store, &model, META, RING_BLOCKS).await;
        let batches = || {
            let model = model.borrow();
            model.groups[&GROUP]
                .entries
                .iter()
                .filter_map(|entry| entry.payload.as_ref())
                .map(|(_, batch)| batch.len())
                .sum()
        };
        // More than a checkpoint carries.
        while config().carried_bytes as usize > batches() {
            let at = append(&store, &model, &mut rng, GROUP).expect("room");
            durable(&store, at).await;
        }
        store.flush_now().await.expect("flushed");
    });
    assert_eq!(logs(&disk), 1);
    store.check();
    let at = store.durable();
    drop(store);
    let store = recover(&disk.crash(), &model, at, false).expect("recovered");
    assert_eq!(store.log(GROUP).map(|log| log.first_index), Some(RaftIndex::FIRST));
}

#[test]
fn many_entries_without_a_batch_are_flushed() {
    let disk = fresh_disk(12);
    let model: Shared = Rc::default();
    let store = begun(&disk, &model, 1);
    run(12, &disk, &store, &model, async {
        for _ in 0..30 {
            append_bare(&store, &model, GROUP, 40).await;
            store.flush_now().await.expect("flushed");
        }
    });
    assert!(logs(&disk) > 0);
    let at = store.durable();
    drop(store);
    let store = recover(&disk.crash(), &model, at, false).expect("recovered");
    assert_eq!(store.log(GROUP).map(|log| log.last_index), Some(RaftIndex::new(30)));
}

/// Bare entries are kept, truncated, flushed behind a batch and cut again, with laps of the ring in between.
async fn bare_ups_and_downs(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng) {
    let cut = async |from| truncate(store, model, GROUP, from).await;
    for _ in 0..3 {
        append_bare(store, model, GROUP, 10).await;
    }
    elections(store, model, META, RING_BLOCKS).await;
    cut(2).await;
    append_bare(store, model, GROUP, 20).await;
    elections(store, model, META, RING_BLOCKS).await;
    if let Some(at) = append(store, model, rng, GROUP) {
        durable(store, at).await;
    }
    append_bare(store, model, GROUP, 30).await;
    let _ = store.flush_now().await;
    cut(4).await;
    append_bare(store, model, GROUP, 40).await;
    elections(store, model, META, RING_BLOCKS).await;
    cut(3).await;
    elections(store, model, META, RING_BLOCKS).await;
}

#[test]
fn a_power_cut_at_any_operation_finds_what_is_kept_of_other_groups() {
    power_cut_anywhere(13, 1, bare_ups_and_downs, async |_, store, model| {
        elections(store, model, META, RING_BLOCKS).await;
        Ok(())
    });
}
