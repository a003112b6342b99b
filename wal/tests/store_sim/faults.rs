//! Disk errors during a flush: the store waits while the disk is full, and any other error stops it with a named
//! cause.

use crate::{
    harness::{META, Task, block_on, config, dirs, drive, fresh_disk, options, pause},
    life::flush,
    model::{Host, Model, Shared, app_of, append},
    verify::{only_segments, read_everything, recover},
};
use std::{cell::Cell, ffi::OsStr, path::Path, pin::Pin, rc::Rc, task::Poll};
use types::{GroupId, RaftIndex};
use wal::{
    disk::sim::{Fate, Kind, Op, SimDisk},
    store::{Admission, AppState, FlushHost, LogPos, OpenError, SnapshotError, Store},
};

const GROUP: GroupId = GroupId(1);

/// A host that clears the disk's fault on the n-th retry.
struct Patient {
    host: Host,
    disk: SimDisk,
    retries: u32,
    failures: Cell<u32>,
}

impl FlushHost for Patient {
    fn wall_ms(&self) -> i64 {
        self.host.wall_ms()
    }

    fn app_state(&self, group: GroupId) -> Option<AppState> {
        self.host.app_state(group)
    }

    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        assert_eq!(attempt, self.failures.get());
        if attempt == self.retries {
            self.disk.no_fates();
        }
        Box::pin(async {})
    }

    fn flush_failed(&self, why: &str) {
        assert!(why.contains("/data/"), "{why} names the file");
        self.failures.set(self.failures.get() + 1);
    }
}

/// A store with two groups and durable entries that were never flushed.
fn filled(seed: u64, disk: &SimDisk) -> (Store<SimDisk>, Shared) {
    let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config())).expect("opened");
    let model: Shared = Rc::default();
    for group in [META, GROUP] {
        store.create_group(group, options());
        model.borrow_mut().groups.insert(group, Default::default());
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..30 {
        append(&store, &model, &mut rng, GROUP).expect("room");
        append(&store, &model, &mut rng, META).expect("room");
    }
    (store, model)
}

/// Runs the loops beside `work`.
fn run(seed: u64, store: &Store<SimDisk>, host: Rc<dyn FlushHost>, work: impl Future<Output = ()>) {
    let finished = Cell::new(false);
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(host).await;
        }),
        Box::pin(async {
            work.await;
            finished.set(true);
        }),
    ];
    drive(&mut fastrand::Rng::with_seed(seed), tasks, || finished.get());
}

fn all_durable(model: &Model) -> LogPos {
    model.groups.values().filter_map(|group| group.last_pos()).max().expect("something was staged")
}

async fn settle(store: &Store<SimDisk>, model: &Shared) {
    let last = all_durable(&model.borrow());
    while store.durable() < last {
        store.durable_past(store.durable()).await.expect("the ring works");
    }
}

/// A checkpoint is written to a new file, and over the one that keeps space for it if there is no room.
fn is_checkpoint(op: &Op) -> bool {
    op.path.ends_with("checkpoint.tmp") || op.path.ends_with("checkpoint.reserve")
}

/// The purpose of an operation, and how to recognise it.
type FlushOp = (&'static str, fn(&Op) -> bool);

const FLUSH: &[FlushOp] = &[
    ("making a group's directory", |op| op.kind == Kind::CreateDir && op.path.starts_with("/data/logs")),
    ("making a segment", |op| op.kind == Kind::Create && op.path.starts_with("/data/logs")),
    ("writing a segment", |op| op.kind == Kind::Write && op.path.starts_with("/data/logs")),
    ("syncing a segment", |op| op.kind == Kind::Sync && op.path.starts_with("/data/logs")),
    ("syncing a group's directory", |op| op.kind == Kind::SyncDir && op.path.parent() == Some(Path::new("/data/logs"))),
    ("syncing the logs' directory", |op| op.kind == Kind::SyncDir && op.path == Path::new("/data/logs")),
    ("writing a checkpoint", |op| op.kind == Kind::Write && is_checkpoint(op)),
    ("syncing a checkpoint", |op| op.kind == Kind::Sync && is_checkpoint(op)),
    ("renaming a checkpoint", |op| op.kind == Kind::Rename && is_checkpoint(op)),
];

#[test]
fn a_full_disk_is_waited_out_and_poisons_nothing() {
    let may_be_full = FLUSH.iter().filter(|(name, _)| !name.starts_with("syncing"));
    // The write that reaches the end of the space is cut short; later ones fail.
    let cut_short = FLUSH.iter().filter(|(name, _)| name.starts_with("writing"));
    let refused = may_be_full.map(|op| (op, Fate::Fail(libc_enospc())));
    for (seed, ((name, is), fate)) in refused.chain(cut_short.map(|op| (op, Fate::Short))).enumerate() {
        let (seed, disk) = (seed as u64, fresh_disk(seed as u64));
        let (store, model) = filled(seed, &disk);
        let host =
            Rc::new(Patient { host: Host(model.clone()), disk: disk.clone(), retries: 3, failures: Cell::new(0) });
        run(seed, &store, host.clone(), async {
            settle(&store, &model).await;
            let (is, every) = (*is, Cell::new(0));
            disk.fates(move |op| match is(op) {
                true => {
                    every.set(every.get() + 1);
                    fate
                }
                false => Fate::Go,
            });
            flush(&store, &model).await;
            // The ring continues meanwhile and afterwards.
            let mut rng = fastrand::Rng::with_seed(seed);
            append(&store, &model, &mut rng, GROUP).expect("room");
            settle(&store, &model).await;
        });
        assert_eq!((host.failures.get(), store.poisoned()), (3, None), "{name}");
        assert_eq!(store.stats().flush_failures, 3);
        store.check();
        block_on(read_everything(&store, &model)).expect("readable");
        let durable = store.durable();
        drop(store);
        let store = recover(&disk.crash(), &model, durable, false).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        block_on(read_everything(&store, &model)).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
    }
}

#[test]
fn a_ring_that_a_full_disk_has_filled_is_flushed_after_a_restart() {
    let disk = fresh_disk(8);
    let (store, model) = filled(8, &disk);
    let host = Rc::new(Patient { host: Host(model.clone()), disk: disk.clone(), retries: 99, failures: Cell::new(0) });
    run(8, &store, host.clone(), async {
        settle(&store, &model).await;
        let term = model.borrow().groups[&META].entries[29].term;
        store.write_snapshot(META, term, app_of(META, 30)).await.expect("written");
        model.borrow_mut().groups.get_mut(&META).expect("it is there").commit = 30;
        disk.fates(|op| match op.path.starts_with("/data/logs") && op.kind == Kind::Create {
            true => Fate::Fail(libc_enospc()),
            false => Fate::Go,
        });
        let mut rng = fastrand::Rng::with_seed(8);
        while store.admit(24 << 10) == Admission::Ok {
            append(&store, &model, &mut rng, GROUP).expect("room");
            settle(&store, &model).await;
        }
        // Checkpoints are still written, as of the ring's end.
        let (tried, written) = (host.failures.get(), store.stats().checkpoints);
        while host.failures.get() < tried + 3 || store.stats().checkpoints < written + 3 {
            pause().await;
        }
    });
    assert_eq!((store.admit(24 << 10), store.poisoned()), (Admission::Wait, None));
    let durable = store.durable();
    drop(store);
    let store = recover(&disk.crash(), &model, durable, false).expect("recovered");
    // No append and no request triggers the flush.
    run(9, &store, Rc::new(Host(model.clone())), async {
        while store.stats().flushes == 0 {
            pause().await;
        }
    });
    assert!(store.stats().ring_used_bytes < config().ring_bytes / 2, "{:?}", store.stats());
}

/// Fills the disk: until a log's file is removed, nothing can be written but rings, and the space that is kept for a
/// checkpoint.
fn fill(disk: &SimDisk) {
    let (freed, refused) = (Cell::new(false), Cell::new(false));
    disk.fates(move |op| {
        let is_ring = |part: &OsStr| part.as_encoded_bytes().starts_with(b"ring-");
        // The file cannot grow. It can be overwritten, which only a checkpoint does that has found no room.
        let is_kept = op.path.iter().any(is_ring) || op.path.ends_with("checkpoint.reserve") && refused.get();
        match op.kind {
            Kind::Remove if op.path.starts_with("/data/logs") => freed.set(true),
            // Whatever else the broker gives up, other programs take.
            Kind::Create | Kind::Write if !freed.get() && !is_kept => {
                refused.set(refused.get() || op.path.ends_with("checkpoint.tmp"));
                return Fate::Fail(libc_enospc());
            }
            _ => {}
        }
        Fate::Go
    });
}

/// Wherever the broker dies meanwhile.
#[test]
fn removed_topics_make_room_on_a_full_disk() {
    for stop_after in 1.. {
        let disk = fresh_disk(7);
        let (store, model) = filled(7, &disk);
        // Only the removal frees space.
        let patient = |disk: &SimDisk| {
            let (host, disk, failures) = (Host(model.clone()), disk.clone(), Cell::new(0));
            Rc::new(Patient { host, disk, retries: 99, failures })
        };
        run(7, &store, patient(&disk), async {
            settle(&store, &model).await;
            flush(&store, &model).await;
        });
        fill(&disk);
        disk.stop_after(stop_after);
        run(8, &store, patient(&disk), async {
            store.remove_group(GROUP).expect("it is noted in the ring");
            model.borrow_mut().groups.get_mut(&GROUP).expect("it is there").removed = true;
            let dies = async {
                while !disk.stopped() {
                    pause().await;
                }
            };
            either(async { store.flush_now().await.expect("there is room for it") }, dies).await;
        });
        if !disk.stopped() {
            assert!(stop_after > 5 && store.segment_files(GROUP).is_empty());
            assert_eq!(store.poisoned(), None);
            store.check();
            return;
        }
        let durable = store.durable();
        drop(store);
        let disk = disk.crash();
        fill(&disk);
        let store = recover(&disk, &model, durable, false).expect("recovered");
        run(9, &store, patient(&disk), async {
            if store.groups().contains(&GROUP) {
                store.remove_group(GROUP).expect("it is noted in the ring");
            }
            store.flush_now().await.expect("there is room for it");
        });
        assert!(store.segment_files(GROUP).is_empty(), "died after {stop_after} operations");
        assert_eq!(store.poisoned(), None);
        store.check();
    }
}

/// What recovery changes on a disk that holds the files of a removed group.
#[test]
fn a_full_disk_during_recovery_is_named_with_its_remedy() {
    let disk = fresh_disk(10);
    let (store, model) = filled(10, &disk);
    let host = Rc::new(Patient { host: Host(model.clone()), disk: disk.clone(), retries: 99, failures: Cell::new(0) });
    run(10, &store, host.clone(), async {
        settle(&store, &model).await;
        flush(&store, &model).await;
        disk.fates(|op| match op.kind == Kind::Remove && op.path.starts_with("/data/logs") {
            true => Fate::Fail(libc_enospc()),
            false => Fate::Go,
        });
        store.remove_group(GROUP).expect("it is noted in the ring");
        model.borrow_mut().groups.get_mut(&GROUP).expect("it is there").removed = true;
        let flushed = async { _ = store.flush_now().await };
        let failed = async {
            while host.failures.get() == 0 {
                pause().await;
            }
        };
        either(flushed, failed).await;
    });
    drop(store);
    let mut refused = Vec::new();
    for nth in 0.. {
        let (disk, seen) = (disk.crash(), Rc::new(Cell::new(0)));
        let (counted, hit) = (seen.clone(), Rc::new(Cell::new(None)));
        let failed = hit.clone();
        disk.fates(move |op| {
            let changes = !matches!(op.kind, Kind::Open | Kind::List | Kind::Read);
            counted.set(counted.get() + u32::from(changes));
            if changes && counted.get() == nth + 1 {
                failed.set(Some((op.kind, op.path.starts_with("/data/logs"))));
                return Fate::Fail(libc_enospc());
            }
            Fate::Go
        });
        match block_on(Store::open(disk.clone(), &dirs(), 1, config())) {
            Err(OpenError::Full(why)) => assert!(why.contains("/data"), "{why} names the file"),
            Err(other) => panic!("{:?}: {other}", hit.get()),
            Ok(_) => {}
        }
        refused.extend(hit.get());
        if seen.get() <= nth {
            break;
        }
    }
    assert!(refused.contains(&(Kind::Remove, true)), "{refused:?}");
    let text = OpenError::Full("/data/logs: no space".to_owned()).to_string();
    assert!(text.contains("/data/logs") && text.contains("free space"), "{text}");
}

/// Ends when one of the two does.
async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Pending => other.as_mut().poll(context),
        ready => ready,
    })
    .await;
}

#[test]
fn any_other_error_while_flushing_stops_the_store_and_loses_nothing() {
    for (seed, (name, is)) in FLUSH.iter().enumerate() {
        let (seed, disk) = (seed as u64, fresh_disk(seed as u64));
        let (store, model) = filled(seed, &disk);
        run(seed, &store, Rc::new(Host(model.clone())), async {
            settle(&store, &model).await;
            let (is, first) = (*is, Cell::new(true));
            disk.fates(move |op| if is(op) && first.replace(false) { Fate::Fail(5) } else { Fate::Go });
            let stopped = store.flush_now().await.expect_err(name);
            assert!(stopped.0.contains("/data/") && stopped.0.contains("os error 5"), "{name}: {stopped}");
        });
        assert!(store.poisoned().is_some());
        assert!(append(&store, &model, &mut fastrand::Rng::with_seed(1), GROUP).is_none(), "nothing is taken any more");
        let refused = block_on(store.durable_past(LogPos(u64::MAX >> 1)));
        assert_eq!(refused.err(), store.poisoned(), "and nothing is acked");
        let durable = store.durable();
        drop(store);
        let store = recover(&disk.crash(), &model, durable, false).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        block_on(read_everything(&store, &model)).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
    }
}

/// A disk that removes nothing of this directory.
fn keeps(disk: &SimDisk, dir: &'static str, errno: i32) {
    disk.fates(move |op| match op.kind == Kind::Remove && op.path.starts_with(dir) {
        true => Fate::Fail(errno),
        false => Fate::Go,
    });
}

#[test]
fn files_that_cannot_be_removed_stop_nothing_and_go_once_they_can() {
    const EACCES: i32 = 13;
    const EIO: i32 = 5;
    for (seed, errno) in [(11, EACCES), (12, EIO)] {
        let disk = fresh_disk(seed);
        let (store, model) = filled(seed, &disk);
        run(seed, &store, Rc::new(Host(model.clone())), async {
            settle(&store, &model).await;
            flush(&store, &model).await;
            keeps(&disk, "/data/logs", errno);
            store.remove_group(GROUP).expect("it is noted in the ring");
            model.borrow_mut().groups.get_mut(&GROUP).expect("it is there").removed = true;
            // The flush goes on without them, and so does the ring.
            store.flush_now().await.expect("flushed");
            let mut rng = fastrand::Rng::with_seed(seed);
            append(&store, &model, &mut rng, META).expect("room");
            settle(&store, &model).await;
        });
        let left = || disk.files().iter().filter(|path| path.starts_with("/data/logs")).count() as u64;
        assert_eq!((store.poisoned(), store.stats().unremoved_files), (None, left()));
        assert!(left() > 0);
        drop(store);
        // A start goes on without them too, …
        let (store, ..) = block_on(Store::open(disk.clone(), &dirs(), 1, config())).expect("opened");
        assert_eq!(store.stats().unremoved_files, left());
        // … and a flush tries again.
        disk.no_fates();
        run(seed, &store, Rc::new(Host(model.clone())), async {
            store.flush_now().await.expect("flushed");
        });
        assert_eq!((store.stats().unremoved_files, left()), (0, 0));
        only_segments(&disk, &store).expect("exactly the segments");
    }
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_the_one_before() {
    let disk = fresh_disk(1);
    let (store, model) = filled(1, &disk);
    run(1, &store, Rc::new(Host(model.clone())), async {
        settle(&store, &model).await;
        let term_at = |index: u64| model.borrow().groups[&META].entries[index as usize - 1].term;
        store.write_snapshot(META, term_at(10), app_of(META, 10)).await.expect("written");
        disk.fates(|op| match op.kind == Kind::Write && op.path.starts_with("/data/snapshots") {
            true => Fate::Fail(libc_enospc()),
            false => Fate::Go,
        });
        let full = store.write_snapshot(META, term_at(20), app_of(META, 20)).await.expect_err("full");
        assert!(matches!(full, SnapshotError::Full { .. }), "{full}");
        assert_eq!(store.poisoned(), None);
        assert_eq!(store.log(META).expect("it is there").first_index, RaftIndex::new(11));
        disk.no_fates();
        store.write_snapshot(META, term_at(20), app_of(META, 20)).await.expect("written");
        store.write_snapshot(META, term_at(15), app_of(META, 15)).await.expect("an older one is ignored");
        store.flush_now().await.expect("flushed");
        assert_eq!(store.log(META).expect("it is there").first_index, RaftIndex::new(21));
    });
    let snapshots: Vec<_> = disk.files().into_iter().filter(|path| path.starts_with("/data/snapshots")).collect();
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    model.borrow_mut().groups.get_mut(&META).expect("it is there").commit = 20;
    let durable = store.durable();
    drop(store);
    recover(&disk.crash(), &model, durable, false).expect("recovered");
}

#[test]
fn a_clean_stop_leaves_nothing_to_replay_and_only_named_files() {
    let disk = fresh_disk(3);
    let (store, model) = filled(3, &disk);
    run(3, &store, Rc::new(Host(model.clone())), async {
        store.close_clean().await.expect("closed");
    });
    only_segments(&disk, &store).expect("exactly the segments");
    drop(store);
    let (store, groups, report) = block_on(Store::open(disk.crash(), &dirs(), 1, config())).expect("opened");
    assert!(report.clean);
    let tails: Vec<usize> = groups
        .iter()
        .map(|group| group.tail.len() - group.flushed_index.try_place_from(group.app.index).unwrap_or(0))
        .collect();
    assert_eq!(tails, [30, 0], "only the snapshot group's entries are still in the ring");
    assert_eq!(store.groups(), [META, GROUP]);
}

fn libc_enospc() -> i32 {
    28
}
