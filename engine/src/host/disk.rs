//! The disk under a broker's stores: the system's disk, through an io_uring of each core's own. This crate's own tests
//! run on simulated disks (see `sim`).

#[cfg(test)]
pub use wal::disk::sim::SimDisk as Disk;
#[cfg(not(test))]
pub use wal::disk::uring::UringDisk as Disk;

/// This core's access to the disk.
#[cfg(not(test))]
pub fn open() -> std::io::Result<Disk> {
    Disk::new()
}

#[cfg(test)]
pub fn open() -> std::io::Result<Disk> {
    Ok(crate::sim::disk())
}
