//! Walks over a batch's records, compressed or not, one turn at a time and in bounded memory. It reads only their
//! framing.
//!
//! The checks are those that Kafka makes on every record (`DefaultRecord.readPartiallyFrom`): a record's fields fill
//! its length, and the records fill the batch. See [`crate::records::record`] for the layout.

#[cfg(test)]
mod tests;

use std::io;

use bytes::{Buf, Bytes};

use crate::records::compression::{Codec, DecompressError};
use crate::records::error::{ReadError, RecordError};
use crate::records::header::{BatchHeader, HEADER_BYTES};
pub use crate::records::unfold::WINDOW_USUAL_MAX;
use crate::records::unfold::{Unfold, window_bytes};
use crate::turn::Share;

/// The bytes to decompress at once, at most.
const PIECE: usize = 16 << 10;
/// The maximum bytes of a variable-length number.
const VARINT_MAX: usize = 10;
/// A batch may decompress to this many bytes, or to this many times its own size if that is more.
const UNFOLDED_BYTES_MAX: usize = 64 << 20;
const UNFOLDED_TIMES_MAX: usize = 16;

/// The maximum bytes to which a batch may decompress.
pub fn unfolded_bytes_max(batch_bytes: usize) -> usize {
    UNFOLDED_BYTES_MAX.max(batch_bytes.saturating_mul(UNFOLDED_TIMES_MAX))
}

/// Approximate bytes that a walk over the batch at the start of `batch` keeps between its turns. 0: the batch is not
/// compressed.
pub fn window(batch: &Bytes, header: &BatchHeader) -> usize {
    let records = batch.get(HEADER_BYTES..header.byte_count).unwrap_or_default();
    header.codec().map_or(0, |codec| window_bytes(codec, records))
}

/// The next event in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next record, by its deltas.
    Record { index: i32, timestamp_delta: i64, offset_delta: i64 },
    /// The share is spent: continue with a new one.
    Pause,
    /// All records have been read, and nothing follows them.
    End,
}

/// The next field in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Length,
    Attributes,
    Timestamp,
    Offset { timestamp_delta: i64 },
    Key,
    Value,
    HeaderCount,
    HeaderKey,
    HeaderValue,
}

/// A walk over one batch's records.
pub struct Scan {
    codec: Codec,
    input: Input,
    count: i32,
    index: i32,
    field: Field,
    /// Bytes of the current record that have not been read yet.
    left: u64,
    /// How many of these bytes to skip before the next field.
    skip: u64,
    headers_left: u64,
}

enum Input {
    Plain(Bytes),
    Packed(Box<Packed>),
}

struct Packed {
    unfold: Unfold,
    buffer: [u8; PIECE],
    start: usize,
    end: usize,
    ended: bool,
    /// How many more bytes the decompressor may return.
    allowed: usize,
    limit: usize,
}

impl Scan {
    /// Begins a walk over the batch at the start of `batch`, whose header is `header`. `bytes_max`: the maximum bytes
    /// of the decompressed records.
    pub fn new(batch: &Bytes, header: &BatchHeader, bytes_max: usize) -> Result<Scan, ReadError> {
        let codec = header.codec()?;
        let records = batch.slice(HEADER_BYTES..header.byte_count);
        let unfold = Unfold::new(codec, records.clone()).map_err(|error| corrupt(codec, &error))?;
        let input = match unfold {
            None => Input::Plain(records),
            Some(unfold) => Input::Packed(Box::new(Packed {
                unfold,
                buffer: [0; PIECE],
                start: 0,
                end: 0,
                ended: false,
                allowed: bytes_max,
                limit: bytes_max,
            })),
        };
        let count = header.record_count;
        Ok(Scan { codec, input, count, index: 0, field: Field::Length, left: 0, skip: 0, headers_left: 0 })
    }

    /// Continues to the next record, to the end, or until the share is spent. Do not call it again after an error.
    pub fn step(&mut self, share: &mut Share) -> Result<Step, ReadError> {
        loop {
            if self.skip > 0 && !self.pass_over(share)? {
                return Ok(Step::Pause);
            }
            if self.field == Field::Length {
                if self.left > 0 {
                    return Err(RecordError::Inside { index: self.index - 1, bytes: self.left }.into());
                }
                if self.index >= self.count {
                    return self.end(share);
                }
                if share.is_spent() {
                    return Ok(Step::Pause);
                }
            }
            if self.field == Field::Attributes {
                (self.skip, self.field) = (self.within(1)?, Field::Timestamp);
                continue;
            }
            let Some(number) = self.varint(share)? else { return Ok(Step::Pause) };
            match self.field {
                Field::Length => {
                    let length = u64::try_from(number);
                    self.left = length.map_err(|_| RecordError::Length { index: self.index, length: number })?;
                    self.index += 1;
                    self.field = Field::Attributes;
                    share.take_record();
                }
                Field::Timestamp => self.field = Field::Offset { timestamp_delta: number },
                Field::Offset { timestamp_delta } => {
                    self.field = Field::Key;
                    return Ok(Step::Record { index: self.index - 1, timestamp_delta, offset_delta: number });
                }
                Field::Key => (self.skip, self.field) = (self.nullable(number)?, Field::Value),
                Field::Value => (self.skip, self.field) = (self.nullable(number)?, Field::HeaderCount),
                Field::HeaderCount => {
                    // A header takes at least two bytes.
                    let count = u64::try_from(number).ok().filter(|count| *count <= self.left / 2);
                    self.headers_left = count.ok_or(RecordError::Length { index: self.index - 1, length: number })?;
                    self.field = if self.headers_left > 0 { Field::HeaderKey } else { Field::Length };
                }
                Field::HeaderKey => {
                    let length = u64::try_from(number);
                    let length = length.map_err(|_| RecordError::Length { index: self.index - 1, length: number })?;
                    (self.skip, self.field) = (self.within(length)?, Field::HeaderValue);
                }
                Field::HeaderValue => {
                    self.skip = self.nullable(number)?;
                    self.headers_left -= 1;
                    self.field = if self.headers_left > 0 { Field::HeaderKey } else { Field::Length };
                    share.take_record();
                }
                Field::Attributes => unreachable!("attributes are one byte, not a number of variable length"),
            }
        }
    }

    /// Checks that a length lies within the current record.
    fn within(&self, length: u64) -> Result<u64, RecordError> {
        if length <= self.left { Ok(length) } else { Err(RecordError::Cut { index: self.index - 1 }) }
    }

    fn nullable(&self, length: i64) -> Result<u64, RecordError> {
        match length {
            -1 => Ok(0),
            0.. => self.within(length as u64),
            _ => Err(RecordError::Length { index: self.index - 1, length }),
        }
    }

    /// Skips `skip` bytes. Returns `false` if the share was spent before that.
    fn pass_over(&mut self, share: &mut Share) -> Result<bool, ReadError> {
        while self.skip > 0 {
            if !self.fill(1, share)? {
                return Ok(false);
            }
            let now = (self.window().len() as u64).min(self.skip);
            if now == 0 {
                return Err(RecordError::Cut { index: self.index - 1 }.into());
            }
            self.consume(now as usize);
            self.skip -= now;
            self.left -= now;
        }
        Ok(true)
    }

    /// The next number, or `None` if the share is spent. A record's length field is not part of the record.
    fn varint(&mut self, share: &mut Share) -> Result<Option<i64>, ReadError> {
        if self.window().len() < VARINT_MAX && !self.fill(VARINT_MAX, share)? {
            return Ok(None);
        }
        let (inside, index) = match self.field {
            Field::Length => (false, self.index),
            _ => (true, self.index - 1),
        };
        let window = self.window();
        let most =
            if inside { window.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)) } else { window.len() };
        let mut value = 0u64;
        for (n, &byte) in window[..most].iter().enumerate().take(VARINT_MAX) {
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte < 0x80 {
                self.consume(n + 1);
                if inside {
                    self.left -= n as u64 + 1;
                }
                return Ok(Some((value >> 1) as i64 ^ -((value & 1) as i64)));
            }
        }
        Err(if most < VARINT_MAX { RecordError::Cut { index } } else { RecordError::Varint { index } }.into())
    }

    fn end(&mut self, share: &mut Share) -> Result<Step, ReadError> {
        if !self.fill(1, share)? {
            return Ok(Step::Pause);
        }
        match self.window().len() {
            0 => Ok(Step::End),
            bytes => Err(RecordError::Trailing { count: self.count, bytes }.into()),
        }
    }

    fn window(&self) -> &[u8] {
        match &self.input {
            Input::Plain(rest) => rest,
            Input::Packed(packed) => &packed.buffer[packed.start..packed.end],
        }
    }

    fn consume(&mut self, bytes: usize) {
        match &mut self.input {
            Input::Plain(rest) => rest.advance(bytes),
            Input::Packed(packed) => packed.start += bytes,
        }
    }

    /// Fills the window with at least `want` bytes, or all that are left. Returns `false` if the share was spent
    /// before that.
    fn fill(&mut self, want: usize, share: &mut Share) -> Result<bool, ReadError> {
        let codec = self.codec;
        let Input::Packed(packed) = &mut self.input else { return Ok(true) };
        while packed.end - packed.start < want && !packed.ended {
            if share.bytes == 0 {
                return Ok(false);
            }
            packed.buffer.copy_within(packed.start..packed.end, 0);
            (packed.start, packed.end) = (0, packed.end - packed.start);
            let read = packed.unfold.read(&mut packed.buffer[packed.end..]).map_err(|error| corrupt(codec, &error))?;
            packed.end += read;
            packed.ended = read == 0;
            share.take_bytes(read);
            let allowed = packed.allowed.checked_sub(read);
            packed.allowed = allowed.ok_or(DecompressError::TooLarge { limit: packed.limit })?;
        }
        Ok(true)
    }
}

fn corrupt(codec: Codec, error: &io::Error) -> DecompressError {
    DecompressError::Corrupt { codec, reason: error.to_string() }
}
