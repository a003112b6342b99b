//! Why bytes are not a batch or its records.

use crate::records::compression::{DecompressError, ZSTD_FROM_VERSION};

/// Why bytes are not a batch that may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("{have} bytes are too few for a record batch of {need}")]
    Short { have: usize, need: usize },
    #[error("batch length {length} is invalid")]
    Length { length: i32 },
    #[error("message format {magic} is not supported, only 2")]
    Magic { magic: i8 },
    #[error("CRC-32C is {computed:08x}, the batch says {claimed:08x}")]
    Crc { claimed: u32, computed: u32 },
    #[error("unknown compression codec in attributes {attributes:#x}")]
    Codec { attributes: i16 },
    #[error("zstd needs Produce version {ZSTD_FROM_VERSION} or later, not {version}")]
    ZstdTooEarly { version: i16 },
    #[error("no record batch for a partition; exactly one is required")]
    Empty,
    #[error("more than one record batch for a partition; exactly one is required")]
    Several,
    #[error("record count {count} is invalid with last offset delta {last_offset_delta}")]
    Count { count: i32, last_offset_delta: i32 },
    #[error("base offset is {base_offset}; a producer must send 0")]
    BaseOffset { base_offset: i64 },
    #[error("the batch's timestamp type is append time, which only the broker may set")]
    AppendTime,
    #[error("clients may not write control batches")]
    Control,
    #[error("producer id {producer_id} is invalid with epoch {producer_epoch} and base sequence {base_sequence}")]
    Producer { producer_id: i64, producer_epoch: i16, base_sequence: i32 },
    #[error("attributes {attributes:#x} have bits that are unknown or that a producer may not set")]
    Attributes { attributes: i16 },
    #[error("records do not match the batch header: {0}")]
    Records(#[from] RecordError),
    #[error("the records can't be decompressed: {0}")]
    Unfold(#[from] DecompressError),
}

impl From<ReadError> for BatchError {
    fn from(error: ReadError) -> BatchError {
        match error {
            ReadError::Batch(error) => error,
            ReadError::Record(error) => BatchError::Records(error),
            ReadError::Decompress(error) => BatchError::Unfold(error),
        }
    }
}

/// Why bytes are not the records of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record {index} is cut off")]
    Cut { index: i32 },
    #[error("record {index} has a variable-length number that is too long")]
    Varint { index: i32 },
    #[error("record {index} has the invalid length or count {length}")]
    Length { index: i32, length: i64 },
    #[error("record {index} has {bytes} bytes after its fields")]
    Inside { index: i32, bytes: u64 },
    #[error("record {index} has offset delta {offset_delta} instead of {index}")]
    OffsetDelta { index: i32, offset_delta: i64 },
    #[error("{bytes} bytes after the last of {count} records")]
    Trailing { count: i32, bytes: usize },
}

/// Why records can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Decompress(#[from] DecompressError),
}
