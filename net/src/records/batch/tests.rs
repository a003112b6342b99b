//! Batches: built, checked, damaged, patched, looked up. The codec crate's encoder and decoder serve as the
//! reference.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::records as theirs;

use crate::errors::{self, ErrorCode};
use crate::records::batch::{
    self, Assigned, BatchError, BatchHeader, Batches, Check, Compressed, HEADER_BYTES, Times, validate, verify,
};
use crate::records::build::BatchBuilder;
use crate::records::compression::{Codec, DecompressError};
use crate::records::record::{ReadError, RecordError, Records, find_max_timestamp, find_timestamp};
use crate::turn::{BYTES_A_TURN, SUMMED_BYTES_PER_BYTE, Share};

const BYTES_MAX: usize = 1 << 20;
const PLAIN: Assigned = Assigned { base_offset: 0, partition_leader_epoch: -1, log_append_time_ms: None };

fn sample(codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(codec).producer(7, 1, 42);
    builder.push(1000, Some(b"k0"), Some(b"v0"));
    builder.push_with_headers(990, None, Some(&[b'x'; 300]), &[(b"h", Some(b"1")), (b"h", None), (b"", Some(b""))]);
    builder.push(1020, Some(b""), None);
    builder.finish()
}

/// Sets the CRC to match the bytes.
fn resealed(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = batch::crc(&batch);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = sample(Codec::None).to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    resealed(batch)
}

#[test]
fn a_built_batch_is_what_the_codec_crate_reads() {
    for codec in Codec::ALL {
        let batch = sample(codec);
        let header = validate(&batch, 9).unwrap().header;
        assert_eq!(header.codec(), Ok(codec));
        assert_eq!((header.record_count, header.last_offset_delta, header.byte_count), (3, 2, batch.len()));
        assert_eq!((header.base_timestamp, header.max_timestamp), (1000, 1020));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 1, 42));
        assert_eq!((header.last_sequence(), header.next_offset()), (44, 3));

        let set = theirs::RecordBatchDecoder::decode(&mut batch.clone()).unwrap();
        assert_eq!(set.records.len(), 3);
        let ours = Records::open(&batch, BYTES_MAX).unwrap();
        let ours: Vec<_> = ours.iter().map(|r| r.unwrap()).collect();
        for (our, their) in ours.iter().zip(&set.records) {
            assert_eq!((our.offset, our.timestamp), (their.offset, their.timestamp));
            assert_eq!((our.key, our.value), (their.key.as_deref(), their.value.as_deref()));
        }
        // Repeated header keys are preserved here; the crate keeps only one of each.
        assert_eq!(ours[1].headers, [(&b"h"[..], Some(&b"1"[..])), (b"h", None), (b"", Some(b""))]);
        assert_eq!(set.records[1].headers.len(), 2);
    }
}

#[test]
fn a_batch_that_the_codec_crate_built_is_read() {
    use theirs::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
    let record = |n: i64| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: n,
        sequence: n as i32,
        timestamp: 5000 + n,
        key: None,
        value: Some(Bytes::from(vec![n as u8; 50])),
        headers: Default::default(),
    };
    let records: Vec<_> = (0..100).map(record).collect();
    let codecs = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for compression in codecs {
        let mut out = BytesMut::new();
        RecordBatchEncoder::encode(&mut out, &records, &RecordEncodeOptions { version: 2, compression }).unwrap();
        let batch = out.freeze();
        let header = validate(&batch, 9).unwrap().header;
        assert_eq!(header.codec().unwrap() as i16, compression as i16);
        let opened = Records::open(&batch, BYTES_MAX).unwrap();
        let offsets: Vec<_> = opened.iter().map(|r| r.unwrap().offset).collect();
        assert_eq!(offsets, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn absurd_offsets_do_not_overflow() {
    let header = verify(&patched(0, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])).unwrap();
    assert_eq!(header.next_offset(), i64::MIN + 2);
}

/// A batch that may not be stored, the reason, and the error that the producer gets.
type Refused = (&'static str, Vec<u8>, BatchError, ErrorCode);

fn all_are_refused(cases: Vec<Refused>) {
    for (name, bytes, error, code) in cases {
        assert_eq!(validate(&bytes.into(), 9), Err(error.clone()), "{name}");
        assert_eq!(errors::of_batch(&error), code, "{name}");
    }
}

#[test]
fn batches_that_may_not_be_stored_are_refused_by_name() {
    let good = sample(Codec::None);
    let mut flipped = good.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let wrong_crc = BatchHeader::read(&flipped).unwrap().crc;
    let computed = batch::crc(&flipped);
    let two = [&good[..], &good[..]].concat();
    let mut old = good.to_vec();
    old[16] = 1;
    use BatchError as E;
    use ErrorCode as C;
    all_are_refused(vec![
        ("base offset -1", patched(0, &[0xff; 8]), E::BaseOffset { base_offset: -1 }, C::InvalidRecord),
        ("empty", vec![], E::Empty, C::InvalidRecord),
        ("a few bytes", good[..16].to_vec(), E::Short { have: 16, need: 61 }, C::CorruptMessage),
        ("header only", good[..61].to_vec(), E::Short { have: 61, need: good.len() }, C::CorruptMessage),
        ("format 1", old, E::Magic { magic: 1 }, C::UnsupportedForMessageFormat),
        ("format 3", patched(16, &[3]), E::Magic { magic: 3 }, C::UnsupportedForMessageFormat),
        ("negative length", patched(8, &[0xff; 4]), E::Length { length: -1 }, C::CorruptMessage),
        ("short length", patched(8, &[0, 0, 0, 48]), E::Length { length: 48 }, C::CorruptMessage),
        (
            "long length",
            patched(8, &[0x7f, 0xff, 0xff, 0xff]),
            E::Short { have: good.len(), need: 12 + 0x7fff_ffff },
            C::CorruptMessage,
        ),
        ("flipped bit", flipped, E::Crc { claimed: wrong_crc, computed }, C::CorruptMessage),
        ("two batches", two, E::Several, C::InvalidRecord),
        ("codec 5", patched(21, &[0, 5]), E::Codec { attributes: 5 }, C::UnsupportedCompressionType),
        ("control", patched(21, &[0, 0x20]), E::Control, C::InvalidRecord),
        ("bit 6", patched(21, &[0, 0x40]), E::Attributes { attributes: 0x40 }, C::InvalidRecord),
        ("bit 15", patched(21, &[0x80, 0]), E::Attributes { attributes: i16::MIN }, C::InvalidRecord),
        ("append time", patched(21, &[0, 0x08]), E::AppendTime, C::InvalidTimestamp),
    ]);
    let zstd = sample(Codec::Zstd);
    assert_eq!(validate(&zstd, 6), Err(E::ZstdTooEarly { version: 6 }));
    assert!(validate(&zstd, 7).is_ok());
}

#[test]
fn counts_that_are_not_those_of_the_records_are_refused_by_name() {
    let patched_twice = |at, bytes: &[u8], second, byte| {
        let mut batch = patched(at, bytes);
        batch[second] = byte;
        resealed(batch)
    };
    let trailing = {
        let mut longer = sample(Codec::None).to_vec();
        longer.push(0);
        let length = (longer.len() - 12) as i32;
        longer[8..12].copy_from_slice(&length.to_be_bytes());
        resealed(longer)
    };
    use BatchError as E;
    use ErrorCode as C;
    all_are_refused(vec![
        ("count 0", patched(57, &[0, 0, 0, 0]), E::Count { count: 0, last_offset_delta: 2 }, C::InvalidRecord),
        ("count -1", patched(57, &[0xff; 4]), E::Count { count: -1, last_offset_delta: 2 }, C::InvalidRecord),
        ("count 4", patched(57, &[0, 0, 0, 4]), E::Count { count: 4, last_offset_delta: 2 }, C::InvalidRecord),
        ("delta 1", patched(23, &[0, 0, 0, 1]), E::Count { count: 3, last_offset_delta: 1 }, C::InvalidRecord),
        (
            "sequence without number",
            patched(53, &[0xff; 4]),
            E::Producer { producer_id: 7, producer_epoch: 1, base_sequence: -1 },
            C::InvalidRecord,
        ),
        (
            "more counted than there",
            patched_twice(57, &[0, 0, 0, 4], 26, 3),
            E::Records(RecordError::Cut { index: 3 }),
            C::InvalidRecord,
        ),
        (
            "fewer counted than there",
            patched_twice(57, &[0, 0, 0, 2], 26, 1),
            E::Records(RecordError::Trailing { count: 2, bytes: 7 }),
            C::InvalidRecord,
        ),
        ("a byte behind", trailing, E::Records(RecordError::Trailing { count: 3, bytes: 1 }), C::InvalidRecord),
        (
            "first record at 1",
            patched(64, &[2]),
            E::Records(RecordError::OffsetDelta { index: 0, offset_delta: 1 }),
            C::InvalidRecord,
        ),
        (
            "negative record length",
            patched(61, &[1]),
            E::Records(RecordError::Length { index: 0, length: -1 }),
            C::InvalidRecord,
        ),
    ]);
}

/// False claims in the headers of compressed batches, and damaged records under a correct CRC.
#[test]
fn compressed_batches_are_looked_into() {
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let good = sample(codec);
        let with = |at: usize, bytes: &[u8]| {
            let mut batch = good.to_vec();
            batch[at..at + bytes.len()].copy_from_slice(bytes);
            validate(&resealed(batch).into(), 9)
        };
        let many = [&(i32::MAX - 1).to_be_bytes()[..], &good[27..57], &i32::MAX.to_be_bytes()].concat();
        assert_eq!(
            with(23, &many),
            Err(BatchError::Records(RecordError::Cut { index: 3 })),
            "{codec:?}: 2^31-1 records"
        );
        let few = [&[0, 0, 0, 1][..], &good[27..57], &[0, 0, 0, 2]].concat();
        assert!(
            matches!(with(23, &few), Err(BatchError::Records(RecordError::Trailing { count: 2, .. }))),
            "{codec:?}"
        );
        let garbage = with(HEADER_BYTES, &[0x5a; 20]).unwrap_err();
        assert_eq!(errors::of_batch(&garbage), ErrorCode::InvalidRecord, "{codec:?}: {garbage}");
        let trust = Check::begin(good.clone(), 9, Compressed::Trust).unwrap().step(&mut { Share::TURN }).unwrap();
        assert_eq!(trust.unwrap().batch, good);
    }
    // A batch that decompresses to more than is allowed.
    let mut bomb = BatchBuilder::new(Codec::Zstd);
    bomb.push(1, None, Some(&vec![0; 65 << 20]));
    let error = validate(&bomb.finish(), 9).unwrap_err();
    assert!(matches!(error, BatchError::Unfold(DecompressError::TooLarge { limit: 67_108_864 })), "{error}");
    assert_eq!(errors::of_batch(&error), ErrorCode::MessageTooLarge);
}

#[test]
fn a_large_batch_is_checked_in_turns() {
    let mut builder = BatchBuilder::default();
    builder.push(1, None, Some(&vec![1; 10 << 20]));
    let batch = builder.finish();
    let mut check = Check::begin(batch.clone(), 9, Compressed::Check).unwrap();
    let mut turns = 1;
    let checked = loop {
        match check.step(&mut { Share::TURN }).unwrap() {
            Some(checked) => break checked,
            None => turns += 1,
        }
    };
    assert_eq!(checked, validate(&batch, 9).unwrap());
    assert_eq!(checked.batch.as_ptr(), batch.as_ptr(), "nothing is copied");
    assert_eq!(turns, (10 << 20) / (BYTES_A_TURN * SUMMED_BYTES_PER_BYTE) + 1);
}

#[test]
fn damage_anywhere_is_refused_and_never_panics() {
    let mut rng = fastrand::Rng::with_seed(9);
    for codec in Codec::ALL {
        let good = sample(codec);
        for cut in 0..good.len() {
            assert!(validate(&good.slice(..cut), 9).is_err());
        }
        // The CRC does not cover the base offset (0–7) and the leader epoch (12–15), so these bytes are left out.
        for at in (8..12).chain(16..good.len()) {
            let mut damaged = good.to_vec();
            damaged[at] ^= 1 << rng.u8(..8);
            assert!(validate(&damaged.clone().into(), 9).is_err(), "{codec:?} at {at}");
            // Under a corrected CRC, reading must still not panic.
            if let Ok(header) = BatchHeader::read(&damaged)
                && header.byte_count == damaged.len()
            {
                let sealed = Bytes::from(resealed(damaged));
                let _ = validate(&sealed, 9);
                let _ = find_timestamp(&sealed, 1010, BYTES_MAX);
                if let Ok(records) = Records::open(&sealed, BYTES_MAX) {
                    records.iter().take(1000).for_each(drop);
                }
            }
        }
    }
}

#[test]
fn offset_and_epoch_are_assigned_without_changing_the_records() {
    for codec in Codec::ALL {
        let sent = sample(codec);
        let assigned = Assigned { base_offset: 1 << 40, partition_leader_epoch: 6, log_append_time_ms: None };
        let mut stored = sent.to_vec();
        batch::assign(&mut stored, assigned);
        let header = verify(&stored).unwrap();
        let stored = Bytes::from(stored);
        assert_eq!(validate(&stored, 9), Err(BatchError::BaseOffset { base_offset: 1 << 40 }));
        assert_eq!((header.base_offset, header.partition_leader_epoch), (1 << 40, 6));
        assert_eq!(header.last_offset(), (1 << 40) + 2);
        assert_eq!(stored[16..], sent[16..]);

        let stamped = Assigned { log_append_time_ms: Some(123_456), ..assigned };
        let header_bytes = batch::assigned_header(&sent, stamped);
        let stored = Bytes::from([&header_bytes[..], &sent[HEADER_BYTES..]].concat());
        let header = verify(&stored).unwrap();
        assert!(header.is_log_append_time());
        assert_eq!((header.max_timestamp, header.base_timestamp), (123_456, 1000));
        assert_eq!(header.codec(), Ok(codec));
        let records = Records::open(&stored, BYTES_MAX).unwrap();
        assert!(records.iter().all(|record| record.unwrap().timestamp == 123_456));
        assert_eq!(find_timestamp(&stored, 5, BYTES_MAX), Ok(Some((1 << 40, 123_456))));
        assert_eq!(find_timestamp(&stored, 123_457, BYTES_MAX), Ok(None));
        let set = theirs::RecordBatchDecoder::decode(&mut stored.clone()).unwrap();
        assert_eq!(set.records[0].offset, 1 << 40);
    }
}

#[test]
fn timestamps_are_found() {
    for codec in Codec::ALL {
        let batch = sample(codec);
        let find = |timestamp| find_timestamp(&batch, timestamp, BYTES_MAX).unwrap();
        assert_eq!(find(-1), Some((0, 1000)));
        assert_eq!(find(1000), Some((0, 1000)));
        assert_eq!(find(1001), Some((2, 1020)));
        assert_eq!(find(1020), Some((2, 1020)));
        assert_eq!(find(1021), None);
        assert_eq!(find_max_timestamp(&batch, BYTES_MAX), Ok(Some((2, 1020))));
        if codec != Codec::None {
            assert!(matches!(find_timestamp(&batch, 1001, 100), Err(ReadError::Decompress(_))));
        }
    }
}

#[test]
fn records_without_a_timestamp_are_later_than_none() {
    for codec in Codec::ALL {
        let batch = |timestamps: &[i64]| {
            let mut builder = BatchBuilder::new(codec);
            timestamps.iter().for_each(|timestamp| builder.push(*timestamp, None, None));
            builder.finish()
        };
        let some = batch(&[-1, -7, 5, -1]);
        let none = batch(&[-1, -1]);
        for wanted in [i64::MIN, -8, -7, -1, 0, 5] {
            assert_eq!(find_timestamp(&some, wanted, BYTES_MAX), Ok(Some((2, 5))), "{wanted}");
            assert_eq!(find_timestamp(&none, wanted, BYTES_MAX), Ok(None), "{wanted}");
        }
        assert_eq!(find_max_timestamp(&some, BYTES_MAX), Ok(Some((2, 5))));
        assert_eq!(find_max_timestamp(&none, BYTES_MAX), Ok(None));
    }
}

#[test]
fn a_batchs_timestamps_are_seen() {
    let times = |timestamps: &[i64]| {
        let mut builder = BatchBuilder::default();
        timestamps.iter().for_each(|timestamp| builder.push(*timestamp, None, None));
        validate(&builder.finish(), 9).unwrap().times
    };
    assert_eq!(times(&[5, 3, 9, 4]), Some(Times { oldest: 3, newest: 9 }));
    assert_eq!(times(&[7]), Some(Times { oldest: 7, newest: 7 }));
    assert_eq!(times(&[-1, -1]), None, "no timestamp at all");
    assert_eq!(times(&[-1, 8, -1]), Some(Times { oldest: 8, newest: 8 }));
    assert_eq!(times(&[-2, 8]), Some(Times { oldest: -2, newest: 8 }));
    // If the header's max timestamp differs from the records, it is corrected, as Kafka does.
    for wrong in [i64::MAX, -1, 0] {
        let checked = validate(&patched(35, &wrong.to_be_bytes()).into(), 9).unwrap();
        assert_eq!((checked.times, checked.header.max_timestamp), (Some(Times { oldest: 990, newest: 1020 }), 1020));
        assert_eq!(checked.batch, sample(Codec::None));
        assert_eq!(verify(&checked.batch), Ok(checked.header));
    }
}

#[test]
fn batches_in_a_row_are_walked_without_copying() {
    let mut builder = BatchBuilder::default();
    builder.push(1, None, Some(b"one"));
    let one = builder.clone().finish_at(Assigned { base_offset: 5, ..PLAIN });
    builder.push(2, None, Some(b"two"));
    let two = builder.finish_at(Assigned { base_offset: 6, ..PLAIN });
    let all = Bytes::from([&one[..], &two, &one[..30]].concat());
    let mut walk = Batches::new(all.clone());
    let (header, batch) = walk.next().unwrap().unwrap();
    assert_eq!((header.base_offset, header.next_offset()), (5, 6));
    assert_eq!((batch.as_ptr(), &batch), (all.as_ptr(), &one));
    let (header, batch) = walk.next().unwrap().unwrap();
    assert_eq!((header.base_offset, header.next_offset(), batch), (6, 8, two));
    assert!(matches!(walk.next(), Some(Err(BatchError::Short { have: 30, .. }))));
    assert_eq!(walk.next(), None);
    assert_eq!(walk.rest().chunk(), &one[..30]);
    assert_eq!(Batches::new(Bytes::new()).next(), None);
}

#[test]
fn sequences_wrap() {
    let mut builder = BatchBuilder::default().producer(1, 0, i32::MAX);
    builder.push(0, None, None);
    assert_eq!(validate(&builder.clone().finish(), 3).unwrap().header.last_sequence(), i32::MAX);
    builder.push(0, None, None);
    assert_eq!(validate(&builder.finish(), 3).unwrap().header.last_sequence(), 0);
}

/// One record, value "hello", no key, field by field.
#[test]
fn the_layout_is_kafkas() {
    let mut builder = BatchBuilder::default();
    builder.push(0x0102_0304_0506, None, Some(b"hello"));
    let golden = [
        &[0u8; 8][..],            // base offset
        &[0, 0, 0, 61 - 12 + 12], // length
        &[0xff; 4],               // leader epoch
        &[2],                     // magic
    ]
    .concat();
    let batch = builder.finish();
    assert_eq!(batch[..17], golden);
    let rest = [
        &[0u8, 0][..],             // attributes
        &[0, 0, 0, 0],             // last offset delta
        &[0, 0, 1, 2, 3, 4, 5, 6], // base timestamp
        &[0, 0, 1, 2, 3, 4, 5, 6], // max timestamp
        &[0xff; 8],                // producer id
        &[0xff; 2],                // producer epoch
        &[0xff; 4],                // base sequence
        &[0, 0, 0, 1],             // count
        &[22, 0, 0, 0, 1, 10],     // length 11, attributes, deltas, null key, 5 bytes
        b"hello",
        &[0], // headers
    ]
    .concat();
    assert_eq!(batch[21..], rest);
    assert_eq!(batch[17..21], crc32c::crc32c(&rest).to_be_bytes());
}
