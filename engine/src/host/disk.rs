//! The disk under a broker's stores: the system's disk, through an io_uring of each core's own, or that of a
//! simulation.

use bytes::Bytes;
use runtime::backend::Later;
use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};
use wal::disk::{
    Disk as WalDisk, Durability, File as WalFile, OpenMode,
    uring::{UringDisk, UringFile},
};

use super::machine;

/// One core's disk.
#[derive(Clone)]
pub enum Disk {
    System(UringDisk),
    Simulated(Rc<dyn AnyDisk>),
}

/// An open file of a [`Disk`].
pub enum File {
    System(UringFile),
    Simulated(Box<dyn AnyFile>),
}

/// This core's access to the disk.
pub fn open() -> io::Result<Disk> {
    match machine::installed() {
        Some(machine) => Ok(Disk::Simulated(machine.disk())),
        None => UringDisk::new().map(Disk::System),
    }
}

/// Any [`wal::disk::Disk`], behind a pointer.
pub trait AnyDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> Later<'a, io::Result<Box<dyn AnyFile>>>;
    fn create_dir<'a>(&'a self, path: &'a Path) -> Later<'a, io::Result<()>>;
    fn list<'a>(&'a self, dir: &'a Path) -> Later<'a, io::Result<Vec<PathBuf>>>;
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> Later<'a, io::Result<()>>;
    fn remove<'a>(&'a self, path: &'a Path) -> Later<'a, io::Result<()>>;
    fn sync_dir<'a>(&'a self, dir: &'a Path) -> Later<'a, io::Result<()>>;
}

/// Any [`wal::disk::File`], behind a pointer.
#[allow(clippy::len_without_is_empty)] // The length comes from the disk.
pub trait AnyFile {
    fn write(&self, position: u64, data: Bytes, durability: Durability) -> Later<'_, io::Result<()>>;
    fn read(&self, position: u64, len: usize) -> Later<'_, io::Result<Bytes>>;
    fn sync(&self) -> Later<'_, io::Result<()>>;
    fn allocate(&self, len: u64) -> Later<'_, io::Result<()>>;
    fn truncate(&self, len: u64) -> Later<'_, io::Result<()>>;
    fn len(&self) -> Later<'_, io::Result<u64>>;
    fn modified_ms(&self) -> Later<'_, io::Result<i64>>;
}

impl<D: WalDisk> AnyDisk for D {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> Later<'a, io::Result<Box<dyn AnyFile>>> {
        Box::pin(async move { Ok(Box::new(WalDisk::open(self, path, mode).await?) as Box<dyn AnyFile>) })
    }

    fn create_dir<'a>(&'a self, path: &'a Path) -> Later<'a, io::Result<()>> {
        Box::pin(WalDisk::create_dir(self, path))
    }

    fn list<'a>(&'a self, dir: &'a Path) -> Later<'a, io::Result<Vec<PathBuf>>> {
        Box::pin(WalDisk::list(self, dir))
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> Later<'a, io::Result<()>> {
        Box::pin(WalDisk::rename(self, from, to))
    }

    fn remove<'a>(&'a self, path: &'a Path) -> Later<'a, io::Result<()>> {
        Box::pin(WalDisk::remove(self, path))
    }

    fn sync_dir<'a>(&'a self, dir: &'a Path) -> Later<'a, io::Result<()>> {
        Box::pin(WalDisk::sync_dir(self, dir))
    }
}

impl<F: WalFile> AnyFile for F {
    fn write(&self, position: u64, data: Bytes, durability: Durability) -> Later<'_, io::Result<()>> {
        Box::pin(WalFile::write(self, position, data, durability))
    }

    fn read(&self, position: u64, len: usize) -> Later<'_, io::Result<Bytes>> {
        Box::pin(WalFile::read(self, position, len))
    }

    fn sync(&self) -> Later<'_, io::Result<()>> {
        Box::pin(WalFile::sync(self))
    }

    fn allocate(&self, len: u64) -> Later<'_, io::Result<()>> {
        Box::pin(WalFile::allocate(self, len))
    }

    fn truncate(&self, len: u64) -> Later<'_, io::Result<()>> {
        Box::pin(WalFile::truncate(self, len))
    }

    fn len(&self) -> Later<'_, io::Result<u64>> {
        Box::pin(WalFile::len(self))
    }

    fn modified_ms(&self) -> Later<'_, io::Result<i64>> {
        Box::pin(WalFile::modified_ms(self))
    }
}

impl WalDisk for Disk {
    type File = File;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        match self {
            Self::System(disk) => WalDisk::open(disk, path, mode).await.map(File::System),
            Self::Simulated(disk) => (**disk).open(path, mode).await.map(File::Simulated),
        }
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System(disk) => WalDisk::create_dir(disk, path).await,
            Self::Simulated(disk) => (**disk).create_dir(path).await,
        }
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::System(disk) => WalDisk::list(disk, dir).await,
            Self::Simulated(disk) => (**disk).list(dir).await,
        }
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::System(disk) => WalDisk::rename(disk, from, to).await,
            Self::Simulated(disk) => (**disk).rename(from, to).await,
        }
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::System(disk) => WalDisk::remove(disk, path).await,
            Self::Simulated(disk) => (**disk).remove(path).await,
        }
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::System(disk) => WalDisk::sync_dir(disk, dir).await,
            Self::Simulated(disk) => (**disk).sync_dir(dir).await,
        }
    }
}

impl WalFile for File {
    async fn write(&self, position: u64, data: Bytes, durability: Durability) -> io::Result<()> {
        match self {
            Self::System(file) => WalFile::write(file, position, data, durability).await,
            Self::Simulated(file) => (**file).write(position, data, durability).await,
        }
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::System(file) => WalFile::read(file, position, len).await,
            Self::Simulated(file) => (**file).read(position, len).await,
        }
    }

    async fn sync(&self) -> io::Result<()> {
        match self {
            Self::System(file) => WalFile::sync(file).await,
            Self::Simulated(file) => (**file).sync().await,
        }
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        match self {
            Self::System(file) => WalFile::allocate(file, len).await,
            Self::Simulated(file) => (**file).allocate(len).await,
        }
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        match self {
            Self::System(file) => WalFile::truncate(file, len).await,
            Self::Simulated(file) => (**file).truncate(len).await,
        }
    }

    async fn len(&self) -> io::Result<u64> {
        match self {
            Self::System(file) => WalFile::len(file).await,
            Self::Simulated(file) => (**file).len().await,
        }
    }

    async fn modified_ms(&self) -> io::Result<i64> {
        match self {
            Self::System(file) => WalFile::modified_ms(file).await,
            Self::Simulated(file) => (**file).modified_ms().await,
        }
    }
}
