//! The seam to storage: what the ring, the segments and the checkpoints ask of a disk, and nothing more.
//! Lives on: one core; neither handles nor futures cross cores.
//!
//! Backends: a raw `io_uring` ring (`disk_uring`), glommio's DmaFile (`disk_glommio`), rio behind the feature `rio`, and
//! the seeded simulation that loses and tears what was not synced (`disk_sim`).
//!
//! Contract, as POSIX gives it and no stronger: a completed write is durable only after a later [`File::sync`] of that
//! file completed, or if it was a [`Durability::Synced`] write; a created, renamed or removed name is durable only after
//! [`Disk::sync_dir`] of its directory. Until then a crash may keep any subset, down to single 512-byte sectors.

pub mod glommio;
#[cfg(feature = "rio")]
pub mod rio;
pub mod sim;
#[cfg(test)]
mod tests;
pub mod uring;

use bytes::Bytes;
use std::{
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Whether a write is durable when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Reaches the device at some later [`File::sync`].
    Cached,
    /// Write and sync in one (O_DSYNC's promise).
    Synced,
}

/// How [`Disk::open`] treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist. Read only.
    Read,
    /// The file must exist. Read and write.
    Write,
    /// The file must not exist; it is created empty.
    CreateNew,
}

/// A place for files.
#[allow(async_fn_in_trait)] // Futures never leave their core, so no `Send` bound is wanted.
pub trait Disk: Clone + 'static {
    type File: File;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File>;
    /// Creates a directory and its missing parents; fine if it is there. Not durable before the parents are synced.
    async fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// What is in a directory, as paths that begin with `dir`, sorted; empty if the directory is missing.
    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Replaces `to` atomically.
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, or an empty directory.
    async fn remove(&self, path: &Path) -> io::Result<()>;
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Positions and lengths of transfers are whole blocks ([`crate::buf::BLOCK`]), memory is block-aligned.
#[allow(async_fn_in_trait)]
#[allow(clippy::len_without_is_empty)] // A file's length is asked of the disk.
pub trait File: 'static {
    /// Writes all of `data` at `position`; a short write is an error (`WriteZero`). The backend holds `data` until the
    /// kernel is done with it, also when the future is dropped.
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()>;
    /// Reads up to `len` bytes; fewer only at the end of the file.
    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes>;
    /// Makes all completed writes and the length durable (fdatasync).
    async fn sync(&self) -> io::Result<()>;
    /// Reserves space up to `len` and sets the length, reading as zeros.
    async fn allocate(&self, len: u64) -> io::Result<()>;
    async fn truncate(&self, len: u64) -> io::Result<()>;
    async fn len(&self) -> io::Result<u64>;
    /// When the file was written last, in ms since the epoch, by the file system's clock.
    async fn modified_ms(&self) -> io::Result<i64>;
}

/// For backends that have the system's files.
pub(crate) fn modified_ms(metadata: &std::fs::Metadata) -> io::Result<i64> {
    let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
