//! The broker rejects batches that Kafka would not store, with a precise message. Batches that are already stored
//! damaged harm nothing else.

mod support;

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use net::client::blocking::Client;
use net::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use net::messages::{BrokerId, ListOffsetsRequest};
use net::records::batch::{self, HEADER_BYTES};
use net::records::build::BatchBuilder;
use net::records::compression::Codec;
use net::turn::BYTES_A_TURN;

use support::broker::Broker;
use support::{PATIENCE, clients, wire};

const CORRUPT_MESSAGE: i16 = 2;
const MESSAGE_TOO_LARGE: i16 = 10;
const INVALID_TIMESTAMP: i16 = 32;
const INVALID_TXN_STATE: i16 = 48;
const TRANSACTIONAL_ID_AUTHORIZATION_FAILED: i16 = 53;
const INVALID_RECORD: i16 = 87;
const COMPRESSED: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// The first timestamp of the tests' records.
const BEGUN: i64 = 1_700_000_000_000;

/// A batch of three records with other bytes at one position, and a matching CRC.
fn batch(codec: Codec, at: usize, bytes: &[u8]) -> Bytes {
    with(BatchBuilder::new(codec).producer(7, 0, 0), BEGUN, at, bytes)
}

/// The same of three records from this timestamp on, a millisecond each.
fn with(mut builder: BatchBuilder, begun: i64, at: usize, bytes: &[u8]) -> Bytes {
    (0..3).for_each(|n| builder.push(begun + n, None, Some(&[b'x'; 100])));
    let mut batch = BytesMut::from(&builder.finish()[..]);
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = batch::crc(&batch);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch.freeze()
}

/// Sends a batch. Returns the code and the message.
fn send(client: &mut Client, id: Option<&str>, records: Bytes) -> (i16, String) {
    let mut request = wire::produce_request("checked", 0, -1, records);
    request.transactional_id = id.map(wire::text);
    let response = client.produce(request).expect("Produce is answered");
    let answer = &response.responses[0].partition_responses[0];
    (answer.error_code, answer.error_message.as_ref().map(|words| words.to_string()).unwrap_or_default())
}

/// Error, offset and timestamp of the first record with this timestamp or a later one.
fn look_up(client: &mut Client, timestamp: i64) -> (i16, i64) {
    let partition = ListOffsetsPartition::default().with_timestamp(timestamp).with_current_leader_epoch(-1);
    let topic = ListOffsetsTopic::default().with_name(wire::topic_name("checked")).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let response = client.call(request).expect("ListOffsets is answered");
    let found = &response.topics[0].partitions[0];
    (found.error_code, found.offset)
}

#[test]
fn a_batch_that_differs_from_its_header_is_refused_and_not_stored() {
    let broker = Broker::start();
    clients::create_topic(&broker, "checked", 1);
    let mut client = wire::connect(&broker);
    let mut refused = |id: Option<&str>, records: Bytes, code: i16, what: &str| {
        let (found, words) = send(&mut client, id, records);
        assert_eq!(found, code, "{what}: {words}");
        assert!(!words.is_empty(), "{what}");
    };
    for codec in COMPRESSED {
        refused(None, batch(codec, HEADER_BYTES, &[0x5a; 12]), INVALID_RECORD, "garbage");
        let sound = batch(codec, 0, &[]);
        let count = |count: i32| [&(count - 1).to_be_bytes()[..], &sound[27..57], &count.to_be_bytes()].concat();
        refused(None, batch(codec, 23, &count(i32::MAX)), INVALID_RECORD, "2^31-1 records");
        refused(None, batch(codec, 23, &count(2)), INVALID_RECORD, "a record too many");
        let mut bomb = BatchBuilder::new(codec);
        bomb.push(1, None, Some(&vec![0; 65 << 20]));
        let bomb = bomb.finish();
        // If the codec compresses it badly, the broker rejects it for its size.
        refused(None, bomb, MESSAGE_TOO_LARGE, "a bomb");
    }
    let attributes = |bits: u16| batch(Codec::None, 21, &bits.to_be_bytes());
    refused(None, attributes(0x08), INVALID_TIMESTAMP, "LogAppendTime from a producer");
    refused(None, attributes(0x40), INVALID_RECORD, "bit 6");
    refused(None, attributes(0x100), INVALID_RECORD, "bit 8");
    refused(None, attributes(0x20), INVALID_RECORD, "a control batch");
    refused(None, attributes(0x10), TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "a transactional batch without an id");
    refused(Some("tx"), attributes(0x10), INVALID_TXN_STATE, "a transactional batch without a transaction");
    for (codec, first) in COMPRESSED.into_iter().zip([0, 3, 6, 9]) {
        let mut records = BatchBuilder::new(codec);
        (0..3).for_each(|n| records.push(1_700_000_000_000 + n, None, Some(&[b'x'; 100])));
        let answer = wire::produce(&mut client, "checked", 0, records.finish());
        assert_eq!((answer.error_code, answer.base_offset), (0, first), "{codec:?}: nothing of the others was stored");
    }
}

#[test]
fn a_batch_that_was_stored_broken_is_told_of_and_stops_nothing() {
    let broker = Broker::start_with(&["--set", "log.validate.compressed=false"]);
    clients::create_topic(&broker, "checked", 1);
    let mut client = wire::connect(&broker);
    assert_eq!(send(&mut client, None, batch(Codec::Gzip, HEADER_BYTES, &[0x5a; 12])).0, 0);
    for _ in 0..3 {
        assert_eq!(look_up(&mut client, 1_700_000_000_001).0, CORRUPT_MESSAGE);
    }
    assert_eq!((look_up(&mut client, -1), look_up(&mut client, -2)), ((0, 3), (0, 0)));
    let mut behind = BatchBuilder::default();
    behind.push(1_700_000_000_900, None, Some(b"x"));
    assert_eq!(wire::produce(&mut client, "checked", 0, behind.finish()).base_offset, 3);
    assert_eq!(look_up(&mut client, 1_700_000_000_100), (0, 3));
}

#[test]
fn a_lookup_goes_on_behind_a_header_that_promises_later_records_than_there_are() {
    const MAX_TIMESTAMP_AT: usize = 35;
    let broker = Broker::start_with(&["--set", "log.validate.compressed=false"]);
    clients::create_topic(&broker, "checked", 1);
    let mut client = wire::connect(&broker);
    let later = (BEGUN + 1_000).to_be_bytes();
    for begun in [BEGUN, BEGUN + 10] {
        let lying = with(BatchBuilder::new(Codec::Gzip), begun, MAX_TIMESTAMP_AT, &later);
        assert_eq!(send(&mut client, None, lying).0, 0);
    }
    assert_eq!(look_up(&mut client, BEGUN + 100), (0, -1), "no record is so late");
    let honest = with(BatchBuilder::new(Codec::Gzip), BEGUN + 500, 0, &[]);
    assert_eq!(send(&mut client, None, honest).0, 0);
    for (wanted, offset) in [(2, 2), (3, 3), (12, 5), (13, 6), (502, 8), (503, -1), (1_000, -1), (1_001, -1)] {
        assert_eq!(look_up(&mut client, BEGUN + wanted), (0, offset), "{wanted} ms after the first");
    }
}

/// The broker unfolds as much of a batch as a batch may have, to find that it is too much.
#[test]
fn a_broken_batch_is_unfolded_by_one_lookup_and_known_to_the_next() {
    const TOO_MUCH: usize = 65 << 20;
    let broker = Broker::start_with(&["--set", "log.validate.compressed=false"]);
    clients::create_topic(&broker, "checked", 1);
    let mut client = wire::connect(&broker);
    let mut bomb = BatchBuilder::new(Codec::Gzip);
    bomb.push(BEGUN, None, Some(&vec![0; TOO_MUCH]));
    bomb.push(BEGUN + 1, None, Some(b"last"));
    assert_eq!(send(&mut client, None, bomb.finish()).0, 0);
    let turns = || broker.metric("millrace_request_pauses_total") as usize;
    let before = turns();
    assert_eq!(look_up(&mut client, BEGUN + 1).0, CORRUPT_MESSAGE);
    let unfolded = turns();
    assert!(unfolded - before > (64 << 20) / BYTES_A_TURN / 2, "{} turns", unfolded - before);
    for _ in 0..3 {
        assert_eq!(look_up(&mut client, BEGUN + 1).0, CORRUPT_MESSAGE);
    }
    assert_eq!(turns(), unfolded, "no turn was needed to know it");
}

/// Each lookup meets another broken batch.
#[test]
fn lookups_in_broken_batches_are_no_flood_of_lines() {
    const BATCHES: i64 = 20;
    let broker = Broker::start_with(&["--set", "log.validate.compressed=false"]);
    let begun = Instant::now();
    clients::create_topic(&broker, "checked", 1);
    let mut client = wire::connect(&broker);
    for n in 0..BATCHES {
        let broken = with(BatchBuilder::new(Codec::Gzip), BEGUN + 10 * n, HEADER_BYTES, &[0x5a; 12]);
        assert_eq!(send(&mut client, None, broken).0, 0);
        assert_eq!(look_up(&mut client, BEGUN + 10 * n).0, CORRUPT_MESSAGE);
    }
    broker.wait_for_log("a broken batch", |line| line.contains("cannot read a stored batch"));
    let lines = broker.output().lines().filter(|line| line.contains("cannot read a stored batch")).count();
    // The same line about the same partition comes once a minute.
    let allowed = 1 + begun.elapsed().as_secs() as usize / 60;
    assert!(lines <= allowed, "{lines} lines, {allowed} are allowed");
}

#[test]
fn cores_tell_how_long_their_turns_take() {
    let broker = Broker::start();
    let give_up = Instant::now() + PATIENCE;
    while broker.metric("millrace_core_turn_seconds_count") < 10.0 {
        assert!(Instant::now() < give_up, "nobody measures them");
    }
    assert!(broker.metric("millrace_core_turn_longest_microseconds") > 0.0);
    assert!(broker.metric("millrace_core_turn_seconds_sum") > 0.0);
}
