//! The ring's I/O: one write and one sync for all records staged while the last write ran, with no added linger.
//! Lives on: the owning core only (`Rc`, not `Send`). Owns the ring's files, `ring-<slot>.seg` in the core's
//! directory.
//!
//! Invariants: one write is in flight at a time, so the durable mark grows by whole writes and in order. After a
//! failed write or sync nothing is acknowledged any more, and nothing is retried.

use crate::{
    buf::{BLOCK, Chunk, pool},
    disk::{Disk, Durability, File, OpenMode},
    errors::{AppendError, OpenError, Poisoned, is_full},
    record::{Entry, LogMark, LogPos},
    ring::{
        Admission, Refused, Ring, RingConfig, RingStart, Space, Staged,
        format::{RING_VERSION, Record},
        recovery::{RecoveryError, recover},
    },
};
use bytes::Bytes;
use runtime::sync::Notify;
use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};
use types::{GroupId, HardState, Position, RaftIndex};

pub use crate::ring::format::{RingBody, RingRecord};

/// The contents of the ring when it was opened.
#[derive(Debug)]
pub struct RecoveredRing {
    /// In the order in which they were staged.
    pub records: Vec<RingRecord>,
    /// `records` holds everything from this position on.
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
    /// Bytes of these writes, including headers and padding.
    pub written_bytes: u64,
    pub records: u64,
    /// Chunks of memory for staging writes, and how many of them found none in the pool, see
    /// [`Journal::memory_wanted`].
    pub chunks: u64,
    pub cold_chunks: u64,
}

/// One write that became durable.
#[derive(Clone, Copy, Debug)]
pub struct WriteSample {
    pub bytes: usize,
    pub records: u32,
    /// The time from its submission until it was durable.
    pub took: Duration,
}

/// One core's ring. Clones are handles to the same ring.
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
    /// Something was staged, or the shutdown was requested.
    work: Notify,
    /// The durable mark moved, or never will again.
    moved: Notify,
    /// Segments were released, or never will be again.
    freed: Notify,
    /// The ring took memory for its writes.
    memory: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Marked,
    Closed,
}

/// How many warm chunks the pool should hold before the ring needs them.
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
    move |source| OpenError::of(path.display(), source)
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

    /// Opens the ring in `dir`, which must exist, or creates it. A new ring's files are allocated, zeroed and synced
    /// before this returns. The returned records are durable.
    ///
    /// `needed_from` must be at least the last position passed to [`Journal::release_below`]. A released segment may
    /// have been partly overwritten, and the ring itself cannot tell that from damage.
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
        // A killed process may have left its writes only in caches. They count from now on, so they must be made
        // durable.
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
            work: Notify::default(),
            moved: Notify::default(),
            freed: Notify::default(),
            memory: Notify::default(),
        };
        let ring = RecoveredRing {
            records: recovered.records,
            first: recovered.first,
            clean: recovered.clean,
            torn_bytes: recovered.torn_bytes,
        };
        Ok((Self { inner: Rc::new(inner) }, ring))
    }

    /// Stages an entry with its hard state. Copies the payload once, into memory that is both written and returned.
    pub fn append(&self, group: GroupId, hard_state: HardState, entry: &Entry) -> Result<Staged, AppendError> {
        self.append_with_head(group, hard_state, entry, &[])
    }

    /// Like [`Journal::append`], but `head` replaces the first bytes of the payload.
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

    /// Stages the removal of the entries at and above `from_index`, whose first offset is `from_offset`.
    pub fn truncate(
        &self,
        group: GroupId,
        hard_state: HardState,
        from_index: RaftIndex,
        from_offset: u64,
    ) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::Truncate { from_index, from_offset }, &[])
    }

    /// Stages that the group's log restarts behind an entry.
    pub fn restart(&self, group: GroupId, hard_state: HardState, at: Position) -> Result<Staged, AppendError> {
        self.stage(group, hard_state, Record::Restart { index: at.index, term: at.term }, &[])
    }

    /// Like [`Journal::restart`], for a group without snapshots.
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

    /// Stages the removal of the group for good.
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
            return Err(Poisoned("the ring is closed".to_owned()).into());
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

    /// The end of the staged records. Nothing staged later begins below it.
    pub fn staged(&self) -> LogPos {
        self.inner.ring.borrow().staged()
    }

    /// Waits until [`Journal::durable`] is above `past`, then returns it.
    pub async fn durable_past(&self, past: LogPos) -> Result<LogPos, Poisoned> {
        loop {
            let seen = self.inner.moved.version();
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

    /// Why nothing is acknowledged any more; `None` while the ring works.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.inner.poison.borrow().clone()
    }

    /// Stops the ring for good. The first reason stays.
    pub fn poison(&self, why: &str) {
        self.inner.poison(why);
    }

    /// Whether an entry with `bytes` of data and payload leaves the reserve and what is claimed untouched. A poisoned
    /// ring always admits, so that nobody waits for space; the append then returns the reason.
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

    /// Sets how many bytes, besides the reserve, are kept for an entry that waits.
    pub fn claim(&self, bytes: usize) {
        if self.inner.ring.borrow_mut().claim(bytes) {
            self.inner.freed.notify();
        }
    }

    /// How many entries with these bytes of data, in this order, leave `spared` bytes free.
    pub fn takes(&self, sizes: &[usize], spared: u64) -> usize {
        self.inner.ring.borrow().takes(sizes, spared)
    }

    /// The largest sum of an entry's data and payload: it must fit into one segment.
    pub fn entry_bytes_max(&self) -> usize {
        self.inner.ring.borrow().entry_bytes_max()
    }

    /// Waits until the ring releases space after the call, or never will again.
    pub async fn space_freed(&self) {
        let seen = self.inner.freed.version();
        if self.inner.poison.borrow().is_none() {
            self.inner.freed.past(seen).await;
        }
    }

    /// Wakes the tasks that wait for space, or for anything else that a flush frees.
    pub fn notify_freed(&self) {
        self.inner.freed.notify();
    }

    pub fn space(&self) -> Space {
        self.inner.ring.borrow().space()
    }

    /// Bytes of positions that are not released.
    pub fn used(&self) -> u64 {
        self.space().used
    }

    /// Releases the segments that lie wholly below `pos`. Their records must be durable elsewhere, and so must `pos`,
    /// for [`Journal::open_from`].
    pub fn release_below(&self, pos: LogPos) {
        if self.inner.ring.borrow_mut().release_below(pos) {
            self.inner.freed.notify();
        }
    }

    pub fn stats(&self) -> JournalStats {
        let (chunks, cold_chunks) = self.inner.ring.borrow().chunks();
        JournalStats { chunks, cold_chunks, ..self.inner.stats.get() }
    }

    /// Waits until this thread's pool has too little memory for a ring that is in use. Returns the size of the
    /// [`Chunk`] to be [warmed] on another thread and dropped on this one.
    ///
    /// [warmed]: Chunk::warm
    pub async fn memory_wanted(&self) -> usize {
        let bytes = self.inner.ring.borrow().chunk_bytes();
        loop {
            let seen = self.inner.memory.version();
            let in_use = self.inner.ring.borrow().chunks().0 > 0;
            if in_use && pool::lacks(bytes, WARM_CHUNKS) {
                return bytes;
            }
            self.inner.memory.past(seen).await;
        }
    }

    /// Calls `observer` for each write that became durable, before the tasks that wait for it wake. The observer must
    /// not use the journal.
    pub fn observe(&self, observer: impl FnMut(WriteSample) + 'static) {
        *self.inner.observer.borrow_mut() = Some(Box::new(observer));
    }

    /// Writes what is staged, as long as the ring is open. Ends after [`Journal::close_clean`], or when poisoned.
    /// Dropping this future during a write poisons the ring.
    pub async fn run(&self) -> Result<(), Poisoned> {
        let inner = &*self.inner;
        loop {
            let seen = inner.work.version();
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
                    let remedy =
                        if is_full(&error) { "; free space on the disk, then start the broker again" } else { "" };
                    let at = write.offset;
                    inner.poison(&format!("writing {bytes} bytes at {at} of {}: {error}{remedy}", path.display()));
                    continue;
                }
                // If the ring was poisoned meanwhile, the write is not acknowledged, even though it is durable.
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

    /// Makes everything staged durable, raises the durable mark on the disk to the end, and marks the ring clean.
    /// Then ends [`Journal::run`], which must be running. No append may follow.
    pub async fn close_clean(&self) -> Result<(), Poisoned> {
        if self.inner.closing.get() == Closing::No {
            self.inner.closing.set(Closing::Asked);
            self.inner.work.notify();
        }
        loop {
            let seen = self.inner.moved.version();
            if let Some(poisoned) = self.poisoned() {
                return Err(poisoned);
            }
            if self.inner.closing.get() == Closing::Closed {
                return Ok(());
            }
            self.inner.moved.past(seen).await;
        }
    }

    /// Asserts the invariants. Tests and simulations call this after each step.
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

/// Poisons the ring if the writer is dropped during a write, since the outcome of that write would be unknown.
struct Unfinished<'a, D: Disk>(&'a Inner<D>);

impl<D: Disk> Drop for Unfinished<'_, D> {
    fn drop(&mut self) {
        self.0.poison("the ring's writer was stopped in the middle of a write");
    }
}

/// Opens the ring's files, by slot, and returns their length, which is the same for all. Removes the files that an
/// interrupted [`make_file`] left.
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
        // The files are created in order, and each name is durable before the next is created.
        if slot != at as u32 {
            return Err(OpenError::Damaged(format!("{} is missing", dir.join(segment_file(at as u32)).display())));
        }
        let path = dir.join(segment_file(slot));
        let file = disk.open(&path, OpenMode::Write).await.map_err(named(&path))?;
        let len = file.len().await.map_err(named(&path))?;
        let expected = files.first().map_or(len, |(_, first)| *first);
        if len != expected || len == 0 || !len.is_multiple_of(BLOCK as u64) {
            return Err(OpenError::Damaged(format!(
                "{} has {len} bytes; a ring's files have whole blocks and one length, {expected}",
                path.display()
            )));
        }
        // All blocks are allocated already. The kernel delays this call until pending direct writes to the file have
        // landed, such as those that a killed process had in flight. They must not overwrite anything written from
        // now on.
        file.allocate(len).await.map_err(named(&path))?;
        files.push((file, len));
    }
    Ok(files)
}

/// Creates the missing files, and removes surplus free ones, the last slots first.
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

/// Creates a slot's file, zeroed and durable.
async fn make_file<D: Disk>(disk: &D, dir: &Path, slot: u32, len: u64, zeros: &Chunk) -> Result<D::File, OpenError> {
    let path = dir.join(segment_file(slot));
    let unfinished = path.with_extension("new");
    let file = disk.open(&unfinished, OpenMode::CreateNew).await.map_err(named(&unfinished))?;
    file.allocate(len).await.map_err(named(&unfinished))?;
    // Every block is written once here. Later writes then change no extents, and their sync covers data alone.
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
        RecoveryError::Io { slot, source } => OpenError::of(path(slot), source),
        RecoveryError::Damaged { slot, pos, what } => {
            OpenError::Damaged(format!("{} at position {}: {what}", path(slot), pos.0))
        }
        RecoveryError::Newer { slot, found } => {
            OpenError::Newer { path: path(slot), found: found.into(), newest: RING_VERSION.into() }
        }
    }
}
