//! Why something failed, for all layers of the crate.

use std::io;

/// The store stopped: nothing is acknowledged on this core any more, and a restart recovers. The text says what
/// failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store stopped: {0}")]
pub struct Poisoned(pub String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The ring has no room, not even in its reserve. The caller did not ask
    /// [`Store::admit`](crate::store::Store::admit).
    #[error("the ring is full")]
    Full,
    /// The entry does not fit into a segment of the ring. A larger ring has larger segments.
    #[error("an entry of {bytes} bytes does not fit into a segment of the ring ({max} at most); raise wal.ring.bytes")]
    TooLarge { bytes: usize, max: usize },
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Why a store cannot be opened. Every variant names the file or the group.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// No space, or no free descriptor. Nothing is damaged.
    #[error("no room on the disk, or no free descriptor: {0}; free space or raise `ulimit -n`, then start again")]
    Full(String),
    /// Synced bytes are not what was written: restore the replica from its peers or from a copy.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The rings of the new number of cores do not take what only the old ones hold. The old ones stay.
    #[error(
        "{what}: a ring of {ring_bytes} bytes takes entries of at most {takes} bytes, but must take {bytes} bytes that no \
         other file holds, in entries of up to {largest} bytes; raise wal.ring.bytes, or use as many cores as before"
    )]
    SmallRing { what: String, ring_bytes: u64, takes: usize, bytes: usize, largest: usize },
    #[error("{path} has format version {found}, but this program reads {newest} at most; run the newer version")]
    Newer { path: String, found: u32, newest: u32 },
    #[error(
        "{path} has format version {found}, but this program reads only {reads}; copy its records elsewhere with the \
         version that wrote it, then set the directory up again"
    )]
    Older { path: String, found: u32, reads: u32 },
    /// The disk failed while the ring was written to.
    #[error(transparent)]
    Stopped(#[from] Poisoned),
}

impl OpenError {
    pub(crate) fn of(what: impl std::fmt::Display, source: io::Error) -> Self {
        match lacks_room(&source) {
            true => Self::Full(format!("{what}: {source}")),
            false => Self::Io { what: what.to_string(), source },
        }
    }
}

/// Whether the error says that the disk, or this user's quota, is full. A write that reaches the end of the space is
/// cut short first (`WriteZero`). The next round writes its data again, from where the last checkpoint ends.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero)
        || matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Whether the disk is full, or no descriptor is free.
pub(crate) fn lacks_room(error: &io::Error) -> bool {
    is_full(error) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Why a cold read failed. None of these errors poisons the store.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The segment's bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The range was trimmed, truncated or removed during the read. The caller looks at the log again.
    #[error("the log changed during the read")]
    Changed,
}

/// Why a round did not complete.
#[derive(Debug)]
pub(crate) enum FlushError {
    /// No space, or no descriptor. Retried after a pause.
    Full(String),
    /// The store must stop.
    Fatal(Fatal),
}

/// Why a store must stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Synced bytes are not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The ring has stopped already.
    #[error("{}", .0.0)]
    Stopped(#[from] Poisoned),
}

impl FlushError {
    pub fn of(what: impl std::fmt::Display, error: io::Error) -> Self {
        match lacks_room(&error) {
            true => Self::Full(format!("{what}: {error}")),
            false => Self::Fatal(Fatal::Io { what: what.to_string(), source: error }),
        }
    }
}

impl From<FlushError> for OpenError {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Full(why) => Self::Full(why),
            FlushError::Fatal(Fatal::Io { what, source }) => Self::Io { what, source },
            FlushError::Fatal(Fatal::Damaged(why)) => Self::Damaged(why),
            FlushError::Fatal(Fatal::Stopped(why)) => Self::Stopped(why),
        }
    }
}
