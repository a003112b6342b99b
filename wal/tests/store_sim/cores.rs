//! Changes the number of cores at start, with crashes in the middle.

use crate::{
    harness::{DATA, META, block_on, config, options, pause, until_stop, with_loops},
    life::flush,
    model::{GroupModel, Host, Shared, append, end_offset},
    verify::read_everything,
};
use std::{cell::Cell, collections::BTreeMap, path::Path, rc::Rc};
use types::{GroupId, HardState, RaftIndex, Term};
use wal::{
    disk::{
        Disk,
        sim::{Fate, Kind, SimDisk},
    },
    manifest::{Manifest, change_cores, has_smaller_segments, remove_stale_epochs},
    record::Entry,
    ring::{Ring, RingConfig, RingStart},
    store::{Admission, OpenError, Store, StoreConfig, StoreDirs},
};

#[test]
fn a_change_of_cores_loses_nothing_wherever_it_is_cut_short() {
    for seed in 0..40 {
        if let Err(wrong) = cores_life(seed, &|_| {}) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn an_empty_directory_changes_too_and_old_epochs_go() {
    let (disk, data) = (SimDisk::new(1), Path::new("/data"));
    let old = Manifest { epoch: 1, ..Manifest::new(1, 7, 1) };
    block_on(async {
        assert_eq!(Manifest::read(&disk, data).await.expect("readable"), None);
        old.write(&disk, data).await.expect("written");
        assert_eq!(Manifest::read(&disk, data).await.expect("readable"), Some(old.clone()));
        let new = change_cores(&disk, data, &old, 4, &config(), |group: GroupId| group.0 as usize % 4).await;
        let new = new.expect("changed");
        assert_eq!((new.epoch, new.cores, &new.cluster_id), (2, 4, &old.cluster_id));
        assert_eq!(remove_stale_epochs(&disk, data, &new).await.expect("removed"), 0);
        assert!(!disk.files().iter().any(|path| path.starts_with("/data/epoch-1")));
    });
}

#[test]
fn rings_are_made_anew_for_larger_entries() {
    let (disk, data) = (SimDisk::new(1), Path::new("/data"));
    let old = Manifest { epoch: 1, ..Manifest::new(1, 7, 1) };
    let small = StoreConfig { ring: None, ring_bytes: 1 << 20, ..config() };
    let large = StoreConfig { entry_bytes: 300 << 10, ..small.clone() };
    block_on(async {
        old.write(&disk, data).await.expect("written");
        assert!(!has_smaller_segments(&disk, data, &old, &large).await.expect("readable"), "there are no rings yet");
        let open = async |manifest: &Manifest, config: &StoreConfig| {
            let dirs = StoreDirs::new(data, manifest.epoch, 0);
            Store::open(disk.clone(), &dirs, manifest.epoch, config.clone()).await.expect("opened").0
        };
        assert!(open(&old, &small).await.entry_bytes_max() < large.entry_bytes);
        assert!(!has_smaller_segments(&disk, data, &old, &small).await.expect("readable"));
        assert!(has_smaller_segments(&disk, data, &old, &large).await.expect("readable"));
        assert!(open(&old, &large).await.entry_bytes_max() < large.entry_bytes, "a ring keeps its segments");
        let new = change_cores(&disk, data, &old, 1, &large, |_| 0).await.expect("changed");
        assert!(!has_smaller_segments(&disk, data, &new, &large).await.expect("readable"));
        let store = open(&new, &large).await;
        assert!(store.entry_bytes_max() >= large.entry_bytes);
        assert_eq!(store.admit(large.entry_bytes), Admission::Ok);
        assert_eq!(store.admit(store.entry_bytes_max() + 1), Admission::TooLarge);
    });
}

#[test]
fn a_full_disk_during_a_change_of_cores_is_named_with_its_remedy_and_leaves_the_old_cores() {
    const ENOSPC: i32 = 28;
    let data = Path::new(DATA);
    let disk = SimDisk::new(1);
    let old = Manifest { epoch: 1, ..Manifest::new(1, 7, 1) };
    block_on(old.write(&disk, data)).expect("written");
    let (store, ..) = block_on(Store::open(disk.clone(), &StoreDirs::new(DATA, 1, 0), 1, config())).expect("opened");
    let (groups, model) = ([GroupId(0), GroupId(1)], Shared::default());
    for group in groups {
        store.create_group(group, options());
        model.borrow_mut().groups.insert(group, GroupModel::default());
    }
    let rng = fastrand::Rng::with_seed(1);
    with_loops(1, &store, Rc::new(Host(model.clone())), fill(&store, &model, &groups, rng));
    drop(store);
    let mut in_new_rings = 0;
    for nth in 0.. {
        let (disk, seen) = (disk.crash(), Rc::new(Cell::new(0)));
        let counted = seen.clone();
        disk.fates(move |op| {
            let takes_room = matches!(op.kind, Kind::Create | Kind::CreateDir | Kind::Write | Kind::Allocate);
            counted.set(counted.get() + u32::from(takes_room));
            if takes_room && counted.get() == nth + 1 { Fate::Fail(ENOSPC) } else { Fate::Go }
        });
        let changed = block_on(change_cores(&disk, data, &old, 2, &config(), |group| group.0 as usize % 2));
        disk.no_fates();
        if let Err(error) = changed {
            let text = error.to_string();
            assert!(text.contains("free space") && text.contains("/data"), "{text}");
            assert_eq!(block_on(Manifest::read(&disk, data)).expect("readable"), Some(old.clone()), "{text}");
            in_new_rings += u32::from(text.contains("writing ") && text.contains("/data/epoch-2"));
        }
        if seen.get() <= nth {
            break;
        }
    }
    assert!(in_new_rings > 0, "the new rings were never full");
}

/// Only the ring holds the entries of the group without segments that no snapshot covers.
#[test]
fn new_rings_that_do_not_take_what_only_the_old_ones_hold_are_refused_by_name() {
    let data = Path::new(DATA);
    let small = StoreConfig { ring: None, ring_bytes: 256 << 10, ..config() };
    let large = StoreConfig { ring_bytes: 2 << 20, kept_bytes: 0, ..small.clone() };
    // Too many for the new ring, and one too large for its segments.
    for (count, bytes) in [(20, 20_000), (1, 150_000)] {
        let disk = SimDisk::new(1);
        let old = Manifest { epoch: 1, ..Manifest::new(1, 7, 1) };
        block_on(old.write(&disk, data)).expect("written");
        let open = |manifest: &Manifest, config: &StoreConfig| {
            let dirs = StoreDirs::new(DATA, manifest.epoch, 0);
            block_on(Store::open(disk.clone(), &dirs, manifest.epoch, config.clone())).expect("opened")
        };
        let (store, ..) = open(&old, &large);
        store.create_group(META, options());
        let hard_state = HardState { term: Term(1), vote: 7, commit: RaftIndex::ZERO };
        let entry = |index| {
            let index = RaftIndex::new(index);
            Entry { index, term: Term(1), entry_type: 0, data: vec![1; bytes].into(), payload: None }
        };
        with_loops(1, &store, Rc::new(Host(Shared::default())), async {
            for index in 1..=count {
                let staged = store.append(META, hard_state, &entry(index)).expect("it takes them");
                while store.durable() < staged.pos {
                    store.durable_past(store.durable()).await.expect("written");
                }
            }
        });
        drop(store);
        let refused = block_on(change_cores(&disk, data, &old, 2, &small, |_| 0)).expect_err("it is refused");
        assert!(
            matches!(refused, OpenError::SmallRing { bytes: all, largest, .. }
            if (all, largest) == (bytes * count as usize, bytes)),
            "{refused}"
        );
        let text = refused.to_string();
        assert!(text.contains("raise wal.ring.bytes, or use as many cores as before"), "{text}");
        // Nothing has changed, and rings that are large enough take everything.
        assert_eq!(block_on(Manifest::read(&disk, data)).expect("readable"), Some(old.clone()));
        let new = block_on(change_cores(&disk, data, &old, 2, &large, |_| 0)).expect("changed");
        let (_, groups, _) = open(&new, &large);
        assert_eq!(groups[0].tail, (1..=count).map(entry).collect::<Vec<_>>());
    }
}

#[test]
fn the_smallest_ring_for_an_entry_takes_it_and_no_smaller_one_does() {
    for entry_bytes in [0, 1, 4096, 1_048_588 + 64, 60_000_000] {
        let least = RingConfig::least_bytes_for(entry_bytes);
        for bytes in [least, least + 5000, 2 * least, 64 * least] {
            let ring = RingConfig::of_bytes_for(bytes, entry_bytes);
            let total = ring.segment_bytes * u64::from(ring.segments);
            assert!(total <= bytes.max(least.max(64 * 4096)), "{entry_bytes}: {total} of {bytes}");
            assert!(Ring::new(ring, 1, ring.segments, RingStart::default()).entry_bytes_max() >= entry_bytes);
        }
        let plain = RingConfig::of_bytes(RingConfig::bytes_for(entry_bytes));
        assert!(Ring::new(plain, 1, plain.segments, RingStart::default()).entry_bytes_max() >= entry_bytes);
        let plain = RingConfig::of_bytes(16 * least);
        assert_eq!(RingConfig::of_bytes_for(16 * least, entry_bytes), plain, "a large ring is as without");
    }
}

#[test]
fn a_newer_format_and_a_checkpoint_of_another_epoch_are_refused_by_name() {
    let (disk, data) = (SimDisk::new(1), Path::new("/data"));
    let manifest = Manifest { epoch: 1, ..Manifest::new(1, 7, 1) };
    block_on(async {
        manifest.write(&disk, data).await.expect("written");
        let newer = b"millrace-data 7\n";
        disk.patch(&data.join("MANIFEST"), 0, newer);
        let error = Manifest::read(&disk, data).await.expect_err("refused");
        assert!(matches!(error, OpenError::Newer { found: 7, newest: wal::manifest::FORMAT_VERSION, .. }));
        assert!(error.to_string().contains("/data/MANIFEST has format version 7"), "{error}");
        let new =
            change_cores(&disk, data, &manifest, 2, &config(), |group| group.0 as usize % 2).await.expect("changed");
        let (from, to) = (StoreDirs::new(data, new.epoch, 0), StoreDirs::new(data, 9, 0));
        disk.create_dir(&to.core).await.expect("created");
        disk.rename(&from.core.join("checkpoint"), &to.core.join("checkpoint")).await.expect("moved");
        let error = Store::open(disk.clone(), &to, 9, config()).await.err().expect("refused");
        assert!(error.to_string().contains("checkpoint has epoch 2, expected 9"), "{error}");
    });
}

/// Sets up a data directory for two cores and fills it. Then changes it to three cores with a crash at some
/// operation, and repeats that until it succeeds.
pub fn cores_life(seed: u64, prepare: &dyn Fn(&SimDisk)) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut disk = SimDisk::new(seed);
    let old = Manifest { epoch: 1, ..Manifest::new(1, 7, 2) };
    let data = std::path::Path::new(DATA);
    let text = |error: OpenError| error.to_string();
    prepare(&disk);
    block_on(old.write(&disk, data)).map_err(text)?;
    // Appends on both cores. Everything durable at the end is expected.
    let mut expected: BTreeMap<GroupId, Vec<Entry>> = BTreeMap::new();
    for core in 0..old.cores {
        let dirs = StoreDirs::new(DATA, old.epoch, core);
        let (store, ..) = block_on(Store::open(disk.clone(), &dirs, old.epoch, config())).map_err(text)?;
        let model: Shared = Rc::default();
        let groups: Vec<GroupId> = (0..6).filter(|id| *id as usize % old.cores == core).map(GroupId).collect();
        for group in &groups {
            store.create_group(*group, options());
            model.borrow_mut().groups.insert(*group, GroupModel::default());
        }
        let host = Rc::new(Host(model.clone()));
        with_loops(rng.u64(..), &store, host, fill(&store, &model, &groups, rng.fork()));
        if let Some(poisoned) = store.poisoned() {
            return Err(poisoned.0);
        }
        for (id, group) in &model.borrow().groups {
            expected.insert(*id, group.entries.clone());
        }
    }
    disk = disk.crash();
    // Repeats the change, stopped at a different operation each time, until it completes.
    let mut attempts = 0;
    let new = loop {
        attempts += 1;
        prepare(&disk);
        let found = block_on(Manifest::read(&disk, data)).map_err(text)?.ok_or("there is no manifest")?;
        if found.cores == 3 {
            break found;
        }
        if found != old {
            return Err(format!("the manifest is neither old nor new: {found:?}"));
        }
        if attempts < 6 {
            disk.stop_after(rng.u64(1..600));
        }
        let changed = until_stop(&disk, change_cores(&disk, data, &found, 3, &config(), |group| group.0 as usize % 3));
        match changed {
            Some(changed) => drop(changed.map_err(text)?),
            None => assert!(disk.stopped()),
        }
        disk = disk.crash();
    };
    prepare(&disk);
    block_on(remove_stale_epochs(&disk, data, &new)).map_err(text)?;
    if let Some(stale) = disk.files().iter().find(|path| path.starts_with("/data/epoch-1")) {
        return Err(format!("{} is left", stale.display()));
    }
    for core in 0..new.cores {
        let dirs = StoreDirs::new(DATA, new.epoch, core);
        let (store, groups, _) = block_on(Store::open(disk.clone(), &dirs, new.epoch, config())).map_err(text)?;
        for group in groups {
            if group.id.0 as usize % 3 != core {
                return Err(format!("group {} is on core {core}", group.id.0));
            }
            let entries = expected.remove(&group.id).ok_or("a group came from nowhere")?;
            let from = group.flushed_index.min(group.app.index).place_from(RaftIndex::ZERO);
            let last = group.hard_state.term.min(entries.last().map_or(Term(0), |last| last.term));
            if group.next_offset != end_offset(&entries) || group.tail != entries[from..] || last == Term(0) {
                return Err(format!("group {} ends at {}", group.id.0, group.next_offset));
            }
            let model: Shared = Rc::default();
            let commit = entries.len() as u64;
            model.borrow_mut().groups.insert(group.id, GroupModel { entries, commit, ..GroupModel::default() });
            block_on(read_everything(&store, &model))?;
        }
    }
    match expected.keys().next() {
        Some(lost) => Err(format!("group {} is gone", lost.0)),
        None => Ok(()),
    }
}

/// Appends to all groups, flushes now and then, and ends when everything is durable.
async fn fill(store: &Store<SimDisk>, model: &Shared, groups: &[GroupId], mut rng: fastrand::Rng) {
    for _ in 0..rng.usize(30..80) {
        let group = groups[rng.usize(..groups.len())];
        append(store, model, &mut rng, group);
        if rng.u32(..25) == 0 {
            flush(store, model).await;
        }
        pause().await;
    }
    for group in groups {
        append(store, model, &mut rng, *group);
    }
    let staged = store.append_hard_state(groups[0], model.borrow().groups[&groups[0]].hard_state).expect("room");
    while store.durable() < staged.pos && store.durable_past(store.durable()).await.is_ok() {}
}
