//! One partition's log: a tail in memory over segment files.
//! Lives on: the owning core only.
//! Invariants: start <= flushed <= stable <= end; indices without holes; offsets and positions in the ring never go back.

/// How one log is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment ends before the batch that would take it past this many bytes (Kafka's `segment.bytes`).
    pub segment_bytes: u64,
    /// A segment ends when its batches' timestamps span more than this (Kafka's `segment.ms`).
    pub segment_ms: Option<u64>,
    /// Bytes of a segment per entry of its sparse index (Kafka's `index.interval.bytes`).
    pub index_interval_bytes: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 1 << 30, segment_ms: None, index_interval_bytes: 16 << 10 }
    }
}

/// A log's marks, all offsets but the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogView {
    pub start_offset: u64,
    /// Below it, everything is in segments.
    pub flushed_offset: u64,
    /// Below it, everything is durable on this disk.
    pub stable_offset: u64,
    /// The next batch gets this offset.
    pub next_offset: u64,
    pub last_index: u64,
    pub last_term: u64,
}
