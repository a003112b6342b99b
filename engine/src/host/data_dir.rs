//! The data directory: checks that it exists, belongs to this process alone, is writable, and whether it supports
//! O_DIRECT.
//! Lives on: the main thread, which holds it as long as the broker runs. Its contents belong to `wal`.
//!
//! Invariant: the owner of a [`DataDir`] holds the lock on `<data>/LOCK`. The kernel releases the lock when the process
//! ends, however it ends. The file itself stays: removing it would let two processes lock two files of the same name.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot create the data directory {dir}: {source}; create it for this user, or name another (--data-dir)")]
    Create { dir: PathBuf, source: io::Error },
    #[error("cannot write in the data directory {dir}: {source}; give it to this user, or name another (--data-dir)")]
    Write { dir: PathBuf, source: io::Error },
    #[error(
        "the data directory {dir} is in use by another millrace{}; stop that one, or name another (--data-dir)",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked { dir: PathBuf, pid: Option<u32> },
    #[error(
        "{dir} belongs to broker {owner}, not {node}; start it with --node-id {owner}, or name another directory \
         (--data-dir)"
    )]
    OtherBroker { dir: PathBuf, owner: i32, node: i32 },
}

/// A data directory that only this process uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is missing, and takes its lock.
    pub fn open(dir: &Path) -> Result<DataDir, DataDirError> {
        fs::create_dir_all(dir).map_err(|source| DataDirError::Create { dir: dir.to_owned(), source })?;
        let unwritable = |source| DataDirError::Write { dir: dir.to_owned(), source };
        let path = fs::canonicalize(dir).map_err(unwritable)?;
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join("LOCK"));
        let mut lock = open.map_err(unwritable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::Locked { dir: dir.to_owned(), pid: pid_in(&mut lock) });
            }
            Err(TryLockError::Error(source)) => return Err(unwritable(source)),
        }
        match write_pid(&mut lock) {
            // The process number is only for messages.
            Err(e) if is_full(&e) => {}
            written => written.map_err(unwritable)?,
        }
        // An existing LOCK may be writable in a directory in which no file can be created.
        let probe = tempfile_in(&path).map_err(unwritable)?;
        drop(probe);
        Ok(DataDir { path, _lock: lock })
    }

    /// Absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files here support writes that bypass the page cache. Returns an error for every failure except 'not
    /// supported'.
    pub fn takes_o_direct(&self) -> Result<bool, DataDirError> {
        self.probe_o_direct().map_err(|source| DataDirError::Write { dir: self.path.clone(), source })
    }

    fn probe_o_direct(&self) -> io::Result<bool> {
        let file = match nameless(&self.path, libc::O_DIRECT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
            file => file?,
        };
        #[repr(align(4096))]
        struct Block([u8; 4096]);
        let block = Block([0; 4096]);
        // SAFETY: the call writes from a live buffer of that length to a descriptor that we own.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), block.0.as_ptr().cast(), block.0.len(), 0) };
        match written {
            4096 => Ok(true),
            0.. => Err(io::ErrorKind::WriteZero.into()),
            _ => match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
                // There is no space for the probe, but the file system did not reject O_DIRECT. The broker starts, so
                // that clients can delete a topic to make room.
                e if is_full(&e) => Ok(true),
                e => Err(e),
            },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn tempfile_in(dir: &Path) -> io::Result<File> {
    nameless(dir, 0)
}

/// Opens a file that vanishes when it is closed. If the file system has no unnamed files, the file has a name for a
/// moment.
fn nameless(dir: &Path, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE | flags).open(dir) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let path = dir.join("PROBE");
            let file = options.create(true).truncate(true).custom_flags(flags).open(&path);
            // Nobody needs that name any more, whether or not the file could be opened.
            let _ = fs::remove_file(&path);
            file
        }
        file => file,
    }
}

/// Overwrites the file before it cuts the rest off. So a file that has a block already needs no other block.
fn write_pid(lock: &mut File) -> io::Result<()> {
    let line = format!("{}\n", std::process::id());
    lock.rewind()?;
    lock.write_all(line.as_bytes())?;
    lock.set_len(line.len() as u64)
}

fn pid_in(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_created_and_belongs_to_one() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let first = DataDir::open(&dir).unwrap();
        assert_eq!(first.path(), fs::canonicalize(&dir).unwrap());
        let refusal = DataDir::open(&dir).unwrap_err().to_string();
        assert!(refusal.contains(&format!("in use by another millrace (process {})", std::process::id())), "{refusal}");
        drop(first);
        DataDir::open(&dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("LOCK")).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_lock_file_without_a_number_still_locks() {
        let root = tempfile::tempdir().unwrap();
        let holder = File::create(root.path().join("LOCK")).unwrap();
        holder.lock().unwrap();
        let refusal = DataDir::open(root.path()).unwrap_err().to_string();
        assert!(refusal.contains("in use by another millrace; stop that one"), "{refusal}");
    }

    #[test]
    fn a_data_dir_that_is_no_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        for dir in [file.clone(), file.join("below")] {
            let refusal = DataDir::open(&dir).unwrap_err().to_string();
            assert!(refusal.contains("cannot create the data directory"), "{refusal}");
            assert!(refusal.contains("--data-dir"), "{refusal}");
        }
    }

    #[test]
    fn probing_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        // The result depends on the file system here. It must only not be an error.
        dir.takes_o_direct().unwrap();
        let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["LOCK"]);
    }
}
