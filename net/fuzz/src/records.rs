//! Record batches.

use bytes::Bytes;
use net::records::batch::{self, Assigned, Batches, HEADER_BYTES, Times, assign, validate, verify};
use net::records::record::{Records, find_timestamp};
use net::records::scan::unfolded_bytes_max;
use testkit::allocations;

/// The version of Produce under which batches of every codec are valid.
const PRODUCE_VERSION: i16 = 9;
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;

/// One batch: first as it is, then with the length and the CRC that its bytes have, so that the damage reaches what
/// these two protect.
pub fn records(data: &[u8]) {
    one(&Bytes::copy_from_slice(data));
    if data.len() >= HEADER_BYTES {
        let mut sealed = data.to_vec();
        let length = (data.len() - LENGTH_AT - 4) as i32;
        sealed[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
        let crc = batch::crc(&sealed);
        sealed[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
        one(&sealed.into());
    }
}

fn one(data: &Bytes) {
    walk(data);
    let (checked, allocated) = allocations::during(|| validate(data, PRODUCE_VERSION));
    assert!(allocated <= (2 << 20) + 8 * data.len(), "{allocated} bytes for a batch of {}", data.len());
    let Ok(checked) = checked else {
        // A replica may hold it all the same: other brokers' batches are not checked record by record.
        if let Ok(records) = Records::open(data, unfolded_bytes_max(data.len())) {
            records.iter().for_each(drop);
        }
        return drop(find_timestamp(data, 0, unfolded_bytes_max(data.len())));
    };
    assert_eq!(checked.batch.len(), data.len());
    assert_eq!(verify(&checked.batch).as_ref(), Ok(&checked.header));
    agree(&checked.batch, checked.times);
    let mut stored = checked.batch.to_vec();
    assign(&mut stored, Assigned { base_offset: 77, partition_leader_epoch: 5, log_append_time_ms: Some(123) });
    let header = verify(&stored).expect("assigning keeps a batch valid");
    assert_eq!((header.base_offset, header.partition_leader_epoch, header.max_timestamp), (77, 5, 123));
}

/// Batches one after the other are no longer than the bytes they come from.
fn walk(data: &Bytes) {
    let mut batches = Batches::new(data.clone());
    let used: usize = batches.by_ref().filter_map(Result::ok).map(|(_, batch)| batch.len()).sum();
    assert_eq!(used + batches.rest().len(), data.len());
}

/// The reader of whole records finds what the check of the framing let pass, and the searches find what it reads.
fn agree(batch: &Bytes, times: Option<Times>) {
    let bytes_max = unfolded_bytes_max(batch.len());
    let opened = Records::open(batch, bytes_max).expect("a valid batch can be opened");
    let records: Vec<_> = opened.iter().collect::<Result<_, _>>().expect("a valid batch has valid records");
    assert_eq!(records.len(), opened.header().record_count as usize);
    assert!(records.iter().map(|record| record.offset).eq(0..records.len() as i64));
    assert_eq!(records.iter().fold(None, |times, record| Times::with(times, record.timestamp)), times);
    let first = |wanted: i64| {
        let found = records.iter().find(|record| record.timestamp >= wanted.max(0));
        found.map(|record| (record.offset, record.timestamp))
    };
    for wanted in [opened.header().base_timestamp, opened.header().max_timestamp] {
        assert_eq!(find_timestamp(batch, wanted, bytes_max), Ok(first(wanted)));
    }
}
