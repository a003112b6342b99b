//! The records within a batch: reading them, and looking up timestamps.
//!
//! Source: <https://kafka.apache.org/documentation/#record>. In a record, all numbers have variable length and are
//! zigzag-encoded, except the attributes:
//!
//! ```text
//! length | INT8 attributes | timestamp delta | offset delta | key length, key | value length, value
//!        | header count, then each: key length, key, value length, value
//! ```
//!
//! A length of -1 means null. This module only reads records: the broker stores and serves them as they arrived.

use bytes::Bytes;

pub use crate::records::error::{ReadError, RecordError};
use crate::records::header::{BatchHeader, HEADER_BYTES};
use crate::records::scan::{self, Scan, Step};
use crate::turn::Share;

/// Reads the variable-length numbers of one record.
struct Cursor<'a> {
    bytes: &'a [u8],
    index: i32,
}

impl<'a> Cursor<'a> {
    fn varlong(&mut self) -> Result<i64, RecordError> {
        let mut value = 0u64;
        for (n, &byte) in self.bytes.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte < 0x80 {
                self.bytes = &self.bytes[n + 1..];
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        let index = self.index;
        Err(if self.bytes.len() < 10 { RecordError::Cut { index } } else { RecordError::Varint { index } })
    }

    fn take(&mut self, length: i64) -> Result<&'a [u8], RecordError> {
        let index = self.index;
        let wanted = usize::try_from(length).map_err(|_| RecordError::Length { index, length })?;
        let (taken, rest) = self.bytes.split_at_checked(wanted).ok_or(RecordError::Cut { index })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn nullable(&mut self) -> Result<Option<&'a [u8]>, RecordError> {
        match self.varlong()? {
            -1 => Ok(None),
            length => self.take(length).map(Some),
        }
    }

    /// The next record's bytes as a separate cursor.
    fn record(&mut self, index: i32) -> Result<Cursor<'a>, RecordError> {
        self.index = index;
        let length = self.varlong()?;
        let bytes = self.take(length)?;
        Ok(Cursor { bytes, index })
    }

    /// The timestamp delta and the offset delta. Every record begins with its attributes and these two.
    fn deltas(&mut self) -> Result<(i64, i64), RecordError> {
        self.take(1)?;
        Ok((self.varlong()?, self.varlong()?))
    }
}

/// One record, borrowed from the decompressed records of its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// In order. Keys may repeat.
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// The decompressed records of one batch.
#[derive(Debug, Clone)]
pub struct Records {
    header: BatchHeader,
    bytes: Bytes,
}

impl Records {
    /// Decompresses the records of the batch at the start of `batch`. More than `bytes_max` bytes are an error.
    pub fn open(batch: &Bytes, bytes_max: usize) -> Result<Records, ReadError> {
        let header = BatchHeader::read(batch)?;
        let bytes = header.codec()?.decompress(&batch.slice(HEADER_BYTES..header.byte_count), bytes_max)?;
        Ok(Records { header, bytes })
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Iterates over the records in order. Ends at the first error.
    pub fn iter(&self) -> impl Iterator<Item = Result<Record<'_>, RecordError>> {
        let mut cursor = Cursor { bytes: &self.bytes, index: 0 };
        let mut failed = false;
        (0..self.header.record_count).map_while(move |index| {
            if failed {
                return None;
            }
            let record = self.read(&mut cursor, index);
            failed = record.is_err();
            Some(record)
        })
    }

    fn read<'a>(&self, cursor: &mut Cursor<'a>, index: i32) -> Result<Record<'a>, RecordError> {
        let mut record = cursor.record(index)?;
        let (timestamp_delta, offset_delta) = record.deltas()?;
        let (offset, timestamp) = place(&self.header, timestamp_delta, offset_delta);
        let key = record.nullable()?;
        let value = record.nullable()?;
        let header_count = record.varlong()?;
        // A header takes at least two bytes.
        if header_count < 0 || header_count > (record.bytes.len() / 2) as i64 {
            return Err(RecordError::Length { index, length: header_count });
        }
        let mut headers = Vec::with_capacity(header_count as usize);
        for _ in 0..header_count {
            let key_length = record.varlong()?;
            headers.push((record.take(key_length)?, record.nullable()?));
        }
        Ok(Record { offset, timestamp, key, value, headers })
    }
}

/// A search for the first record whose timestamp is `wanted` or later, one turn at a time. Only times from 0 on are
/// searched for, as in Kafka, where all timestamps below 0 mean something else. A record without a timestamp (-1) is
/// never found.
pub struct TimestampSearch {
    batch: Bytes,
    header: BatchHeader,
    wanted: i64,
    bytes_max: usize,
    /// `None` before the first step, and after [`TimestampSearch::rewind`].
    scan: Option<Scan>,
}

/// The result of one step of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Searched {
    /// The search is over: offset and timestamp of the record, if there is one.
    Found(Option<(i64, i64)>),
    /// The share is spent: continue with a new one.
    Pause,
}

impl TimestampSearch {
    /// Begins a search in the batch at the start of `batch`. `bytes_max`: the maximum bytes of its decompressed
    /// records.
    pub fn new(batch: &Bytes, wanted: i64, bytes_max: usize) -> Result<TimestampSearch, ReadError> {
        let header = BatchHeader::read(batch)?;
        Ok(TimestampSearch { batch: batch.clone(), header, wanted: wanted.max(0), bytes_max, scan: None })
    }

    /// Approximate bytes of the decoder that the search keeps between its turns. 0: it needs none.
    pub fn window(&self) -> usize {
        if self.is_by_header() { 0 } else { scan::window(&self.batch, &self.header) }
    }

    /// Drops the decoder. The search then goes through the records from the first one on again.
    pub fn rewind(&mut self) {
        self.scan = None;
    }

    /// Whether the batch's header alone gives the answer.
    fn is_by_header(&self) -> bool {
        self.header.max_timestamp < self.wanted || self.header.is_log_append_time()
    }

    /// Continues until the share is spent.
    pub fn step(&mut self, share: &mut Share) -> Result<Searched, ReadError> {
        if self.is_by_header() {
            let (base, max) = (self.header.base_offset, self.header.max_timestamp);
            return Ok(Searched::Found((max >= self.wanted).then_some((base, max))));
        }
        let scan = match &mut self.scan {
            Some(scan) => scan,
            None => self.scan.insert(Scan::new(&self.batch, &self.header, self.bytes_max)?),
        };
        loop {
            match scan.step(share)? {
                Step::Pause => return Ok(Searched::Pause),
                Step::End => return Ok(Searched::Found(None)),
                Step::Record { timestamp_delta, offset_delta, .. } => {
                    let (offset, timestamp) = place(&self.header, timestamp_delta, offset_delta);
                    if timestamp >= self.wanted {
                        return Ok(Searched::Found(Some((offset, timestamp))));
                    }
                }
            }
        }
    }
}

/// The offset and timestamp of a record.
fn place(header: &BatchHeader, timestamp_delta: i64, offset_delta: i64) -> (i64, i64) {
    let timestamp = match header.is_log_append_time() {
        true => header.max_timestamp,
        false => header.base_timestamp.wrapping_add(timestamp_delta),
    };
    (header.base_offset.wrapping_add(offset_delta), timestamp)
}

/// The offset and timestamp of the first record whose timestamp is `timestamp` or later. `bytes_max`: the maximum
/// bytes of decompressed records.
pub fn find_timestamp(batch: &Bytes, timestamp: i64, bytes_max: usize) -> Result<Option<(i64, i64)>, ReadError> {
    let mut search = TimestampSearch::new(batch, timestamp, bytes_max)?;
    loop {
        if let Searched::Found(found) = search.step(&mut { Share::TURN })? {
            return Ok(found);
        }
    }
}

/// The offset and timestamp of the first record with the batch's largest timestamp. This is what ListOffsets asks for
/// with timestamp -3 (KIP-734). `None` if no record has a timestamp.
pub fn find_max_timestamp(batch: &Bytes, bytes_max: usize) -> Result<Option<(i64, i64)>, ReadError> {
    let header = BatchHeader::read(batch)?;
    find_timestamp(batch, header.max_timestamp, bytes_max)
}
