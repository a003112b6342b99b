//! The records of the ring: each is one Raft entry with its payload, or a group's hard state.
//! Lives on: the owning core. These are numbers only; the caller knows what they mean.

use bytes::Bytes;
use types::{RaftIndex, Term};

/// The offsets that a payload covers: `base .. base + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub base_offset: u64,
    pub count: u32,
    /// Largest record timestamp inside, in ms since the epoch; -1 if it has none.
    pub max_timestamp: i64,
}

/// One Raft entry: its small data and, for a partition's batch, the payload that travels beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: RaftIndex,
    pub term: Term,
    /// The Raft entry's type, as its number in raft-proto (normal, conf change, …).
    pub entry_type: u8,
    /// The Raft entry's own data, opaque here.
    pub data: Bytes,
    /// The batch, opaque here. With `Some`, the span says which offsets it holds.
    pub payload: Option<(Span, Bytes)>,
}

impl Entry {
    /// The payload's CRC-32C, 0 without one.
    pub fn payload_crc(&self) -> u32 {
        self.payload.as_ref().map_or(0, |(_, payload)| crc32c::crc32c(payload))
    }
}

/// A position in the ring's history, in bytes. It only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos(pub u64);

/// An entry's place in its log, and the offset behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMark {
    pub index: RaftIndex,
    pub term: Term,
    pub offset: u64,
}

/// An entry that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where its record begins and ends in the ring's history.
    pub start: LogPos,
    pub end: LogPos,
    /// Its place among the offsets, also if it has no batch.
    pub base_offset: u64,
    pub entry: Entry,
    /// The payload's CRC-32C, 0 without one.
    pub payload_crc: u32,
}

impl Held {
    pub fn end_offset(&self) -> u64 {
        self.entry.payload.as_ref().map_or(self.base_offset, |(span, _)| span.base_offset + u64::from(span.count))
    }

    pub(crate) fn batch(&self) -> Option<Batch> {
        let (span, bytes) = self.entry.payload.as_ref()?;
        Some(Batch {
            base_offset: span.base_offset,
            count: span.count,
            max_timestamp: span.max_timestamp,
            index: self.entry.index,
            term: self.entry.term,
            bytes: bytes.clone(),
        })
    }
}

/// One batch as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub base_offset: u64,
    pub count: u32,
    pub max_timestamp: i64,
    pub index: RaftIndex,
    pub term: Term,
    pub bytes: Bytes,
}

impl Batch {
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let (span, bytes) = entry.payload.as_ref()?;
        Some(Self {
            base_offset: span.base_offset,
            count: span.count,
            max_timestamp: span.max_timestamp,
            index: entry.index,
            term: entry.term,
            bytes: bytes.clone(),
        })
    }
}
