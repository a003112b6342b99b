//! Record batches of message format 2 as a whole: the checks, and the fields that a broker assigns. [`BatchHeader`] has
//! the layout.

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::records::compression::{Codec, ZSTD_FROM_VERSION};
pub use crate::records::error::BatchError;
use crate::records::error::RecordError;
use crate::records::header::{
    ATTRIBUTES_AT, CONTROL_BIT, CRC_AT, EPOCH_AT, LAST_OFFSET_DELTA_AT, MAGIC_AT, MAX_TIMESTAMP_AT, PRODUCER_ID_AT,
    TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT, field,
};
pub use crate::records::header::{BatchHeader, HEADER_BYTES, MAGIC};
use crate::records::scan::{self, Scan, Step};
use crate::turn::{SUMMED_BYTES_PER_BYTE, Share};

/// The attribute bits that the check for unknown bits lets pass. Append time and control have checks of their own.
/// Brokers set more bits, for example bit 6 for compacted batches (KIP-534).
const PRODUCERS_BITS: i16 = 0b111 | TIMESTAMP_TYPE_BIT | TRANSACTIONAL_BIT | CONTROL_BIT;

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

    /// Approximate bytes of the decoder that the check keeps between its turns. 0: it needs none.
    pub fn window(&self) -> usize {
        match self.compressed {
            Compressed::Check => scan::window(&self.batch, &self.header),
            Compressed::Trust => 0,
        }
    }

    /// Drops the decoder. The check then goes through the records from the first one on again.
    pub fn rewind(&mut self) {
        (self.scan, self.times) = (None, None);
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
                        return Err(RecordError::OffsetDelta { index, offset_delta }.into());
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
