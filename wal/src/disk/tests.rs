//! The contract that every disk of a running broker keeps, and the ring on each of them.

use crate::{
    buf::{BLOCK, Chunk},
    disk::{
        Disk, Durability, File, OpenMode,
        glommio::GlommioDisk,
        uring::{SyncBy, UringDisk},
    },
    record::{Entry, Span},
    ring::{
        RingConfig,
        journal::{Journal, RingBody},
    },
    store::LogPos,
};
use bytes::Bytes;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};
use types::{GroupId, HardState, RaftIndex, Term};

fn on_a_core<F: Future<Output = ()> + 'static>(main: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_owned();
    runtime::block_on(main(path));
}

fn blocks(fill: u8, count: usize) -> Bytes {
    let mut chunk = Chunk::new(count * BLOCK);
    chunk.push(&vec![fill; count * BLOCK]);
    chunk.frozen(0, count * BLOCK)
}

async fn keeps_the_contract(disk: impl Disk, dir: &Path) {
    let deep = dir.join("a/b");
    assert!(disk.list(&deep).await.unwrap().is_empty(), "a missing directory has nothing in it");
    disk.create_dir(&deep).await.unwrap();
    disk.create_dir(&deep).await.unwrap();
    let (one, two) = (deep.join("one"), deep.join("two"));
    let missing = disk.open(&one, OpenMode::Write).await.err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let file = disk.open(&one, OpenMode::CreateNew).await.unwrap();
    let exists = disk.open(&one, OpenMode::CreateNew).await.err().unwrap();
    assert_eq!(exists.kind(), ErrorKind::AlreadyExists);

    file.allocate(4 * BLOCK as u64).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 4 * BLOCK as u64);
    file.write(BLOCK as u64, blocks(1, 1), Durability::Cached).await.unwrap();
    file.write(2 * BLOCK as u64, blocks(2, 1), Durability::Synced).await.unwrap();
    file.sync().await.unwrap();
    let read = file.read(0, 8 * BLOCK).await.unwrap();
    assert_eq!(read.len(), 4 * BLOCK, "a read ends with the file");
    let fills: Vec<u8> = read.chunks(BLOCK).map(|block| block[BLOCK - 1]).collect();
    assert_eq!(fills, [0, 1, 2, 0]);
    assert!(file.read(4 * BLOCK as u64, BLOCK).await.unwrap().is_empty());
    file.write(4 * BLOCK as u64, blocks(3, 2), Durability::Synced).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 6 * BLOCK as u64, "a write behind the end lengthens the file");
    file.truncate(BLOCK as u64 + 100).await.unwrap();
    assert_eq!(file.read(BLOCK as u64, BLOCK).await.unwrap(), [1; 100][..], "a last block may be a part");

    disk.rename(&one, &two).await.unwrap();
    disk.sync_dir(&deep).await.unwrap();
    assert_eq!(disk.list(&deep).await.unwrap(), std::slice::from_ref(&two));
    assert_eq!(file.len().await.unwrap(), BLOCK as u64 + 100, "a file keeps its handle");
    let file = disk.open(&two, OpenMode::Read).await.unwrap();
    file.write(0, blocks(9, 1), Durability::Cached).await.unwrap_err();
    let full = disk.remove(&deep).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::DirectoryNotEmpty);
    disk.remove(&two).await.unwrap();
    disk.remove(&deep).await.unwrap();
    assert_eq!(disk.remove(&two).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(disk.sync_dir(&deep).await.is_err());
}

fn entry(index: u64, len: usize) -> Entry {
    let span = Span { base_offset: index, count: 1, max_timestamp: -1 };
    let payload = Bytes::from(vec![index as u8; len]);
    Entry {
        index: RaftIndex::new(index),
        term: Term(1),
        entry_type: 0,
        data: Bytes::from_static(b"data"),
        payload: Some((span, payload)),
    }
}

async fn carries_the_ring(disk: impl Disk, dir: &Path) {
    let dir = dir.join("core-0");
    let config = RingConfig::of_bytes(4 << 20);
    let (mut index, group, mut released) = (0, GroupId(1), LogPos(0));
    for life in 0..4 {
        if life == 0 {
            disk.create_dir(&dir).await.unwrap();
        }
        let opened = Journal::open_from(disk.clone(), &dir, 1, config, released).await;
        let (journal, found) = opened.unwrap();
        assert_eq!(found.clean, life > 0);
        let found: Vec<u64> = found
            .records
            .iter()
            .map(|record| match &record.body {
                RingBody::Entry(found) => {
                    assert_eq!(*found, entry(found.index.get(), found.payload.as_ref().unwrap().1.len()));
                    found.index.get()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(found.iter().copied().eq(index - found.len() as u64 + 1..=index), "{found:?} of {index}");
        let writer = journal.clone();
        runtime::spawn(async move { writer.run().await.unwrap() });
        for burst in 0..40 {
            for _ in 0..burst {
                index += 1;
                journal.append(group, HardState::default(), &entry(index, 1_000 * burst)).unwrap();
            }
            let staged = journal.staged();
            while journal.durable() < staged {
                journal.durable_past(journal.durable()).await.unwrap();
            }
            released = journal.durable();
            journal.release_below(released);
            journal.check();
        }
        journal.close_clean().await.unwrap();
    }
}

/// The same place, relative to this process's working directory.
fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().expect("a working directory");
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    up.join(path.strip_prefix("/").expect("temporary directories are absolute"))
}

/// Runs both tests on the disk that `make` makes on its core.
fn is_a_disk<D: Disk>(make: impl Fn() -> D + Send + 'static) {
    on_a_core(move |dir| async move {
        keeps_the_contract(make(), &dir).await;
        keeps_the_contract(make(), &relative(&dir.join("relative"))).await;
        carries_the_ring(make(), &dir).await;
    });
}

#[test]
fn uring_is_a_disk() {
    is_a_disk(|| UringDisk::new().unwrap());
}

#[test]
fn uring_with_syncing_writes_is_a_disk() {
    is_a_disk(|| UringDisk::with(SyncBy::Write).unwrap());
}

#[test]
fn uring_with_linked_syncs_is_a_disk() {
    is_a_disk(|| UringDisk::with(SyncBy::LinkedSync).unwrap());
}

#[test]
fn glommio_is_a_disk() {
    is_a_disk(|| GlommioDisk);
}

#[cfg(feature = "rio")]
#[test]
fn rio_is_a_disk() {
    is_a_disk(|| crate::disk::rio::RioDisk::new().unwrap());
}
