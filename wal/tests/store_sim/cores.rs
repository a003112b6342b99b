//! Another number of cores at start, with crashes in the middle.

use crate::harness::{block_on, config, cores_life};
use std::path::Path;
use wal::{
    disk::Disk,
    disk_sim::SimDisk,
    manifest::{Manifest, change_cores, remove_stale_epochs},
    record::GroupId,
    store::{OpenError, Store, StoreDirs},
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
    let old = Manifest { cluster_id: "one".to_owned(), epoch: 1, cores: 1 };
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
fn a_newer_format_and_a_checkpoint_of_another_epoch_are_refused_by_name() {
    let (disk, data) = (SimDisk::new(1), Path::new("/data"));
    let manifest = Manifest { cluster_id: "one".to_owned(), epoch: 1, cores: 1 };
    block_on(async {
        manifest.write(&disk, data).await.expect("written");
        let newer = b"millrace-data 7\n";
        disk.patch(&data.join("MANIFEST"), 0, newer);
        let error = Manifest::read(&disk, data).await.expect_err("refused");
        assert!(matches!(error, OpenError::Newer { found: 7, newest: 1, .. }));
        assert!(error.to_string().contains("/data/MANIFEST has format version 7"), "{error}");
        let new =
            change_cores(&disk, data, &manifest, 2, &config(), |group| group.0 as usize % 2).await.expect("changed");
        let (from, to) = (StoreDirs::new(data, new.epoch, 0), StoreDirs::new(data, 9, 0));
        disk.create_dir(&to.core).await.expect("created");
        disk.rename(&from.core.join("checkpoint"), &to.core.join("checkpoint")).await.expect("moved");
        let error = Store::open(disk.clone(), &to, 9, config()).await.err().expect("refused");
        assert!(error.to_string().contains("checkpoint is of epoch 2, not 9"), "{error}");
    });
}
