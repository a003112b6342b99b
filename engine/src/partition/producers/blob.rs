//! The format of producer state in a checkpoint. Little-endian, producers by rising id.
//!
//! ```text
//!  0          4          5              8                     16         20
//!  ├──────────┼──────────┼──────────────┼─────────────────────┼──────────┤ then each producer:
//!  │CRC-32C of│version 1 │ zero         │ committed index     │ producers│
//!  │ the rest │          │              │                     │          │
//!  └──────────┴──────────┴──────────────┴─────────────────────┴──────────┘
//!  0                   8         10        11        12
//!  ├───────────────────┼─────────┼─────────┼─────────┤ then each of 1–5 batches, oldest first:
//!  │ producer id       │ epoch   │ batches │ zero    │
//!  └───────────────────┴─────────┴─────────┴─────────┘
//!  0          4          8                   16         20                  28                  36
//!  ├──────────┼──────────┼───────────────────┼──────────┼───────────────────┼───────────────────┤
//!  │ first    │ last     │ base offset       │ last     │ timestamp,        │ index             │
//!  │ sequence │ sequence │                   │ off.delta│ ms                │                   │
//!  └──────────┴──────────┴───────────────────┴──────────┴───────────────────┴───────────────────┘
//! ```

use std::collections::HashMap;

use ahash::RandomState;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::group::descriptor::OFFSET_MAX;

use crate::partition::producers::{CACHED_BATCHES, Producer, WrittenBatch};
use types::RaftIndex;

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;
pub(crate) const HEADER_BYTES: usize = 20;
const PRODUCER_BYTES: usize = 12;
const BATCH_BYTES: usize = 36;

const _: () = assert!(HEADER_BYTES == CRC_BYTES + 1 + 3 + 8 + 4);
const _: () = assert!(PRODUCER_BYTES == 8 + 2 + 1 + 1);
const _: () = assert!(BATCH_BYTES == 4 + 4 + 8 + 4 + 8 + 8);

/// Why bytes are not a valid producer state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("producer state of {bytes} bytes is cut off")]
    Short { bytes: usize },
    #[error("producer state has CRC-32C {computed:08x}, not {claimed:08x}")]
    Crc { claimed: u32, computed: u32 },
    #[error("producer state of version {version} is newer than {VERSION}")]
    Version { version: u8 },
    #[error("producer state contradicts itself at producer {producer_id}")]
    Producer { producer_id: i64 },
    #[error("producer state has {bytes} bytes too many")]
    Trailing { bytes: usize },
}

pub(crate) fn encode(index: RaftIndex, producers: &HashMap<i64, Producer, RandomState>) -> Bytes {
    let mut ids: Vec<i64> = producers.keys().copied().collect();
    ids.sort_unstable();
    let batches: usize = producers.values().map(|producer| producer.batches().len()).sum();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + ids.len() * PRODUCER_BYTES + batches * BATCH_BYTES);
    out.put_u32_le(0);
    out.put_u8(VERSION);
    out.put_bytes(0, 3);
    out.put_u64_le(index.get());
    out.put_u32_le(u32::try_from(ids.len()).expect("producers are bounded"));
    for id in ids {
        let producer = &producers[&id];
        out.put_i64_le(id);
        out.put_i16_le(producer.epoch);
        out.put_u8(producer.batches().len() as u8);
        out.put_u8(0);
        for batch in producer.batches() {
            out.put_i32_le(batch.first_sequence);
            out.put_i32_le(batch.last_sequence);
            out.put_u64_le(batch.base_offset);
            out.put_u32_le((batch.last_offset - batch.base_offset) as u32);
            out.put_i64_le(batch.timestamp);
            out.put_u64_le(batch.index.get());
        }
    }
    let crc = crc32c::crc32c(&out[CRC_BYTES..]);
    out[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Bytes of one producer with this many batches.
pub(crate) const fn bytes_of(batches: usize) -> usize {
    PRODUCER_BYTES + batches * BATCH_BYTES
}

pub(crate) fn decode(blob: &[u8]) -> Result<(RaftIndex, HashMap<i64, Producer, RandomState>), RestoreError> {
    let short = RestoreError::Short { bytes: blob.len() };
    if blob.len() < HEADER_BYTES {
        return Err(short);
    }
    let mut rest = blob;
    let (claimed, computed) = (rest.get_u32_le(), crc32c::crc32c(&blob[CRC_BYTES..]));
    if claimed != computed {
        return Err(RestoreError::Crc { claimed, computed });
    }
    let version = rest.get_u8();
    if version != VERSION {
        return Err(RestoreError::Version { version });
    }
    rest.advance(3);
    let index = RaftIndex::new(rest.get_u64_le());
    let count = rest.get_u32_le() as usize;
    if count > rest.len() / PRODUCER_BYTES {
        return Err(short);
    }
    let mut producers = HashMap::with_capacity_and_hasher(count, RandomState::default());
    for _ in 0..count {
        let (producer_id, producer) = decode_producer(&mut rest, index, short)?;
        if producers.insert(producer_id, producer).is_some() {
            return Err(RestoreError::Producer { producer_id });
        }
    }
    match rest.len() {
        0 => Ok((index, producers)),
        bytes => Err(RestoreError::Trailing { bytes }),
    }
}

/// Takes one producer, all of whose batches are at or below the committed `index`. `short`: the error if bytes are
/// missing.
fn decode_producer(rest: &mut &[u8], index: RaftIndex, short: RestoreError) -> Result<(i64, Producer), RestoreError> {
    if rest.len() < PRODUCER_BYTES {
        return Err(short);
    }
    let producer_id = rest.get_i64_le();
    let mut producer = Producer::new(rest.get_i16_le());
    let batches = usize::from(rest.get_u8());
    rest.advance(1);
    let impossible = RestoreError::Producer { producer_id };
    if producer_id < 0 || batches == 0 || batches > CACHED_BATCHES {
        return Err(impossible);
    }
    if rest.len() < batches * BATCH_BYTES {
        return Err(short);
    }
    let mut newest = RaftIndex::ZERO;
    for _ in 0..batches {
        let batch =
            decode_batch(rest).filter(|batch| newest < batch.index && batch.index <= index).ok_or(impossible)?;
        newest = batch.index;
        producer.push(batch);
    }
    Ok((producer_id, producer))
}

/// Takes one batch, whose bytes are there. `None`: no producer wrote such a batch.
fn decode_batch(rest: &mut &[u8]) -> Option<WrittenBatch> {
    let (first_sequence, last_sequence) = (rest.get_i32_le(), rest.get_i32_le());
    let base_offset = rest.get_u64_le();
    let last_offset = base_offset.checked_add(rest.get_u32_le().into()).filter(|last| *last <= OFFSET_MAX);
    let (timestamp, index) = (rest.get_i64_le(), RaftIndex::new(rest.get_u64_le()));
    let is_possible = first_sequence >= 0 && last_sequence >= 0;
    last_offset.filter(|_| is_possible).map(|last_offset| WrittenBatch {
        first_sequence,
        last_sequence,
        base_offset,
        last_offset,
        timestamp,
        index,
    })
}
