//! Tests of the simulated disk itself: it keeps what was synced, and gives no guarantee for anything else.

use crate::harness::disk;
use bytes::Bytes;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    rc::Rc,
};
use wal::{
    buf::{BLOCK, Chunk},
    disk::{
        Disk, Durability, File, OpenMode,
        sim::{Fate, Kind, SECTOR, SimDisk, SimFile},
    },
    sim_exec::{SimExec, block_on},
};

const FILE: &str = "/core/file";

fn blocks(fill: u8, count: usize) -> Bytes {
    let mut chunk = Chunk::of(&vec![fill; count * BLOCK]);
    chunk.pad_to_block();
    chunk.frozen(0, count * BLOCK)
}

fn on<T>(task: impl Future<Output = std::io::Result<T>>) -> T {
    block_on(1, task).expect("the disk answers").expect("it works")
}

/// A durable file of four zero blocks.
fn with_file(seed: u64) -> (SimDisk, SimFile) {
    let disk = disk(seed);
    let file = on(async {
        let file = disk.open(FILE.as_ref(), OpenMode::CreateNew).await?;
        file.allocate(4 * BLOCK as u64).await?;
        file.sync().await?;
        disk.sync_dir("/core".as_ref()).await?;
        Ok(file)
    });
    (disk, file)
}

/// The file's sectors after each of `count` crashes, as their first bytes.
fn crashes(disk: &SimDisk, count: usize) -> Vec<Vec<u8>> {
    let image = |disk: SimDisk| disk.bytes(FILE.as_ref()).chunks(SECTOR).map(|sector| sector[0]).collect();
    (0..count).map(|_| image(disk.crash())).collect()
}

#[test]
fn an_unsynced_write_is_lost_kept_or_torn_by_the_sector() {
    let (disk, file) = with_file(3);
    on(file.write(BLOCK as u64, blocks(1, 1), Durability::Cached));
    assert_eq!(disk.unsynced_sectors(FILE.as_ref()), (8..16).collect::<Vec<_>>());
    let left = crashes(&disk, 200);
    assert!(left.iter().all(|image| image[..8].iter().chain(&image[16..]).all(|byte| *byte == 0)));
    let count = |image: &[u8]| image[8..16].iter().filter(|byte| **byte == 1).count();
    let counts: BTreeSet<usize> = left.iter().map(|image| count(image)).collect();
    assert!(counts.contains(&0) && counts.contains(&8) && counts.len() > 4, "{counts:?}");
    on(file.sync());
    assert!(crashes(&disk, 50).iter().all(|image| count(image) == 8));
}

#[test]
fn a_synced_write_covers_itself_alone() {
    let (disk, file) = with_file(4);
    on(file.write(0, blocks(1, 1), Durability::Cached));
    on(file.write(BLOCK as u64, blocks(2, 1), Durability::Synced));
    let left = crashes(&disk, 100);
    assert!(left.iter().all(|image| image[8..16] == [2; 8]));
    assert!(left.iter().any(|image| image[..8] != [1; 8]), "the other may be lost");
}

#[test]
fn any_of_several_writes_to_one_place_may_survive() {
    let (disk, file) = with_file(5);
    for fill in 1..=3 {
        on(file.write(0, blocks(fill, 1), Durability::Cached));
    }
    let seen: BTreeSet<u8> = crashes(&disk, 200).into_iter().map(|image| image[0]).collect();
    assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn a_sync_covers_what_had_completed_when_it_began() {
    let mut may_be_lost = false;
    for seed in 0..100 {
        let (disk, file) = with_file(seed);
        let mut exec = SimExec::new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        let (one, two) = (order.clone(), order.clone());
        let file = &file;
        exec.spawn(async move {
            file.write(0, blocks(1, 1), Durability::Cached).await.expect("written");
            one.borrow_mut().push("written");
        });
        exec.spawn(async move {
            two.borrow_mut().push("sync begins");
            file.sync().await.expect("synced");
        });
        exec.run();
        let covered = *order.borrow() == ["written", "sync begins"];
        let lost = crashes(&disk, 50).iter().any(|image| image[..8] != [1; 8]);
        assert!(!(covered && lost), "seed {seed}");
        may_be_lost |= lost;
    }
    assert!(may_be_lost, "a sync that began before the write's end does not count");
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    let (disk, file) = with_file(6);
    on(file.write(0, blocks(1, 1), Durability::Cached));
    disk.fate_of(Kind::Sync, 0, Fate::Fail(libc::EIO));
    let failed = block_on(1, file.sync()).expect("the disk answers");
    assert_eq!(failed.expect_err("it fails").raw_os_error(), Some(libc::EIO));
    on(file.sync());
    assert!(crashes(&disk, 100).iter().any(|image| image[..8] != [1; 8]));
}

#[test]
fn lengths_and_names_are_lost_until_they_are_synced() {
    let disk = disk(7);
    let file = on(disk.open(FILE.as_ref(), OpenMode::CreateNew));
    on(file.write(0, blocks(1, 2), Durability::Synced));
    let exists = |disk: &SimDisk| disk.files().contains(&PathBuf::from(FILE));
    let left: Vec<SimDisk> = (0..100).map(|_| disk.crash()).collect();
    assert!(left.iter().any(exists) && !left.iter().all(exists), "a name is lost or kept");
    for disk in left.iter().filter(|disk| exists(disk)) {
        assert_eq!(disk.bytes(FILE.as_ref()), [1; 2 * BLOCK], "with what was synced in the file");
    }
    on(disk.sync_dir("/core".as_ref()));
    assert!((0..50).all(|_| exists(&disk.crash())));

    on(file.truncate(BLOCK as u64));
    let lens: BTreeSet<usize> = (0..100).map(|_| disk.crash().bytes(FILE.as_ref()).len()).collect();
    assert_eq!(lens, BTreeSet::from([BLOCK, 2 * BLOCK]));
    on(file.sync());
    on(file.allocate(2 * BLOCK as u64));
    on(file.sync());
    assert!(
        disk.crash().bytes(FILE.as_ref())[BLOCK..].iter().all(|byte| *byte == 0),
        "what was cut does not come back"
    );

    let other = Path::new("/core/other");
    on(disk.rename(FILE.as_ref(), other));
    let names = |disk: &SimDisk| disk.files();
    let seen: BTreeSet<Vec<PathBuf>> = (0..100).map(|_| names(&disk.crash())).collect();
    assert_eq!(seen, BTreeSet::from([vec![PathBuf::from(FILE)], vec![other.to_path_buf()]]), "a rename is whole");
    on(disk.remove(other));
    on(disk.sync_dir("/core".as_ref()));
    assert!(disk.crash().files().is_empty());
}

#[test]
fn a_stopped_disk_answers_nothing_and_goes_on_after_a_death_of_the_process() {
    let (disk, file) = with_file(8);
    disk.stop_after(1);
    assert!(block_on(1, file.write(0, blocks(1, 1), Durability::Cached)).is_none());
    assert!(disk.stopped() && block_on(1, file.len()).is_some_and(|len| len.is_ok()));
    assert!(block_on(1, file.read(0, BLOCK)).is_none());
    disk.resume();
    assert_eq!(on(file.read(0, BLOCK))[0], 1, "what was under way has happened");
    on(file.sync());
    assert!(crashes(&disk, 20).iter().all(|image| image[0] == 1));
}

#[test]
fn the_same_seed_does_the_same() {
    let run = |seed| {
        let (disk, file) = with_file(seed);
        on(file.write(0, blocks(1, 4), Durability::Cached));
        crashes(&disk, 10)
    };
    assert_eq!(run(9), run(9));
    assert_ne!(run(9), run(10));
}

#[test]
#[should_panic(expected = "whole blocks")]
fn a_part_of_a_block_is_refused() {
    let (_, file) = with_file(1);
    on(file.write(0, blocks(1, 1).slice(..SECTOR), Durability::Cached));
}

#[test]
#[should_panic(expected = "aligned to blocks")]
fn memory_that_is_not_aligned_is_refused() {
    let (_, file) = with_file(1);
    on(file.write(0, blocks(1, 2).slice(SECTOR..SECTOR + BLOCK), Durability::Cached));
}
