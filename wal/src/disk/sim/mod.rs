//! A disk in memory that keeps only what it promised. After a crash, unsynced data is lost, kept or torn by the
//! sector.
//! Lives on: one thread; for tests and simulations. Everything random comes from the seed.
//!
//! Model:
//!
//! - A write can survive a crash from the moment it is submitted: each of its sectors may survive or not.
//! - A sync covers the operations that had completed when it was submitted, and takes effect only once it completes.
//! - After a failed sync, no later sync makes the data durable that it should have covered (Linux drops those pages).
//! - A [`Durability::Synced`](crate::disk::Durability::Synced) write covers itself, but no other write.
//! - Names: of the changes that no [`Disk::sync_dir`](crate::disk::Disk::sync_dir) covered, any subset survives, in
//!   order.
//! - Operations take a random number of polls, so operations in flight together complete in any order.
//!
//! Panics when a transfer is not whole blocks in aligned memory.

use bytes::Bytes;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
};

mod ops;

/// The unit that survives a crash whole or not at all.
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
    /// Also the second half of a [`Durability::Synced`](crate::disk::Durability::Synced) write.
    Sync,
    Allocate,
    Truncate,
}

/// An operation when it is submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op<'a> {
    pub kind: Kind,
    /// The file or directory; for a rename, the source.
    pub path: &'a Path,
    /// For [`Kind::SyncDir`]: the names in it with changes that are not durable.
    pub names: Vec<PathBuf>,
}

/// The outcome of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Go,
    /// Reports success but does nothing.
    Skip,
    /// Fails with this errno; a write may have happened in part.
    Fail(i32),
    /// Writes only a part, which is an error (`WriteZero`). Operations other than writes succeed.
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
    /// By sector: contents that a crash may leave instead of the durable ones, in order of submission.
    pending: BTreeMap<u64, Vec<(Version, Bytes)>>,
    /// Lengths that the file may have after a crash.
    lens: Vec<(Version, usize)>,
    /// When the file was last written.
    modified_ms: i64,
}

/// Names that change together.
#[derive(Clone)]
struct Change {
    version: Version,
    names: Vec<(PathBuf, Option<Node>)>,
}

type FateOf = Box<dyn FnMut(&Op) -> Fate>;
/// Makes the future that an operation waits for before it completes.
type Pace = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>>>;

struct World {
    rng: fastrand::Rng,
    inodes: Vec<Inode>,
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    changes: Vec<Change>,
    version: Version,
    /// Operations that have not completed.
    under_way: BTreeSet<Version>,
    /// Operations that a failed sync should have covered.
    lost: BTreeSet<Version>,
    ops: u64,
    stop_at: u64,
    stopped: bool,
    fate: Option<FateOf>,
    pace: Option<Pace>,
    trace: Option<Vec<(Kind, PathBuf)>>,
    writes: Option<Vec<(PathBuf, Bytes)>>,
    /// The time at which writes happen.
    now_ms: i64,
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
            pace: None,
            trace: None,
            writes: None,
            now_ms: 0,
        })))
    }

    /// Operations submitted so far.
    pub fn ops(&self) -> u64 {
        self.0.borrow().ops
    }

    /// The disk stops at the `ops`-th operation from now. That operation begins but does not complete; later ones do
    /// not begin.
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

    /// Continues after [`SimDisk::stop`], as if only the process had died and not the machine. Operations that were
    /// in flight have happened, nothing is lost, and nothing is synced.
    pub fn resume(&self) {
        let mut world = self.0.borrow_mut();
        world.under_way.clear();
        (world.stopped, world.stop_at) = (false, u64::MAX);
    }

    /// Calls `fate` for each operation from now on, when it is submitted.
    pub fn fates(&self, fate: impl FnMut(&Op) -> Fate + 'static) {
        self.0.borrow_mut().fate = Some(Box::new(fate));
    }

    /// Sets the fate of the `nth` (from 0) operation of `kind` from now on; all others go.
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

    /// From now on, each operation awaits the future that `pace` makes before it completes.
    pub fn paced(&self, pace: impl Fn() -> Pin<Box<dyn Future<Output = ()>>> + 'static) {
        self.0.borrow_mut().pace = Some(Rc::new(pace));
    }

    /// Sets the time of writes from now on, in ms since the epoch.
    pub fn set_time(&self, now_ms: i64) {
        self.0.borrow_mut().now_ms = now_ms;
    }

    /// Starts recording the operations, and returns those recorded so far.
    pub fn trace(&self) -> Vec<(Kind, PathBuf)> {
        self.0.borrow_mut().trace.replace(Vec::new()).unwrap_or_default()
    }

    /// Starts recording what is written, as the memory that it is written from, and returns what was recorded so far.
    pub fn writes(&self) -> Vec<(PathBuf, Bytes)> {
        self.0.borrow_mut().writes.replace(Vec::new()).unwrap_or_default()
    }

    /// Flips one bit of a file, both live and durable.
    pub fn flip(&self, path: &Path, bit: usize) {
        let byte = self.bytes(path)[bit / 8];
        self.patch(path, bit / 8, &[byte ^ (1 << (bit % 8))]);
    }

    /// Overwrites bytes of a file outside of any operation, durably.
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

    /// The sectors of a file that a crash may leave in more than one state.
    pub fn unsynced_sectors(&self, path: &Path) -> Vec<u64> {
        self.0.borrow_mut().inode_of(path).pending.keys().copied().collect()
    }

    /// The disk after a crash: none, some or all of the unsynced data survives. This disk stays unchanged.
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

    /// The disk after a crash whose outcome the caller chooses. `sector` picks which version of a sector survives,
    /// given how many unsynced versions there are (0 is the synced one, then in order of submission). It also picks
    /// the file's length, as sector `u64::MAX`. `name` decides whether a change of names survives, given the first of
    /// them.
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
        // A path does not survive unless all its parent directories do.
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
            let modified_ms = inode.modified_ms;
            inodes.push(Inode { live: now.clone(), durable: now, modified_ms, ..Inode::default() });
        }
        drop(world);
        Self::with(fastrand::Rng::with_seed(seed), inodes, names)
    }
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

    /// Which versions a sync that is submitted now covers.
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
        // Bytes that are cut off read as zeros if the file grows again.
        let known =
            self.durable.len().max(self.pending.keys().next_back().map_or(0, |last| (*last as usize + 1) * SECTOR));
        for sector in len.div_ceil(SECTOR)..known.div_ceil(SECTOR) {
            self.pending.entry(sector as u64).or_default().push((version, Bytes::from_static(&[0; SECTOR])));
        }
        self.live.resize(len, 0);
        self.lens.push((version, len));
    }

    fn sync(&mut self, covered: &impl Fn(Version) -> bool, under_way: &BTreeSet<Version>) {
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
                // Older writes that are still in flight may yet land on top.
                let mut at = 0;
                versions.retain(|(version, _)| {
                    at += 1;
                    at > last + 1 || (under_way.contains(version) && !covered(*version))
                });
            }
            !versions.is_empty()
        });
    }
}
