//! The seam to storage: the operations that the ring, the segments and the checkpoints need from a disk.
//! Lives on: one core; neither handles nor futures cross cores.
//!
//! Backends: a raw `io_uring` ring ([`uring`]), glommio's DmaFile ([`glommio`]), rio behind the feature `rio`, and
//! the seeded simulation that loses and tears unsynced data ([`sim`]).
//!
//! Contract, no stronger than POSIX gives it:
//!
//! - A completed write is durable once a later [`File::sync`] of that file has completed, or if it was a
//!   [`Durability::Synced`] write.
//! - A created, renamed, exchanged or removed name is durable once [`Disk::sync_dir`] of its directory has completed.
//! - Until then a crash may keep any subset of the changes, down to single 512-byte sectors.

pub mod glommio;
#[cfg(feature = "rio")]
pub mod rio;
pub mod sim;
#[cfg(test)]
mod tests;
pub mod uring;

use bytes::Bytes;
use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Whether a write is durable when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Becomes durable with a later [`File::sync`].
    Cached,
    /// Write and sync in one, as O_DSYNC promises.
    Synced,
}

/// How [`Disk::open`] treats an existing or missing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist. Read only.
    Read,
    /// The file must exist. Read and write.
    Write,
    /// The file must not exist; it is created empty.
    CreateNew,
}

/// A file system.
#[allow(async_fn_in_trait)] // Futures never leave their core, so no `Send` bound is wanted.
pub trait Disk: Clone + 'static {
    type File: File;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File>;
    /// Creates a directory and its missing parents; succeeds if it exists. It is durable only once the parents are
    /// synced.
    async fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The contents of a directory, as paths that begin with `dir`, sorted. Empty if the directory is missing.
    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames `from` to `to` and replaces `to` atomically.
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Exchanges two files atomically. Some file systems cannot, and return EINVAL.
    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;
    /// Removes a file, or an empty directory.
    async fn remove(&self, path: &Path) -> io::Result<()>;
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Positions and lengths of transfers are whole blocks ([`crate::buf::BLOCK`]); memory is
/// block-aligned.
#[allow(async_fn_in_trait)]
#[allow(clippy::len_without_is_empty)] // The length comes from the disk.
pub trait File: 'static {
    /// Writes all of `data` at `position`. A short write is an error (`WriteZero`). The backend holds `data` until
    /// the kernel is done with it, even if the future is dropped.
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()>;
    /// Reads up to `len` bytes. Fewer are returned only at the end of the file.
    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes>;
    /// Makes all completed writes and the file's length durable (fdatasync).
    async fn sync(&self) -> io::Result<()>;
    /// Reserves space up to `len` and sets the length. The new bytes read as zeros.
    async fn allocate(&self, len: u64) -> io::Result<()>;
    async fn truncate(&self, len: u64) -> io::Result<()>;
    async fn len(&self) -> io::Result<u64>;
    /// When the file was last written, in ms since the epoch, by the file system's clock.
    async fn modified_ms(&self) -> io::Result<i64>;
}

/// For backends without this operation. It takes no longer than any other change of a directory.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let one = CString::new(one.as_os_str().as_bytes())?;
    let other = CString::new(other.as_os_str().as_bytes())?;
    // SAFETY: both are strings that end with a zero and live until the call returns.
    let status =
        unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For backends that use the system's files.
pub(crate) fn modified_ms(metadata: &std::fs::Metadata) -> io::Result<i64> {
    let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
