//! glommio's own files as a [`Disk`], for comparison with [`uring`](crate::disk::uring). Their latency is higher,
//! since glommio copies the data into the reactor's buffers and a durable write takes two operations.
//! Lives on: one core, on glommio's executor.

use crate::{
    buf::{BLOCK, Chunk, block_ceil},
    disk::{Disk, Durability, File, OpenMode, exchange, modified_ms},
};
use bytes::Bytes;
use runtime::files::{self, Directory, DmaFile, GlommioError, OpenOptions};
use std::{
    io,
    path::{self, Path, PathBuf},
    rc::Rc,
};

/// The executor's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct GlommioDisk;

/// An open file. It is closed when the last operation on it has ended.
pub struct GlommioFile(Rc<DmaFile>);

fn io_error(error: GlommioError<()>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::from(error),
    }
}

fn missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

impl Disk for GlommioDisk {
    type File = GlommioFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<GlommioFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew).mode(0o640);
        Ok(GlommioFile(Rc::new(options.dma_open(path).await.map_err(io_error)?)))
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if missing(&error) => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        files::rename(from, to).await.map_err(io_error)
    }

    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        exchange(one, other)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        match files::remove(path).await.map_err(io_error) {
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => std::fs::remove_dir(path),
            removed => removed,
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // glommio resolves a relative path against the descriptor -1, so the path must be absolute.
        let dir = Directory::open(path::absolute(dir)?).await.map_err(io_error)?;
        let synced = dir.sync().await.map_err(io_error);
        dir.close().await.map_err(io_error)?;
        synced
    }
}

impl File for GlommioFile {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        assert!(position.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK), "writes are whole blocks");
        let mut buffer = self.0.alloc_dma_buffer(data.len());
        buffer.as_bytes_mut().copy_from_slice(&data);
        if self.0.write_at(buffer, position).await.map_err(io_error)? != data.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if durability == Durability::Synced { self.sync().await } else { Ok(()) }
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert!(position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK), "reads are whole blocks");
        if len == 0 {
            return Ok(Bytes::new());
        }
        let read = self.0.read_at_aligned(position, len).await.map_err(io_error)?;
        let mut chunk = Chunk::new(block_ceil(read.len().max(1)));
        chunk.push(&read);
        Ok(chunk.frozen(0, read.len()))
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.fdatasync().await.map_err(io_error)
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.pre_allocate(len, false).await.map_err(io_error)
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len).await.map_err(io_error)
    }

    async fn len(&self) -> io::Result<u64> {
        self.0.file_size().await.map_err(io_error)
    }

    async fn modified_ms(&self) -> io::Result<i64> {
        let path = self.0.path().ok_or(io::ErrorKind::NotFound)?;
        modified_ms(&std::fs::metadata(&*path)?)
    }
}
