//! Tests of what only this disk has: depth, cancellation, the end of the ring. The common contract is in
//! `disk::tests`.

use crate::disk::uring::*;
use std::cell::Cell;

fn on_a_core<F: Future<Output = ()> + 'static>(main: impl FnOnce(UringDisk, PathBuf) -> F + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    runtime::block_on(async move { main(UringDisk::new().unwrap(), path).await });
}

#[test]
fn written_bytes_are_read_back() {
    on_a_core(|disk, dir| async move {
        let path = dir.join("file");
        let file = disk.open(&path, OpenMode::CreateNew).await.unwrap();
        file.allocate(3 * BLOCK as u64).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 3 * BLOCK as u64);
        let data = Chunk::of(&[7; BLOCK]);
        file.write(BLOCK as u64, data.frozen(0, BLOCK), Durability::Synced).await.unwrap();
        file.sync().await.unwrap();
        let read = file.read(0, 4 * BLOCK).await.unwrap();
        assert_eq!(read.len(), 3 * BLOCK, "a read ends with the file");
        assert!(read[..BLOCK].iter().all(|byte| *byte == 0) && read[BLOCK..2 * BLOCK].iter().all(|byte| *byte == 7));
        file.truncate(BLOCK as u64).await.unwrap();
        assert_eq!(file.len().await.unwrap(), BLOCK as u64);
        let exists = disk.open(&path, OpenMode::CreateNew).await.err().unwrap();
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn a_synced_write_may_link_its_sync() {
    on_a_core(|_, dir| async move {
        let disk = UringDisk::with(SyncBy::LinkedSync).unwrap();
        let file = disk.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
        for n in 0..8 {
            let data = Chunk::of(&[n; BLOCK]);
            file.write(u64::from(n) * BLOCK as u64, data.frozen(0, BLOCK), Durability::Synced).await.unwrap();
        }
        assert_eq!(file.read(0, 8 * BLOCK).await.unwrap()[7 * BLOCK], 7);
        // A read-only file: the write fails, so the sync is cancelled, and the whole operation fails.
        let file = disk.open(&dir.join("file"), OpenMode::Read).await.unwrap();
        let data = Chunk::of(&[1; BLOCK]).frozen(0, BLOCK);
        file.write(0, data, Durability::Synced).await.unwrap_err();
        assert!(disk.0.ops.borrow().is_empty());
    });
}

#[test]
fn a_disk_that_is_dropped_waits_for_what_is_in_flight() {
    on_a_core(|disk, dir| async move {
        let path = dir.join("file");
        let file = disk.open(&path, OpenMode::CreateNew).await.unwrap();
        let data = Chunk::of(&[9; 64 * BLOCK]).frozen(0, 64 * BLOCK);
        let mut write = Box::pin(file.write(0, data, Durability::Cached));
        let mut open = Box::pin(disk.open(&path, OpenMode::Read));
        let mut context = Context::from_waker(Waker::noop());
        assert!(write.as_mut().poll(&mut context).is_pending() && open.as_mut().poll(&mut context).is_pending());
        drop((write, open));
        let ring = Rc::downgrade(&disk.0);
        drop((file, disk));
        assert_eq!(ring.strong_count(), 0);
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 9), "it was written before the memory went");
    });
}

#[test]
fn names_are_made_moved_and_removed() {
    on_a_core(|disk, dir| async move {
        let deep = dir.join("a/b");
        disk.create_dir(&deep).await.unwrap();
        disk.create_dir(&deep).await.unwrap();
        drop(disk.open(&deep.join("one"), OpenMode::CreateNew).await.unwrap());
        disk.rename(&deep.join("one"), &deep.join("two")).await.unwrap();
        disk.sync_dir(&deep).await.unwrap();
        assert_eq!(disk.list(&deep).await.unwrap(), [deep.join("two")]);
        disk.remove(&deep.join("two")).await.unwrap();
        disk.remove(&deep).await.unwrap();
        assert!(disk.list(&deep).await.unwrap().is_empty());
        let missing = disk.open(&deep.join("two"), OpenMode::Read).await.err().unwrap();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn more_operations_than_the_ring_is_deep_all_complete() {
    on_a_core(|disk, dir| async move {
        let file = Rc::new(disk.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap());
        let done = Rc::new(Cell::new(0));
        let writes = 3 * u64::from(DEPTH);
        for n in 0..writes {
            let (file, done) = (file.clone(), done.clone());
            runtime::spawn(async move {
                let data = Chunk::of(&[n as u8; BLOCK]);
                file.write(n * BLOCK as u64, data.frozen(0, BLOCK), Durability::Cached).await.unwrap();
                done.set(done.get() + 1);
            });
        }
        while done.get() < writes {
            file.sync().await.unwrap();
        }
        assert_eq!(file.len().await.unwrap(), writes * BLOCK as u64);
    });
}

#[test]
fn a_dropped_future_leaves_its_memory_to_the_kernel() {
    on_a_core(|disk, dir| async move {
        let file = disk.open(&dir.join("file"), OpenMode::CreateNew).await.unwrap();
        let data = Chunk::of(&[9; BLOCK]).frozen(0, BLOCK);
        {
            let mut write = Box::pin(file.write(0, data, Durability::Cached));
            let first = write.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
            assert!(first.is_pending());
        }
        file.sync().await.unwrap();
        while !disk.0.ops.borrow().is_empty() {
            file.sync().await.unwrap();
        }
    });
}
