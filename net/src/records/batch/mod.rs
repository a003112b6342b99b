//! Record batches of message format 2 as a whole: the header, the checks, and the fields that a broker assigns.
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

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::records::compression::{Codec, DecompressError};
use crate::records::record;
use crate::records::scan::{self, Scan, Step};
use crate::turn::{SUMMED_BYTES_PER_BYTE, Share};

/// The size of the header before the records, in bytes.
pub const HEADER_BYTES: usize = 61;
/// Where the length field ends. It counts the bytes from here on.
const LENGTH_END: usize = 12;
const EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const COUNT_AT: usize = 57;

const _: () = assert!(COUNT_AT + 4 == HEADER_BYTES && ATTRIBUTES_AT == CRC_AT + 4 && CRC_AT == MAGIC_AT + 1);

/// The magic byte of message format 2.
pub const MAGIC: i8 = 2;

const TIMESTAMP_TYPE_BIT: i16 = 1 << 3;
const TRANSACTIONAL_BIT: i16 = 1 << 4;
const CONTROL_BIT: i16 = 1 << 5;
/// The attribute bits that the check for unknown bits lets pass. Append time and control have checks of their own.
/// Brokers set more bits, for example bit 6 for compacted batches (KIP-534).
const PRODUCERS_BITS: i16 = 0b111 | TIMESTAMP_TYPE_BIT | TRANSACTIONAL_BIT | CONTROL_BIT;

/// The first Produce version that may carry zstd (KIP-110).
const ZSTD_FROM_VERSION: i16 = 7;

/// Why bytes are not a batch that may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("{have} bytes are too few for a record batch of {need}")]
    Short { have: usize, need: usize },
    #[error("batch length {length} is invalid")]
    Length { length: i32 },
    #[error("message format {magic} is not supported, only {MAGIC}")]
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
    Records(#[from] record::RecordError),
    #[error("the records can't be decompressed: {0}")]
    Unfold(#[from] DecompressError),
}

impl From<record::ReadError> for BatchError {
    fn from(error: record::ReadError) -> BatchError {
        match error {
            record::ReadError::Batch(error) => error,
            record::ReadError::Record(error) => BatchError::Records(error),
            record::ReadError::Decompress(error) => BatchError::Unfold(error),
        }
    }
}

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

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
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

    /// The offset of the last record. Wraps for absurd base offsets, which [`validate`] rejects.
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

/// The CRC-32C of everything after the CRC field.
pub fn crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[ATTRIBUTES_AT..])
}

/// Reads the batch at the start of `bytes` and checks that it is complete and its CRC correct.
pub fn verify(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::read(bytes)?;
    let computed = crc(&bytes[..header.byte_count]);
    if computed != header.crc {
        return Err(BatchError::Crc { claimed: header.crc, computed });
    }
    Ok(header)
}

/// The smallest and largest timestamp of a batch's records. Records without a timestamp (-1) do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub oldest: i64,
    pub newest: i64,
}

impl Times {
    /// Adds one more record's timestamp.
    pub fn with(times: Option<Times>, timestamp: i64) -> Option<Times> {
        if timestamp == NO_TIMESTAMP {
            return times;
        }
        let Times { oldest, newest } = times.unwrap_or(Times { oldest: timestamp, newest: timestamp });
        Some(Times { oldest: oldest.min(timestamp), newest: newest.max(timestamp) })
    }
}

/// The timestamp that Kafka's clients send for a record without one.
pub const NO_TIMESTAMP: i64 = -1;

/// A batch that may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub batch: Bytes,
    pub header: BatchHeader,
    /// `None` if no record has a timestamp.
    pub times: Option<Times>,
}

/// Whether to check the records of compressed batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressed {
    Check,
    Trust,
}

/// Checks what a client wants to store in one partition, one turn at a time. It must be exactly one complete,
/// undamaged batch whose header and records agree. (In Kafka: `ProduceRequest.validateRecords`,
/// `UnifiedLog.analyzeAndValidateRecords` and `LogValidator`.)
pub struct Check {
    batch: Bytes,
    header: BatchHeader,
    /// The CRC of the bytes before `summed`.
    crc: u32,
    summed: usize,
    compressed: Compressed,
    scan: Option<Scan>,
    times: Option<Times>,
}

impl Check {
    /// Checks the header, except for what it says about the records.
    pub fn begin(batch: Bytes, produce_version: i16, compressed: Compressed) -> Result<Check, BatchError> {
        if batch.is_empty() {
            return Err(BatchError::Empty);
        }
        let header = BatchHeader::read(&batch)?;
        let mut check = Check { crc: 0, summed: ATTRIBUTES_AT, scan: None, times: None, batch, header, compressed };
        // If the CRC is wrong too, the batch was damaged on its way, and that is the error to report.
        match check.header_error(produce_version) {
            None => Ok(check),
            Some(error) => match check.sum(&mut Share { bytes: usize::MAX, ..Share::TURN }) {
                Err(damaged) => Err(damaged),
                Ok(_) => Err(error),
            },
        }
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    fn header_error(&self, produce_version: i16) -> Option<BatchError> {
        let header = &self.header;
        let codec = match header.codec() {
            Ok(codec) => codec,
            Err(error) => return Some(error),
        };
        let BatchHeader { record_count: count, last_offset_delta, attributes, base_offset, .. } = *header;
        let BatchHeader { producer_id, producer_epoch, base_sequence, .. } = *header;
        match () {
            () if self.batch.len() > header.byte_count => Some(BatchError::Several),
            () if base_offset != 0 => Some(BatchError::BaseOffset { base_offset }),
            () if codec == Codec::Zstd && produce_version < ZSTD_FROM_VERSION => {
                Some(BatchError::ZstdTooEarly { version: produce_version })
            }
            () if count < 1 || last_offset_delta != count - 1 => Some(BatchError::Count { count, last_offset_delta }),
            () if header.is_control() => Some(BatchError::Control),
            () if header.is_log_append_time() => Some(BatchError::AppendTime),
            () if attributes & !PRODUCERS_BITS != 0 => Some(BatchError::Attributes { attributes }),
            () if header.is_idempotent() && (producer_epoch < 0 || base_sequence < 0) => {
                Some(BatchError::Producer { producer_id, producer_epoch, base_sequence })
            }
            () => None,
        }
    }

    /// Continues until the share is spent. Returns `None` if more is left to check.
    pub fn step(&mut self, share: &mut Share) -> Result<Option<Checked>, BatchError> {
        if !self.sum(share)? {
            return Ok(None);
        }
        let Check { batch, header, compressed, .. } = self;
        if header.codec()? != Codec::None && *compressed == Compressed::Trust {
            let times = Times::with(Times::with(None, header.base_timestamp), header.max_timestamp);
            return Ok(Some(Checked { batch: batch.clone(), header: *header, times }));
        }
        let scan = match &mut self.scan {
            Some(scan) => scan,
            None => self.scan.insert(Scan::new(batch, header, scan::unfolded_bytes_max(batch.len()))?),
        };
        loop {
            match scan.step(share)? {
                Step::Pause => return Ok(None),
                Step::End => return Ok(Some(self.checked())),
                Step::Record { index, timestamp_delta, offset_delta } => {
                    if offset_delta != i64::from(index) {
                        return Err(record::RecordError::OffsetDelta { index, offset_delta }.into());
                    }
                    self.times = Times::with(self.times, header.base_timestamp.wrapping_add(timestamp_delta));
                }
            }
        }
    }

    /// Continues the CRC. Returns whether it is complete; an error if it differs from the header's.
    fn sum(&mut self, share: &mut Share) -> Result<bool, BatchError> {
        let end = self.header.byte_count;
        while self.summed < end {
            if share.is_spent() {
                return Ok(false);
            }
            let now = share.bytes.saturating_mul(SUMMED_BYTES_PER_BYTE).min(end - self.summed);
            self.crc = crc32c::crc32c_append(self.crc, &self.batch[self.summed..self.summed + now]);
            self.summed += now;
            share.take_bytes(now / SUMMED_BYTES_PER_BYTE);
        }
        let (claimed, computed) = (self.header.crc, self.crc);
        if claimed == computed { Ok(true) } else { Err(BatchError::Crc { claimed, computed }) }
    }

    /// The result. If the header's max timestamp is wrong, corrects it to the largest timestamp of the records, as
    /// Kafka does.
    fn checked(&mut self) -> Checked {
        let newest = self.times.map_or(NO_TIMESTAMP, |times| times.newest);
        let (mut batch, mut header) = (self.batch.clone(), self.header);
        if header.max_timestamp != newest {
            let mut corrected = batch.to_vec();
            corrected[MAX_TIMESTAMP_AT..PRODUCER_ID_AT].copy_from_slice(&newest.to_be_bytes());
            header.crc = crc(&corrected);
            corrected[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&header.crc.to_be_bytes());
            header.max_timestamp = newest;
            batch = corrected.into();
        }
        Checked { batch, header, times: self.times }
    }
}

/// Runs the whole check at once.
pub fn validate(batch: &Bytes, produce_version: i16) -> Result<Checked, BatchError> {
    let mut check = Check::begin(batch.clone(), produce_version, Compressed::Check)?;
    loop {
        if let Some(checked) = check.step(&mut { Share::TURN })? {
            return Ok(checked);
        }
    }
}

/// The fields that a broker sets in a batch when it stores the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    pub base_offset: i64,
    pub partition_leader_epoch: i32,
    /// The broker's time, for topics with `message.timestamp.type=LogAppendTime`.
    pub log_append_time_ms: Option<i64>,
}

/// The batch's header with the assigned fields; the records after it stay unchanged. Among these fields the CRC
/// covers only the append time, so it is recomputed only if that is set.
pub fn assigned_header(batch: &[u8], assigned: Assigned) -> [u8; HEADER_BYTES] {
    let mut header: [u8; HEADER_BYTES] = field(batch, 0);
    header[..8].copy_from_slice(&assigned.base_offset.to_be_bytes());
    header[EPOCH_AT..MAGIC_AT].copy_from_slice(&assigned.partition_leader_epoch.to_be_bytes());
    if let Some(now) = assigned.log_append_time_ms {
        let attributes = i16::from_be_bytes(field(batch, ATTRIBUTES_AT)) | TIMESTAMP_TYPE_BIT;
        header[ATTRIBUTES_AT..LAST_OFFSET_DELTA_AT].copy_from_slice(&attributes.to_be_bytes());
        header[MAX_TIMESTAMP_AT..PRODUCER_ID_AT].copy_from_slice(&now.to_be_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[ATTRIBUTES_AT..]), &batch[HEADER_BYTES..]);
        header[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
    }
    header
}

/// Writes the assigned fields into the batch itself.
pub fn assign(batch: &mut [u8], assigned: Assigned) {
    let header = assigned_header(batch, assigned);
    batch[..HEADER_BYTES].copy_from_slice(&header);
}

/// Iterates over consecutive batches without copying. Does not check the CRC. Ends at the first error.
#[derive(Debug, Clone)]
pub struct Batches {
    bytes: Bytes,
    failed: bool,
}

impl Batches {
    pub fn new(bytes: Bytes) -> Batches {
        Batches { bytes, failed: false }
    }

    /// The bytes after the last batch returned. Empty at the end; after an error, the bytes that are not a complete
    /// batch.
    pub fn rest(&self) -> &Bytes {
        &self.bytes
    }
}

impl Iterator for Batches {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.bytes.is_empty() {
            return None;
        }
        let result = BatchHeader::read(&self.bytes).map(|header| (header, self.bytes.split_to(header.byte_count)));
        self.failed = result.is_err();
        Some(result)
    }
}

impl std::iter::FusedIterator for Batches {}
