//! The header of a record batch of message format 2: its layout and its fields.
//!
//! Source: <https://kafka.apache.org/documentation/#recordbatch> (KIP-98).
//!
//! ```text
//!  0        8       12       16 17       21   23        27               35               43
//!  ├────────┼────────┼────────┼──┼────────┼────┼─────────┼────────────────┼────────────────┤
//!  │base    │length  │leader  │2 │CRC-32C │attr│last     │base            │max             │
//!  │offset  │of rest │epoch   │  │of rest │    │off.delta│timestamp       │timestamp       │
//!  └────────┴────────┴────────┴──┴────────┴────┴─────────┴────────────────┴────────────────┘
//! 43               51   53        57        61
//!  ├────────────────┼────┼─────────┼─────────┼──────────────
//!  │producer id     │p.  │base     │record   │records, perhaps
//!  │                │epo.│sequence │count    │compressed
//!  └────────────────┴────┴─────────┴─────────┴──────────────
//! ```
//!
//! All numbers are big-endian. The CRC does not cover the base offset and the leader epoch, so a broker can assign
//! them without changing the rest.

use crate::records::compression::Codec;
use crate::records::error::BatchError;

/// The size of the header before the records, in bytes.
pub const HEADER_BYTES: usize = 61;
/// Where the length field ends. It counts the bytes from here on.
const LENGTH_END: usize = 12;
pub(super) const EPOCH_AT: usize = 12;
pub(super) const MAGIC_AT: usize = 16;
pub(super) const CRC_AT: usize = 17;
pub(super) const ATTRIBUTES_AT: usize = 21;
pub(super) const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
pub(super) const MAX_TIMESTAMP_AT: usize = 35;
pub(super) const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const COUNT_AT: usize = 57;

const _: () = assert!(COUNT_AT + 4 == HEADER_BYTES && ATTRIBUTES_AT == CRC_AT + 4 && CRC_AT == MAGIC_AT + 1);

/// The magic byte of message format 2.
pub const MAGIC: i8 = 2;

pub(super) const TIMESTAMP_TYPE_BIT: i16 = 1 << 3;
pub(super) const TRANSACTIONAL_BIT: i16 = 1 << 4;
pub(super) const CONTROL_BIT: i16 = 1 << 5;

/// The fields of a batch's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// The size of the whole batch, from the base offset on.
    pub byte_count: usize,
    pub partition_leader_epoch: i32,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    /// -1 if the producer is not idempotent.
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

impl BatchHeader {
    /// Reads the header of the batch at the start of `bytes`; more bytes may follow the batch. Checks the magic byte,
    /// the length, and that the whole batch is present. Does not check the CRC.
    pub fn read(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let have = bytes.len();
        // Formats 0 and 1 have their magic byte at the same position, but their headers are shorter.
        if have <= MAGIC_AT {
            return Err(BatchError::Short { have, need: HEADER_BYTES });
        }
        let magic = bytes[MAGIC_AT] as i8;
        if magic != MAGIC {
            return Err(BatchError::Magic { magic });
        }
        let length = i32::from_be_bytes(field(bytes, LENGTH_END - 4));
        if length < (HEADER_BYTES - LENGTH_END) as i32 {
            return Err(BatchError::Length { length });
        }
        let byte_count = LENGTH_END + length as usize;
        if have < byte_count {
            return Err(BatchError::Short { have, need: byte_count });
        }
        Ok(BatchHeader {
            base_offset: i64::from_be_bytes(field(bytes, 0)),
            byte_count,
            partition_leader_epoch: i32::from_be_bytes(field(bytes, EPOCH_AT)),
            crc: u32::from_be_bytes(field(bytes, CRC_AT)),
            attributes: i16::from_be_bytes(field(bytes, ATTRIBUTES_AT)),
            last_offset_delta: i32::from_be_bytes(field(bytes, LAST_OFFSET_DELTA_AT)),
            base_timestamp: i64::from_be_bytes(field(bytes, BASE_TIMESTAMP_AT)),
            max_timestamp: i64::from_be_bytes(field(bytes, MAX_TIMESTAMP_AT)),
            producer_id: i64::from_be_bytes(field(bytes, PRODUCER_ID_AT)),
            producer_epoch: i16::from_be_bytes(field(bytes, PRODUCER_EPOCH_AT)),
            base_sequence: i32::from_be_bytes(field(bytes, BASE_SEQUENCE_AT)),
            record_count: i32::from_be_bytes(field(bytes, COUNT_AT)),
        })
    }

    /// The offset of the last record. Wraps for absurd base offsets, which [`crate::records::batch::validate`] rejects.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.wrapping_add(self.last_offset_delta.into())
    }

    /// The offset after the last one.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().wrapping_add(1)
    }

    pub fn codec(&self) -> Result<Codec, BatchError> {
        Codec::from_attributes(self.attributes).ok_or(BatchError::Codec { attributes: self.attributes })
    }

    /// Whether the records have the broker's time (the batch's max timestamp) instead of their own.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & TIMESTAMP_TYPE_BIT != 0
    }

    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    pub fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// The sequence number of the last record. Sequence numbers wrap from `i32::MAX` to 0 (KIP-98).
    pub fn last_sequence(&self) -> i32 {
        self.base_sequence.wrapping_add(self.last_offset_delta) & i32::MAX
    }
}
