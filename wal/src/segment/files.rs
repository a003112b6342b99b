//! The open descriptors of segments, bounded, and the names of files.
//! Lives on: the owning core only.
//!
//! Invariant: at most `open_files_max` descriptors are kept here; one in use may outlive its place in the list.

use crate::{
    disk::{Disk, OpenMode},
    errors::is_full,
    segment::{format::SegmentId, lru::Lru},
};
use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};
use types::GroupId;

pub struct Files<D: Disk> {
    disk: D,
    logs: PathBuf,
    open: RefCell<Lru<SegmentId, Rc<D::File>>>,
}

impl<D: Disk> Files<D> {
    pub fn new(disk: D, logs: PathBuf, open_files_max: usize) -> Self {
        Self { disk, logs, open: RefCell::new(Lru::new(open_files_max.max(1) as u64)) }
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    pub fn group_dir(&self, group: GroupId) -> PathBuf {
        self.logs.join(group.0.to_string())
    }

    pub fn segment(&self, id: SegmentId, base_offset: u64) -> PathBuf {
        self.group_dir(id.group).join(segment_name(base_offset, id.serial))
    }

    pub fn index(&self, id: SegmentId, base_offset: u64) -> PathBuf {
        self.segment(id, base_offset).with_extension("idx")
    }

    /// The segment's descriptor, for reading and writing.
    pub async fn open(&self, id: SegmentId, base_offset: u64) -> io::Result<Rc<D::File>> {
        if let Some(file) = self.open.borrow_mut().get(&id) {
            return Ok(file);
        }
        let file = Rc::new(self.disk.open(&self.segment(id, base_offset), OpenMode::Write).await?);
        Ok(self.keep(id, file))
    }

    /// Creates the segment, and replaces any file of that name that an unfinished flush left.
    pub async fn create(&self, id: SegmentId, base_offset: u64) -> io::Result<Rc<D::File>> {
        let path = self.segment(id, base_offset);
        self.open.borrow_mut().remove(&id);
        let file = match self.disk.open(&path, OpenMode::CreateNew).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path).await?;
                self.disk.open(&path, OpenMode::CreateNew).await?
            }
            other => other?,
        };
        Ok(self.keep(id, Rc::new(file)))
    }

    /// Closes the descriptor once it is no longer in use.
    pub fn forget(&self, id: SegmentId) {
        self.open.borrow_mut().remove(&id);
    }

    pub fn forget_group(&self, group: GroupId) {
        self.open.borrow_mut().remove_where(|id| id.group == group);
    }

    pub fn open_count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Two tasks may have opened the file at once: the first descriptor stays.
    fn keep(&self, id: SegmentId, file: Rc<D::File>) -> Rc<D::File> {
        let mut open = self.open.borrow_mut();
        if let Some(first) = open.get(&id) {
            return first;
        }
        open.insert(id, file.clone(), 1);
        file
    }
}

/// `<base offset>-<serial>.log`. The serial distinguishes the segment from an earlier one that began at the same
/// offset and was cut.
pub fn segment_name(base_offset: u64, serial: u64) -> String {
    format!("{base_offset:020}-{serial}.log")
}

/// Removes a file that may be gone already. Returns whether it existed.
pub async fn remove_if_there<D: Disk>(disk: &D, path: &Path) -> io::Result<bool> {
    match disk.remove(path).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file made of several parts, so that a crash leaves either the old file or the whole new one. The new file
/// is written beside the old one, synced and renamed, and then the directory is synced. Awaits `between` after each
/// piece except the last.
pub async fn replace_file<D: Disk>(disk: &D, path: &Path, parts: &[&[u8]], between: impl AsyncFn()) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    remove_if_there(disk, &temporary).await?;
    let written = write_new(disk, &temporary, parts, between).await;
    if written.as_ref().is_err_and(is_full) {
        // Others need what little space there is.
        remove_if_there(disk, &temporary).await?;
    }
    written?;
    disk.rename(&temporary, path).await?;
    disk.sync_dir(path.parent().expect("a file has a directory")).await
}

/// Creates a file and makes its contents durable, but not its name.
async fn write_new<D: Disk>(disk: &D, path: &Path, parts: &[&[u8]], between: impl AsyncFn()) -> io::Result<()> {
    use crate::{
        buf::{BLOCK, Chunk, block_ceil},
        disk::{Durability, File},
    };
    const PIECE: usize = 1 << 20;
    let file = disk.open(path, OpenMode::CreateNew).await?;
    let mut left: usize = parts.iter().map(|part| part.len()).sum();
    let mut parts = parts.iter().copied();
    let (mut part, mut position) = (&[][..], 0);
    while left > 0 {
        let mut chunk = Chunk::new(block_ceil(left.min(PIECE)));
        while chunk.remaining() > 0 && left > 0 {
            if part.is_empty() {
                part = parts.next().expect("the parts have as many bytes as were counted");
                continue;
            }
            let (now, rest) = part.split_at(part.len().min(chunk.remaining()));
            chunk.push(now);
            (part, left) = (rest, left - now.len());
        }
        chunk.pad_to_block();
        let data = chunk.frozen(0, chunk.len());
        position += data.len() as u64;
        file.write(position - data.len() as u64, data, Durability::Cached).await?;
        if left > 0 {
            between().await;
        }
    }
    const { assert!(PIECE.is_multiple_of(BLOCK)) };
    file.sync().await
}

/// Lets a durable file take the place of another one, which gets the first one's name, so that its space is not lost to
/// other programs for a moment. If the file system cannot exchange files, or there is no other one, the first is
/// renamed. The directory is still to be synced.
pub async fn exchange_or_rename<D: Disk>(disk: &D, from: &Path, to: &Path) -> io::Result<()> {
    match disk.exchange(from, to).await {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOENT)) => {
            disk.rename(from, to).await
        }
        exchanged => exchanged,
    }
}

/// Reads a whole file, including the padding of its last block. Returns `None` if it is missing.
pub async fn read_file<D: Disk>(disk: &D, path: &Path) -> io::Result<Option<Vec<u8>>> {
    use crate::{buf::block_ceil, disk::File};
    let file = match disk.open(path, OpenMode::Read).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len().await?;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    while (bytes.len() as u64) < len {
        let want = (len - bytes.len() as u64).min(4 << 20) as usize;
        let piece = file.read(bytes.len() as u64, block_ceil(want)).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}
