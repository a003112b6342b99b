//! One life of a store with everything running at once, and several lives with crashes in between.

use crate::{
    harness::{META, Task, block_on, drive, options, pause, with_loops},
    model::{Event, GroupModel, Host, Shared, app_of, append, end_offset},
    verify::{find, only_segments, read_everything, read_once, recover},
};
use std::{
    cell::Cell,
    rc::Rc,
    task::{Context, Waker},
};
use types::{GroupId, HardState, RaftIndex};
use wal::{
    disk::sim::SimDisk,
    store::{LogPos, Store},
};

/// One writer does everything: appends, hard states, truncations, trims, removals, flushes.
async fn write(store: &Store<SimDisk>, model: &Shared, seed: u64, steps: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        if store.poisoned().is_some() {
            return;
        }
        let live = model.borrow().live();
        let group = live[rng.usize(..live.len())];
        match rng.u32(..100) {
            0..3 if live.len() < 7 => {
                let id = {
                    let mut model = model.borrow_mut();
                    model.next_group += 1;
                    let id = GroupId(model.next_group);
                    model.groups.insert(id, GroupModel::default());
                    id
                };
                store.create_group(id, options());
            }
            3..4 if group != META && live.len() > 3 => {
                if let Ok(pos) = store.remove_group(group) {
                    let mut model = model.borrow_mut();
                    let gone = model.groups.get_mut(&group).expect("live");
                    gone.removed = true;
                    gone.known = true;
                    gone.events.push((pos, HardState::default(), Event::Removed));
                }
            }
            4..8 => {
                let mut hard_state = {
                    let mut model = model.borrow_mut();
                    let hard_state = &mut model.groups.get_mut(&group).expect("live").hard_state;
                    hard_state.term += 1;
                    hard_state.vote = rng.u64(0..3);
                    *hard_state
                };
                hard_state.commit = RaftIndex::new(model.borrow().groups[&group].commit);
                if let Ok(staged) = store.append_hard_state(group, hard_state) {
                    let mut model = model.borrow_mut();
                    let group = model.groups.get_mut(&group).expect("live");
                    group.known = true;
                    group.events.push((staged.pos, hard_state, Event::HardState));
                }
            }
            8..14 => truncate(store, model, &mut rng, group),
            14..18 if group != META => {
                let to = {
                    let mut model = model.borrow_mut();
                    let group = model.groups.get_mut(&group).expect("live");
                    let high = group.high_watermark();
                    // Mostly old records; sometimes all of them, as DeleteRecords may.
                    let to = if rng.u32(..6) == 0 { high } else { group.log_start + (high - group.log_start) / 2 };
                    group.log_start = to.max(group.log_start);
                    to
                };
                store.set_log_start(group, to);
            }
            18..22 => flush(store, model).await,
            22..45 => {
                let view = store.log(group).expect("a live group");
                let mut model = model.borrow_mut();
                let group = model.groups.get_mut(&group).expect("live");
                group.commit = rng.u64(group.commit..=view.stable_index.get().max(group.commit));
            }
            45..50 => {
                let durable = store.durable();
                let behind = model
                    .borrow()
                    .groups
                    .values()
                    .any(|group| group.events.last().is_some_and(|(pos, ..)| *pos > durable));
                if behind && store.durable_past(durable).await.is_err() {
                    return;
                }
            }
            _ => {
                while store.admit(24 << 10) == wal::store::Admission::Wait && store.poisoned().is_none() {
                    store.space_freed().await;
                }
                for _ in 0..rng.usize(1..4) {
                    append(store, model, &mut rng, group);
                }
            }
        }
        store.check();
        pause().await;
    }
}

fn truncate(store: &Store<SimDisk>, model: &Shared, rng: &mut fastrand::Rng, group: GroupId) {
    let (from, offset, hard_state) = {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&group).expect("live");
        let end = group.entries.len() as u64;
        if end <= group.commit {
            return;
        }
        let from = rng.u64(group.commit + 1..=end);
        group.hard_state.term += 1;
        (
            from,
            end_offset(&group.entries[..from as usize - 1]),
            HardState { commit: RaftIndex::new(group.commit), ..group.hard_state },
        )
    };
    if let Ok(staged) = store.truncate(group, hard_state, RaftIndex::new(from), offset) {
        let mut model = model.borrow_mut();
        let group = model.groups.get_mut(&group).expect("live");
        group.entries.truncate(from as usize - 1);
        group.known = true;
        group.events.push((staged.pos, hard_state, Event::Truncate(from)));
    }
}

/// A completed flush guarantees the log starts and applied indices from when it began.
pub async fn flush(store: &Store<SimDisk>, model: &Shared) {
    let promised: Vec<(GroupId, u64, u64)> = {
        let model = model.borrow();
        let live = model.groups.iter().filter(|(id, group)| !group.removed && **id != META);
        live.map(|(id, group)| {
            // No applied index is guaranteed, since the state is asked for only where the checkpointed one is behind.
            (*id, group.log_start, 0)
        })
        .collect()
    };
    if store.flush_now().await.is_ok() {
        let mut model = model.borrow_mut();
        for (id, start, app) in promised {
            let group = model.groups.get_mut(&id).expect("models stay");
            group.known = true;
            group.floor_start = group.floor_start.max(start);
            group.floor_app = group.floor_app.max(app);
        }
    }
}

async fn snapshots(store: &Store<SimDisk>, model: &Shared, seed: u64, stop: &Cell<bool>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !stop.get() {
        let wanted = store.snapshot_wanted();
        let mut wanted = std::pin::pin!(wanted);
        for _ in 0..rng.usize(..200) {
            let mut context = Context::from_waker(Waker::noop());
            if wanted.as_mut().poll(&mut context).is_ready() {
                break;
            }
            pause().await;
        }
        if store.poisoned().is_some() {
            return;
        }
        let (index, term) = {
            let mut model = model.borrow_mut();
            let Some(meta) = model.groups.get_mut(&META) else { continue };
            // Sometimes nothing is decided for a while.
            if rng.u32(..3) == 0 {
                continue;
            }
            meta.commit = store.log(META).expect("it is there").stable_index.get().max(meta.commit);
            let Some(last) = meta.entries[..meta.commit as usize].last() else { continue };
            (last.index, last.term)
        };
        if store.write_snapshot(META, term, app_of(META, index.get())).await.is_ok() && store.flush_now().await.is_ok()
        {
            let mut model = model.borrow_mut();
            let meta = model.groups.get_mut(&META).expect("it is there");
            meta.floor_app = meta.floor_app.max(index.get());
        }
    }
}

async fn read(store: &Store<SimDisk>, model: &Shared, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        pause().await;
        let live = model.borrow().live();
        let group = live[rng.usize(..live.len())];
        if group == META {
            continue;
        }
        let (start, high) = {
            let model = model.borrow();
            let group = &model.groups[&group];
            (group.log_start, group.high_watermark())
        };
        // A consumer that reads on for a while from some offset.
        let mut from = rng.u64(start..=high);
        for _ in 0..rng.usize(1..6) {
            match read_once(store, model, group, from, high, rng.usize(..8_000)).await {
                Ok(Some(next)) => from = next,
                Ok(None) => break,
                Err(wrong) => return model.borrow_mut().wrong(wrong),
            }
        }
        if rng.u32(..4) == 0
            && let Err(wrong) = find(store, model, group, &mut rng).await
        {
            return model.borrow_mut().wrong(wrong);
        }
    }
}

/// The parameters of a life.
#[derive(Clone, Copy)]
pub struct Life {
    pub steps: usize,
    /// The disk stops for good at the n-th operation.
    pub stop_after: u64,
    pub close: bool,
}

/// One life, from an open store to its end, clean or not. Returns what was durable, and whether the end was clean.
pub fn live(seed: u64, disk: &SimDisk, store: &Store<SimDisk>, model: &Shared, life: Life) -> (LogPos, bool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    if !model.borrow().groups.contains_key(&META) {
        store.create_group(META, options());
        model.borrow_mut().groups.insert(META, GroupModel::default());
    }
    disk.stop_after(life.stop_after);
    let (written, closed) = (Cell::new(false), Cell::new(false));
    let (stop, stopped) = (Cell::new(false), Cell::new(false));
    let host = Rc::new(Host(model.clone()));
    let seeds: [u64; 4] = std::array::from_fn(|_| rng.u64(..));
    let tasks: Vec<Task> = vec![
        Box::pin(async {
            let _ = store.run_journal().await;
        }),
        Box::pin(async {
            let _ = store.run_flusher(host).await;
        }),
        Box::pin(async {
            write(store, model, seeds[0], life.steps).await;
            if life.close {
                stop.set(true);
                while !stopped.get() {
                    pause().await;
                }
                flush(store, model).await;
                closed.set(store.close_clean().await.is_ok());
            }
            written.set(true);
        }),
        Box::pin(read(store, model, seeds[1])),
        Box::pin(read(store, model, seeds[2])),
        Box::pin(async {
            snapshots(store, model, seeds[3], &stop).await;
            stopped.set(true);
        }),
    ];
    let wrong = || model.borrow().wrong.is_some();
    drive(&mut rng, tasks, || written.get() || disk.stopped() || wrong());
    (store.durable(), closed.get())
}

/// Whether a store could not be opened because the disk fails now and then, which is allowed.
fn is_failing(why: &str) -> bool {
    why.contains("(os error 5)")
}

/// Several lives on one disk with a crash after each. Returns the first error, if any.
pub fn lives(seed: u64, disk: SimDisk, count: usize, prepare: &dyn Fn(&SimDisk)) -> Result<Shared, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let model: Shared = Rc::default();
    let mut disk = disk;
    let (mut durable, mut clean) = (LogPos::default(), false);
    for _ in 0..count {
        prepare(&disk);
        let store = match recover(&disk, &model, durable, clean) {
            Ok(store) => store,
            Err(why) if disk.stopped() || is_failing(&why) => {
                disk = disk.crash();
                continue;
            }
            Err(wrong) => return Err(wrong),
        };
        if rng.bool() {
            block_on(read_everything(&store, &model))?;
        }
        let life = Life {
            steps: rng.usize(20..300),
            stop_after: if rng.u32(..5) == 0 { u64::MAX >> 1 } else { rng.u64(1..2_500) },
            close: rng.u32(..4) == 0,
        };
        (durable, clean) = live(rng.u64(..), &disk, &store, &model, life);
        if let Some(wrong) = model.borrow_mut().wrong.take() {
            return Err(wrong);
        }
        model.borrow_mut().carried += u64::from(store.stats().carried_bytes > 0);
        drop(store);
        disk = disk.crash();
    }
    // At the end, everything is flushed and no superfluous file is left.
    let store = loop {
        prepare(&disk);
        match recover(&disk, &model, durable, clean) {
            Err(why) if is_failing(&why) => disk = disk.crash(),
            recovered => break recovered?,
        }
    };
    block_on(read_everything(&store, &model))?;
    let host = Rc::new(Host(model.clone()));
    with_loops(seed, &store, host, flush(&store, &model));
    // On a failing disk, even the last flush may not complete.
    if store.poisoned().is_none() {
        only_segments(&disk, &store)?;
    }
    block_on(read_everything(&store, &model))?;
    Ok(model)
}
