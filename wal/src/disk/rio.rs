//! The crate rio as a [`Disk`], only for comparisons in the harness (feature `rio`: GPL-3.0, and RUSTSEC-2020-0021).
//! Only reads, writes and syncs go through rio; plain system calls handle names.
//! Lives on: one core; completions come from a thread that rio owns.
//!
//! Invariant: no [`rio::Completion`] leaves this file. The advisory is about leaked completions, which let the kernel
//! use freed memory. Here each completion is awaited while what it borrows is alive, and a future that is dropped
//! halfway blocks until the kernel is done.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::{Disk, Durability, File, OpenMode, exchange, modified_ms},
};
use bytes::Bytes;
use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A rio ring. Clones are handles to the same ring.
#[derive(Clone)]
pub struct RioDisk(rio::Rio);

impl RioDisk {
    pub fn new() -> io::Result<Self> {
        Ok(Self(rio::new()?))
    }
}

/// An open file.
pub struct RioFile {
    rio: rio::Rio,
    file: fs::File,
}

impl Disk for RioDisk {
    type File = RioFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<RioFile> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew).mode(0o640);
        let file = options.custom_flags(libc::O_DIRECT).open(path)?;
        Ok(RioFile { rio: self.0.clone(), file })
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        exchange(one, other)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(path),
            removed => removed,
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

/// The target memory of a read.
struct Space(Chunk, usize);

impl AsRef<[u8]> for Space {
    fn as_ref(&self) -> &[u8] {
        self.0.unwritten(self.1)
    }
}

impl AsMut<[u8]> for Space {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.space(self.1)
    }
}

impl File for RioFile {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        assert!(position.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK), "writes are whole blocks");
        let written = self.rio.write_at(&self.file, &data, position).await?;
        if written != data.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if durability == Durability::Synced { self.sync().await } else { Ok(()) }
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert!(position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK), "reads are whole blocks");
        if len == 0 {
            return Ok(Bytes::new());
        }
        let space = Space(Chunk::new(block_ceil(len)), len);
        let read = self.rio.read_at(&self.file, &space, position).await?;
        let mut chunk = space.0;
        chunk.advance(read);
        Ok(chunk.frozen(0, read))
    }

    async fn sync(&self) -> io::Result<()> {
        // rio's fdatasync sets its flag in the wrong field and fails with EBADF.
        self.rio.fsync(&self.file).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len().await? < len {
            self.file.set_len(len)?;
        }
        Ok(())
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    async fn modified_ms(&self) -> io::Result<i64> {
        modified_ms(&self.file.metadata()?)
    }
}
