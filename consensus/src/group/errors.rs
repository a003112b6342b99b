//! Why bytes in a log, a checkpoint or a peer's message can't be read or applied.

use crate::metadata::DecodeError;

/// Why the data of an entry can't be read or applied. Small, since each entry's check returns it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("this version does not know its type {0}")]
    Type(u8),
    #[error(transparent)]
    Data(#[from] EntryDataError),
    #[error("a batch has {0} records, not 1 to {max}", max = i32::MAX)]
    Count(u32),
    #[error("{count} records from offset {base_offset} exceed the last offset {last}", last = i64::MAX)]
    Offsets { base_offset: u64, count: u32 },
    #[error("a batch ends at offset {end}, but the log is committed up to {committed} and ends at {log_end}")]
    Batch { end: u64, committed: u64, log_end: u64 },
    #[error("the log start {0} exceeds the last offset {last}", last = i64::MAX)]
    LogStart(u64),
    #[error("it moves the log's start to offset {to}, but the log is committed up to {committed}")]
    LogStartUncommitted { to: u64, committed: u64 },
    #[error(transparent)]
    Members(Box<ConfigurationError>),
    #[error("the members do not allow {}: {}", .0.change, .0.why)]
    MembersRefused(Box<MembersRefused>),
    #[error(transparent)]
    Commands(Box<DecodeError>),
    #[error("group ids from {first} exceed the last id {last}")]
    GroupIds { first: u64, last: u64 },
}

/// Why bytes can't be decoded as an entry's data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryDataError {
    #[error("unknown kind {0}; it was written by a newer version")]
    UnknownKind(u8),
    #[error("kind {kind} is {expected} bytes, not {found}")]
    Length { kind: u8, expected: usize, found: usize },
}

/// A membership change that raft-rs refuses, and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersRefused {
    pub change: String,
    pub why: String,
}

impl From<ConfigurationError> for EntryError {
    fn from(error: ConfigurationError) -> Self {
        Self::Members(Box::new(error))
    }
}

impl From<DecodeError> for EntryError {
    fn from(error: DecodeError) -> Self {
        Self::Commands(Box::new(error))
    }
}

/// Why bytes can't be read as a group's configuration, or as a change of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    #[error("a membership change can't have field {0}")]
    Field(u64),
    #[error("a single membership change can't have field {0}")]
    SingleField(u64),
    #[error("a membership change has the unknown type {0}")]
    ChangeType(u64),
    #[error("a membership change names no peer")]
    NoPeer,
    #[error("a field has the unknown wire type {0}")]
    WireType(u64),
    #[error("a field is longer than its message")]
    FieldLength,
    #[error("a number ends too early")]
    NumberEnds,
    #[error("a number has more than 64 bits")]
    NumberBits,
    #[error("it ends too early")]
    Ends,
    #[error("{bytes} bytes are too few for its {least} bytes of counts")]
    Counts { bytes: usize, least: usize },
    #[error("it has the unknown version {0}")]
    Version(u8),
    #[error("{counts:?} members do not match its length of {bytes} bytes")]
    Length { counts: [u32; 4], bytes: usize },
    #[error("{count} configurations in {bytes} bytes are not a list in ascending order")]
    Order { count: usize, bytes: usize },
}
