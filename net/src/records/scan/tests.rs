//! Walks over batches of every codec and shape. Tests what is rejected, and how much one share covers.

use bytes::Bytes;

use crate::records::batch::{self, BatchHeader};
use crate::records::build::BatchBuilder;
use crate::records::compression::{Codec, DecompressError};
use crate::records::record::{ReadError, RecordError, Searched, TimestampSearch};
use crate::records::scan::{Scan, Step};
use crate::turn::{BYTES_A_TURN, RECORDS_A_TURN, Share};

const BYTES_MAX: usize = 64 << 20;

/// A batch of records with values of these sizes. Every third record has headers.
fn batch(codec: Codec, sizes: &[usize]) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for (n, size) in sizes.iter().enumerate() {
        let value: Vec<u8> = (0..*size).map(|at| (at * n % 251) as u8).collect();
        let headers: &[(&[u8], Option<&[u8]>)] = &[(b"a", Some(b"1")), (b"", None)];
        let headers = if n % 3 == 0 { headers } else { &[] };
        builder.push_with_headers(1_000 + n as i64, Some(&b"k"[..]).filter(|_| n % 2 == 0), Some(&value), headers);
    }
    builder.finish()
}

fn scan(batch: &Bytes, bytes_max: usize) -> Scan {
    Scan::new(batch, &BatchHeader::read(batch).unwrap(), bytes_max).unwrap()
}

/// Returns all records' deltas, and the number of shares that the walk took.
fn walk(batch: &Bytes, share: Share) -> Result<(Vec<(i64, i64)>, usize), ReadError> {
    let mut scan = scan(batch, BYTES_MAX);
    let (mut found, mut shares, mut left) = (Vec::new(), 1, share);
    loop {
        match scan.step(&mut left)? {
            Step::Record { index, timestamp_delta, offset_delta } => {
                assert_eq!(index as usize, found.len());
                found.push((timestamp_delta, offset_delta));
            }
            Step::Pause => (shares, left) = (shares + 1, share),
            Step::End => return Ok((found, shares)),
        }
    }
}

#[test]
fn every_record_is_met_whatever_the_codec_and_the_share() {
    for sizes in [&[0usize][..], &[1; 5_000], &[100_000, 3, 0, 70_000, 1_000_000], &[17_000; 30]] {
        let expected: Vec<(i64, i64)> = (0..sizes.len() as i64).map(|n| (n, n)).collect();
        for codec in Codec::ALL {
            let batch = batch(codec, sizes);
            for share in [
                Share::TURN,
                Share { bytes: 1, entries: 1, records: 1 },
                Share { bytes: usize::MAX, entries: usize::MAX, records: usize::MAX },
            ] {
                let (found, shares) = walk(&batch, share).expect("sound");
                assert!(found == expected, "{codec:?} {share:?}");
                let at_once = share.bytes == usize::MAX;
                assert!(!at_once || shares == 1, "{codec:?}: {shares} shares");
            }
        }
    }
}

#[test]
fn one_share_does_so_much_and_no_more() {
    for codec in Codec::ALL {
        // Many small records: the number of records ends a share.
        let batch_of_many = batch(codec, &[1; 100_000]);
        let mut scan = scan(&batch_of_many, BYTES_MAX);
        let mut share = Share::TURN;
        let mut records = 0;
        while let Step::Record { .. } = scan.step(&mut share).unwrap() {
            records += 1;
        }
        assert!((1..=RECORDS_A_TURN).contains(&records), "{codec:?}: {records}");
        // One record that decompresses to many bytes: the bytes end a share. Only its last piece may exceed the
        // share.
        if codec != Codec::None {
            let (_, shares) = walk(&batch(codec, &[40 << 20]), Share::TURN).unwrap();
            let least = (40 << 20) / (BYTES_A_TURN + (16 << 10));
            assert!(shares >= least, "{codec:?}: {shares} shares, not {least}");
        }
    }
}

#[test]
fn a_batch_that_expands_beyond_the_limit_is_an_error() {
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let batch = batch(codec, &[1 << 20]);
        let mut scan = scan(&batch, 100_000);
        let error = loop {
            match scan.step(&mut { Share::TURN }) {
                Ok(Step::End) => panic!("{codec:?}: it fits"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error, ReadError::Decompress(DecompressError::TooLarge { limit: 100_000 }), "{codec:?}");
    }
}

/// A batch with these bytes as its records and a correct CRC.
fn raw(codec: Codec, count: i32, records: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::default();
    builder.push(0, None, None);
    let mut bytes = bytes::BytesMut::from(&builder.finish()[..batch::HEADER_BYTES]);
    codec.compress(records, &mut bytes);
    let length = (bytes.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[21..23].copy_from_slice(&(codec as i16).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    let crc = batch::crc(&bytes);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}

#[test]
fn records_whose_fields_do_not_fit_are_refused_by_name() {
    use RecordError as E;
    let cases: &[(&str, i32, &[u8], E)] = &[
        ("a key beyond the record", 1, &[12, 0, 0, 0, 40, 1, 0], E::Cut { index: 0 }),
        ("a value beyond the record", 1, &[12, 0, 0, 0, 1, 40, 0], E::Cut { index: 0 }),
        ("a key of length -2", 1, &[12, 0, 0, 0, 3, 1, 0], E::Length { index: 0, length: -2 }),
        ("-1 headers", 1, &[12, 0, 0, 0, 1, 1, 1], E::Length { index: 0, length: -1 }),
        ("more headers than fit", 1, &[16, 0, 0, 0, 1, 1, 4, 0, 0], E::Length { index: 0, length: 2 }),
        ("a null header key", 1, &[16, 0, 0, 0, 1, 1, 2, 1, 1], E::Length { index: 0, length: -1 }),
        ("bytes behind the fields", 1, &[16, 0, 0, 0, 1, 1, 0, 7, 7], E::Inside { index: 0, bytes: 2 }),
        ("a record of no bytes", 1, &[0], E::Cut { index: 0 }),
        (
            "a number without end",
            1,
            &[24, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            E::Varint { index: 0 },
        ),
        ("a negative length", 1, &[1], E::Length { index: 0, length: -1 }),
        ("one record too few", 2, &[12, 0, 0, 0, 1, 1, 0], E::Cut { index: 1 }),
        ("a byte too many", 1, &[12, 0, 0, 0, 1, 1, 0, 9], E::Trailing { count: 1, bytes: 1 }),
        ("nothing", 1, &[], E::Cut { index: 0 }),
    ];
    for (name, count, records, error) in cases {
        for codec in Codec::ALL {
            let batch = raw(codec, *count, records);
            for share in [Share::TURN, Share { bytes: 1, entries: 1, records: 1 }] {
                assert_eq!(walk(&batch, share).map(drop), Err(ReadError::Record(error.clone())), "{name}, {codec:?}");
            }
        }
    }
    assert!(walk(&raw(Codec::None, 1, &[12, 0, 0, 0, 1, 1, 0]), Share::TURN).is_ok());
}

#[test]
fn a_search_that_is_rewound_begins_again_and_finds_the_same() {
    const LITTLE: Share = Share { bytes: 100_000, ..Share::TURN };
    let finish = |search: &mut TimestampSearch| {
        let mut pauses = 0;
        loop {
            match search.step(&mut { LITTLE }).unwrap() {
                Searched::Found(found) => return (found, pauses),
                Searched::Pause => pauses += 1,
            }
        }
    };
    for codec in Codec::ALL {
        let (batch, is_packed) = (batch(codec, &[300_000, 1, 300_000, 1]), codec != Codec::None);
        let search = |wanted| TimestampSearch::new(&batch, wanted, BYTES_MAX).unwrap();
        let whole = finish(&mut search(1_003));
        assert_eq!((whole.0, whole.1 > 0), (Some((3, 1_003)), is_packed), "{codec:?}");
        let mut rewound = search(1_003);
        assert_eq!(rewound.window() > 0, is_packed, "{codec:?}");
        assert_eq!(rewound.step(&mut { LITTLE }) == Ok(Searched::Pause), is_packed, "{codec:?}");
        rewound.rewind();
        assert_eq!(finish(&mut rewound), whole, "{codec:?}: in as many turns");
        assert_eq!(search(1_004).window(), 0, "the header says that the batch ends before");
    }
}

#[test]
fn a_search_stops_at_the_record_it_looks_for() {
    // The first piece holds the record. The rest of the batch would take hundreds of pieces.
    let mut sizes = vec![10usize; 3];
    sizes.push(40 << 20);
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let batch = batch(codec, &sizes);
        let mut search = TimestampSearch::new(&batch, 1_001, BYTES_MAX).unwrap();
        let mut share = Share::TURN;
        assert_eq!(search.step(&mut share), Ok(Searched::Found(Some((1, 1_001)))), "{codec:?}");
        assert!(share.bytes > BYTES_A_TURN / 2, "{codec:?}: {share:?}");
    }
}
