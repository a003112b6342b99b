//! A disk in memory that keeps no promise it did not give: what was not synced is lost, kept or torn by the sector.
//! Lives on: one thread; for tests and simulations. Everything random comes from the seed.
//!
//! Model. A write counts, for a crash, from the moment it is submitted: each of its sectors may survive or not. A sync covers what had
//! completed when it was submitted, and nothing before it has completed itself. After a failed sync, what it should have
//! covered is never durable by a later one (as Linux drops the pages). A [`Durability::Synced`] write covers itself, not
//! others. Names: any subset of the changes that no [`Disk::sync_dir`] covered survives, in their order. Operations take a
//! random number of polls, so those in flight together complete in any order.
//!
//! Panics when a transfer is not whole blocks in aligned memory.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::{Disk, Durability, File, OpenMode},
};
use bytes::Bytes;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    task::Poll,
};

/// What survives a crash whole or not at all.
pub const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Open,
    Create,
    CreateDir,
    List,
    Rename,
    Remove,
    SyncDir,
    Write,
    Read,
    /// Also the second half of a [`Durability::Synced`] write.
    Sync,
    Allocate,
    Truncate,
}

/// An operation at its submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op<'a> {
    pub kind: Kind,
    /// The file or directory; where a rename comes from.
    pub path: &'a Path,
    /// For [`Kind::SyncDir`]: names in it with changes that are not durable.
    pub names: Vec<PathBuf>,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Go,
    /// Says it worked, does nothing.
    Skip,
    /// Fails with this number of the system's; a write may have happened in part.
    Fail(i32),
    /// A write of a part only, which is an error (`WriteZero`); anything else goes.
    Short,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

/// Grows with each operation that changes something.
type Version = u64;

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// By sector: what may be there after a crash instead of what is durable, in order of submission.
    pending: BTreeMap<u64, Vec<(Version, Bytes)>>,
    /// Lengths that the file may have after a crash.
    lens: Vec<(Version, usize)>,
}

/// Names that change together.
#[derive(Clone)]
struct Change {
    version: Version,
    names: Vec<(PathBuf, Option<Node>)>,
}

type FateOf = Box<dyn FnMut(&Op) -> Fate>;

struct World {
    rng: fastrand::Rng,
    inodes: Vec<Inode>,
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    changes: Vec<Change>,
    version: Version,
    /// Not completed.
    under_way: BTreeSet<Version>,
    /// Covered by a sync that failed.
    lost: BTreeSet<Version>,
    ops: u64,
    stop_at: u64,
    stopped: bool,
    fate: Option<FateOf>,
    trace: Option<Vec<(Kind, PathBuf)>>,
}

/// A handle to a simulated disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<World>>);

/// An open file.
pub struct SimFile {
    world: Rc<RefCell<World>>,
    path: PathBuf,
    inode: usize,
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &Change) {
    for (path, node) in &change.names {
        match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
    }
}

impl SimDisk {
    /// An empty disk: only `/` is there.
    pub fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Dir)]);
        Self::with(fastrand::Rng::with_seed(seed), Vec::new(), root)
    }

    fn with(rng: fastrand::Rng, inodes: Vec<Inode>, names: BTreeMap<PathBuf, Node>) -> Self {
        Self(Rc::new(RefCell::new(World {
            rng,
            inodes,
            live: names.clone(),
            durable: names,
            changes: Vec::new(),
            version: 0,
            under_way: BTreeSet::new(),
            lost: BTreeSet::new(),
            ops: 0,
            stop_at: u64::MAX,
            stopped: false,
            fate: None,
            trace: None,
        })))
    }

    /// Operations submitted so far.
    pub fn ops(&self) -> u64 {
        self.0.borrow().ops
    }

    /// The disk stops with the `ops`-th operation from now: that one begins but does not complete, later ones don't begin.
    pub fn stop_after(&self, ops: u64) {
        let mut world = self.0.borrow_mut();
        world.stop_at = world.ops.saturating_add(ops);
    }

    pub fn stop(&self) {
        self.0.borrow_mut().stopped = true;
    }

    pub fn stopped(&self) -> bool {
        self.0.borrow().stopped
    }

    /// The machine goes on after [`SimDisk::stop`], as after the death of a process alone: what was under way has happened, nothing
    /// is lost, nothing is synced.
    pub fn resume(&self) {
        let mut world = self.0.borrow_mut();
        world.under_way.clear();
        (world.stopped, world.stop_at) = (false, u64::MAX);
    }

    /// Asks `fate` for each operation from now on, at its submission.
    pub fn fates(&self, fate: impl FnMut(&Op) -> Fate + 'static) {
        self.0.borrow_mut().fate = Some(Box::new(fate));
    }

    /// Gives the `nth` (from 0) operation of `kind` from now on a fate, the others go.
    pub fn fate_of(&self, kind: Kind, nth: u64, fate: Fate) {
        let mut seen = 0;
        self.fates(move |op| {
            seen += u64::from(op.kind == kind);
            if op.kind == kind && seen == nth + 1 { fate } else { Fate::Go }
        });
    }

    pub fn no_fates(&self) {
        self.0.borrow_mut().fate = None;
    }

    /// Begins to record the operations, or takes what was recorded.
    pub fn trace(&self) -> Vec<(Kind, PathBuf)> {
        self.0.borrow_mut().trace.replace(Vec::new()).unwrap_or_default()
    }

    /// Flips one bit of a file, live and durable.
    pub fn flip(&self, path: &Path, bit: usize) {
        let byte = self.bytes(path)[bit / 8];
        self.patch(path, bit / 8, &[byte ^ (1 << (bit % 8))]);
    }

    /// Puts other bytes into a file behind everybody's back, durably.
    pub fn patch(&self, path: &Path, at: usize, bytes: &[u8]) {
        let mut world = self.0.borrow_mut();
        let inode = world.inode_of(path);
        let sectors = (at / SECTOR) as u64..=((at + bytes.len()).saturating_sub(1) / SECTOR) as u64;
        inode.pending.retain(|sector, _| !sectors.contains(sector));
        inode.live[at..at + bytes.len()].copy_from_slice(bytes);
        let len = inode.live.len().max(inode.durable.len());
        inode.durable.resize(len, 0);
        inode.durable[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A file's bytes as a reader sees them.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        self.0.borrow_mut().inode_of(path).live.clone()
    }

    /// All files that a reader sees, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        let world = self.0.borrow();
        world.live.iter().filter(|(_, node)| matches!(node, Node::File(_))).map(|(path, _)| path.clone()).collect()
    }

    /// Sectors of a file that a crash may leave in more than one state.
    pub fn unsynced_sectors(&self, path: &Path) -> Vec<u64> {
        self.0.borrow_mut().inode_of(path).pending.keys().copied().collect()
    }

    /// What a crash leaves: nothing, some or all of what was not synced. This disk stays as it is.
    pub fn crash(&self) -> SimDisk {
        let mut rng = self.0.borrow_mut().rng.fork();
        let keep = [0.0, 0.5, 1.0][rng.usize(..3)];
        let rng = RefCell::new(rng);
        let kept = || rng.borrow_mut().f64() < keep;
        self.crash_with(
            |_, _, candidates| if kept() { rng.borrow_mut().usize(..candidates) + 1 } else { 0 },
            |_| kept(),
        )
    }

    /// What a crash leaves, chosen: for a sector of a file with so many unsynced versions, which one survives (0 is the
    /// synced one, then in order of submission); the same for a file's length, as sector `u64::MAX`; and whether a change of
    /// names survives, by the first of them.
    pub fn crash_with(
        &self,
        mut sector: impl FnMut(&Path, u64, usize) -> usize,
        mut name: impl FnMut(&Path) -> bool,
    ) -> SimDisk {
        let mut world = self.0.borrow_mut();
        let seed = world.rng.u64(..);
        let mut names = world.durable.clone();
        for change in &world.changes {
            if name(&change.names[0].0) {
                apply(&mut names, change);
            }
        }
        // What lies in a directory that is not there is not there.
        let dirs: BTreeSet<PathBuf> =
            names.iter().filter(|(_, node)| **node == Node::Dir).map(|(path, _)| path.clone()).collect();
        names.retain(|path, _| path.ancestors().skip(1).all(|dir| dirs.contains(dir)));
        let paths: BTreeMap<usize, PathBuf> = names
            .iter()
            .filter_map(|(path, node)| if let Node::File(inode) = node { Some((*inode, path.clone())) } else { None })
            .collect();
        let mut inodes = Vec::with_capacity(world.inodes.len());
        for (number, inode) in world.inodes.iter().enumerate() {
            let Some(path) = paths.get(&number) else {
                inodes.push(Inode::default());
                continue;
            };
            let mut now = inode.durable.clone();
            if !inode.lens.is_empty() {
                let choice = sector(path, u64::MAX, inode.lens.len());
                if choice > 0 {
                    now.resize(inode.lens[choice - 1].1, 0);
                }
            }
            for (at, versions) in &inode.pending {
                let choice = sector(path, *at, versions.len());
                let from = *at as usize * SECTOR;
                if choice > 0 && from < now.len() {
                    let bytes = &versions[choice - 1].1;
                    let len = bytes.len().min(now.len() - from);
                    now[from..from + len].copy_from_slice(&bytes[..len]);
                }
            }
            inodes.push(Inode { live: now.clone(), durable: now, ..Inode::default() });
        }
        drop(world);
        Self::with(fastrand::Rng::with_seed(seed), inodes, names)
    }
}

/// Submits an operation: counts it and decides what becomes of it.
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

/// Lets an operation take its time; never returns once the disk has stopped.
async fn complete(world: &Rc<RefCell<World>>) {
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

impl World {
    fn inode_of(&mut self, path: &Path) -> &mut Inode {
        match self.live.get(path) {
            Some(Node::File(inode)) => &mut self.inodes[*inode],
            _ => panic!("there is no file {}", path.display()),
        }
    }

    fn begin(&mut self) -> Version {
        self.version += 1;
        self.under_way.insert(self.version);
        self.version
    }

    fn change(&mut self, names: Vec<(PathBuf, Option<Node>)>) -> Version {
        let version = self.begin();
        let change = Change { version, names };
        apply(&mut self.live, &change);
        self.changes.push(change);
        version
    }

    /// What a sync that is submitted now covers.
    fn coverage(&self) -> impl Fn(Version) -> bool + 'static {
        let (now, uncovered) = (self.version, &self.under_way | &self.lost);
        move |version| version <= now && !uncovered.contains(&version)
    }
}

impl Inode {
    fn write(&mut self, version: Version, at: usize, data: &Bytes) {
        let end = at + data.len();
        if self.live.len() < end {
            self.set_len(version, end);
        }
        self.live[at..end].copy_from_slice(data);
        for from in (0..data.len()).step_by(SECTOR) {
            let sector = ((at + from) / SECTOR) as u64;
            self.pending.entry(sector).or_default().push((version, data.slice(from..from + SECTOR)));
        }
    }

    fn set_len(&mut self, version: Version, len: usize) {
        // What is cut off reads as zeros if the file grows again.
        let known =
            self.durable.len().max(self.pending.keys().next_back().map_or(0, |last| (*last as usize + 1) * SECTOR));
        for sector in len.div_ceil(SECTOR)..known.div_ceil(SECTOR) {
            self.pending.entry(sector as u64).or_default().push((version, Bytes::from_static(&[0; SECTOR])));
        }
        self.live.resize(len, 0);
        self.lens.push((version, len));
    }

    fn sync(&mut self, covered: &impl Fn(Version) -> bool) {
        if let Some(at) = self.lens.iter().rposition(|(version, _)| covered(*version)) {
            self.durable.resize(self.lens[at].1, 0);
            self.lens.drain(..=at);
        }
        let durable = &mut self.durable;
        self.pending.retain(|sector, versions| {
            if let Some(last) = versions.iter().rposition(|(version, _)| covered(*version)) {
                let from = *sector as usize * SECTOR;
                if from < durable.len() {
                    let len = SECTOR.min(durable.len() - from);
                    durable[from..from + len].copy_from_slice(&versions[last].1[..len]);
                }
                // What is older and still under way may yet land on top.
                let mut at = 0;
                versions.retain(|(version, _)| {
                    at += 1;
                    at > last + 1 || !covered(*version)
                });
            }
            !versions.is_empty()
        });
    }
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

impl File for SimFile {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        assert_blocks(position, data.len());
        assert!((data.as_ptr() as usize).is_multiple_of(BLOCK), "memory is aligned to blocks");
        let fate = submit(&self.world, Kind::Write, &self.path).await;
        // The sync that belongs to the write is a separate choice of the fates, made now.
        let sync = match (durability, fate) {
            (Durability::Synced, Fate::Go | Fate::Skip) if !self.world.borrow().stopped => {
                submit(&self.world, Kind::Sync, &self.path).await
            }
            _ => Fate::Skip,
        };
        let at = position as usize;
        let version = {
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
            let inode = &mut world.inodes[self.inode];
            if kept.iter().all(|kept| *kept) {
                inode.write(version, at, &data);
            } else {
                for sector in (0..sectors).filter(|sector| kept[*sector]) {
                    let from = sector * SECTOR;
                    inode.write(version, at + from, &data.slice(from..from + SECTOR));
                }
            }
            version
        };
        // A write that failed is over as well: a later sync covers what of it happened.
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
            Fate::Go | Fate::Short => {
                let mut world = self.world.borrow_mut();
                let inode = &mut world.inodes[self.inode];
                let len = inode.live.len();
                inode.durable.resize(len, 0);
                inode.lens.clear();
                inode.sync(&|other| other == version);
            }
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
            self.inode(|inode| inode.sync(&covered));
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
}
