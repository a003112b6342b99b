//! Idempotent producers take memory while the broker remembers them. All partitions' producers together stay within a
//! share of the budget.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use net::client::blocking::Client;
use net::codec::produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef};
use net::errors;
use net::records::build::BatchBuilder;

use support::PATIENCE;
use support::broker::Broker;
use support::cluster::wait_until;
use support::wire;

const TOPIC: &str = "producers";
const PARTITIONS: i64 = 64;
/// Each request has, for each partition, a batch of a different producer.
const REQUESTS: i64 = 160;
/// A sixteenth of 64 MiB, at 688 bytes for each producer.
const REMEMBERED: f64 = 6096.0;

/// Producer `PARTITIONS * request + partition` writes the record with this sequence number. Returns the records'
/// offsets.
fn write(client: &mut Client, request: i64, partitions: std::ops::Range<i64>, sequence: i32) -> Vec<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let batch = |partition: i64| {
        let mut batch = BatchBuilder::default().producer(PARTITIONS * request + partition, 0, sequence);
        // The timestamps have the order of the requests, even within a millisecond.
        batch.push(now - 100_000 + 100 * request, None, Some(b"value"));
        ProducePartition { index: partition as i32, records: Some(batch.finish()) }
    };
    let topic = ProduceTopic { topic: TopicRef::Name(wire::text(TOPIC)), partitions: partitions.map(batch).collect() };
    let timeout_ms = PATIENCE.as_millis() as i32;
    let produce = ProduceRequest { transactional_id: None, acks: -1, timeout_ms, topics: vec![topic] };
    let response = client.produce(produce).expect("Produce is answered");
    let written = response.responses[0].partition_responses.iter().map(|partition| {
        assert_eq!(errors::check(partition.error_code), Ok(()), "{:?}", partition.error_message);
        partition.base_offset
    });
    written.collect()
}

#[test]
fn producers_that_wrote_least_recently_are_forgotten_and_go_on_undisturbed() {
    let mut broker = Broker::start_with(&["--cores", "0", "--set", "memory.budget.bytes=67108864"]);
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, TOPIC, PARTITIONS as i32, 1, &[]).error_code, 0);
    for request in 0..REQUESTS {
        let offsets = write(&mut client, request, 0..PARTITIONS, 0);
        assert!(offsets.iter().all(|offset| *offset == request), "{offsets:?}");
    }
    let remembered = |broker: &Broker| broker.metric("millrace_producers_remembered");
    let all = (PARTITIONS * REQUESTS) as f64;
    wait_until("producers within their share", || {
        let forgotten = broker.metric("millrace_producers_forgotten_total");
        forgotten > 0.0 && remembered(&broker) <= REMEMBERED && remembered(&broker) + forgotten == all
    });
    assert!(remembered(&broker) > REMEMBERED * 0.9, "{} are remembered", remembered(&broker));

    // The broker remembers the last ones: it answers a retry with the record's offset.
    assert_eq!(write(&mut client, REQUESTS - 1, 0..PARTITIONS, 0), vec![REQUESTS - 1; PARTITIONS as usize]);
    // The first ones continue as after an expiry, wherever their partitions are.
    assert_eq!(write(&mut client, 0, 0..2, 1), [REQUESTS, REQUESTS]);
    assert_eq!(write(&mut client, 0, 0..2, 1), [REQUESTS, REQUESTS], "and are known again");
    assert_eq!(write(&mut client, 0, 0..2, 2), [REQUESTS + 1, REQUESTS + 1]);

    // The replayed producers exceed the share, and the broker still serves.
    broker.kill_and_begin();
    let mut client = wire::connect(&broker);
    assert_eq!(write(&mut client, REQUESTS - 1, 2..PARTITIONS, 0), vec![REQUESTS - 1; PARTITIONS as usize - 2]);
    wait_until("producers within their share", || {
        (1.0..=REMEMBERED).contains(&remembered(&broker)) && broker.metric("millrace_producers_forgotten_total") > 0.0
    });
    assert_eq!(write(&mut client, 1, 0..1, 1), [REQUESTS + 2]);
}

#[test]
fn a_start_does_not_bring_back_whom_the_broker_has_forgotten() {
    let mut broker = Broker::start_with(&["--cores", "0", "--set", "memory.budget.bytes=67108864"]);
    let mut client = wire::connect(&broker);
    assert_eq!(wire::create_topic(&mut client, TOPIC, PARTITIONS as i32, 1, &[]).error_code, 0);
    // As many as fit, in a checkpoint.
    (0..95).for_each(|request| drop(write(&mut client, request, 0..PARTITIONS, 0)));
    broker.restart();
    let (remembered, forgotten) = ("millrace_producers_remembered", "millrace_producers_forgotten_total");
    wait_until("producers of the checkpoint", || broker.metric(remembered) == 95.0 * PARTITIONS as f64);
    assert_eq!(broker.metric(forgotten), 0.0);
    // One partition gets more producers. The broker forgets producers of all other partitions, which do not change
    // otherwise.
    let mut client = wire::connect(&broker);
    (95..195).for_each(|request| drop(write(&mut client, request, 0..1, 0)));
    wait_until("producers within their share", || {
        broker.metric(forgotten) > 0.0 && broker.metric(remembered) <= REMEMBERED
    });
    broker.restart();
    wait_until("producers of the checkpoint", || (1.0..=REMEMBERED).contains(&broker.metric(remembered)));
    assert_eq!(broker.metric(forgotten), 0.0, "none that had been forgotten came back");
    let mut client = wire::connect(&broker);
    assert_eq!(write(&mut client, 194, 0..1, 0), [194], "a retry of the last one is known");
    assert_eq!(write(&mut client, 0, 5..6, 1), [95], "the first one goes on");
}
