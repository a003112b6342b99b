//! The data of a partition's entries in Raft: the descriptor of a batch, or a control entry. A batch's bytes travel
//! beside its entry.
//!
//! ```text
//! 0        1         4        8             16       20       24       32
//! ┌────────┬─────────┬────────┬─────────────┬────────┬────────┬────────┐
//! │ kind 1 │ zero    │ count  │ base offset │ bytes  │ crc    │ max ts │  a batch: 32 bytes, little-endian
//! └────────┴─────────┴────────┴─────────────┴────────┴────────┴────────┘
//! ┌────────┬─────────┬────────┬─────────────┐
//! │ kind 2 │ zero    │ zero   │ offset      │                             the log start moves: 16 bytes
//! └────────┴─────────┴────────┴─────────────┘
//! ```
//!
//! A leader's first entry of its term has no bytes at all. A kind's number is never reused.

pub use crate::group::errors::EntryDataError;
use crate::group::errors::EntryError;
use bytes::{BufMut, Bytes, BytesMut};

const KIND_BATCH: u8 = 1;
const KIND_LOG_START: u8 = 2;
const BATCH_BYTES: usize = 32;
const LOG_START_BYTES: usize = 16;
/// The most bytes that an entry's data may take, without its batch, now and in later versions.
pub const ENTRY_DATA_BYTES_MAX: usize = 64;

/// One batch of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub base_offset: u64,
    /// Number of records, at least 1. The next batch begins at `base_offset + count`.
    pub count: u32,
    /// Length of the batch in bytes.
    pub bytes: u32,
    /// The batch's own CRC-32C, as its header states it.
    pub crc: u32,
    /// Largest timestamp in ms since the epoch; -1 if there is none.
    pub max_timestamp: i64,
}

/// The data of a partition's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryData {
    /// A leader's first entry of its term.
    Nothing,
    Batch(Descriptor),
    /// Records below this offset are deleted.
    LogStart {
        offset: u64,
    },
}

impl EntryData {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(BATCH_BYTES);
        match self {
            EntryData::Nothing => {}
            EntryData::Batch(batch) => {
                out.put_u32_le(u32::from(KIND_BATCH));
                out.put_u32_le(batch.count);
                out.put_u64_le(batch.base_offset);
                out.put_u32_le(batch.bytes);
                out.put_u32_le(batch.crc);
                out.put_i64_le(batch.max_timestamp);
            }
            EntryData::LogStart { offset } => {
                out.put_u64_le(u64::from(KIND_LOG_START));
                out.put_u64_le(*offset);
            }
        }
        out.freeze()
    }

    pub fn decode(data: &[u8]) -> Result<Self, EntryDataError> {
        let Some(&kind) = data.first() else { return Ok(EntryData::Nothing) };
        let expected = match kind {
            KIND_BATCH => BATCH_BYTES,
            KIND_LOG_START => LOG_START_BYTES,
            other => return Err(EntryDataError::UnknownKind(other)),
        };
        if data.len() != expected {
            return Err(EntryDataError::Length { kind, expected, found: data.len() });
        }
        let u32_at = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
        Ok(match kind {
            KIND_BATCH => EntryData::Batch(Descriptor {
                count: u32_at(4),
                base_offset: u64_at(8),
                bytes: u32_at(16),
                crc: u32_at(20),
                max_timestamp: u64_at(24) as i64,
            }),
            _ => EntryData::LogStart { offset: u64_at(8) },
        })
    }
}

/// The last offset. Clients know offsets as signed numbers.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Checks that the data of a partition's entry can be read and applied, or says why not.
pub fn check_entry(data: &[u8]) -> Result<(), EntryError> {
    match EntryData::decode(data)? {
        EntryData::Nothing => Ok(()),
        EntryData::Batch(Descriptor { count, .. }) if count == 0 || count > i32::MAX as u32 => {
            Err(EntryError::Count(count))
        }
        EntryData::Batch(Descriptor { base_offset, count, .. })
            if base_offset.checked_add(count.into()).is_none_or(|end| end > OFFSET_MAX) =>
        {
            Err(EntryError::Offsets { base_offset, count })
        }
        EntryData::LogStart { offset } if offset > OFFSET_MAX => Err(EntryError::LogStart(offset)),
        EntryData::Batch(_) | EntryData::LogStart { .. } => Ok(()),
    }
}

/// Length in bytes of the batch that travels beside an entry with this data; 0 without a batch.
pub fn bytes_beside(data: &[u8]) -> u64 {
    match EntryData::decode(data) {
        Ok(EntryData::Batch(batch)) => u64::from(batch.bytes),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: Descriptor =
        Descriptor { base_offset: 0x0102, count: 3, bytes: 0x0405, crc: 0x0607_0809, max_timestamp: -1 };

    #[test]
    fn the_layout_is_the_drawn_one() {
        let batch = EntryData::Batch(BATCH).encode();
        let expected: [u8; BATCH_BYTES] = [
            1, 0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 5, 4, 0, 0, 9, 8, 7, 6, 255, 255, 255, 255, 255, 255, 255,
            255,
        ];
        assert_eq!(batch[..], expected);
        let start = EntryData::LogStart { offset: 9 }.encode();
        assert_eq!(start[..], [2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn encoded_values_are_decoded() {
        for data in [EntryData::Nothing, EntryData::Batch(BATCH), EntryData::LogStart { offset: u64::MAX }] {
            assert_eq!(EntryData::decode(&data.encode()), Ok(data));
        }
    }

    #[test]
    fn other_bytes_are_refused_by_name() {
        assert_eq!(EntryData::decode(&[7]), Err(EntryDataError::UnknownKind(7)));
        let short = &EntryData::Batch(BATCH).encode()[..31];
        let expected = EntryDataError::Length { kind: 1, expected: 32, found: 31 };
        assert_eq!(EntryData::decode(short), Err(expected));
    }
}
