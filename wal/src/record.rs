//! The records of the ring: each is one Raft entry with its payload, or a group's hard state.
//! Lives on: the owning core. These are numbers only; the caller knows what they mean.

use bytes::Bytes;
use types::Term;

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
    pub index: u64,
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
