//! The seam at which a simulation takes the place of a broker's disk and of its connections to other brokers. Tasks,
//! time and queues have theirs in `runtime::backend`.

use bytes::Bytes;
use net::peer::{Kind, Lane, PeerError, auth::Handshake};
use runtime::backend::Later;
use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};
use wal::disk::{Disk as WalDisk, Durability, File as WalFile, OpenMode};

/// A machine that does not exist.
pub trait Machine {
    /// The disk of the process that is running.
    fn disk(&self) -> Rc<dyn AnyDisk>;
    /// Connects to a peer port and shakes hands. Returns the other side's hello.
    fn connect(&self, address: String, from: i32, handshake: Handshake) -> Later<'_, Connected>;
}

pub type Connected = Result<(Box<dyn PeerConnection>, Bytes), PeerError>;

/// A connection to another broker, at the side that opened it.
pub trait PeerConnection {
    /// Queues a frame.
    fn push(&mut self, kind: Kind, lane: Lane, parts: Vec<Bytes>);
    /// Sends the queued frames.
    fn flush(&mut self) -> Later<'_, io::Result<()>>;
    /// Waits for the connection to end.
    fn ended(&mut self) -> Later<'_, PeerError>;
}

thread_local! {
    static MACHINE: RefCell<Option<Rc<dyn Machine>>> = const { RefCell::new(None) };
}

/// From now on, brokers on this thread run on this machine, or with `None` on the real one.
pub fn install(machine: Option<Rc<dyn Machine>>) {
    let before = MACHINE.replace(machine);
    drop(before);
}

/// The machine that a simulation has installed on this thread.
pub(crate) fn installed() -> Option<Rc<dyn Machine>> {
    MACHINE.with_borrow(Clone::clone)
}

/// Any [`wal::disk::Disk`], behind a pointer.
pub trait AnyDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> Later<'a, io::Result<Box<dyn AnyFile>>>;
    fn create_dir<'a>(&'a self, path: &'a Path) -> Later<'a, io::Result<()>>;
    fn list<'a>(&'a self, dir: &'a Path) -> Later<'a, io::Result<Vec<PathBuf>>>;
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> Later<'a, io::Result<()>>;
    fn exchange<'a>(&'a self, one: &'a Path, other: &'a Path) -> Later<'a, io::Result<()>>;
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

    fn exchange<'a>(&'a self, one: &'a Path, other: &'a Path) -> Later<'a, io::Result<()>> {
        Box::pin(WalDisk::exchange(self, one, other))
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
