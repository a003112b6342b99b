//! The disk under a broker's stores: the system's disk, through an io_uring of each core's own, or that of a
//! simulation.

use bytes::Bytes;
use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};
use wal::disk::{
    Disk as WalDisk, Durability, File as WalFile, OpenMode,
    uring::{UringDisk, UringFile},
};

use super::machine::{self, AnyDisk, AnyFile};

/// One core's disk.
#[derive(Clone)]
pub enum Disk {
    System(UringDisk),
    Simulated(Rc<dyn AnyDisk>),
}

/// The storage of one core.
pub type Store = wal::store::Store<Disk>;

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

    async fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        match self {
            Self::System(disk) => WalDisk::exchange(disk, one, other).await,
            Self::Simulated(disk) => (**disk).exchange(one, other).await,
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
