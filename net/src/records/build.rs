//! Builds record batches: for clients, for tests, and for the records that the broker itself writes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::records::batch::{self, Assigned, HEADER_BYTES, MAGIC};
use crate::records::compression::Codec;

/// Collects records and builds one batch of message format 2 from them.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    codec: Codec,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
    /// Space for the header, followed by the records so far.
    out: BytesMut,
    scratch: BytesMut,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::new(Codec::None)
    }
}

impl BatchBuilder {
    pub fn new(codec: Codec) -> BatchBuilder {
        let mut out = BytesMut::with_capacity(1024);
        out.put_bytes(0, HEADER_BYTES);
        BatchBuilder {
            codec,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            base_timestamp: 0,
            max_timestamp: i64::MIN,
            count: 0,
            out,
            scratch: BytesMut::new(),
        }
    }

    /// Marks the batch as an idempotent producer's (KIP-98).
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> BatchBuilder {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size that the batch would have now without compression, in bytes.
    pub fn byte_count(&self) -> usize {
        self.out.len()
    }

    pub fn push(&mut self, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        self.push_with_headers(timestamp_ms, key, value, &[]);
    }

    pub fn push_with_headers(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) {
        if self.count == 0 {
            self.base_timestamp = timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        let record = &mut self.scratch;
        record.clear();
        record.put_u8(0);
        put_varlong(record, timestamp_ms - self.base_timestamp);
        put_varlong(record, self.count.into());
        put_nullable(record, key);
        put_nullable(record, value);
        put_varlong(record, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(record, Some(key));
            put_nullable(record, *value);
        }
        put_varlong(&mut self.out, record.len() as i64);
        self.out.put_slice(record);
        self.count += 1;
    }

    /// The batch at offset 0, as a producer sends it. Panics without a record.
    pub fn finish(self) -> Bytes {
        self.finish_at(Assigned { base_offset: 0, partition_leader_epoch: -1, log_append_time_ms: None })
    }

    /// The batch as a broker stores it. Panics without a record.
    pub fn finish_at(mut self, assigned: Assigned) -> Bytes {
        assert!(self.count > 0, "a batch has at least one record");
        if self.codec != Codec::None {
            let records = self.out.split_off(HEADER_BYTES);
            self.codec.compress(&records, &mut self.out);
        }
        let length = i32::try_from(self.out.len() - 12).expect("a batch is below 2 GiB");
        let mut under_crc = BytesMut::with_capacity(HEADER_BYTES - 21);
        under_crc.put_i16(self.codec as i16);
        under_crc.put_i32(self.count - 1);
        under_crc.put_i64(self.base_timestamp);
        under_crc.put_i64(self.max_timestamp);
        under_crc.put_i64(self.producer_id);
        under_crc.put_i16(self.producer_epoch);
        under_crc.put_i32(self.base_sequence);
        under_crc.put_i32(self.count);
        self.out[21..HEADER_BYTES].copy_from_slice(&under_crc);
        let crc = batch::crc(&self.out);
        let mut start = BytesMut::with_capacity(21);
        start.put_i64(0);
        start.put_i32(length);
        start.put_i32(-1);
        start.put_i8(MAGIC);
        start.put_u32(crc);
        self.out[..21].copy_from_slice(&start);
        batch::assign(&mut self.out, assigned);
        self.out.freeze()
    }
}

/// Zigzag encoding: small numbers of either sign are short.
fn put_varlong(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_nullable(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => put_varlong(out, -1),
        Some(value) => {
            put_varlong(out, value.len() as i64);
            out.put_slice(value);
        }
    }
}
