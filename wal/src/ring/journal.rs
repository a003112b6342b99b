//! The ring's shell: one write and one sync for all that was staged while the last one ran, no added linger.
//! Lives on: the owning core only (`Rc`, not `Send`). Owns the ring's files, `ring-<slot>.seg` in the core's directory.
//!
//! Invariants: one write is in flight at a time, so the durable mark only grows by whole writes and in order; after a failed write or sync
//! nothing is acked any more, and nothing is tried again.

use crate::{
    buf::{BLOCK, Chunk, pool},
    disk::{Disk, Durability, File, OpenMode},
    record::{Entry, GroupId, HardState},
    ring::{
        Refused, Ring, RingConfig, RingStart, Space,
        format::{RING_VERSION, Record},
        recovery::{RecoveryError, recover},
    },
    signal::Signal,
    store::{Admission, AppendError, LogMark, LogPos, OpenError, Poisoned, Staged},
};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

pub use crate::ring::format::{RingBody, RingRecord};

/// What the ring held when it was opened.
#[derive(Debug)]
pub struct RecoveredRing {
    /// In the order in which they were staged.
    pub records: Vec<RingRecord>,
    /// Everything from here on is in `records`.
    pub first: LogPos,
    /// The last write was that of a clean shutdown.
    pub clean: bool,
    /// Bytes of an unfinished write that was cut from the end.
    pub torn_bytes: u64,
}

/// Counters since the ring was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Writes, each with its sync.
    pub writes: u64,
    /// Bytes of these writes, headers and padding included.
    pub written_bytes: u64,
    pub records: u64,
    /// Chunks of memory to stage writes in, and those among them for which there was none at hand, see [`Journal::memory_wanted`].
    pub chunks: u64,
    pub cold_chunks: u64,
}

/// One write that became durable.
#[derive(Clone, Copy, Debug)]
pub struct WriteSample {
    pub bytes: usize,
    pub records: u32,
    /// From its submission until it was durable.
    pub took: Duration,
}

/// One core's ring. Clones are handles to the same one.
pub struct Journal<D: Disk> {
    inner: Rc<Inner<D>>,
}

impl<D: Disk> Clone for Journal<D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

type Observer = Box<dyn FnMut(WriteSample)>;

struct Inner<D: Disk> {
    dir: PathBuf,
    /// By slot.
    files: Vec<D::File>,
    ring: RefCell<Ring>,
    poison: RefCell<Option<Poisoned>>,
    closing: Cell<Closing>,
    stats: Cell<JournalStats>,
    observer: RefCell<Option<Observer>>,
    /// Something was staged, or the end was asked for.
    work: Signal,
    /// The durable mark moved, or never will again.
    moved: Signal,
    /// Segments were given back, or never will be again.
    freed: Signal,
    /// The ring took memory for its writes.
    memory: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Marked,
    Closed,
}

/// So many chunks are at hand before the ring needs them.
const WARM_CHUNKS: usize = 2;

/// The name of a slot's file.
pub fn segment_file(slot: u32) -> String {
    format!("ring-{slot:04}.seg")
}

pub(crate) fn slot_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("ring-")?.strip_suffix(".seg")?.parse().ok()
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("ring-") && name.ends_with(".new"))
}

fn named(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { what: path.display().to_string(), source }
}

impl<D: Disk> Journal<D> {
    /// [`Journal::open_from`] for a ring of which nothing was ever released.
    pub async fn open(
        disk: D,
        dir: &Path,
        epoch: u64,
        config: impl Into<RingConfig>,
    ) -> Result<(Self, RecoveredRing), OpenError> {
        Self::open_from(disk, dir, epoch, config, LogPos::default()).await
    }

    /// Reads the ring in `dir`, which exists, or makes it: all files are allocated, zeroed and synced before this returns. What it
    /// gives back is durable. `needed_from` is at least what [`Journal::release_below`] was called with last: a segment that was
    /// released may have been overwritten in part, and nothing in the ring itself tells that from damage.
    pub async fn open_from(
        disk: D,
        dir: &Path,
        epoch: u64,
        config: impl Into<RingConfig>,
        needed_from: LogPos,
    ) -> Result<(Self, RecoveredRing), OpenError> {
        let mut config: RingConfig = config.into();
        let mut files = open_files(&disk, dir).await?;
        if let Some((_, len)) = files.first() {
            config = config.with_segments_of(*len);
        }
        config.check();
        let found: Vec<D::File> = files.drain(..).map(|(file, _)| file).collect();
        let recovered = recover(&found, config.segment_bytes, epoch, needed_from).await;
        let recovered = recovered.map_err(|error| describe(dir, error))?;
        // What a killed process wrote may be in caches only; it counts from now on, so it must last.
        for (_, slot) in &recovered.start.live {
            found[*slot as usize].sync().await.map_err(named(&dir.join(segment_file(*slot))))?;
        }
        let mut files = found;
        resize(&disk, dir, &mut files, &config, &recovered.start).await?;
        let mut start = recovered.start;
        if start.live.is_empty() {
            start.ring_id = config.ring_id.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        }
        let ring = Ring::new(config, epoch, files.len() as u32, start);
        let inner = Inner {
            dir: dir.to_path_buf(),
            files,
            ring: RefCell::new(ring),
            poison: RefCell::default(),
            closing: Cell::new(Closing::No),
            stats: Cell::default(),
            observer: RefCell::default(),
            work: Signal::default(),
            moved: Signal::default(),
            freed: Signal::default(),
            memory: Signal::default(),
        };
        let ring = RecoveredRing {
            records: recovered.records,
            first: recovered.first,
            clean: recovered.clean,
            torn_bytes: recovered.torn_bytes,
        };
        Ok((Self { inner: Rc::new(inner) }, ring))
    }

    /// Stages an entry with its hard state. Copies the payload once, into memory that is both written and given back.
    pub fn append(&self, group: GroupId, hard_state: HardState, entry: &Entry) -> Result<Staged, AppendError> {
        self.append_with_head(group, hard_state, entry, &[])
    }

    /// As [`Journal::append`], with `head` in place of as many of the payload's first bytes.
    pub fn append_with_head(
        &self,
        group: GroupId,
        hard_state: HardState,
        entry: &Entry,
        head: &[u8],
    ) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::Entry { entry }, head)
    }

    /// Stages a hard state alone.
    pub fn append_hard_state(&self, group: GroupId, hard_state: HardState) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::HardState, &[])
    }

    /// Stages that the entries at and above `from_index`, whose first offset is `from_offset`, are gone.
    pub fn truncate(
        &self,
        group: GroupId,
        hard_state: HardState,
        from_index: u64,
        from_offset: u64,
    ) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::Truncate { from_index, from_offset }, &[])
    }

    /// Stages that the group's log begins anew behind an entry.
    pub fn restart(&self, group: GroupId, hard_state: HardState, index: u64, term: u64) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::Restart { index, term }, &[])
    }

    /// As [`Journal::restart`], of a group without snapshots.
    pub fn restart_at(
        &self,
        group: GroupId,
        hard_state: HardState,
        at: LogMark,
        conf_state: &Bytes,
        blob: &Bytes,
    ) -> Result<Staged, AppendError> {
        let LogMark { index, term, offset } = at;
        self.stage(group, hard_state, Record::RestartAt { index, term, offset, conf_state, blob }, &[])
    }

    /// Stages that the group is gone for good.
    pub fn remove_group(&self, group: GroupId) -> Result<LogPos, AppendError> {
        Ok(self.stage(group, HardState::default(), Record::Removed, &[])?.pos)
    }

    fn stage(
        &self,
        group: GroupId,
        hard_state: HardState,
        record: Record<'_>,
        head: &[u8],
    ) -> Result<Staged, AppendError> {
        if let Some(poisoned) = self.poisoned() {
            return Err(poisoned.into());
        }
        if self.inner.closing.get() != Closing::No {
            return Err(Poisoned("it is closed".to_owned()).into());
        }
        let mut ring = self.inner.ring.borrow_mut();
        let chunks = ring.chunks();
        let staged = ring.append_with_head(group, hard_state, record, head).map_err(|refused| match refused {
            Refused::Full => AppendError::Full,
            Refused::TooLarge => AppendError::TooLarge { bytes: record.bytes(), max: ring.entry_bytes_max() },
        });
        if ring.chunks() != chunks {
            self.inner.memory.notify();
        }
        drop(ring);
        let (pos, payload) = staged?;
        self.inner.work.notify();
        Ok(Staged { pos, payload })
    }

    /// Everything that ends at or below this position is durable.
    pub fn durable(&self) -> LogPos {
        self.inner.ring.borrow().durable()
    }

    /// The end of what was staged; nothing that is staged later begins below.
    pub fn staged(&self) -> LogPos {
        self.inner.ring.borrow().staged()
    }

    /// Waits until [`Journal::durable`] is above `past`; returns it.
    pub async fn durable_past(&self, past: LogPos) -> Result<LogPos, Poisoned> {
        loop {
            let seen = self.inner.moved.count();
            let durable = self.durable();
            if durable > past {
                return Ok(durable);
            }
            if let Some(poisoned) = self.poisoned() {
                return Err(poisoned);
            }
            self.inner.moved.past(seen).await;
        }
    }

    /// Why nothing is acked any more, if so.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.inner.poison.borrow().clone()
    }

    /// Stops the ring for good. The first reason stays.
    pub fn poison(&self, why: &str) {
        self.inner.poison(why);
    }

    /// Whether an entry with `bytes` of data and payload leaves the reserve untouched. Always if the ring is poisoned, so
    /// that nobody waits for space: the append says why.
    pub fn admit(&self, bytes: usize) -> Admission {
        if self.inner.poison.borrow().is_some() {
            return Admission::Ok;
        }
        match self.inner.ring.borrow().admits(bytes) {
            Some(true) => Admission::Ok,
            Some(false) => Admission::Wait,
            None => Admission::TooLarge,
        }
    }

    /// The largest sum of an entry's data and payload: it must fit into one segment.
    pub fn entry_bytes_max(&self) -> usize {
        self.inner.ring.borrow().entry_bytes_max()
    }

    /// Waits until the ring has given back space since the call, or never will again.
    pub async fn space_freed(&self) {
        let seen = self.inner.freed.count();
        if self.inner.poison.borrow().is_none() {
            self.inner.freed.past(seen).await;
        }
    }

    /// Wakes who waits for space, or for what else a flush gives back.
    pub fn notify_freed(&self) {
        self.inner.freed.notify();
    }

    pub fn space(&self) -> Space {
        self.inner.ring.borrow().space()
    }

    /// Bytes of positions that are not given back.
    pub fn used(&self) -> u64 {
        self.space().used
    }

    /// Gives back the segments that lie wholly below `pos`: their records are durable elsewhere, and so is `pos`, for
    /// [`Journal::open_from`].
    pub fn release_below(&self, pos: LogPos) {
        if self.inner.ring.borrow_mut().release_below(pos) {
            self.inner.freed.notify();
        }
    }

    pub fn stats(&self) -> JournalStats {
        let (chunks, cold_chunks) = self.inner.ring.borrow().chunks();
        JournalStats { chunks, cold_chunks, ..self.inner.stats.get() }
    }

    /// Waits until this thread has little memory at hand for a ring that is in use; returns the size of the [`Chunk`] to be [warmed]
    /// elsewhere and dropped here.
    ///
    /// [warmed]: Chunk::warm
    pub async fn memory_wanted(&self) -> usize {
        let bytes = self.inner.ring.borrow().chunk_bytes();
        loop {
            let seen = self.inner.memory.count();
            let in_use = self.inner.ring.borrow().chunks().0 > 0;
            if in_use && pool::lacks(bytes, WARM_CHUNKS) {
                return bytes;
            }
            self.inner.memory.past(seen).await;
        }
    }

    /// Calls `observer` for each write that became durable, before anybody who waits for it. It must not use the journal.
    pub fn observe(&self, observer: impl FnMut(WriteSample) + 'static) {
        *self.inner.observer.borrow_mut() = Some(Box::new(observer));
    }

    /// Writes what is staged, for as long as there is a ring. Ends after [`Journal::close_clean`], or when poisoned; dropping it in the middle
    /// of a write poisons.
    pub async fn run(&self) -> Result<(), Poisoned> {
        let inner = &*self.inner;
        loop {
            let seen = inner.work.count();
            if let Some(poisoned) = self.poisoned() {
                return Err(poisoned);
            }
            let write = inner.ring.borrow_mut().next_write();
            if let Some(write) = write {
                let begun = Instant::now();
                let (bytes, records) = (write.data.len(), write.records);
                let unfinished = Unfinished(inner);
                let file = &inner.files[write.slot as usize];
                let written = file.write(write.offset, write.data, Durability::Synced).await;
                std::mem::forget(unfinished);
                if let Err(error) = written {
                    let path = inner.dir.join(segment_file(write.slot));
                    inner.poison(&format!("writing {bytes} bytes at {} of {}: {error}", write.offset, path.display()));
                    continue;
                }
                // Poisoned meanwhile: durable as it may be, it is not acked.
                if inner.poison.borrow().is_none() {
                    inner.done(WriteSample { bytes, records, took: begun.elapsed() });
                }
                continue;
            }
            match inner.closing.get() {
                Closing::No => inner.work.past(seen).await,
                Closing::Asked => {
                    inner.closing.set(Closing::Marked);
                    // A ring without room for the mark is replayed at the next start, which loses nothing.
                    let _ = inner.ring.borrow_mut().append_clean_mark();
                }
                Closing::Marked | Closing::Closed => {
                    inner.closing.set(Closing::Closed);
                    inner.moved.notify();
                    return Ok(());
                }
            }
        }
    }

    /// Makes everything staged durable, raises the durable mark on the disk to the end, marks the ring clean, and ends [`Journal::run`],
    /// which must be running. No append may follow.
    pub async fn close_clean(&self) -> Result<(), Poisoned> {
        if self.inner.closing.get() == Closing::No {
            self.inner.closing.set(Closing::Asked);
            self.inner.work.notify();
        }
        loop {
            let seen = self.inner.moved.count();
            if let Some(poisoned) = self.poisoned() {
                return Err(poisoned);
            }
            if self.inner.closing.get() == Closing::Closed {
                return Ok(());
            }
            self.inner.moved.past(seen).await;
        }
    }

    /// Asserts the invariants; for tests and simulations, after each step.
    pub fn check(&self) {
        self.inner.ring.borrow().check();
    }
}

impl<D: Disk> Inner<D> {
    fn poison(&self, why: &str) {
        self.poison.borrow_mut().get_or_insert_with(|| Poisoned(why.to_owned()));
        for signal in [&self.work, &self.moved, &self.freed] {
            signal.notify();
        }
    }

    fn done(&self, sample: WriteSample) {
        self.ring.borrow_mut().written();
        let mut stats = self.stats.get();
        stats.writes += 1;
        stats.written_bytes += sample.bytes as u64;
        stats.records += u64::from(sample.records);
        self.stats.set(stats);
        if let Some(observer) = &mut *self.observer.borrow_mut() {
            observer(sample);
        }
        self.moved.notify();
    }
}

/// Poisons if the writer is dropped while a write is under way: nobody would know how it ended.
struct Unfinished<'a, D: Disk>(&'a Inner<D>);

impl<D: Disk> Drop for Unfinished<'_, D> {
    fn drop(&mut self) {
        self.0.poison("the ring's writer ended in the middle of a write");
    }
}

/// The ring's files by slot, with their length, which is the same for all. Removes what an interrupted [`make_file`] left.
async fn open_files<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<(D::File, u64)>, OpenError> {
    let mut slots = Vec::new();
    for path in disk.list(dir).await.map_err(named(dir))? {
        if is_unfinished(&path) {
            disk.remove(&path).await.map_err(named(&path))?;
        } else if let Some(slot) = slot_of(&path) {
            slots.push(slot);
        }
    }
    slots.sort_unstable();
    let mut files = Vec::with_capacity(slots.len());
    for (at, slot) in slots.into_iter().enumerate() {
        // They are made in order, each name durable before the next.
        if slot != at as u32 {
            return Err(OpenError::Damaged(format!("{} is missing", dir.join(segment_file(at as u32)).display())));
        }
        let path = dir.join(segment_file(slot));
        let file = disk.open(&path, OpenMode::Write).await.map_err(named(&path))?;
        let len = file.len().await.map_err(named(&path))?;
        let expected = files.first().map_or(len, |(_, first)| *first);
        if len != expected || len == 0 || !len.is_multiple_of(BLOCK as u64) {
            return Err(OpenError::Damaged(format!("{} has {len} bytes instead of {expected}", path.display())));
        }
        // All blocks are there already. The kernel lets this wait until direct writes of the file have landed, such as those
        // that a process had in flight when it was killed: they must not land on what is written from now on.
        file.allocate(len).await.map_err(named(&path))?;
        files.push((file, len));
    }
    Ok(files)
}

/// Makes the files that are missing, and removes free ones that are too many, the last slots first.
async fn resize<D: Disk>(
    disk: &D,
    dir: &Path,
    files: &mut Vec<D::File>,
    config: &RingConfig,
    start: &RingStart,
) -> Result<(), OpenError> {
    while files.len() as u32 > config.segments {
        let slot = files.len() as u32 - 1;
        if start.live.iter().any(|(_, live)| *live == slot) {
            break;
        }
        let path = dir.join(segment_file(slot));
        files.pop();
        disk.remove(&path).await.map_err(named(&path))?;
        disk.sync_dir(dir).await.map_err(named(dir))?;
    }
    // The names that were found may be in caches only.
    disk.sync_dir(dir).await.map_err(named(dir))?;
    let zeros = Chunk::zeros(config.write_bytes_max);
    while (files.len() as u32) < config.segments {
        let slot = files.len() as u32;
        files.push(make_file(disk, dir, slot, config.segment_bytes, &zeros).await?);
    }
    Ok(())
}

/// Makes a slot's file, zeroed and durable.
async fn make_file<D: Disk>(disk: &D, dir: &Path, slot: u32, len: u64, zeros: &Chunk) -> Result<D::File, OpenError> {
    let path = dir.join(segment_file(slot));
    let unfinished = path.with_extension("new");
    let file = disk.open(&unfinished, OpenMode::CreateNew).await.map_err(named(&unfinished))?;
    file.allocate(len).await.map_err(named(&unfinished))?;
    // Written once, so that later writes change no extents and their sync is a sync of data alone.
    let mut at = 0;
    while at < len {
        let now = (len - at).min(zeros.len() as u64) as usize;
        file.write(at, zeros.frozen(0, now), Durability::Cached).await.map_err(named(&unfinished))?;
        at += now as u64;
    }
    file.sync().await.map_err(named(&unfinished))?;
    disk.rename(&unfinished, &path).await.map_err(named(&path))?;
    disk.sync_dir(dir).await.map_err(named(dir))?;
    Ok(file)
}

fn describe(dir: &Path, error: RecoveryError) -> OpenError {
    let path = |slot| dir.join(segment_file(slot)).display().to_string();
    match error {
        RecoveryError::Io { slot, source } => OpenError::Io { what: path(slot), source },
        RecoveryError::Damaged { slot, pos, what } => {
            OpenError::Damaged(format!("{} at position {}: {what}", path(slot), pos.0))
        }
        RecoveryError::Newer { slot, found } => {
            OpenError::Newer { path: path(slot), found: found.into(), newest: RING_VERSION.into() }
        }
    }
}
