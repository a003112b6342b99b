//! Fetches of partitions on several cores: `min_bytes` and `max_bytes` apply to the whole request, no matter which
//! cores own the partitions.

mod support;

use bytes::Bytes;
use net::{
    client::blocking::Client,
    codec::{
        api::ApiKey,
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        produce::TopicRef,
    },
    messages::{FetchRequest as Fetch, FetchResponse},
    records::batch::Batches,
};
use std::collections::BTreeMap;
use support::{PATIENCE, broker::Broker, wire};

/// Longer than the client waits, so that only bytes can cause the answer.
const FOR_GOOD_MS: i32 = 600_000;
const MIB: i32 = 1 << 20;

struct Limits {
    wait_ms: i32,
    bytes_min: i32,
    bytes_max: i32,
    partition_bytes_max: i32,
}

const ONCE: Limits = Limits { wait_ms: 0, bytes_min: 1, bytes_max: 50 * MIB, partition_bytes_max: MIB };

/// Fetches from these offsets of these partitions, in this order.
fn request(topic: &str, from: impl IntoIterator<Item = (i32, i64)>, limits: &Limits) -> FetchRequest {
    let partition = |(index, offset)| FetchPartition::of_consumer(index, offset, limits.partition_bytes_max);
    let topic =
        FetchTopic { topic: TopicRef::Name(wire::text(topic)), partitions: from.into_iter().map(partition).collect() };
    FetchRequest::of_consumer(limits.wait_ms, limits.bytes_min, limits.bytes_max, vec![topic])
}

/// The records of each partition, by its number.
fn records(response: &FetchResponse) -> BTreeMap<i32, Bytes> {
    assert_eq!(response.error_code, 0);
    let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
    partitions
        .map(|partition| {
            assert_eq!(partition.error_code, 0, "{partition:?}");
            (partition.partition_index, partition.records.clone().unwrap_or_default())
        })
        .collect()
}

fn byte_count(records: &BTreeMap<i32, Bytes>) -> usize {
    records.values().map(Bytes::len).sum()
}

/// Sends a fetch without waiting for its answer.
fn send(client: &mut Client, request: FetchRequest) {
    let version = client.version(ApiKey::Fetch).expect("Fetch is served").min(12);
    client.send(version, &request.into()).expect("sent");
}

fn receive(client: &mut Client) -> BTreeMap<i32, Bytes> {
    let answer = client.receive().expect("there are bytes enough");
    records(&answer.decode::<Fetch>().expect("it decodes"))
}

/// Creates a topic on all cores, with batches of this size in each of its partitions.
fn filled(broker: &Broker, topic: &str, partitions: i32, batches: usize, bytes: usize) -> Client {
    let mut client = wire::connect(broker);
    assert_eq!(wire::create_topic(&mut client, topic, partitions, 1, &[]).error_code, 0);
    for partition in 0..partitions {
        for _ in 0..batches {
            produce(&mut client, topic, partition, bytes);
        }
    }
    client
}

/// Produces one record. Returns the size of the batch.
fn produce(client: &mut Client, topic: &str, partition: i32, bytes: usize) -> usize {
    let batch = wire::batch(&[&vec![b'v'; bytes][..]]);
    assert_eq!(wire::produce(client, topic, partition, batch.clone()).error_code, 0);
    batch.len()
}

#[test]
fn bytes_that_are_ready_are_added_up_over_the_cores() {
    let broker = Broker::start();
    let mut client = filled(&broker, "ready", 16, 4, 8000);
    let all = client.fetch(request("ready", (0..16).map(|p| (p, 0)), &ONCE)).expect("answered");
    let there = byte_count(&records(&all));
    assert!(there > 16 * 4 * 8000);
    for bytes_min in [there / 2, there - 1, there] {
        let limits = Limits { wait_ms: FOR_GOOD_MS, bytes_min: bytes_min as i32, ..ONCE };
        let answer = client.fetch(request("ready", (0..16).map(|p| (p, 0)), &limits)).expect("it need not wait");
        assert_eq!(byte_count(&records(&answer)), there);
    }
}

#[test]
fn bytes_that_arrive_are_added_up_over_the_cores() {
    let broker = Broker::start();
    let (mut client, mut producer) = (filled(&broker, "coming", 8, 1, 1000), wire::connect(&broker));
    // Some partitions have records already, the others have none.
    let from = || (0..8).map(|partition| (partition, i64::from(partition % 4 == 0)));
    let ready = byte_count(&records(&client.fetch(request("coming", from(), &ONCE)).expect("answered")));
    assert!(ready > 0);
    // Produces to one partition, to those of one core, to all of them. The last batch completes `min_bytes`.
    for partitions in [vec![5], vec![0, 2, 4, 6], vec![1, 2, 3, 4, 5, 6, 7]] {
        let before = byte_count(&records(&client.fetch(request("coming", from(), &ONCE)).expect("answered")));
        let size = wire::batch(&[&[b'v'; 700][..]]).len();
        let bytes_min = before + 20 * size;
        let limits = Limits { wait_ms: FOR_GOOD_MS, bytes_min: bytes_min as i32, ..ONCE };
        send(&mut client, request("coming", from(), &limits));
        for n in 0..20 {
            assert_eq!(produce(&mut producer, "coming", partitions[n % partitions.len()], 700), size);
        }
        assert_eq!(byte_count(&receive(&mut client)), bytes_min, "{partitions:?}");
    }
}

/// Reads everything from the beginning, as a consumer does. Returns how many bytes arrived, and how many the broker
/// read for them.
fn drain(broker: &Broker, topic: &str, partitions: i32, bytes_max: i32) -> (usize, f64, f64) {
    let figures = || ["memory", "cold"].map(|of| broker.metric(&format!("millrace_fetch_bytes_{of}_total")));
    let before = figures();
    let mut client = wire::connect(broker);
    // Partitions that returned records move to the end of the list, as consumers do it.
    let mut from: Vec<(i32, i64)> = (0..partitions).map(|partition| (partition, 0)).collect();
    let mut sent = 0;
    loop {
        let answer = client.fetch(request(topic, from.clone(), &Limits { bytes_max, ..ONCE })).expect("answered");
        let records = records(&answer);
        let bytes = byte_count(&records);
        if bytes == 0 {
            break;
        }
        let count = records.values().filter(|records| !records.is_empty()).count();
        assert!(bytes <= bytes_max as usize || count == 1, "{bytes} bytes of {count} partitions");
        sent += bytes;
        let (served, rest): (Vec<_>, Vec<_>) =
            from.into_iter().partition(|(partition, _)| !records[partition].is_empty());
        let next = |(partition, _): (i32, i64)| {
            let last = Batches::new(records[&partition].clone()).last().expect("there is one").expect("it is whole");
            (partition, last.0.next_offset())
        };
        from = rest.into_iter().chain(served.into_iter().map(next)).collect();
    }
    let after = figures();
    (sent, after[0] - before[0], after[1] - before[1])
}

#[test]
fn a_fetch_reads_about_as_much_as_it_returns_from_memory_and_from_the_disk() {
    let mut broker = Broker::start();
    drop(filled(&broker, "amplified", 16, 3, 300_000));
    let there = 16 * 3 * wire::batch(&[&vec![b'v'; 300_000][..]]).len();
    for bytes_max in [MIB, 700_000, 8 * MIB, 100_000] {
        let (sent, hot, cold) = drain(&broker, "amplified", 16, bytes_max);
        assert_eq!((sent, hot + cold), (there, there as f64), "{bytes_max} at once");
    }
    broker.restart();
    for bytes_max in [MIB, 8 * MIB, 100_000] {
        let (sent, hot, cold) = drain(&broker, "amplified", 16, bytes_max);
        assert_eq!(sent, there);
        let read = (hot + cold) / sent as f64;
        assert!(read < 1.3, "{bytes_max} at once: {hot} bytes from memory and {cold} from the disk for {sent}");
    }
}

/// KIP-74: whatever the limits, the first partition with records returns one batch. No other one returns a batch beyond
/// the limits.
fn one_whole_batch_at_most(broker: &Broker) {
    let mut client = wire::connect(broker);
    for order in [vec![0, 1], vec![1, 0], (0..8).collect(), vec![7, 3, 2]] {
        for (bytes_max, partition_bytes_max) in
            [(1, 1), (0, 0), (-1, -1), (MIB, 1), (1, MIB), (1_000_000, 1_000_000), (50 * MIB, 1), (50 * MIB, 32_768)]
        {
            let limits = Limits { wait_ms: FOR_GOOD_MS, bytes_min: 1, bytes_max, partition_bytes_max };
            let answer = client.fetch(request("large", order.iter().map(|p| (*p, 0)), &limits)).expect("answered");
            let served: Vec<i32> =
                records(&answer).into_iter().filter(|(_, records)| !records.is_empty()).map(|(p, _)| p).collect();
            assert_eq!(
                served,
                [order[0]],
                "of {order:?}, max_bytes {bytes_max}, partition_max_bytes {partition_bytes_max}"
            );
        }
        // Once the first partitions are at their ends, the next one has its turn, no matter which core it is on.
        for ended in 1..order.len() {
            let from = order.iter().enumerate().map(|(at, p)| (*p, if at < ended { 2 } else { 0 }));
            let limits = Limits { wait_ms: FOR_GOOD_MS, bytes_min: 1, bytes_max: 1, partition_bytes_max: 1 };
            let answer = client.fetch(request("large", from, &limits)).expect("answered");
            let served: Vec<i32> =
                records(&answer).into_iter().filter(|(_, records)| !records.is_empty()).map(|(p, _)| p).collect();
            assert_eq!(served, [order[ended]], "of {order:?}, of which {ended} have no more");
        }
    }
}

#[test]
fn one_batch_at_most_is_larger_than_the_limits_in_all() {
    let mut broker = Broker::start();
    drop(filled(&broker, "large", 8, 2, 900_000));
    one_whole_batch_at_most(&broker);
    // Now from the disk.
    broker.restart();
    one_whole_batch_at_most(&broker);
}

#[test]
fn a_fetch_that_has_too_little_is_answered_with_that_when_its_time_is_up() {
    let broker = Broker::start();
    let mut client = filled(&broker, "little", 4, 1, 100);
    let limits = Limits { wait_ms: 300, bytes_min: MIB, ..ONCE };
    let answer = client.fetch(request("little", (0..4).map(|p| (p, 0)), &limits)).expect("answered");
    assert_eq!(records(&answer).values().filter(|records| !records.is_empty()).count(), 4);
    assert!(PATIENCE.as_millis() < FOR_GOOD_MS as u128);
}
