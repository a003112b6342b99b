//! The simulated disk's operations. Each one is submitted, takes effect, takes its time, and completes.

use super::{Change, Fate, Inode, Kind, Node, Op, SECTOR, SimDisk, SimFile, Version, World, apply};
use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::{Disk, Durability, File, OpenMode},
};
use bytes::Bytes;
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    task::Poll,
};

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// Submits an operation: counts it and decides its fate.
async fn submit(world: &Rc<RefCell<World>>, kind: Kind, path: &Path) -> Fate {
    poll_fn(|_| if world.borrow().stopped { Poll::Pending } else { Poll::Ready(()) }).await;
    let mut now = world.borrow_mut();
    now.ops += 1;
    if now.ops >= now.stop_at {
        now.stopped = true;
    }
    if let Some(trace) = &mut now.trace {
        trace.push((kind, path.to_path_buf()));
    }
    let Some(mut fate) = now.fate.take() else { return Fate::Go };
    let mut names = Vec::new();
    if kind == Kind::SyncDir {
        let changed = now.changes.iter().flat_map(|change| &change.names);
        names.extend(changed.filter(|(name, _)| name.parent() == Some(path)).map(|(name, _)| name.clone()));
    }
    drop(now);
    let decided = fate(&Op { kind, path, names });
    world.borrow_mut().fate.get_or_insert(fate);
    decided
}

/// Lets an operation take its time. Never returns once the disk has stopped.
async fn complete(world: &Rc<RefCell<World>>) {
    let pace = world.borrow().pace.clone();
    if let Some(pace) = pace {
        pace().await;
    }
    let mut polls = world.borrow_mut().rng.u32(..4);
    poll_fn(|context| {
        if world.borrow().stopped {
            return Poll::Pending;
        }
        if polls == 0 {
            return Poll::Ready(());
        }
        polls -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let create = mode == OpenMode::CreateNew;
        let fate = submit(&self.0, if create { Kind::Create } else { Kind::Open }, path).await;
        if let Fate::Fail(code) = fate {
            return Err(os(code));
        }
        let mut version = None;
        let inode = {
            let mut world = self.0.borrow_mut();
            match world.live.get(path).copied() {
                Some(_) if create => return Err(os(libc::EEXIST)),
                Some(Node::File(inode)) => inode,
                Some(Node::Dir) => return Err(os(libc::EISDIR)),
                None if create => {
                    if path.parent().is_none_or(|dir| world.live.get(dir) != Some(&Node::Dir)) {
                        return Err(os(libc::ENOENT));
                    }
                    let inode = world.inodes.len();
                    world.inodes.push(Inode::default());
                    version = Some(world.change(vec![(path.to_path_buf(), Some(Node::File(inode)))]));
                    inode
                }
                None => return Err(os(libc::ENOENT)),
            }
        };
        complete(&self.0).await;
        if let Some(version) = version {
            self.0.borrow_mut().under_way.remove(&version);
        }
        Ok(SimFile { world: self.0.clone(), path: path.to_path_buf(), inode })
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        match submit(&self.0, Kind::CreateDir, path).await {
            Fate::Fail(code) => return Err(os(code)),
            Fate::Skip => return Ok(()),
            Fate::Go | Fate::Short => {}
        }
        let versions: Vec<Version> = {
            let mut world = self.0.borrow_mut();
            let mut missing: Vec<PathBuf> =
                path.ancestors().filter(|dir| !world.live.contains_key(*dir)).map(Path::to_path_buf).collect();
            missing.reverse();
            missing.into_iter().map(|dir| world.change(vec![(dir, Some(Node::Dir))])).collect()
        };
        complete(&self.0).await;
        self.0.borrow_mut().under_way.retain(|version| !versions.contains(version));
        Ok(())
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if let Fate::Fail(code) = submit(&self.0, Kind::List, dir).await {
            return Err(os(code));
        }
        let names = self.0.borrow().live.keys().filter(|path| path.parent() == Some(dir)).cloned().collect();
        complete(&self.0).await;
        Ok(names)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match submit(&self.0, Kind::Rename, from).await {
            Fate::Fail(code) => return Err(os(code)),
            Fate::Skip => return Ok(()),
            Fate::Go | Fate::Short => {}
        }
        let version = {
            let mut world = self.0.borrow_mut();
            let Some(node) = world.live.get(from).copied() else { return Err(os(libc::ENOENT)) };
            world.change(vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(node))])
        };
        complete(&self.0).await;
        self.0.borrow_mut().under_way.remove(&version);
        Ok(())
    }

    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        match submit(&self.0, Kind::Rename, one).await {
            Fate::Fail(code) => return Err(os(code)),
            Fate::Skip => return Ok(()),
            Fate::Go | Fate::Short => {}
        }
        let version = {
            let mut world = self.0.borrow_mut();
            let nodes = [one, other].map(|path| world.live.get(path).copied());
            let [Some(first), Some(second)] = nodes else { return Err(os(libc::ENOENT)) };
            world.change(vec![(one.to_path_buf(), Some(second)), (other.to_path_buf(), Some(first))])
        };
        complete(&self.0).await;
        self.0.borrow_mut().under_way.remove(&version);
        Ok(())
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        match submit(&self.0, Kind::Remove, path).await {
            Fate::Fail(code) => return Err(os(code)),
            Fate::Skip => return Ok(()),
            Fate::Go | Fate::Short => {}
        }
        let version = {
            let mut world = self.0.borrow_mut();
            if !world.live.contains_key(path) {
                return Err(os(libc::ENOENT));
            }
            if world.live.keys().any(|name| name.parent() == Some(path)) {
                return Err(os(libc::ENOTEMPTY));
            }
            world.change(vec![(path.to_path_buf(), None)])
        };
        complete(&self.0).await;
        self.0.borrow_mut().under_way.remove(&version);
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let fate = submit(&self.0, Kind::SyncDir, dir).await;
        let covered = self.0.borrow().coverage();
        if self.0.borrow().live.get(dir) != Some(&Node::Dir) {
            return Err(os(libc::ENOENT));
        }
        let in_dir = |change: &Change| change.names.iter().any(|(name, _)| name.parent() == Some(dir));
        if let Fate::Fail(code) = fate {
            let mut world = self.0.borrow_mut();
            let lost: Vec<Version> =
                world.changes.iter().filter(|change| in_dir(change)).map(|change| change.version).collect();
            world.lost.extend(lost);
            return Err(os(code));
        }
        complete(&self.0).await;
        if fate != Fate::Skip {
            let world = &mut *self.0.borrow_mut();
            let durable = &mut world.durable;
            world.changes.retain(|change| {
                let now = in_dir(change) && covered(change.version);
                if now {
                    apply(durable, change);
                }
                !now
            });
        }
        Ok(())
    }
}

impl SimFile {
    fn inode<T>(&self, with: impl FnOnce(&mut Inode) -> T) -> T {
        with(&mut self.world.borrow_mut().inodes[self.inode])
    }

    async fn set_len(&self, kind: Kind, len: impl FnOnce(usize) -> usize) -> io::Result<()> {
        match submit(&self.world, kind, &self.path).await {
            Fate::Fail(code) => return Err(os(code)),
            Fate::Skip => return Ok(()),
            Fate::Go | Fate::Short => {}
        }
        let version = {
            let mut world = self.world.borrow_mut();
            let version = world.begin();
            let inode = &mut world.inodes[self.inode];
            let (before, len) = (inode.live.len(), len(inode.live.len()));
            if len != before {
                inode.set_len(version, len);
            }
            version
        };
        complete(&self.world).await;
        self.world.borrow_mut().under_way.remove(&version);
        Ok(())
    }
}

fn assert_blocks(position: u64, len: usize) {
    assert!(position.is_multiple_of(BLOCK as u64), "position {position} is at a block");
    assert!(len.is_multiple_of(BLOCK) && len > 0, "{len} bytes are whole blocks");
}

impl SimFile {
    /// Applies the part of a write that its fate allows: all of it, nothing, any sectors, or the first ones.
    fn begin_write(&self, at: usize, data: &Bytes, fate: Fate) -> Version {
        let mut world = self.world.borrow_mut();
        let version = world.begin();
        let sectors = data.len() / SECTOR;
        let kept: Vec<bool> = match fate {
            Fate::Go => vec![true; sectors],
            Fate::Skip => vec![false; sectors],
            Fate::Fail(_) => (0..sectors).map(|_| world.rng.bool()).collect(),
            Fate::Short => {
                let some = world.rng.usize(..sectors);
                (0..sectors).map(|sector| sector < some).collect()
            }
        };
        let now_ms = world.now_ms;
        let inode = &mut world.inodes[self.inode];
        inode.modified_ms = now_ms;
        if kept.iter().all(|kept| *kept) {
            inode.write(version, at, data);
        } else {
            for sector in (0..sectors).filter(|sector| kept[*sector]) {
                let from = sector * SECTOR;
                inode.write(version, at + from, &data.slice(from..from + SECTOR));
            }
        }
        version
    }

    /// The write's own sync: this write, and the file's length, are durable.
    fn sync_write(&self, version: Version) {
        let World { inodes, under_way, .. } = &mut *self.world.borrow_mut();
        let inode = &mut inodes[self.inode];
        let len = inode.live.len();
        inode.durable.resize(len, 0);
        inode.lens.clear();
        inode.sync(&|other| other == version, under_way);
    }
}

impl File for SimFile {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        assert_blocks(position, data.len());
        assert!((data.as_ptr() as usize).is_multiple_of(BLOCK), "memory is aligned to blocks");
        let fate = submit(&self.world, Kind::Write, &self.path).await;
        if let Some(writes) = &mut self.world.borrow_mut().writes {
            writes.push((self.path.clone(), data.clone()));
        }
        // The write's own sync gets a fate of its own, decided now.
        let sync = match (durability, fate) {
            (Durability::Synced, Fate::Go | Fate::Skip) if !self.world.borrow().stopped => {
                submit(&self.world, Kind::Sync, &self.path).await
            }
            _ => Fate::Skip,
        };
        let version = self.begin_write(position as usize, &data, fate);
        // A failed write has ended too: a later sync covers the part of it that happened.
        let failed = |error| {
            self.world.borrow_mut().under_way.remove(&version);
            Err(error)
        };
        match fate {
            Fate::Fail(code) => return failed(os(code)),
            Fate::Short => return failed(io::ErrorKind::WriteZero.into()),
            Fate::Go | Fate::Skip => {}
        }
        complete(&self.world).await;
        match sync {
            Fate::Fail(code) => {
                self.world.borrow_mut().lost.insert(version);
                return Err(os(code));
            }
            Fate::Go | Fate::Short => self.sync_write(version),
            Fate::Skip => {}
        }
        self.world.borrow_mut().under_way.remove(&version);
        Ok(())
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert_blocks(position, len);
        if let Fate::Fail(code) = submit(&self.world, Kind::Read, &self.path).await {
            return Err(os(code));
        }
        let bytes = self.inode(|inode| {
            let from = usize::try_from(position).unwrap_or(usize::MAX).min(inode.live.len());
            let found = &inode.live[from..(from + len).min(inode.live.len())];
            let mut chunk = Chunk::new(block_ceil(found.len().max(1)));
            chunk.push(found);
            chunk.frozen(0, found.len())
        });
        complete(&self.world).await;
        Ok(bytes)
    }

    async fn sync(&self) -> io::Result<()> {
        let fate = submit(&self.world, Kind::Sync, &self.path).await;
        let covered = self.world.borrow().coverage();
        if let Fate::Fail(code) = fate {
            let mut world = self.world.borrow_mut();
            let inode = &world.inodes[self.inode];
            let lost: Vec<Version> = inode.pending.values().flatten().map(|(version, _)| *version).collect();
            world.lost.extend(lost);
            return Err(os(code));
        }
        complete(&self.world).await;
        if fate != Fate::Skip {
            let World { inodes, under_way, .. } = &mut *self.world.borrow_mut();
            inodes[self.inode].sync(&covered, under_way);
        }
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(Kind::Allocate, |now| now.max(len as usize)).await
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(Kind::Truncate, |_| len as usize).await
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.inode(|inode| inode.live.len() as u64))
    }

    async fn modified_ms(&self) -> io::Result<i64> {
        Ok(self.inode(|inode| inode.modified_ms))
    }
}
