//! Records through a real client (librdkafka) and a real broker process: reads return what was written, byte for byte,
//! before and after a restart.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use net::client::blocking::Client;
use net::records::build::BatchBuilder;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use support::PATIENCE;
use support::broker::Broker;
use support::clients::{self, Record};
use support::cluster::wait_until;
use support::wire;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Records of all shapes: null, empty and long keys and values, repeated and null headers, odd timestamps.
fn mixed_records(count: usize) -> Vec<Record> {
    let record = |i: usize| Record {
        key: [None, Some(Vec::new()), Some(format!("key {i}").into_bytes())][i % 3].clone(),
        value: match i % 7 {
            0 => None,
            1 => Some(Vec::new()),
            n => Some((0..i * n * 3).map(|b| (b * i % 251) as u8).collect()),
        },
        headers: match i % 4 {
            0 => vec![("a".into(), Some(b"1".to_vec())), ("a".into(), Some(b"2".to_vec())), ("b".into(), None)],
            1 => vec![("\u{fc}".into(), Some(Vec::new()))],
            _ => Vec::new(),
        },
        timestamp_ms: 1_700_000_000_000 + (i as i64 * 37) % 1000,
    };
    (0..count).map(record).collect()
}

fn numbered(records: &[Record]) -> Vec<(i64, Record)> {
    records.iter().cloned().enumerate().map(|(offset, record)| (offset as i64, record)).collect()
}

#[test]
fn every_codec_comes_back_byte_for_byte_before_and_after_restarts() {
    let mut broker = Broker::start();
    let records = mixed_records(300);
    for codec in CODECS {
        clients::create_topic(&broker, codec, 2);
        let mut config = clients::config(&broker);
        config.set("compression.codec", codec).set("linger.ms", "5").set("acks", "all");
        let offsets = clients::offsets(clients::produce(&config, codec, 1, &records));
        assert_eq!(offsets, (0..300).collect::<Vec<i64>>(), "{codec}");
    }
    let everything_is_there = |broker: &Broker| {
        for codec in CODECS {
            let config = clients::config(broker);
            assert!(clients::read_from(&config, codec, 1, 0) == numbered(&records), "{codec}");
            assert_eq!(clients::read_from(&config, codec, 0, 0), [], "{codec}: the other partition");
            assert!(
                clients::read_from(&config, codec, 1, 217) == numbered(&records)[217..],
                "{codec}: from the middle"
            );
        }
    };
    everything_is_there(&broker);
    broker.restart();
    everything_is_there(&broker);
    broker.kill();
    broker.begin();
    everything_is_there(&broker);
    broker.stop();
}

#[test]
fn a_batch_larger_than_every_fetch_limit_is_still_returned() {
    let broker = Broker::start_with(&["--set", "wal.ring.bytes=536870912"]);
    clients::try_create_topic(&broker, "large", 1, &[("max.message.bytes", "8000000")]).expect("created");
    let body: Vec<u8> = (0..5_000_000usize).map(|i| (i * i % 253) as u8).collect();
    let mut config = clients::config(&broker);
    config.set("message.max.bytes", "9000000").set("fetch.message.max.bytes", "1000").set("fetch.max.bytes", "9000000");
    let records = [Record::of("before"), Record::of(body), Record::of("after")];
    config.set("linger.ms", "0").set("batch.num.messages", "1");
    clients::offsets(clients::produce(&config, "large", 0, &records));
    assert!(clients::read_from(&config, "large", 0, 0) == numbered(&records));
}

#[test]
fn a_record_above_the_topics_limit_is_refused_and_others_are_not() {
    let broker = Broker::start();
    clients::try_create_topic(&broker, "small", 1, &[("max.message.bytes", "2000")]).expect("created");
    let mut config = clients::config(&broker);
    config.set("linger.ms", "0").set("batch.num.messages", "1");
    let records = [Record::of("a"), Record::of(vec![7; 5000]), Record::of("b")];
    let deliveries = clients::produce(&config, "small", 0, &records);
    assert_eq!(deliveries[0], Ok((0, 0)));
    let refused = deliveries[1].as_ref().expect_err("too large").rdkafka_error_code();
    assert_eq!(refused, Some(RDKafkaErrorCode::MessageSizeTooLarge));
    assert_eq!(deliveries[2], Ok((0, 1)));
    let values: Vec<_> = clients::read_from(&config, "small", 0, 0).into_iter().filter_map(|(_, r)| r.value).collect();
    assert_eq!(values, [b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn an_idempotent_producer_of_each_codec_takes_its_place_behind_the_last() {
    let mut broker = Broker::start();
    clients::create_topic(&broker, "ledger", 1);
    let mut expected = Vec::new();
    for (round, codec) in CODECS.into_iter().enumerate() {
        let mut config = clients::config(&broker);
        config.set("enable.idempotence", "true").set("compression.codec", codec).set("linger.ms", "1");
        let records: Vec<Record> = (0..50).map(|i| Record::of(format!("{codec} {i}"))).collect();
        let offsets = clients::offsets(clients::produce(&config, "ledger", 0, &records));
        let first = round as i64 * 50;
        assert_eq!(offsets, (first..first + 50).collect::<Vec<i64>>());
        expected.extend(records);
        if round % 2 == 0 { broker.restart() } else { broker.kill_and_begin() }
    }
    assert!(clients::read_from(&clients::config(&broker), "ledger", 0, 0) == numbered(&expected));
}

/// The error for a batch that the client has to retry.
const REFUSED_FOR_NOW: i16 = 6; // NOT_LEADER_OR_FOLLOWER

/// Sends one record of an idempotent producer with this sequence number. Returns the error code and the offset.
fn send_as(client: &mut Client, topic: &str, sequence: i32) -> (i16, i64) {
    let mut batch = BatchBuilder::default().producer(7, 0, sequence);
    batch.push(1_700_000_000_000, None, Some(sequence.to_string().as_bytes()));
    let answer = wire::produce(client, topic, 0, batch.finish());
    (answer.error_code, answer.base_offset)
}

#[test]
fn a_new_producer_does_not_begin_behind_a_batch_that_was_refused() {
    const NOT_ENOUGH_REPLICAS: i16 = 19;
    let broker = Broker::start();
    clients::try_create_topic(&broker, "begins", 1, &[("min.insync.replicas", "2")]).expect("created");
    let mut client = wire::connect(&broker);
    assert_eq!(send_as(&mut client, "begins", 0).0, NOT_ENOUGH_REPLICAS);
    assert_eq!(wire::alter_topic(&broker, "begins", "min.insync.replicas", Some("1")).0, 0);
    // The second batch was in flight when the broker rejected the first one. By now, the broker would accept it.
    assert_eq!(send_as(&mut client, "begins", 1).0, REFUSED_FOR_NOW);
    let again = [0, 1, 2].map(|sequence| send_as(&mut client, "begins", sequence));
    assert_eq!(again, [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(broker.metric("millrace_produce_gaps_total"), 1.0);
}

#[test]
fn a_batch_that_comes_before_the_one_it_follows_is_to_be_sent_again() {
    const OUT_OF_ORDER: i16 = 45;
    let broker = Broker::start_with(&["--set", "producer.gap.timeout.ms=1500"]);
    clients::create_topic(&broker, "gaps", 1);
    let mut client = wire::connect(&broker);
    let mut send = |sequence| send_as(&mut client, "gaps", sequence);
    assert_eq!(send(0), (0, 0));
    assert_eq!(send(2).0, REFUSED_FOR_NOW);
    assert_eq!((send(1), send(2)), ((0, 1), (0, 2)), "in order, as a client sends them again");
    assert_eq!(broker.metric("millrace_produce_gaps_total"), 1.0);
    // A gap that stays is a loss. The producer must learn of it.
    assert_eq!(send(9).0, REFUSED_FOR_NOW);
    wait_until("gap that is called one", || send(9).0 == OUT_OF_ORDER);
    assert_eq!(send(3), (0, 3));
}

#[test]
fn offsets_are_found_by_timestamp() {
    let mut broker = Broker::start();
    clients::create_topic(&broker, "times", 1);
    let mut config = clients::config(&broker);
    // Batches of ten records: usually the answer lies within a batch, not at its start.
    config.set("batch.num.messages", "10").set("linger.ms", "5");
    let at = |i: i64| 1_700_000_000_000 + i * 1000;
    let records: Vec<Record> = (0..100).map(|i| Record { timestamp_ms: at(i), ..Record::of(format!("{i}")) }).collect();
    clients::offsets(clients::produce(&config, "times", 0, &records));
    let look_up = |broker: &Broker| {
        let consumer = clients::consumer(&clients::config(broker), "times");
        let found = |timestamp_ms: i64| {
            let list = consumer
                .offsets_for_times(
                    {
                        let mut list = TopicPartitionList::new();
                        list.add_partition_offset("times", 0, Offset::Offset(timestamp_ms)).expect("a timestamp");
                        list
                    },
                    PATIENCE,
                )
                .expect("ListOffsets is answered");
            let partition = &list.elements()[0];
            partition.error().expect("the partition's offset is told");
            partition.offset()
        };
        assert_eq!(found(0), Offset::Offset(0));
        assert_eq!(found(at(0)), Offset::Offset(0));
        for i in [1, 9, 10, 42, 99] {
            assert_eq!(found(at(i)), Offset::Offset(i));
            assert_eq!(found(at(i) - 1), Offset::Offset(i));
        }
        assert_eq!(found(at(99) + 1), Offset::End);
        assert_eq!(consumer.fetch_watermarks("times", 0, PATIENCE).expect("watermarks"), (0, 100));
    };
    look_up(&broker);
    broker.restart();
    look_up(&broker);
}

#[test]
fn a_topic_with_log_append_time_stamps_records_itself() {
    let broker = Broker::start();
    let settings = [("message.timestamp.type", "LogAppendTime")];
    clients::try_create_topic(&broker, "stamped", 1, &settings).expect("created");
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let before_ms = now_ms();
    let config = clients::config(&broker);
    clients::offsets(clients::produce(&config, "stamped", 0, &[Record::of("a"), Record::of("b")]));
    let after_ms = now_ms();
    for (_, record) in clients::read_from(&config, "stamped", 0, 0) {
        assert!((before_ms..=after_ms).contains(&record.timestamp_ms), "{before_ms} {record:?} {after_ms}");
    }
}

#[test]
fn timestamps_far_ahead_of_the_clock_are_refused_and_none_at_all_is_taken() {
    const INVALID_TIMESTAMP: i16 = 32;
    let broker = Broker::start();
    clients::create_topic(&broker, "now", 1);
    let settings = [("message.timestamp.before.max.ms", "60000"), ("message.timestamp.after.max.ms", "120000")];
    clients::try_create_topic(&broker, "narrow", 1, &settings).expect("created");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let mut client = wire::connect(&broker);
    let mut send = |topic: &str, timestamps: &[i64]| {
        let mut batch = BatchBuilder::default();
        timestamps.iter().for_each(|timestamp| batch.push(*timestamp, None, Some(b"x")));
        let answer = wire::produce(&mut client, topic, 0, batch.finish());
        (answer.error_code, answer.error_message.map(|message| message.to_string()).unwrap_or_default())
    };
    for fine in [-1, 0, now, now + 3_500_000] {
        assert_eq!(send("now", &[fine]).0, 0, "{fine}");
    }
    for absurd in [now + 3_700_000, now * 1_000, now * 1_000_000, i64::MAX / 4] {
        let (code, message) = send("now", &[now, absurd, now]);
        assert_eq!(code, INVALID_TIMESTAMP);
        assert!(
            message.contains(&absurd.to_string()) && message.contains("message.timestamp.after.max.ms"),
            "{message}"
        );
    }
    assert_eq!([now, -1, now + 60_000, now - 30_000].map(|fine| send("narrow", &[fine, -1]).0), [0; 4]);
    assert_eq!(send("narrow", &[now - 200_000]).0, INVALID_TIMESTAMP);
    assert_eq!(send("narrow", &[now, now + 240_000]).0, INVALID_TIMESTAMP);
}

#[test]
fn a_waiting_fetch_is_woken_by_the_append() {
    let broker = Broker::start();
    clients::create_topic(&broker, "awaited", 1);
    let (mut producer, mut consumer) = (wire::connect(&broker), wire::connect(&broker));
    // The broker may wait for ten minutes, and the client gives up after one. So only the append can cause the answer.
    let request = wire::fetch_request("awaited", 0, 0, 600_000, 1);
    let version = consumer.version(net::codec::api::ApiKey::Fetch).expect("Fetch is served").min(12);
    consumer.send(version, &request.into()).expect("sent");
    assert_eq!(wire::produce(&mut producer, "awaited", 0, wire::batch(&[b"at last"])).error_code, 0);
    let answer = consumer.receive().expect("the append wakes the fetch");
    let response = answer.decode::<net::messages::FetchRequest>().expect("decodes");
    assert_eq!((response.error_code, response.responses[0].partitions[0].error_code), (0, 0));
    let records = response.responses[0].partitions[0].records.clone().expect("records");
    assert_eq!(records, with_offset(wire::batch(&[b"at last"]), 0, &records));
}

#[test]
fn a_fetch_waits_until_its_least_bytes_are_there() {
    let broker = Broker::start();
    clients::create_topic(&broker, "gathered", 1);
    let (mut producer, mut consumer) = (wire::connect(&broker), wire::connect(&broker));
    let request = wire::fetch_request("gathered", 0, 0, 600_000, 2000);
    let version = consumer.version(net::codec::api::ApiKey::Fetch).expect("Fetch is served").min(12);
    consumer.send(version, &request.into()).expect("sent");
    for value in [&[1u8; 10][..], &[2; 20], &[3; 3000]] {
        assert_eq!(wire::produce(&mut producer, "gathered", 0, wire::batch(&[value])).error_code, 0);
    }
    let answer = consumer.receive().expect("enough bytes wake the fetch");
    let response = answer.decode::<net::messages::FetchRequest>().expect("decodes");
    let partition = &response.responses[0].partitions[0];
    assert_eq!((response.error_code, partition.error_code), (0, 0));
    let batches = net::records::batch::Batches::new(partition.records.clone().expect("records"));
    let offsets: Vec<i64> = batches.map(|batch| batch.expect("whole").0.base_offset).collect();
    assert_eq!(offsets, [0, 1, 2]);
}

#[test]
fn without_acks_the_record_arrives_and_no_answer_comes() {
    let broker = Broker::start();
    clients::create_topic(&broker, "silent", 1);
    let (mut producer, mut consumer) = (wire::connect(&broker), wire::connect(&broker));
    let request = wire::produce_request("silent", 0, 0, wire::batch(&[b"unanswered"]));
    let version = producer.version(net::codec::api::ApiKey::Produce).expect("Produce is served").min(12);
    producer.send(version, &request.into()).expect("sent");
    let response = consumer.fetch(wire::fetch_request("silent", 0, 0, 600_000, 1)).expect("answered");
    let partition = &response.responses[0].partitions[0];
    assert_eq!((response.error_code, partition.error_code), (0, 0));
    assert!(partition.records.as_ref().is_some_and(|records| !records.is_empty()));
    // The next answer on the connection belongs to the next request.
    assert_eq!(wire::produce(&mut producer, "silent", 0, wire::batch(&[b"answered"])).base_offset, 1);
}

/// A batch in its stored form: with the offset, and with the leader epoch that the broker set.
fn with_offset(batch: bytes::Bytes, base_offset: i64, stored: &[u8]) -> bytes::Bytes {
    let mut bytes = batch.to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes[12..16].copy_from_slice(&stored[12..16]);
    bytes.into()
}
